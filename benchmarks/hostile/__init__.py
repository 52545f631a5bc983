"""Measure what strangers can do to the service: ``python -m benchmarks.hostile``."""
