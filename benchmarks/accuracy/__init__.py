"""Accuracy of a checkpoint: rendered and real pages, blank ones, peers, and the cost of pruning."""
