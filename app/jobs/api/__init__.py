"""What the API does with jobs: accept, show, watch, cancel; and the worker that it supervises."""
