"""Lines of print on a page, and what is ruled between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from app.ocr.regions.ink import Ink, Mask, long_runs

MIN_LINE_PX = 6
LINE_OF_X, LINE_OF_CAPITAL = 1.75, 1.27
"""A line's height, in those of its small letters and of its capitals."""
MAX_LETTER_EM = 6.0
"""What is higher and no stroke is a picture; letters that begin a chapter are not."""
MAX_LINES, MAX_MARKS, MAX_LARGE = 1000, 2000, 50
"""Of a page; a newspaper's has some 600 lines. More is no print, and ordering it would take minutes. Large
lines, whose dots are as high as small letters, are few.
"""
MIN_SPACE_EM, CELL_GAP_EM, WORD_GAP_EM = 0.22, 0.42, 1.2
"""White inside a line, in heights of a line: between letters at most; between stretches at least, as cells of
a table may stand; between words at most, which those of a typewriter or of justified text reach."""
MARK_SHARE = 0.25
"""Of large letters' height, that their dots and commas are high and wide at most."""
OWN_INK = 0.2
"""Of two lines' ink, that each has in letters which do not reach into the other."""
OVERLAP_EM = 1.5
"""Of stretches beside each other, as a comma under the letter before it makes."""
BESIDE = 0.45
"""Of the lower of two lines' heights, that they share; a star stands high beside letters that are all low."""
CELL_GAP_SPACES = 1.5
"""Likewise between stretches, in spaces of that line."""


@dataclass(frozen=True, slots=True)
class Line:
    """An unbroken stretch of a printed line: pixels from (left, top) to before (right, bottom).

    ``space``: pixels of white between two of its words, usually; 0 where nobody looked or it has one word.
    ``gaps``: where that white stands, from left to right; none where nobody looked.
    """

    left: int
    top: int
    right: int
    bottom: int
    space: float = field(default=0.0, compare=False)
    gaps: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    def is_beside(self, other: "Line") -> bool:
        """On the same printed line."""
        shared = min(self.bottom, other.bottom) - max(self.top, other.top)
        return shared > BESIDE * min(self.height, other.height)


Cell = tuple[Line, ...]
"""Of a table: its lines from top to bottom; none where it is empty."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells."""

    rows: tuple[tuple[Cell, ...], ...]

    @property
    def lines(self) -> list[Line]:
        return [line for row in self.rows for cell in row for line in cell]


Part = Line | Table
Row = list[Line]
"""Stretches beside each other, from left to right."""


def lines_of(part: Part) -> list[Line]:
    return part.lines if isinstance(part, Table) else [part]


def find_lines(ink: Ink) -> list[Line]:
    """Stretches of print, in no order."""
    letters = _letters(ink.mask)
    if letters is None:
        return []
    em, mask = letters
    # letters and words of a line run together, lines and columns do not
    reach = max(3, round(0.75 * em))
    # nor does print close to the page's edge with that
    smeared = ~long_runs(np.pad(~mask, ((0, 0), (reach, reach)), constant_values=True), reach)
    smeared = smeared[:, reach:-reach]
    smeared &= ~ink.rules  # nor what a ruled line stands between
    found: list[Line] = []
    labels, _ = ndimage.label(smeared, np.ones((3, 3), int))
    for rows, columns in ndimage.find_objects(labels):
        found.append(Line(columns.start, rows.start, columns.stop, rows.stop))
    large = _largest([line for line in found if line.height > 2 * em], MAX_LARGE)
    is_mark = [line.height < 0.45 * em or any(_is_mark_of(line, one) for one in large) for line in found]
    whole = _largest([line for line, mark in zip(found, is_mark, strict=True) if not mark], MAX_LINES)
    lines = [part for line in whole for part in _split(line, mask, em)]
    marks = _largest([line for line, mark in zip(found, is_mark, strict=True) if mark], MAX_MARKS)
    return _stretches(_with_marks(lines, marks, em), ink, em)


def _is_mark_of(line: Line, large: Line) -> bool:
    """A dot of large letters, as high as small ones are."""
    most = MARK_SHARE * large.height
    return (
        max(line.width, line.height) < most
        and large.left <= line.left
        and line.right <= large.right
        and large.top - 2 * most < line.middle < large.bottom + most
    )


def _largest(lines: list[Line], most: int) -> list[Line]:
    return lines if len(lines) <= most else sorted(lines, key=lambda one: -one.width * one.height)[:most]


