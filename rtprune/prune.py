"""The method: choose how many patch tokens to keep, keep those of largest norm, fold the rest into them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rtprune.precision import product_dtype, without_autocast
from rtprune.ratio import count_kept, diversities, keep_ratio
from rtprune.tokens import (
    InvalidPagesError,
    PrunedTokens,
    TokenBatch,
    VisualTokens,
    layout_problem,
    surviving,
)
from rtprune.transport import Solver, padded_plan

FOLD_WEIGHT = 0.1
Ranking = Callable[[TokenBatch], Tensor]
"""Pages -> (B, L) scores on their device; patch tokens of the highest scores are kept."""


@dataclass(frozen=True, slots=True)
class RTPruneConfig:
    """``keep_ratio``: share of patch tokens to keep, in (0, 1]; ``None``: chosen from the page (dynamic).

    ``solver``: "sinkhorn" (ours), or "pot" for a second opinion by POT: the same answer, slower.
    """

    keep_ratio: float | None = None
    solver: Solver = "sinkhorn"

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver must be one of {get_args(Solver)}, got {self.solver!r}")


DYNAMIC = RTPruneConfig()


def prune_tokens(tokens: VisualTokens, density: float, config: RTPruneConfig = DYNAMIC) -> PrunedTokens:
    """Prune one page of ``density`` in [0, 1] (see ``text_density``; unused when the ratio is fixed).

    RTPrune, arXiv 2605.00392. Inputs are not changed; the answer has their dtype and device, and no gradient.
    Waits for the device once. Raises ``ValueError`` for a density out of range, tokens that are not finite,
    or a wrong layout.
    """
    return prune_page(tokens, density, config, rank=token_norms, fold=True)


def prune_batch(
    tokens: Sequence[VisualTokens], densities: Sequence[float] | Tensor, config: RTPruneConfig = DYNAMIC
) -> list[PrunedTokens]:
    """Prune pages of any lengths in one padded batch; each gets what ``prune_tokens`` gives it alone.

    ``densities``: one float a page, or a (B,) tensor, best on the tokens' device (see ``text_densities``).
    Waits for the device once, however many pages. Raises ``InvalidPagesError``, a ``ValueError`` whose
    ``indices`` name the bad pages, so that the others can be tried again; and ``ValueError`` when the pages
    do not make one batch.
    """
    return prune_pages(tokens, densities, config, rank=token_norms, fold=True)


def token_norms(batch: TokenBatch) -> Tensor:
    return batch.norms


def prune_page(
    tokens: VisualTokens, density: float, config: RTPruneConfig, *, rank: Ranking, fold: bool
) -> PrunedTokens:
    """``prune_pages`` for one page, whose errors name no index."""
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
    """The frame every method shares: ratio, selection by ``rank``, and the fold or none."""
    if len(densities) != len(tokens):
        raise ValueError(f"densities must be one a page: got {len(densities)} for {len(tokens)} pages")
    if not tokens:
        return []
    batch = TokenBatch.of(tokens)
    with without_autocast(batch.embeds.device):
        ratios = _choose_ratios(batch, densities, config)
        selection = _select(batch, rank(batch), ratios)
        facts = _read_facts(batch, ratios, selection)
        embeds = _fold(batch, selection, facts, config.solver) if fold else batch.embeds
        return _split(batch, embeds, selection, facts)


@dataclass(frozen=True, slots=True, eq=False)
class _Ratios:
    """(B,) float64 each; ``diversity`` is ``None`` when the ratio is fixed."""

    density: Tensor
    diversity: Tensor | None
    keep_ratio: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Selection:
    """``kept``: (B, L) bool, all tokens that stay. ``order``: (B, L) int64 positions of kept patches, then of
    pruned ones, then of others, each in page order. ``num_patches``, ``num_kept``: (B,) int64, of patches.
    """

    kept: Tensor
    order: Tensor
    num_patches: Tensor
    num_kept: Tensor


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the host must know of one page."""

    num_patches: int
    num_kept_patches: int
    num_kept_tokens: int
    keep_ratio: float
    diversity: float | None

    @property
    def num_pruned(self) -> int:
        return self.num_patches - self.num_kept_patches


def _choose_ratios(batch: TokenBatch, densities: Sequence[float] | Tensor, config: RTPruneConfig) -> _Ratios:
    device = batch.embeds.device
    given = densities if isinstance(densities, Tensor) else torch.tensor(densities, dtype=torch.float64)
    if given.shape != batch.norms.shape[:1]:
        raise ValueError(f"densities must be ({len(batch.lengths)},), got {tuple(given.shape)}")
    density = given.to(device, torch.float64, non_blocking=True)
    if config.keep_ratio is not None:
        return _Ratios(density, None, torch.full_like(density, config.keep_ratio))
    diversity = diversities(batch)
    return _Ratios(density, diversity, keep_ratio(density, diversity))


