"""Methods to compare with: the signature of ``prune_tokens``, a name in ``METHODS``, one test for all.

A new one needs a ranking (pages -> scores, the highest are kept) and its row in the table.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rtprune.prune import DYNAMIC, RTPruneConfig, prune_page, prune_tokens, token_norms
from rtprune.tokens import PrunedTokens, TokenBatch, VisualTokens

Method = Callable[[VisualTokens, float, RTPruneConfig], PrunedTokens]


def select_by_norm(tokens: VisualTokens, density: float, config: RTPruneConfig = DYNAMIC) -> PrunedTokens:
    """RTPrune's first reading alone: the tokens of largest norm, nothing folded in (the paper's ablation)."""
    return prune_page(tokens, density, config, rank=token_norms, fold=False)


def select_at_random(
    tokens: VisualTokens, density: float, config: RTPruneConfig = DYNAMIC, *, seed: int = 0
) -> PrunedTokens:
    """A uniform choice, the same for the same ``seed`` and length on every device."""

    def rank(batch: TokenBatch) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(batch.norms.shape, generator=generator, device="cpu", dtype=torch.float64)
        return scores.to(batch.norms.device)

    return prune_page(tokens, density, config, rank=rank, fold=False)


def select_diverse(tokens: VisualTokens, density: float, config: RTPruneConfig = DYNAMIC) -> PrunedTokens:
    """Greedy max-min diversity by cosine distance, after DivPrune (CVPR 2025): the farthest token next.

    Starts at the token farthest from its nearest neighbour. One step a patch token: to compare, not to serve.
    """
    return prune_page(tokens, density, config, rank=_farthest_first, fold=False)


def _farthest_first(batch: TokenBatch) -> Tensor:
    scores = torch.full_like(batch.norms, -torch.inf)
    patches = batch.is_patch[0].nonzero()[:, 0]  # (N,)
    if len(patches) == 0:
        return scores  # reported as an error by the frame
    norms = batch.norms[0, patches].clamp(min=torch.finfo(torch.float64).tiny)
    units = batch.parts[0].embeds[0, patches].double() / norms[:, None]  # (N, D)
    distances = (1 - units @ units.T).fill_diagonal_(torch.inf)
    newest = distances.amin(1).argmax()
    nearest = torch.full_like(norms, torch.inf)  # of each token, to those taken; -inf once taken itself
    for step in range(len(patches)):
        scores[0, patches[newest]] = -step
        nearest = torch.minimum(nearest, distances[newest])
        nearest[newest] = -torch.inf
        newest = nearest.argmax()
    return scores


METHODS: Mapping[str, Method] = {
    "rtprune": prune_tokens,
    "norm": select_by_norm,
    "random": select_at_random,
    "diverse": select_diverse,
}
"""Name -> method, as benchmarks and reports spell it."""
