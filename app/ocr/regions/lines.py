"""Lines of print on a page, and what is ruled between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from app.ocr.regions.ink import Ink, Mask, long_runs

MIN_LINE_PX = 6
MAX_LINES, MAX_MARKS = 1000, 2000
"""Of a page; a newspaper's has some 600 lines. More is no print, and ordering it would take minutes."""
MIN_SPACE_EM, CELL_GAP_EM, WORD_GAP_EM = 0.22, 0.42, 1.2
"""White inside a line, in heights of a line: between letters at most; between stretches at least, as cells of
a table may stand; between words at most, which those of a typewriter or of justified text reach."""
CELL_GAP_SPACES = 1.5
"""Likewise between stretches, in spaces of that line."""


@dataclass(frozen=True, slots=True)
class Line:
    """An unbroken stretch of a printed line: pixels from (left, top) to before (right, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

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
        return shared > 0.5 * min(self.height, other.height)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; a cell that is empty is ``None``."""

    rows: tuple[tuple[Line | None, ...], ...]

    @property
    def lines(self) -> list[Line]:
        return [cell for row in self.rows for cell in row if cell is not None]


Part = Line | Table


def lines_of(part: Part) -> list[Line]:
    return part.lines if isinstance(part, Table) else [part]


def find_lines(ink: Ink) -> list[Line]:
    """Stretches of print, in no order."""
    em = _typical_height(ink.mask)
    if em is None:
        return []
    # letters and words of a line run together, lines and columns do not
    smeared = ~long_runs(~ink.mask, max(3, round(0.75 * em)))
    smeared &= ~ink.rules  # nor what a ruled line stands between
    found: list[Line] = []
    labels, _ = ndimage.label(smeared, np.ones((3, 3), int))
    for rows, columns in ndimage.find_objects(labels):
        found.append(Line(columns.start, rows.start, columns.stop, rows.stop))
    whole = _largest([line for line in found if line.height >= 0.45 * em], MAX_LINES)
    lines = [part for line in whole for part in _split(line, ink.mask, em)]
    marks = _largest([line for line in found if line.height < 0.45 * em], MAX_MARKS)
    return _stretches(_with_marks(lines, marks, em), ink, em)


def _largest(lines: list[Line], most: int) -> list[Line]:
    return lines if len(lines) <= most else sorted(lines, key=lambda one: -one.width * one.height)[:most]