def _select(batch: TokenBatch, scores: Tensor, ratios: _Ratios) -> _Selection:
    num_patches = batch.is_patch.sum(1)
    num_kept = count_kept(num_patches, ratios.keep_ratio)
    # stable: of equal scores the earlier token wins
    ranked = scores.masked_fill(~batch.is_patch, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    chosen = torch.arange(ranked.shape[1], device=ranked.device) < num_kept[:, None]
    kept_patches = torch.zeros_like(batch.is_patch).scatter(1, ranked, chosen) & batch.is_patch  # (B, L)
    group = torch.where(batch.is_patch, 1 - kept_patches.to(torch.uint8), 2)
    order = group.sort(dim=1, stable=True).indices
    return _Selection(surviving(kept_patches, batch), order, num_patches, num_kept)


def _read_facts(batch: TokenBatch, ratios: _Ratios, selection: _Selection) -> list[_Facts]:
    """The one place that waits for the device. Raises ``InvalidPagesError``."""
    ends = (batch.is_real.sum(1, keepdim=True) - 1).clamp(min=0)
    columns = [
        batch.is_patch.gather(1, ends)[:, 0],
        batch.norms.isfinite().all(1),  # a norm is finite where all of its token is
        ratios.density,
        selection.num_patches,
        selection.num_kept,
        selection.kept.sum(1),
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


def _fold(batch: TokenBatch, selection: _Selection, facts: list[_Facts], solver: Solver) -> Tensor:
    """kept += 0.1 * plan @ pruned on all pages at once, in the batch's own embeds (B, L, D), returned."""
    num_rows = max(fact.num_kept_patches for fact in facts)
    num_columns = max(fact.num_pruned for fact in facts)
    if num_columns == 0:
        return batch.embeds
    length = batch.embeds.shape[1]
    num_kept, num_pruned = selection.num_kept[:, None], (selection.num_patches - selection.num_kept)[:, None]
    kept_at = selection.order[:, :num_rows]  # (B, M), past a page's own count: tokens that are left alone
    columns = torch.arange(num_columns, device=num_kept.device)
    pruned_at = selection.order.gather(1, (num_kept + columns).clamp(max=length - 1))  # (B, P)
    pruned = _gather_rows(batch, pruned_at)  # (B, P, D)
    kept = _gather_rows(batch, kept_at)  # (B, M, D)
    scores = kept @ (pruned / _divisors(batch, pruned_at, pruned.dtype)).mT  # (B, M, P)
    scores = scores / _divisors(batch, kept_at, kept.dtype)
    plan = padded_plan(scores, num_kept[:, 0], num_pruned[:, 0], solver=solver)
    # not baddbmm: on small pages it rounds once a pruned token, at the size of the sum
    gained = (FOLD_WEIGHT * plan).to(kept.dtype) @ pruned
    receives = (torch.arange(num_rows, device=num_kept.device) < num_kept) & (num_pruned > 0)  # (B, M)
    # adding 0.0 would turn -0.0 into 0.0; adding -0.0 changes no bit
    kept += gained.masked_fill_(~receives[..., None], -0.0)
    # in place: the batch is this call's own copy
    return batch.embeds.scatter_(1, kept_at[..., None].expand_as(kept), kept.to(batch.embeds.dtype))


def _gather_rows(batch: TokenBatch, at: Tensor) -> Tensor:
    """(B, M) positions -> (B, M, D) copy, in a dtype fit for products."""
    rows = batch.embeds.gather(1, at[..., None].expand(-1, -1, batch.embeds.shape[2]))
    return rows.to(product_dtype(batch.embeds))


def _divisors(batch: TokenBatch, at: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, M) positions -> (B, M, 1) norms; infinite for a token of norm 0, whose cosines are 0."""
    norms = batch.norms.gather(1, at)
    return torch.where(norms > 0, norms, torch.inf).to(dtype)[..., None]


def _split(
    batch: TokenBatch, embeds: Tensor, selection: _Selection, facts: list[_Facts]
) -> list[PrunedTokens]:
    """(B, L, D) -> one (K, D) view a page of a packed (sum of K, D) tensor."""
    num_pages, length, hidden = embeds.shape
    counts = [fact.num_kept_tokens for fact in facts]
    # a stable sort puts what is kept in front, in order: nonzero() would wait for the device
    packed_at = (~selection.kept).flatten().sort(stable=True).indices[: sum(counts)]  # (sum of K,)
    packed = embeds.reshape(num_pages * length, hidden).index_select(0, packed_at)
    kept = packed_at % length
    pages = zip(torch.split(packed, counts), torch.split(kept, counts), batch.lengths, facts, strict=True)
    return [
        PrunedTokens(
            rows, at, fact.keep_ratio, fact.diversity, num_tokens, fact.num_patches, fact.num_kept_patches
        )
        for rows, at, num_tokens, fact in pages
    ]
