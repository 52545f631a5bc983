"""How lines are printed: where their letters stand, how large and heavy they are, what they begin with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from app.ocr.regions.bullets import bullet_of
from app.ocr.regions.ink import Ink, Mask
from app.ocr.regions.lines import MIN_SPACE_EM, Line, gaps_of

MIN_LETTER_PX = 4
ON_LINE = 0.09
"""Of a letter's height, that it may end above or below the line the letters stand on."""
TALL = 92
"""Per cent of letters that are no taller than capitals: one in five is tall, one in twenty a bracket."""
FEW_LETTERS = 8
"""Of which one may be the only tall one."""
LEAD_GAP_EM, BULLET_GAP_EM, MAX_NUMBER_EM = 0.3, 0.4, 1.9


@dataclass(frozen=True, slots=True)
class Print:
    """``base``: row of pixels that the letters stand on. ``size``: height of its capitals, ``stroke``:
    thickness of its strokes, both in those of the page's lines.
    """

    base: float
    size: float
    stroke: float

    @property
    def weight(self) -> float:
        return self.size * self.stroke


@dataclass(frozen=True, slots=True)
class Lead:
    """What a line begins with, apart from its text: ``text_left`` is where that begins. ``bullet``: the sign;
    ``None`` for what may be a number.
    """

    bullet: str | None
    text_left: int

    @property
    def is_bullet(self) -> bool:
        return self.bullet is not None


def prints_of(ink: Ink, lines: Sequence[Line]) -> dict[Line, Print]:
    measured = [_measured(ink.mask[line.top : line.bottom, line.left : line.right]) for line in lines]
    bases, capitals = np.array(measured).reshape(-1, 2).T
    strokes = np.array([_stroke(ink, line) for line in lines])
    sizes, strokes = capitals / np.median(capitals), strokes / np.median(strokes)
    return {
        line: Print(line.top + float(base), float(size), float(stroke))
        for line, base, size, stroke in zip(lines, bases, sizes, strokes, strict=True)
    }


def _measured(mask: Mask) -> tuple[float, float]:
    """Of one line: (base in rows from its top, height of its taller letters), pixels."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    boxes = [rows for rows, _ in ndimage.find_objects(labels)] if count else []
    letters = [rows for rows in boxes if rows.stop - rows.start >= MIN_LETTER_PX]
    if not letters:
        return float(mask.shape[0]), float(mask.shape[0])
    bottoms = np.array([rows.stop for rows in letters], float)
    heights = bottoms - np.array([rows.start for rows in letters])
    base = float(np.median(bottoms[heights >= np.median(heights)]))
    standing = heights[np.abs(bottoms - base) <= ON_LINE * heights + 0.8]
    tall = np.sort(standing if len(standing) else heights)
    return base, float(tall[-1] if len(tall) <= FEW_LETTERS else np.percentile(tall, TALL, method="lower"))


def _stroke(ink: Ink, line: Line) -> float:
    """Thickness of its strokes in pixels, about: ink over half its edge."""
    mask = np.pad(ink.mask[line.top : line.bottom, line.left : line.right], 1)
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    area = int(mask.sum())
    return 2 * float(area) / max(1, area - int(inner.sum()))


def lead_of(ink: Ink, line: Line, base: float, em: float) -> Lead | None:
    """A bullet, or what may be a number, with white after it; ``None`` for a line that is all text."""
    gaps = [gap for gap in gaps_of(line, ink.mask, MIN_SPACE_EM * em) if gap[1] - gap[0] >= LEAD_GAP_EM * em]
    if not gaps or gaps[0][0] - line.left > MAX_NUMBER_EM * em:
        return None
    mark = ink.mask[line.top : line.bottom, line.left : gaps[0][0]]
    # a dash in running text has a mere space after it
    is_apart = gaps[0][1] - gaps[0][0] >= BULLET_GAP_EM * em
    return Lead(bullet_of(mark, base - line.top, em) if is_apart else None, gaps[0][1])
