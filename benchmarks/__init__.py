"""Benchmarks of speed, accuracy and load. The last line that each prints is one JSON document."""
