"""Continuous batching: pages of many documents share every decode step."""
