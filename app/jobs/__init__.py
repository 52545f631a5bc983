"""Durable jobs: accepted documents, the queue of their pages, and the workers that read them."""
