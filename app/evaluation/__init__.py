"""Score the Markdown of any tool against truth: ``rtprune eval``. Imports nothing of the service."""
