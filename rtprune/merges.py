"""Ways to merge pruned tokens into kept ones, to compare with RTPrune's transport."""

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
"""A function that merges tokens: (M, D) kept and (P, D) pruned patch tokens, float64 -> (M, D), what to add
to the kept ones before it is weighted.
"""


def nothing(kept: Tensor, pruned: Tensor) -> Tensor:  # noqa: ARG001 - the signature of all
    """Drop pruned tokens: return zeros."""
    return torch.zeros_like(kept)


def argmax_mean(kept: Tensor, pruned: Tensor) -> Tensor:
    """Assign each pruned token to the kept one of largest cosine; each kept one gains the mean of its own
    (VisionZip's way).
    """
    return means(pruned, (unit_rows(pruned) @ unit_rows(kept).T).argmax(1), len(kept))


def nearest_mean(kept: Tensor, pruned: Tensor) -> Tensor:
    """Assign each pruned token to the kept one at the smallest Euclidean distance; each kept one gains the
    mean of its own (SparseVLM's way).
    """
    return means(pruned, torch.cdist(pruned, kept).argmin(1), len(kept))


def graph(kept: Tensor, pruned: Tensor) -> Tensor:
    """Spread pruned tokens along a graph (GTP-ViT's way).

    Edges are positive cosines, divided by the square root of the product of both ends' degrees.
    """
    edges = (unit_rows(kept) @ unit_rows(pruned).T).clamp(min=0)  # (M, P)
    degrees = edges.sum(1, keepdim=True) * edges.sum(0, keepdim=True)
    return edges / degrees.clamp(min=SMALLEST).sqrt() @ pruned


def transport(kept: Tensor, pruned: Tensor) -> Tensor:
    """Merge by the entropic transport plan with dustbins (RTPrune's way)."""
    return transport_plan(unit_rows(kept) @ unit_rows(pruned).T).double() @ pruned


MERGES: Mapping[str, Merge] = {
    "none": nothing,
    "argmax_mean": argmax_mean,
    "sparsevlm": nearest_mean,
    "gtp": graph,
    "transport": transport,
}
"""The merges by the names that benchmarks and reports use."""


@torch.no_grad()
def merge_pruned(tokens: VisualTokens, pruned: PrunedTokens, merge: Merge) -> PrunedTokens:
    """Merge the patch tokens that ``pruned`` dropped from ``tokens`` into those it kept: kept += 0.1 * merge.

    Row breaks and the separator neither give nor receive. A page that lost no patch is returned unchanged.
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