def _letters(mask: Mask) -> tuple[int, Mask] | None:
    """(height of a line of print, ink without what is too large for print: pictures, frames).

    Most letters are as high as an x is, or all are capitals.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3), int))
    if count == 0:
        return None
    boxes = ndimage.find_objects(labels)
    heights = np.array([rows.stop - rows.start for rows, _ in boxes])
    widths = np.array([columns.stop - columns.start for _, columns in boxes])
    letters = heights[(heights >= MIN_LINE_PX) & (heights < 0.1 * max(mask.shape)) & (widths < 4 * heights)]
    if len(letters) == 0:
        return None
    height = min(LINE_OF_X * float(np.median(letters)), LINE_OF_CAPITAL * float(np.percentile(letters, 80)))
    em = max(MIN_LINE_PX + 2, round(height))
    print_mask = mask
    for at in np.flatnonzero((heights > MAX_LETTER_EM * em) & (widths > em)):
        print_mask = mask.copy() if print_mask is mask else print_mask
        print_mask[boxes[at]] &= labels[boxes[at]] != at + 1
    return em, print_mask


def _split(line: Line, mask: Mask, em: int) -> list[Line]:
    """Two lines whose letters touch, at the whitest row between them."""
    if line.height < 1.7 * em:
        return [line]
    profile = mask[line.top : line.bottom, line.left : line.right].sum(axis=1).astype(float)
    smooth = ndimage.uniform_filter1d(profile, max(1, em // 8))
    first, last = round(0.6 * em), line.height - round(0.6 * em)
    if last <= first:
        return [line]
    cut = first + int(np.argmin(smooth[first:last]))
    if smooth[cut] > 0.35 * smooth.max() or _is_crossed(
        mask[line.top : line.bottom, line.left : line.right], cut
    ):
        return [line]
    upper = Line(line.left, line.top, line.right, line.top + cut)
    lower = Line(line.left, line.top + cut, line.right, line.bottom)
    return [*_split(upper, mask, em), *_split(lower, mask, em)]


def _is_crossed(mask: Mask, row: int) -> bool:
    """Little stands wholly above or wholly below the row: it goes through one line of large letters."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    spans = [rows for rows, _ in ndimage.find_objects(labels)]
    above = sum(int(areas[at]) for at, rows in enumerate(spans, 1) if rows.stop <= row + 2)
    below = sum(int(areas[at]) for at, rows in enumerate(spans, 1) if rows.start >= row - 2)
    return min(above, below) < OWN_INK * float(areas[1:].sum())


def _with_marks(lines: list[Line], marks: list[Line], em: int) -> list[Line]:
    """Dots, accents and bullets join the line they belong to; specks belong to none."""
    grown = dict(enumerate(lines))
    alone: list[Line] = []
    for mark in marks:
        area = mark.height * mark.width / em**2
        if area < 0.005:
            continue
        # a large letter's dot stands farther above it
        near_px = round(0.4 * em)
        near = [
            (
                max(line.left - mark.right - near_px, mark.left - line.right - near_px, 0),
                abs(line.middle - mark.middle),
                index,
            )
            for index, line in grown.items()
            if line.top - max(0.35 * em, 0.5 * line.height) <= mark.middle <= line.bottom + 0.25 * em
        ]
        gap, _, index = min(near, default=(9 * em, 0.0, -1))
        if gap == 0:
            line = grown[index]
            grown[index] = Line(
                min(line.left, mark.left), min(line.top, mark.top),
                max(line.right, mark.right), max(line.bottom, mark.bottom),
            )  # fmt: skip
        elif gap <= 2.6 * em and (area >= 0.012 or mark.width >= 0.2 * em):  # a bullet, a dash
            pad = round(0.3 * em)
            alone.append(Line(mark.left, max(0, mark.top - pad), mark.right, mark.bottom + pad))
    return [*grown.values(), *alone]


def _stretches(lines: Sequence[Line], ink: Ink, em: int) -> list[Line]:
    """Lines anew, apart where white is wider than the spaces of their own line, together where it is not."""
    gaps = [gaps_of(line, ink.mask, MIN_SPACE_EM * max(em, line.height)) for line in lines]
    neighbours = _neighbours(lines, em)
    spaces = [end - start for inner in gaps for start, end in inner]
    spaces += [lines[right].left - lines[left].right for left, right in neighbours]
    usual = float(np.median(spaces)) if spaces else 0.0
    least: list[float] = []
    groups: list[list[Line]] = []
    first: list[int] = []  # number of the first piece of each line
    for line, inner in zip(lines, gaps, strict=True):
        own = [end - start for start, end in inner]
        # few gaps may all be between cells; justified lines have spaces of their own
        space = float(np.median(own)) if len(own) >= 5 else usual * max(1.0, line.height / em)
        least.append(max(CELL_GAP_EM * max(em, line.height), CELL_GAP_SPACES * space))
        first.append(len(groups))
        groups += [[piece] for piece in cut_at(line, [gap for gap in inner if gap[1] - gap[0] >= least[-1]])]
    first.append(len(groups))
    for left, right in neighbours:
        one, other = groups[first[left + 1] - 1], groups[first[right]]
        gap = lines[right].left - lines[left].right
        if (
            one is not other
            and gap < min(least[left], least[right])
            and not _is_ruled_off(lines[left], lines[right], ink.rules)
        ):
            one += other
            groups = [one if group is other else group for group in groups]
    whole = [joined(group) for group in {id(group): group for group in groups}.values()]
    return [_with_space(line, ink.mask, MIN_SPACE_EM * max(em, line.height)) for line in whole]


