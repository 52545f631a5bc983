"""Measure how lines are printed: base line, size and weight of the letters, bullet or number in front."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.pocket.layout.bullets import bullet_of
from app.pocket.layout.ink import Ink
from app.pocket.layout.lines import Line, Part, gaps_of, lines_of
from app.pocket.layout.masks import Mask

Floats = npt.NDArray[np.float64]

MIN_LETTER_PX = 4
ON_LINE = 0.09  # of a letter's height, by which it may end above or below the base line
TALL = 92  # per cent of letters no taller than capitals: one in five is tall, one in twenty a bracket
FEW_LETTERS = 8  # among so few letters, one may be the only tall one
MANY_LETTERS = 24  # among more letters, one in five is tall
AS_TALL = 0.8  # of a capital with an accent, least height of other capitals; small letters are lower
LOWER = (0.5, 0.87)  # heights of capitals, least and greatest height of lower-case letters
LOW_SHARE = 0.4  # of the highest letter's height; anything lower is a point
SAME_BASE_PX = 1.0  # by which the lower edges of one line's letters differ
MIN_LOWER = 2  # least letters from which the height of lower-case ones is measured
LEAD_GAP_EM = 0.3  # line heights of white, at least, after a number or a bullet
MAX_NUMBER_EM = 1.9  # line heights, greatest width of a number
NARROW_GAP_EM = 0.18  # line heights of a single space, as browsers set after the number of an item
DOT_EM = 0.3  # line heights, greatest height of the dot after a number
BELOW_EM = 0.05  # line heights below the base line that a bracket reaches
WIDEST = 0.8  # of the widest white near a line's beginning, least white after its number


@dataclass(frozen=True, slots=True)
class Print:
    """How a line is printed.

    ``base``: row of pixels that its letters stand on. Relative to the page's body: ``size``, height of its
    capitals; ``lower``, height of its lower-case letters, ``None`` if it has too few; ``stroke``, thickness
    of its strokes.
    """

    base: float
    size: float
    lower: float | None
    stroke: float


@dataclass(frozen=True, slots=True)
class Lead:
    """A bullet or a number before a line's text, which begins at ``text_left``; all in pixels.

    ``bullet``: the sign, or ``None`` for a possible number. ``is_narrow``: only a space follows, so it is a
    number only if the recognised text starts with one.
    """

    bullet: str | None
    text_left: int
    left: int
    width: int
    height: int
    is_narrow: bool = False

    @property
    def is_bullet(self) -> bool:
        return self.bullet is not None


@dataclass(frozen=True, slots=True)
class PageLines:
    """Lines and tables in reading order, with their measures; all in pixels.

    ``prints``: of all lines, also those in tables. ``leads``: of lines that begin with a number, or with a
    bullet, which is not part of the line. ``em``: height of a line. ``pitch``: distance between lines of
    running text. ``width``, ``height``: of the page.
    """

    parts: tuple[Part, ...]
    prints: dict[Line, Print]
    leads: dict[Line, Lead]
    em: float
    pitch: float
    width: int
    height: int

    @property
    def lines(self) -> list[Line]:
        return [line for part in self.parts for line in lines_of(part)]

    def step(self, above: Line, below: Line) -> float:
        """Return the distance between the rows that two lines stand on, in pixels."""
        return self.prints[below].base - self.prints[above].base

    def is_below(self, above: Part | None, below: Part | None) -> bool:
        """Tell whether both are lines of one column, ``below`` under ``above``."""
        if not isinstance(above, Line) or not isinstance(below, Line):
            return False
        overlap = min(above.right, below.right) - max(above.left, below.left)
        return overlap > 0 and self.step(above, below) > 0


@dataclass(frozen=True, slots=True)
class _Measures:
    """Measures of one line in pixels; ``base`` from its top. See ``Print``."""

    base: float
    capitals: float
    lower: float | None
    stroke: float


def prints_of(ink: Ink, lines: Sequence[Line]) -> dict[Line, Print]:
    measured = [_measured(ink, line) for line in lines]
    widths = [line.width for line in lines]
    capitals = weighted_median([one.capitals for one in measured], widths)
    stroke = weighted_median([one.stroke for one in measured], widths)
    with_lower = [
        (one.lower, width) for one, width in zip(measured, widths, strict=True) if one.lower is not None
    ]
    lower = weighted_median(*zip(*with_lower, strict=True)) if with_lower else 1.0
    return {
        line: Print(
            line.top + one.base,
            one.capitals / capitals,
            None if one.lower is None else one.lower / lower,
            one.stroke / stroke,
        )
        for line, one in zip(lines, measured, strict=True)
    }


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the smallest value at which half of the weight is reached."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(np.asarray(weights, float)[order])
    return float(np.asarray(values, float)[order][np.searchsorted(reached, reached[-1] / 2)])


def _measured(ink: Ink, line: Line) -> _Measures:
    mask = ink.mask[line.top : line.bottom, line.left : line.right]
    stroke = _stroke(mask)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels) if count else []
    letters = np.array([(y.start, y.stop) for y, _ in boxes if y.stop - y.start >= MIN_LETTER_PX], float)
    if not len(letters):
        height = float(line.height)
        return _Measures(height, height, None, stroke)
    tops, bottoms = letters.T
    heights = bottoms - tops
    base = _base(bottoms[heights >= LOW_SHARE * heights.max()])
    stands = np.abs(bottoms - base) <= ON_LINE * heights + 0.8
    if not stands.any():
        stands[:] = True
    tall = np.sort(heights[stands])
    capitals = _capitals(tall)
    low = tall[(tall > LOWER[0] * capitals) & (tall < LOWER[1] * capitals)]
    lower = float(np.median(low)) if len(low) >= MIN_LOWER else None
    return _Measures(base, capitals, lower, stroke)


def _capitals(tall: Floats) -> float:
    """Estimate the height of capitals from (N,) sorted heights of letters.

    Of few letters the tallest is a capital. If another is nearly as tall, the tallest has an accent.
    """
    if len(tall) > MANY_LETTERS:
        return float(np.percentile(tall, TALL, method="lower"))
    return float(tall[-2] if len(tall) > FEW_LETTERS and tall[-2] > AS_TALL * tall[-1] else tall[-1])


def _base(bottoms: Floats) -> float:
    """Return the row at which most letters end, from (N,) rows.

    On a tie take the upper row: some letters go below.
    """
    levels = np.unique(bottoms)
    counts = [int((np.abs(bottoms - level) <= SAME_BASE_PX).sum()) for level in levels]
    level = levels[int(np.argmax(counts))]
    return float(np.median(bottoms[np.abs(bottoms - level) <= SAME_BASE_PX]))


def _stroke(letters: Mask) -> float:
    """Estimate the thickness of strokes in pixels: ink over half its edge."""
    mask = np.pad(letters, 1)
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    area = int(mask.sum())
    return 2 * float(area) / max(1, area - int(inner.sum()))


def lead_of(ink: Ink, line: Line, base: float, em: float) -> Lead | None:
    """Find a bullet, or a possible number, with white after it. Returns None if a line is all text."""
    white = [gap for gap in gaps_of(line, ink.mask, 1) if gap[0] - line.left <= MAX_NUMBER_EM * em]
    for start, end in white:
        mark = ink.mask[line.top : line.bottom, line.left : start]
        bullet = bullet_of(mark, base - line.top, em, white=(end - start) / em)
        if bullet is not None:
            rows = np.flatnonzero(mark.any(axis=1))
            return Lead(bullet, end, line.left, start - line.left, int(rows[-1] - rows[0]) + 1)
    gaps = [gap for gap in white if gap[1] - gap[0] >= LEAD_GAP_EM * em]
    if not gaps:
        return _number_before_space(ink, line, white, base, em)
    # a typewriter's digit and its dot are as far apart as words
    widest = max(end - start for start, end in gaps)
    start, end = next(gap for gap in gaps if gap[1] - gap[0] >= WIDEST * widest)
    return Lead(None, end, line.left, start - line.left, line.height)


def _number_before_space(
    ink: Ink, line: Line, white: Sequence[tuple[int, int]], base: float, em: float
) -> Lead | None:
    """Find a possible number with its dot or bracket before the first white as wide as a space."""
    for (_, left), (start, end) in pairwise(white):  # the first white is between a digit and its dot
        if end - start < NARROW_GAP_EM * em:
            continue
        rows = line.top + np.flatnonzero(ink.mask[line.top : line.bottom, left:start].any(axis=1))
        is_dot = len(rows) > 0 and rows[-1] - rows[0] < DOT_EM * em
        is_bracket = len(rows) > 0 and rows[-1] >= base + BELOW_EM * em
        if is_dot or is_bracket:
            return Lead(None, end, line.left, start - line.left, line.height, is_narrow=True)
    return None
