"""Rules by which tokens leave inside the decoder: FastV, PyramidDrop, SparseVLM, DART, FastAV's first cut.

Each keeps RTPrune's count of a view on average over the layers, so that caches have one size.
"""

from collections.abc import Callable, Mapping

import torch

from benchmarks.pruners.inside.layers import Rule, Seen
from rtprune.evidence import highest, unit_rows

SHALLOW = 1
"""Layers before FastV and DART drop tokens: 1 of 3 here. They themselves use 2 of 32, because there the first
layer alone is too shallow to guide the choice.
"""
PIVOTS = 4
"""DART's pivots among the patches, and as many among the text tokens."""
ROLLOUT_WEIGHT = 0.5
"""Weight of attention beside the residual connection in a rollout; FastAV does not publish its own."""

Counts = Callable[[int, float, int], list[float]]
"""Patches in each layer: of (number of patches, number wanted on average, number of layers)."""
Rank = Callable[[Seen], torch.Tensor]
"""(B, T) scores; the candidates with the highest stay."""


def after(first: int, num_patches: int, wanted: float, num_layers: int) -> list[float]:
    """Keep all patches in the ``first`` layers and one smaller number in every later one."""
    later = (num_layers * wanted - first * num_patches) / max(1, num_layers - first)
    return [float(num_patches)] * first + [max(1.0, later)] * (num_layers - first)


def after_shallow_layers(num_patches: int, wanted: float, num_layers: int) -> list[float]:
    """Drop once, after the ``SHALLOW`` layers."""
    return after(SHALLOW, num_patches, wanted, num_layers)


def after_half(num_patches: int, wanted: float, num_layers: int) -> list[float]:
    """Drop once, after half of the layers."""
    return after(num_layers // 2, num_patches, wanted, num_layers)


def evenly_fewer(num_patches: int, wanted: float, num_layers: int) -> list[float]:
    """Keep all patches in the first layer and drop the same number before each later layer."""
    drop = 2 * (num_patches - wanted) / max(1, num_layers - 1)
    return [max(1.0, num_patches - drop * layer) for layer in range(num_layers)]


def counts_of(counts: Counts, seen: Seen) -> torch.Tensor:
    """Return the patches of each view that may enter the layer. (B,) int64."""
    wanted = seen.prompts.wanted.tolist()
    num_patches = seen.prompts.num_patches
    layers = [counts(num_patches, one, seen.num_layers)[seen.layer] for one in wanted]
    return torch.tensor(layers, device=seen.candidates.device).round().long()


def best(scores: torch.Tensor, candidates: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mark the highest candidates of each row; of equal ones the earlier. (B, T), (B, T), (B,) -> (B, T)."""
    order = scores.double().masked_fill(~candidates, -torch.inf).sort(dim=1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(candidates).scatter(1, order.indices, chosen) & candidates


def by_rank(counts: Counts, rank: Rank) -> Rule:
    """Make a rule that keeps so many of the highest rank."""
    return lambda seen: best(rank(seen), seen.candidates, counts_of(counts, seen))


def last_token_looks(seen: Seen) -> torch.Tensor:
    """Rank by the attention of the last prompt token in the layer below, mean over heads."""
    return seen.shares[-1].mean(1)[:, -1]


def raters_look(seen: Seen) -> torch.Tensor:
    """Rank by the attention of the text tokens that are most like the page (SparseVLM)."""
    raters = seen.prompts.raters
    shares = seen.shares[-1].mean(1)  # (B, T, T)
    return (shares * raters[..., None]).sum(1) / raters.sum(1, keepdim=True)


def rollout(seen: Seen) -> torch.Tensor:
    """Rank by the attention that reaches a token over all layers so far: sums of columns of the rollout."""
    mixed: torch.Tensor | None = None
    for shares in seen.shares:
        whole = shares.mean(1).double()  # (B, T, T)
        eye = torch.eye(whole.shape[1], dtype=whole.dtype, device=whole.device)
        layer = ROLLOUT_WEIGHT * whole + (1 - ROLLOUT_WEIGHT) * eye
        mixed = layer if mixed is None else layer @ mixed
    if mixed is None:
        raise ValueError("a rollout needs a layer below")
    return mixed.sum(1)


def dart(seen: Seen) -> torch.Tensor:
    """Keep pivots of large keys and the patches that are least like them, once (DART)."""
    if seen.layer != SHALLOW:
        return seen.candidates
    sizes = seen.keys[-1].double().abs().sum(dim=(1, 3))  # (B, T): L1 norm over all heads
    stays = torch.zeros_like(seen.candidates)
    text = seen.prompts.is_text.nonzero()[:, 0]
    for row, count in enumerate(counts_of(after_shallow_layers, seen).tolist()):
        patches = seen.candidates[row].nonzero()[:, 0]
        stays[row, dart_choice(sizes[row], seen.hidden[row].double(), patches, text, count)] = True
    return stays


def dart_choice(
    sizes: torch.Tensor, states: torch.Tensor, patches: torch.Tensor, text: torch.Tensor, count: int
) -> torch.Tensor:
    """Choose ``count`` of ``patches``: first ``PIVOTS`` of largest size, then for one pivot after another,
    patches before text, those of smallest cosine to it.

    ``sizes``: (T,). ``states``: (T, D). ``patches``, ``text``: positions. What does not divide evenly goes to
    the first pivots.
    """
    of_patches = patches[highest(sizes[patches], min(PIVOTS, count))]
    pivots = torch.cat((of_patches, text[highest(sizes[text], PIVOTS)]))
    units = unit_rows(states)
    is_free = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    is_free[patches] = True
    is_free[of_patches] = False
    chosen = [of_patches]
    each, rest = divmod(count - len(of_patches), len(pivots))
    for number, pivot in enumerate(pivots):
        free = is_free.nonzero()[:, 0]
        taken = free[highest(-(units[free] @ units[pivot]), each + (number < rest))]
        is_free[taken] = False
        chosen.append(taken)
    return torch.cat(chosen)


RULES: Mapping[str, Rule] = {
    "fastv": by_rank(after_shallow_layers, last_token_looks),
    "pyramiddrop": by_rank(evenly_fewer, last_token_looks),
    # recycles no tokens, as in SparseVLM's second version
    "sparsevlm": by_rank(evenly_fewer, raters_look),
    "dart": dart,
    "fastav": by_rank(after_half, rollout),
}
"""Rules that need no fit. FastAV's is its first cut alone: its later ones are FastV's at ratios that are not
published.
"""
