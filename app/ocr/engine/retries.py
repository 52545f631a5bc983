"""List the attempts at a page that loops. Each keeps the measures of the one before and adds one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.document import Pruning
from app.ocr.engine.loops import NgramRule
from app.ocr.models.model import Mode


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """Settings of one attempt at a page."""

    mode: str
    prune: Pruning
    keep_ratio: float | None
    ngram: NgramRule
    fixation: float | None = None
    """Share of patch tokens attended to at decode steps; ``None``: all, by plain attention."""


def attempt_plans(
    first: AttemptPlan, strict: NgramRule, modes: Sequence[Mode], max_attempts: int
) -> list[AttemptPlan]:
    """List the attempts: as asked; with a stricter n-gram ban; unpruned and without fixation; in another
    mode.

    Attempts equal to an earlier one are left out.
    """
    strictly = replace(first, ngram=strict)
    unpruned = replace(strictly, prune="none", keep_ratio=None, fixation=None)
    elsewhere = replace(unpruned, mode=other_mode(first.mode, modes))
    return list(dict.fromkeys((first, strictly, unpruned, elsewhere)))[:max_attempts]


def other_mode(name: str, modes: Sequence[Mode]) -> str:
    """Return the next trained mode with more pixels, else the largest one below, else the same mode."""
    pixels = {mode.name: _most_pixels(mode) for mode in modes if mode.trained or mode.name == name}
    others = sorted((size, other) for other, size in pixels.items() if other != name)
    larger = [other for size, other in others if size >= pixels[name]]
    if larger:
        return larger[0]
    return others[-1][1] if others else name


def _most_pixels(mode: Mode) -> int:
    tiles = mode.max_tiles * mode.tile_px**2 if mode.tile_px else 0
    return mode.view_px**2 + tiles
