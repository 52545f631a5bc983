"""What becomes of pruned tokens: ways to merge them into kept ones, to compare with RTPrune's transport."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rtprune.evidence import unit_rows
from rtprune.prune import FOLD_WEIGHT
from rtprune.rivals import SMALLEST, means
from rtprune.tokens import PrunedTokens, VisualTokens
from rtprune.transport import transport_plan

Merge = Callable[[Tensor, Tensor], Tensor]
"""(M, D) kept and (P, D) pruned patch tokens, float64 -> (M, D) what the kept ones gain, before weighing."""


def nothing(kept: Tensor, pruned: Tensor) -> Tensor:  # noqa: ARG001 - the signature of all
    """Pruned tokens are gone."""
    return torch.zeros_like(kept)


def argmax_mean(kept: Tensor, pruned: Tensor) -> Tensor:
    """Each pruned token goes to the kept one of largest cosine, which gains their mean (VisionZip's way)."""
    return means(pruned, (unit_rows(pruned) @ unit_rows(kept).T).argmax(1), len(kept))


def nearest_mean(kept: Tensor, pruned: Tensor) -> Tensor:
    """The same by Euclidean distance (SparseVLM's way)."""
    return means(pruned, torch.cdist(pruned, kept).argmin(1), len(kept))


def graph(kept: Tensor, pruned: Tensor) -> Tensor:
    """Spread along a graph whose edges are positive cosines, divided by both ends' degrees (as GTP-ViT's)."""
    edges = (unit_rows(kept) @ unit_rows(pruned).T).clamp(min=0)  # (M, P)
    degrees = edges.sum(1, keepdim=True) * edges.sum(0, keepdim=True)
    return edges / degrees.clamp(min=SMALLEST).sqrt() @ pruned


def transport(kept: Tensor, pruned: Tensor) -> Tensor:
    """RTPrune's: by the entropic plan with dustbins."""
    return transport_plan(unit_rows(kept) @ unit_rows(pruned).T).double() @ pruned


MERGES: Mapping[str, Merge] = {
    "none": nothing,
    "argmax_mean": argmax_mean,
    "sparsevlm": nearest_mean,
    "gtp": graph,
    "transport": transport,
}
"""Name -> merge, as benchmarks and reports spell it."""


@torch.no_grad()
def merge_pruned(tokens: VisualTokens, pruned: PrunedTokens, merge: Merge) -> PrunedTokens:
    """Merge what ``pruned`` dropped of ``tokens`` into what it kept: kept += 0.1 * merge.

    Row breaks and the separator neither give nor receive. Nothing changes where nothing was dropped.
    """
    is_patch = tokens.is_patch.to(pruned.kept.device)
    is_dropped = is_patch.clone()
    is_dropped[pruned.kept] = False
    if not is_dropped.any():
        return pruned
    receives = is_patch[pruned.kept]
    kept = pruned.embeds[receives].double()
    embeds = pruned.embeds.clone()
    gained = merge(kept, tokens.embeds[is_dropped].double())
    embeds[receives] = (kept + FOLD_WEIGHT * gained).to(embeds.dtype)
    return replace(pruned, embeds=embeds)
