"""Files to page images, in guarded child processes."""