def _with_space(line: Line, mask: Mask, least: float) -> Line:
    gaps = gaps_of(line, mask, least)
    if not gaps:
        return line
    return replace(line, space=float(np.median([end - start for start, end in gaps])), gaps=tuple(gaps))


def gaps_of(line: Line, mask: Mask, least: float) -> list[tuple[int, int]]:
    """(start, end) of white in the line, in pixels of the page."""
    columns = mask[line.top : line.bottom, line.left : line.right].any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate(([True], columns, [True])).astype(np.int8)))
    return [
        (line.left + start, line.left + end)
        for start, end in edges.reshape(-1, 2).tolist()
        if end - start >= least
    ]


def _neighbours(lines: Sequence[Line], em: float) -> list[tuple[int, int]]:
    """(left, right) numbers of lines that stand beside each other with no more white than between words."""
    if not lines:
        return []
    left, top, right, bottom = np.array([(one.left, one.top, one.right, one.bottom) for one in lines]).T
    height = bottom - top
    shared = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)  # (L, L)
    gap = left - right[:, None]
    smaller, larger = np.minimum(height[:, None], height), np.maximum(height[:, None], height)
    overlaps = (shared > 0.8 * smaller) & (larger < 2.2 * smaller) & (gap < 0)
    beside = (shared > 0.6 * larger) | overlaps
    beside &= (
        (gap >= -OVERLAP_EM * em) & (left > left[:, None]) & (gap < WORD_GAP_EM * np.maximum(em, smaller))
    )
    return [(int(one), int(other)) for one, other in np.argwhere(beside)]


def _is_ruled_off(left: Line, right: Line, rules: Mask) -> bool:
    between = rules[max(left.top, right.top) : min(left.bottom, right.bottom), left.right : right.left]
    return bool(between.any())


def cut_at(line: Line, gaps: Sequence[tuple[int, int]]) -> list[Line]:
    """What is left and right of each gap; nothing, of no width, where one is at the line's end."""
    starts = [line.left, *(end for _, end in gaps)]
    ends = [*(start for start, _ in gaps), line.right]
    return [Line(start, line.top, end, line.bottom) for start, end in zip(starts, ends, strict=True)]


def joined(lines: Sequence[Line]) -> Line:
    return Line(
        min(line.left for line in lines), min(line.top for line in lines),
        max(line.right for line in lines), max(line.bottom for line in lines),
        max(line.space for line in lines),
    )  # fmt: skip


def extent(lines: Sequence[Line]) -> int:
    """Width of them together."""
    return max(line.right for line in lines) - min(line.left for line in lines)


def bands_of(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that share a height, from top to bottom, each band from left to right."""
    bands: list[list[Line]] = []
    bottom = -1.0
    for line in sorted(lines, key=lambda one: one.top):
        core_top, core_bottom = line.top + 0.2 * line.height, line.bottom - 0.2 * line.height
        if bands and core_top < bottom:
            bands[-1].append(line)
            bottom = max(bottom, core_bottom)
        else:
            bands.append([line])
            bottom = core_bottom
    return [sorted(band, key=lambda one: one.left) for band in bands]


def rows_of(band: Sequence[Line]) -> list[Row]:
    """What stands beside each other; of two lines in one cell the second makes a row of its own."""
    rows: list[Row] = []
    for line in sorted(band, key=lambda one: one.middle):
        for row in rows:
            if any(line.is_beside(cell) for cell in row) and not any(_is_stacked(line, cell) for cell in row):
                row.append(line)
                break
        else:
            rows.append([line])
    return [sorted(row, key=lambda one: one.left) for row in rows]


def _is_stacked(one: Line, other: Line) -> bool:
    return min(one.right, other.right) - max(one.left, other.left) > 0
