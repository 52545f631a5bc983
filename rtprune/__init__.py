"""RTPrune: shorten DeepSeek-OCR's visual sequence once, between projector and decoder.

>>> import torch
>>> from rtprune import RTPruneConfig, VisualTokens, prune_tokens
>>> embeds = torch.eye(5)                                  # two patches, row break, one patch, separator
>>> is_patch = torch.tensor([True, True, False, True, False])
>>> pruned = prune_tokens(VisualTokens(embeds, is_patch), density=0.1, config=RTPruneConfig(keep_ratio=0.7))
>>> pruned.kept.tolist(), pruned.num_kept_patches, pruned.num_patches
([0, 1, 2, 4], 2, 3)

Names are imported on first use, because ``rtprune.client`` talks to a service and must not import torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtprune.baselines import METHODS
    from rtprune.evidence import Evidence, MissingEvidenceError
    from rtprune.merges import MERGES, merge_pruned
    from rtprune.prune import RTPruneConfig, prune_batch, prune_tokens
    from rtprune.ratio import text_densities, text_density
    from rtprune.tokens import Folds, InvalidPagesError, PrunedTokens, VisualTokens
    from rtprune.transport import transport_plan
else:
    from importlib import import_module

    _MODULES = {
        "MERGES": "merges",
        "METHODS": "baselines",
        "Evidence": "evidence",
        "Folds": "tokens",
        "InvalidPagesError": "tokens",
        "MissingEvidenceError": "evidence",
        "PrunedTokens": "tokens",
        "RTPruneConfig": "prune",
        "VisualTokens": "tokens",
        "merge_pruned": "merges",
        "prune_batch": "prune",
        "prune_tokens": "prune",
        "text_densities": "ratio",
        "text_density": "ratio",
        "transport_plan": "transport",
    }

    def __getattr__(name):  # noqa: ANN001, ANN202 - type checkers see the imports above
        if name in _MODULES.values():
            return import_module(f"rtprune.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'rtprune' has no attribute {name!r}")
        return getattr(import_module(f"rtprune.{_MODULES[name]}"), name)

    def __dir__():  # noqa: ANN202
        return sorted({*globals(), *__all__})


__all__ = [
    "MERGES",
    "METHODS",
    "Evidence",
    "Folds",
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
