"""How well a checkpoint reads: rendered and real pages, blank ones, the peers, and the cost of pruning."""