def _typical_height(mask: Mask) -> int | None:
    """Of a line of print, from its letters: x-height letters are most, and a line is about 1.9 of them."""
    labels, count = ndimage.label(mask, np.ones((3, 3), int))
    if count == 0:
        return None
    boxes = ndimage.find_objects(labels)
    heights = np.array([rows.stop - rows.start for rows, _ in boxes])
    widths = np.array([columns.stop - columns.start for _, columns in boxes])
    letters = heights[(heights >= MIN_LINE_PX) & (heights < 0.1 * max(mask.shape)) & (widths < 4 * heights)]
    if len(letters) == 0:
        return None
    return max(MIN_LINE_PX + 2, round(1.75 * float(np.median(letters))))


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
    """Most letters reach over the row, as those of a large heading do; of touching lines a few."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    across = np.intersect1d(labels[row - 2], labels[row + 2])
    return bool(areas[across[across > 0]].sum() > 0.5 * areas[1:].sum())


def _with_marks(lines: list[Line], marks: list[Line], em: int) -> list[Line]:
    """Dots, accents and bullets join the line they belong to; specks belong to none."""
    grown = dict(enumerate(lines))
    alone: list[Line] = []
    for mark in marks:
        area = mark.height * mark.width / em**2
        if area < 0.005:
            continue
        # a large letter's dot stands farther above it
        near = [
            (max(line.left - mark.right, mark.left - line.right, 0), abs(line.middle - mark.middle), index)
            for index, line in grown.items()
            if line.top - max(0.35 * em, 0.5 * line.height) <= mark.middle <= line.bottom + 0.25 * em
        ]
        gap, _, index = min(near, default=(em * 9, 0.0, -1))
        if gap <= 0.4 * em:
            line = grown[index]
            grown[index] = Line(
                min(line.left, mark.left), min(line.top, mark.top),
                max(line.right, mark.right), max(line.bottom, mark.bottom),
            )  # fmt: skip
        elif gap <= 3 * em and area >= 0.012:  # a bullet, a dash in a table
            pad = round(0.3 * em)
            alone.append(Line(mark.left, max(0, mark.top - pad), mark.right, mark.bottom + pad))
    return [*grown.values(), *alone]


def _stretches(lines: Sequence[Line], ink: Ink, em: int) -> list[Line]:
    """Lines anew, apart where white is wider than the spaces of their own line, together where it is not."""
    gaps = [gaps_of(line, ink.mask, MIN_SPACE_EM * em) for line in lines]
    neighbours = _neighbours(lines, WORD_GAP_EM * em)
    spaces = [end - start for inner in gaps for start, end in inner]
    spaces += [lines[right].left - lines[left].right for left, right in neighbours]
    usual = float(np.median(spaces)) if spaces else 0.0
    least: list[float] = []
    groups: list[list[Line]] = []
    first: list[int] = []  # number of the first piece of each line
    for line, inner in zip(lines, gaps, strict=True):
        own = [end - start for start, end in inner]
        # few gaps may all be between cells; justified lines have spaces of their own
        space = float(np.median(own)) if len(own) >= 5 else usual
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
    return [joined(group) for group in {id(group): group for group in groups}.values()]


def gaps_of(line: Line, mask: Mask, least: float) -> list[tuple[int, int]]:
    """(start, end) of white in the line, in pixels of the page."""
    columns = mask[line.top : line.bottom, line.left : line.right].any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate(([True], columns, [True])).astype(np.int8)))
    return [
        (line.left + start, line.left + end)
        for start, end in edges.reshape(-1, 2).tolist()
        if end - start >= least
    ]


def _neighbours(lines: Sequence[Line], most: float) -> list[tuple[int, int]]:
    """(left, right) numbers of lines that stand beside each other with so little white between them."""
    if not lines:
        return []
    left, top, right, bottom = np.array([(one.left, one.top, one.right, one.bottom) for one in lines]).T
    height = bottom - top
    shared = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)  # (L, L)
    gap = left - right[:, None]
    beside = (shared > 0.6 * np.maximum(height[:, None], height)) & (gap >= 0) & (gap < most)
    return [(int(one), int(other)) for one, other in np.argwhere(beside)]


def _is_ruled_off(left: Line, right: Line, rules: Mask) -> bool:
    between = rules[max(left.top, right.top) : min(left.bottom, right.bottom), left.right : right.left]
    return bool(between.any())


def cut_at(line: Line, gaps: Sequence[tuple[int, int]]) -> list[Line]:
    """What is left and right of each gap; nothing, of no width, where one is at the line's end."""
    starts = [line.left, *(end for _, end in gaps)]
    ends = [*(start for start, _ in gaps), line.right]
    return [Line(start, line.top, end, line.bottom) for start, end in zip(starts, ends, strict=True)]


def find_uprights(ink: Ink) -> list[Line]:
    """Vertical ruled lines."""
    labels, _ = ndimage.label(ink.rules, np.ones((3, 3), int))
    found = [Line(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    thick = [line for line in found if line.height <= 3 * line.width]
    uprights = [line for line in found if line.height > 3 * line.width]
    for line in thick:  # a grid is one piece: its columns that are ruled from top to bottom
        filled = ink.rules[line.top : line.bottom, line.left : line.right].mean(axis=0) > 0.7
        edges = np.flatnonzero(np.diff(np.concatenate(([False], filled, [False])).astype(np.int8)))
        for start, end in edges.reshape(-1, 2).tolist():
            if end - start < 0.1 * line.width:
                uprights.append(Line(line.left + start, line.top, line.left + end, line.bottom))
    return uprights


def find_levels(ink: Ink) -> list[Line]:
    """Horizontal ruled lines, those of a grid each for itself."""
    length = max(40, ink.rules.shape[1] // 40)
    labels, _ = ndimage.label(long_runs(ink.rules, length))
    found = [Line(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return [line for line in found if line.width > 3 * line.height]


def joined(lines: Sequence[Line]) -> Line:
    return Line(
        min(line.left for line in lines), min(line.top for line in lines),
        max(line.right for line in lines), max(line.bottom for line in lines),
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
