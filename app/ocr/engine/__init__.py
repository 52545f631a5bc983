"""Continuous batching: many pages of many documents, one decode step for all."""
