"""RTPrune: shorten DeepSeek-OCR's visual sequence once, between projector and decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """``embeds``: (L, D) float; ``is_patch``: (L,) bool, on the CPU or beside ``embeds``."""

    embeds: Tensor
    is_patch: Tensor

    def __post_init__(self) -> None:
        if self.embeds.ndim != 2 or self.is_patch.shape != self.embeds.shape[:1]:
            raise ValueError(
                f"embeds {tuple(self.embeds.shape)} and is_patch {tuple(self.is_patch.shape)} disagree"
            )


@dataclass(frozen=True, slots=True, eq=False)
class PrunedTokens:
    embeds: Tensor
    kept: Tensor
    keep_ratio: float
    diversity: float | None
    num_patches: int
    num_kept_patches: int


@dataclass(frozen=True, slots=True)
class RTPruneConfig:
    keep_ratio: float | None = None


def prune_batch(
    pages: Sequence[VisualTokens], densities: Sequence[float], config: RTPruneConfig | None = None
) -> list[PrunedTokens]:
    config = config or RTPruneConfig()
    return [_prune(page, density, config) for page, density in zip(pages, densities, strict=True)]


def _prune(page: VisualTokens, density: float, config: RTPruneConfig) -> PrunedTokens:
    ratio = config.keep_ratio if config.keep_ratio is not None else 0.5 + density / 2
    num_patches = int(page.is_patch.sum())
    num_kept = max(1, int(num_patches * ratio))
    norms = page.embeds.norm(dim=-1).masked_fill(~page.is_patch, -1)
    keep = ~page.is_patch
    keep[norms.topk(num_kept).indices] = True
    kept = keep.nonzero()[:, 0]
    return PrunedTokens(page.embeds[kept], kept, ratio, None, num_patches, num_kept)


def text_density(pixels: Tensor, rows: int, columns: int) -> float:
    if pixels.shape[1] % rows or pixels.shape[2] % columns:
        raise ValueError(f"pixels {tuple(pixels.shape)} do not divide into {rows} x {columns}")
    return float((pixels.diff(dim=-1).abs() > 0.2).float().mean())


__all__ = ["PrunedTokens", "RTPruneConfig", "VisualTokens", "prune_batch", "text_density"]
