"""Prune a page: choose how many patch tokens to keep, keep those of largest norm, fold the rest into them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rtprune.precision import product, product_dtype, without_autocast
from rtprune.ratio import count_kept, diversities, keep_ratio
from rtprune.tokens import (
    BatchPart,
    Folds,
    InvalidPagesError,
    PrunedTokens,
    TokenBatch,
    VisualTokens,
    layout_problem,
    surviving,
)
from rtprune.transport import Solver, padded_plan

FOLD_WEIGHT = 0.1
Ranking = Callable[[TokenBatch, Tensor], Tensor]
"""A function that scores tokens: a batch and the (B,) numbers of patch tokens to keep -> (B, L) scores on the
batch's device. The highest scores are kept.
"""


@dataclass(frozen=True, slots=True)
class RTPruneConfig:
    """Settings of RTPrune.

    ``keep_ratio``: share of patch tokens to keep, in (0, 1]; ``None``: chosen for each page (dynamic).

    ``solver``: "sinkhorn" is our own. "pot" cross-checks it by POT: same answer, slower.

    ``trace``: also record where each pruned patch token went (``PrunedTokens.folds``).
    """

    keep_ratio: float | None = None
    solver: Solver = "sinkhorn"
    trace: bool = False

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver must be one of {get_args(Solver)}, got {self.solver!r}")


DYNAMIC = RTPruneConfig()


def prune_tokens(tokens: VisualTokens, density: float, config: RTPruneConfig = DYNAMIC) -> PrunedTokens:
    """Prune one page of ``density`` in [0, 1] (see ``text_density``; unused when the ratio is fixed).

    The method is RTPrune, arXiv 2605.00392. Inputs are not changed. The result has their dtype and device,
    and no gradient. Waits for the device once.

    Raise ``ValueError`` for a density out of range, tokens that are not finite, or a wrong layout.
    """
    return prune_page(tokens, density, config, rank=token_norms, fold=True)


def prune_batch(
    tokens: Sequence[VisualTokens], densities: Sequence[float] | Tensor, config: RTPruneConfig = DYNAMIC
) -> list[PrunedTokens]:
    """Prune pages of any lengths in one padded batch. Each page gets the result of ``prune_tokens``.

    ``densities``: one float a page, or a (B,) tensor, best on the tokens' device (see ``text_densities``).
    Waits for the device once, however many pages there are.

    Raise ``InvalidPagesError``, a ``ValueError`` whose ``indices`` name the bad pages, so that the others can
    be tried again. Raise ``ValueError`` when the pages do not make one batch.
    """
    return prune_pages(tokens, densities, config, rank=token_norms, fold=True)


def token_norms(batch: TokenBatch, num_kept: Tensor) -> Tensor:  # noqa: ARG001 - a ranking's signature
    return batch.norms


def prune_page(
    tokens: VisualTokens, density: float, config: RTPruneConfig, *, rank: Ranking, fold: bool
) -> PrunedTokens:
    """Prune one page by ``prune_pages``; its errors name no page index."""
    try:
        return prune_pages([tokens], [density], config, rank=rank, fold=fold)[0]
    except InvalidPagesError as error:
        raise ValueError(error.reasons[0]) from None


@torch.no_grad()
def prune_pages(
    tokens: Sequence[VisualTokens],
    densities: Sequence[float] | Tensor,
    config: RTPruneConfig,
    *,
    rank: Ranking,
    fold: bool,
) -> list[PrunedTokens]:
    """Choose the ratio, select patches by ``rank``, and fold the others in if ``fold``; for every method."""
    if len(densities) != len(tokens):
        raise ValueError(f"densities must be one a page: got {len(densities)} for {len(tokens)} pages")
    if not tokens:
        return []
    batch = TokenBatch.of(tokens)
    with without_autocast(batch.norms.device):
        ratios = _choose_ratios(batch, densities, config)
        num_kept = count_kept(batch.is_patch.sum(1), ratios.keep_ratio)
        selection = _select(batch, rank(batch, num_kept), num_kept)
        facts = _read_facts(batch, ratios, selection)
        return [
            pruned
            for part in batch.parts
            for pruned in _apply(batch, part, selection, facts[part.pages], config if fold else None)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Ratios:
    """Ratios of the pages, (B,) float64 each; ``diversity`` is ``None`` when the ratio is fixed."""

    density: Tensor
    diversity: Tensor | None
    keep_ratio: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Selection:
    """Which tokens of each page stay.

    ``order``: (B, L) int64 positions: tokens that stay, then pruned patches, then all others, each group in
    page order. The counts are (B,) int64: ``num_tokens`` that stay, and ``num_kept`` patches among them out
    of ``num_patches``.
    """

    order: Tensor
    num_tokens: Tensor
    num_kept: Tensor
    num_patches: Tensor


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the host must know about one page before work on the device can go on."""

    num_patches: int
    num_kept_patches: int
    num_kept_tokens: int
    keep_ratio: float
    diversity: float | None

    @property
    def num_pruned(self) -> int:
        return self.num_patches - self.num_kept_patches


