"""Pruning methods to compare RTPrune with. All have one signature and a name in ``METHODS``; one contract
test checks them all.

To add a method, write its ranking in ``rtprune/rivals.py`` and add a row to the table.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rtprune import rivals
from rtprune.evidence import NO_EVIDENCE, Evidence, Patches
from rtprune.prune import DYNAMIC, RTPruneConfig, prune_page, prune_tokens, token_norms
from rtprune.tokens import PrunedTokens, TokenBatch, VisualTokens


class Method(Protocol):
    """A method that prunes one page."""

    def __call__(
        self,
        tokens: VisualTokens,
        density: float,
        config: RTPruneConfig = DYNAMIC,
        evidence: Evidence = NO_EVIDENCE,
    ) -> PrunedTokens:
        """Prune one page, keeping as many patch tokens as ``prune_tokens`` keeps of it.

        Raise what ``prune_tokens`` raises. Raise ``MissingEvidenceError`` when the method needs evidence that
        was not given.
        """


Choice = Callable[[Patches, Evidence], Tensor]
"""A function that scores one page's N patches: returns (N,) scores, of which the highest are kept."""
Rewriting = Callable[[Patches, Evidence, Tensor], Tensor]
"""A function that replaces embeddings of kept patches: patches, evidence, (k,) positions of the kept ones
among the patches -> (k, D).
"""


def select_by_norm(
    tokens: VisualTokens,
    density: float,
    config: RTPruneConfig = DYNAMIC,
    evidence: Evidence = NO_EVIDENCE,  # noqa: ARG001 - the signature of all
) -> PrunedTokens:
    """Keep the tokens of largest norm; fold nothing into them.

    This is RTPrune's first reading alone, an ablation in the paper.
    """
    return prune_page(tokens, density, config, rank=token_norms, fold=False)


def select_at_random(
    tokens: VisualTokens,
    density: float,
    config: RTPruneConfig = DYNAMIC,
    evidence: Evidence = NO_EVIDENCE,  # noqa: ARG001 - the signature of all
    *,
    seed: int = 0,
) -> PrunedTokens:
    """Keep a uniformly random choice of patches.

    The choice is the same for the same ``seed`` and length on every device.
    """

    def rank(batch: TokenBatch, num_kept: Tensor) -> Tensor:  # noqa: ARG001 - a ranking's signature
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(batch.norms.shape, generator=generator, device="cpu", dtype=torch.float64)
        return scores.to(batch.norms.device)

    return prune_page(tokens, density, config, rank=rank, fold=False)


def _rtprune(
    tokens: VisualTokens,
    density: float,
    config: RTPruneConfig = DYNAMIC,
    evidence: Evidence = NO_EVIDENCE,  # noqa: ARG001 - the signature of all
) -> PrunedTokens:
    return prune_tokens(tokens, density, config)


def _method(choose: Choice, rewrite: Rewriting | None = None) -> Method:
    def prune(
        tokens: VisualTokens,
        density: float,
        config: RTPruneConfig = DYNAMIC,
        evidence: Evidence = NO_EVIDENCE,
    ) -> PrunedTokens:
        def rank(batch: TokenBatch, num_kept: Tensor) -> Tensor:
            scores = torch.full_like(batch.norms, -torch.inf)
            patches = Patches.of_batch(batch, num_kept)
            if len(patches) and batch.norms.isfinite().all():  # else prune_pages reports an error
                scores[batch.is_patch] = choose(patches, evidence)
            return scores

        pruned = prune_page(tokens, density, config, rank=rank, fold=False)
        return pruned if rewrite is None else _rewritten(tokens, pruned, evidence, rewrite)

    return prune


@torch.no_grad()
def _rewritten(
    tokens: VisualTokens, pruned: PrunedTokens, evidence: Evidence, rewrite: Rewriting
) -> PrunedTokens:
    if pruned.num_kept_patches == pruned.num_patches:
        return pruned
    is_patch = tokens.is_patch.to(pruned.kept.device)
    receives = is_patch[pruned.kept]
    place = is_patch.cumsum(0) - 1  # number of each patch token among the patch tokens
    patches = Patches.of(tokens, pruned.num_kept_patches)
    embeds = pruned.embeds.clone()
    embeds[receives] = rewrite(patches, evidence, place[pruned.kept[receives]]).to(embeds.dtype)
    return replace(pruned, embeds=embeds)


def _blind(choose: Callable[[Patches], Tensor]) -> Choice:
    return lambda patches, _: choose(patches)


METHODS: Mapping[str, Method] = {
    "rtprune": _rtprune,
    "norm": select_by_norm,
    "random": select_at_random,
    "uniform": _method(_blind(rivals.uniform)),
    "checkerboard": _method(_blind(rivals.checkerboard)),
    "row_pooling": _method(_blind(rivals.row_pooling), lambda patches, _, kept: rivals.pooled(patches, kept)),
    "ink": _method(rivals.ink),
    "divprune": _method(_blind(rivals.divprune)),
    "cdpruner": _method(rivals.cdpruner),
    "fastervlm": _method(rivals.fastervlm),
    "visionzip": _method(rivals.visionzip, rivals.visionzip_rows),
    "vispruner": _method(rivals.vispruner),
    "nuewa": _method(rivals.nuewa, rivals.nuewa_rows),
    "oracle": _method(rivals.oracle),
    "trained": _method(rivals.trained),
}
"""The methods by the names that benchmarks and reports use."""
