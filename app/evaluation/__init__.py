"""Scores Markdown of any tool against truth: ``rtprune eval``. Knows nothing of the service."""