def _choose_ratios(batch: TokenBatch, densities: Sequence[float] | Tensor, config: RTPruneConfig) -> _Ratios:
    device = batch.norms.device
    given = densities if isinstance(densities, Tensor) else torch.tensor(densities, dtype=torch.float64)
    if given.shape != batch.norms.shape[:1]:
        raise ValueError(f"densities must be ({len(batch.lengths)},), got {tuple(given.shape)}")
    density = given.to(device, torch.float64, non_blocking=True)
    if config.keep_ratio is not None:
        return _Ratios(density, None, torch.full_like(density, config.keep_ratio))
    diversity = diversities(batch)
    return _Ratios(density, diversity, keep_ratio(density, diversity))


def _select(batch: TokenBatch, scores: Tensor, num_kept: Tensor) -> _Selection:
    # stable: of equal scores the earlier token wins
    ranked = scores.masked_fill(~batch.is_patch, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    chosen = torch.arange(ranked.shape[1], device=ranked.device) < num_kept[:, None]
    kept_patches = torch.zeros_like(batch.is_patch).scatter(1, ranked, chosen) & batch.is_patch  # (B, L)
    kept = surviving(kept_patches, batch)
    # a stable sort moves kept tokens to the front in page order; nonzero() would wait for the device
    order = torch.where(batch.is_patch, 1, 2).masked_fill_(kept, 0).sort(dim=1, stable=True).indices
    return _Selection(order, kept.sum(1), num_kept, batch.is_patch.sum(1))


def _read_facts(batch: TokenBatch, ratios: _Ratios, selection: _Selection) -> list[_Facts]:
    """Read the facts of all pages from the device. This is the only place that waits for the device.

    Raise ``InvalidPagesError``.
    """
    ends = (batch.is_real.sum(1, keepdim=True) - 1).clamp(min=0)
    columns = [
        batch.is_patch.gather(1, ends)[:, 0],
        batch.norms.isfinite().all(1),  # a norm is finite if its whole token is
        ratios.density,
        selection.num_patches,
        selection.num_kept,
        selection.num_tokens,
        ratios.keep_ratio,
        ratios.keep_ratio if ratios.diversity is None else ratios.diversity,
    ]
    rows = read_to_host(torch.stack([column.double() for column in columns], dim=1))
    problems = {index: _problem(*row[:4]) for index, row in enumerate(rows)}
    reasons = {index: problem for index, problem in problems.items() if problem is not None}
    if reasons:
        raise InvalidPagesError(reasons)
    dynamic = ratios.diversity is not None
    return [
        _Facts(int(n), int(m), int(k), ratio, div if dynamic else None)
        for _, _, _, n, m, k, ratio, div in rows
    ]


def read_to_host(table: Tensor) -> list[list[float]]:
    rows: list[list[float]] = table.tolist()
    return rows


def _problem(ends_in_patch: float, finite: float, density: float, num_patches: float) -> str | None:
    layout = layout_problem(int(num_patches), ends_in_patch=bool(ends_in_patch))
    if layout is not None:
        return layout
    if not finite:
        return "embeds must be finite, got NaN or infinity"
    if not 0 <= density <= 1:
        return f"density must be in [0, 1], got {density}"
    return None


def _apply(
    batch: TokenBatch,
    part: BatchPart,
    selection: _Selection,
    facts: list[_Facts],
    fold_by: RTPruneConfig | None,
) -> list[PrunedTokens]:
    """Gather the tokens that stay in pages of ``part``. Fold pruned patches in unless ``fold_by`` is None."""
    num_rows = max(fact.num_kept_tokens for fact in facts)
    kept_at = selection.order[part.pages, :num_rows]  # (b, K), past a page's own count: not in its answer
    rows = _gather_rows(part.embeds, kept_at)  # (b, K, D)
    folds: list[Folds | None] = [None] * len(facts)
    if fold_by is not None and any(fact.num_pruned for fact in facts):
        rows, folds = _fold(batch, part, rows, selection, facts, fold_by)
    pages = zip(rows, kept_at, batch.lengths[part.pages], facts, folds, strict=True)
    return [
        PrunedTokens(
            embeds=embeds[: fact.num_kept_tokens],
            kept=kept[: fact.num_kept_tokens],
            keep_ratio=fact.keep_ratio,
            diversity=fact.diversity,
            num_tokens=num_tokens,
            num_patches=fact.num_patches,
            num_kept_patches=fact.num_kept_patches,
            folds=fold,
        )
        for embeds, kept, num_tokens, fact, fold in pages
    ]


def _fold(
    batch: TokenBatch,
    part: BatchPart,
    rows: Tensor,
    selection: _Selection,
    facts: list[_Facts],
    config: RTPruneConfig,
) -> tuple[Tensor, list[Folds | None]]:
    """Fold pruned patches into kept ones: kept patches += 0.1 * plan @ pruned. (b, K, D) -> (b, K, D).

    All other tokens stay bit for bit. With ``config.trace``, also return where pruned tokens went.
    """
    norms, is_patch = batch.norms[part.pages], batch.is_patch[part.pages]  # (b, L)
    num_tokens = selection.num_tokens[part.pages, None]
    num_pruned = (selection.num_patches - selection.num_kept)[part.pages, None]
    steps = torch.arange(max(rows.shape[1], part.embeds.shape[1]), device=rows.device)
    kept_at = selection.order[part.pages, : rows.shape[1]]
    is_column = steps[: max(fact.num_pruned for fact in facts)] < num_pruned  # (b, P)
    following = num_tokens + steps[: is_column.shape[1]]
    pruned_at = selection.order[part.pages].gather(1, following.clamp(max=part.embeds.shape[1] - 1))
    # row breaks and the separator get no mass; removing their rows would cost a copy
    receives = (
        is_patch.gather(1, kept_at) & (steps[: rows.shape[1]] < num_tokens) & (num_pruned > 0)
    )  # (b, K)

    dtype = product_dtype(rows)
    kept, pruned = rows.to(dtype), _gather_rows(part.embeds, pruned_at).to(dtype)  # (b, K, D), (b, P, D)
    cosines = product(kept, pruned / _divisors(norms, pruned_at, dtype)) / _divisors(norms, kept_at, dtype)
    plan = padded_plan(cosines, receives, is_column, solver=config.solver)  # (b, K, P)
    # not baddbmm: on small pages it rounds the whole sum again for each pruned token
    gained = product((FOLD_WEIGHT * plan).to(dtype), pruned.mT)
    # adding 0.0 would turn -0.0 into 0.0; adding -0.0 changes no bit
    num_others = receives.numel() - sum(fact.num_kept_patches for fact in facts if fact.num_pruned)
    others_at = receives.flatten().sort(stable=True).indices[:num_others]
    gained.flatten(0, 1).index_fill_(0, others_at, -0.0)
    folds: list[Folds | None] = [None] * len(facts)
    if config.trace:
        folds = _folds(plan, kept_at, pruned_at, facts)
    return gained.add_(kept).to(rows.dtype), folds


def _folds(plan: Tensor, kept_at: Tensor, pruned_at: Tensor, facts: list[_Facts]) -> list[Folds | None]:
    """Read where each page's pruned tokens went: (b, K, P) plan, (b, K) and (b, P) positions."""
    into = kept_at.gather(1, plan.argmax(1))  # (b, P)
    share = plan.sum(1).clamp(0, 1)  # (b, P)
    pages = zip(pruned_at, into, share, facts, strict=True)
    return [
        Folds(pruned[: fact.num_pruned], taken[: fact.num_pruned], mass[: fact.num_pruned])
        for pruned, taken, mass, fact in pages
    ]


def _gather_rows(embeds: Tensor, at: Tensor) -> Tensor:
    """Copy the rows at ``at``: (b, L, D) embeddings, (b, K) positions -> (b, K, D)."""
    num_pages, length, hidden = embeds.shape
    starts = torch.arange(num_pages, device=at.device)[:, None] * length
    # index_select copies whole rows; gather looks up each number and takes ten times as long on a CPU
    return embeds.flatten(0, 1).index_select(0, (at + starts).flatten()).view(num_pages, -1, hidden)


def _divisors(norms: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Pick the norms at ``at``: (b, L) norms, (b, K) positions -> (b, K, 1).

    A norm of 0 becomes infinite, so that its cosines are 0.
    """
    chosen = norms.gather(1, at)
    return torch.where(chosen > 0, chosen, torch.inf).to(dtype)[..., None]
