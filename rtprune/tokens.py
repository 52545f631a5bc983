"""The visual sequence of one page before and after pruning, and pages padded into one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class InvalidPagesError(ValueError):
    """Some pages of a batch cannot be pruned. Nothing was pruned; drop ``indices`` and call again.

    ``reasons`` maps each bad page's position in the batch to what is wrong with it.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        self.reasons = dict(reasons)
        self.indices = tuple(sorted(self.reasons))
        super().__init__("; ".join(f"page {index}: {self.reasons[index]}" for index in self.indices))


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """One page between projector and decoder, in decoder order.

    ``embeds``: (L, D) float. ``is_patch``: (L,) bool, on the CPU or on the device of ``embeds``; False for
    row breaks and for the view separator, which is last.

    Raise ``ValueError`` for wrong shapes and dtypes, and for a wrong layout when ``is_patch`` is on the CPU.
    A mask on another device is checked by the pruning call, in the one transfer that it makes anyway.
    """

    embeds: Tensor
    is_patch: Tensor

    def __post_init__(self) -> None:
        if self.embeds.ndim != 2 or 0 in self.embeds.shape:
            raise ValueError(f"embeds must be (L, D) and not empty, got {tuple(self.embeds.shape)}")
        if self.embeds.dtype not in FLOAT_DTYPES:
            raise ValueError(f"embeds must be float32, bfloat16, float16 or float64, got {self.embeds.dtype}")
        if self.is_patch.dtype != torch.bool or self.is_patch.shape != self.embeds.shape[:1]:
            raise ValueError(
                f"is_patch must be bool ({len(self.embeds)},) like embeds, "
                f"got {self.is_patch.dtype} {tuple(self.is_patch.shape)}"
            )
        # reading the mask is free on the CPU; elsewhere it waits for the device
        if self.is_patch.device.type == "cpu":
            problem = layout_problem(int(self.is_patch.sum()), ends_in_patch=bool(self.is_patch[-1]))
            if problem is not None:
                raise ValueError(problem)


@dataclass(frozen=True, slots=True, eq=False)
class Folds:
    """Where one page's pruned patch tokens went: (P,) each, in page order, on the tokens' device.

    ``pruned``: int64 indices into the L input tokens. ``into``: int64, the kept patch token that took most of
    each. ``share``: float32 in [0, 1], the part that went to kept tokens; the rest went to the dustbin.
    """

    pruned: Tensor
    into: Tensor
    share: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PrunedTokens:
    """The tokens that the decoder reads instead of the page's ``VisualTokens``.

    ``embeds``: (K, D), with the dtype and device of the input; on a GPU a view of memory that pages share.
    ``kept``: (K,) int64, ascending indices into the L input tokens, which are also their position ids.
    ``num_tokens`` is L: text after the page continues at that position, not at K. ``diversity`` is ``None``
    when the ratio was fixed, because then it is not computed.
    """

    embeds: Tensor
    kept: Tensor
    keep_ratio: float
    diversity: float | None
    num_tokens: int
    num_patches: int
    num_kept_patches: int
    folds: Folds | None = None
    """Where pruned patches went, if ``RTPruneConfig.trace`` is set, the method folds and any was pruned."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchPart:
    """Pages processed together: ``embeds`` (b, L, D) of the batch's rows ``pages``. Do not modify."""

    pages: slice
    embeds: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """B pages; ``is_patch`` and ``is_break`` are (B, L) bool, padded to the longest page.

    ``parts``: on a CPU each page alone, uncopied and at its own length, so that it stays in the cache and its
    result equals the single page's bit for bit. Elsewhere all pages in one padded part. ``is_real``: (B, L)
    bool, False in the padding. ``norms``: (B, L) float64 L2 norms, 0 in the padding. ``lengths``: each page's
    own L.
    """

    parts: tuple[BatchPart, ...]
    is_patch: Tensor
    is_break: Tensor
    is_real: Tensor
    norms: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, pages: Sequence[VisualTokens]) -> "TokenBatch":
        """Pad pages into one batch. Raise ``ValueError`` when they differ in hidden size, dtype or device."""
        first = pages[0].embeds
        kinds = [(page.embeds.shape[1], page.embeds.dtype, page.embeds.device) for page in pages]
        for index, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(
                    f"pages of one batch must share hidden size, dtype and device: "
                    f"page 0 has {kinds[0]}, page {index} has {kind}"
                )
        lengths = tuple(len(page.embeds) for page in pages)
        parts = _parts([page.embeds for page in pages])
        is_patch = _pad([page.is_patch.to(first.device, non_blocking=True) for page in pages])  # (B, L)
        # non_blocking: an ordinary copy of a list to a GPU waits for everything queued before it
        ends = torch.tensor(lengths).to(first.device, non_blocking=True)[:, None]
        positions = torch.arange(max(lengths), device=first.device)
        is_break = (positions < ends - 1) & ~is_patch
        # float64 sums: float32 ones may order near-equal tokens differently in a batch and alone
        norms = [torch.linalg.vector_norm(part.embeds, dim=-1, dtype=torch.float64) for part in parts]
        padded = _pad([row for part in norms for row in part])  # (B, L)
        return cls(parts, is_patch, is_break, positions < ends, padded, lengths)


def layout_problem(num_patches: int, *, ends_in_patch: bool) -> str | None:
    if ends_in_patch:
        return "the view separator is missing or marked as a patch: is_patch[-1] must be False, got True"
    if num_patches == 0:
        return "is_patch has no patch token"
    return None


def surviving(kept_patches: Tensor, batch: TokenBatch) -> Tensor:
    """Add row breaks and separators to the kept patches: (B, L) bool -> (B, L) bool of all tokens kept.

    Of consecutive row breaks without a kept patch between them only the first stays. If the first rows of a
    grid are emptied, one leading break therefore stays. A page that lost no patch keeps all its tokens.
    """
    patches_before = kept_patches.cumsum(1)  # (B, L), at a break: kept patches in front of it
    marks = torch.where(batch.is_break, patches_before + 1, 0)
    last_mark = marks.cummax(1).values.roll(1, dims=1)  # (B, L), of the nearest break in front
    last_mark[:, 0] = 0
    repeated = batch.is_break & (last_mark == marks)
    pruned_any = (batch.is_patch & ~kept_patches).any(1, keepdim=True)
    return batch.is_real & torch.where(batch.is_patch, kept_patches, ~(repeated & pruned_any))


def _parts(pages: list[Tensor]) -> tuple[BatchPart, ...]:
    if pages[0].device.type == "cpu":
        return tuple(BatchPart(slice(b, b + 1), page[None]) for b, page in enumerate(pages))
    return _together(pages)


def _together(pages: list[Tensor]) -> tuple[BatchPart, ...]:
    return (BatchPart(slice(0, len(pages)), _pad(pages)),)


def _pad(pages: list[Tensor]) -> Tensor:
    if len({len(page) for page in pages}) == 1:
        return torch.stack(pages)
    return torch.nn.utils.rnn.pad_sequence(pages, batch_first=True)
