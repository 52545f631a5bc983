"""The API's side of jobs: accept, show, watch, cancel; and the worker that it supervises."""
