"""What strangers can do to the service, measured: ``python -m benchmarks.hostile``."""
