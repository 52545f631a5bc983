"""RTPrune: shorten DeepSeek-OCR's visual sequence once, between projector and decoder.

>>> import torch
>>> from rtprune import RTPruneConfig, VisualTokens, prune_tokens
>>> embeds = torch.eye(5)                                  # two patches, row break, one patch, separator
>>> is_patch = torch.tensor([True, True, False, True, False])
>>> pruned = prune_tokens(VisualTokens(embeds, is_patch), density=0.1, config=RTPruneConfig(keep_ratio=0.7))
>>> pruned.kept.tolist(), pruned.num_kept_patches, pruned.num_patches
([0, 1, 2, 4], 2, 3)
"""

from rtprune.baselines import METHODS
from rtprune.evidence import Evidence, MissingEvidenceError
from rtprune.merges import MERGES, merge_pruned
from rtprune.prune import RTPruneConfig, prune_batch, prune_tokens
from rtprune.ratio import text_densities, text_density
from rtprune.tokens import InvalidPagesError, PrunedTokens, VisualTokens
from rtprune.transport import transport_plan

__all__ = [
    "MERGES",
    "METHODS",
    "Evidence",
    "InvalidPagesError",
    "MissingEvidenceError",
    "PrunedTokens",
    "RTPruneConfig",
    "VisualTokens",
    "merge_pruned",
    "prune_batch",
    "prune_tokens",
    "text_densities",
    "text_density",
    "transport_plan",
]
