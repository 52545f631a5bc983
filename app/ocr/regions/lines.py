"""Lines of print on a page, and the order they are read in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from app.ocr.regions.ink import Ink, Mask

MIN_LINE_PX = 6
MAX_LINES, MAX_MARKS = 1000, 2000
"""Of a page; a newspaper's has some 600 lines. More is no print, and ordering it would take minutes."""
GUTTER_EM = 1.15
"""White between columns, in heights of a line, at least."""


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


def find_lines(ink: Ink) -> list[Line]:
    """Stretches of print, in no order."""
    em = _typical_height(ink.mask)
    if em is None:
        return []
    # letters and words of a line run together, lines and columns do not
    smeared = ndimage.binary_closing(
        np.pad(ink.mask, ((0, 0), (2 * em, 2 * em))), np.ones((1, max(3, round(0.75 * em))), bool)
    )[:, 2 * em : -2 * em]
    smeared &= ~ink.rules  # nor what a ruled line stands between
    found: list[Line] = []
    labels, _ = ndimage.label(smeared, np.ones((3, 3), int))
    for rows, columns in ndimage.find_objects(labels):
        found.append(Line(columns.start, rows.start, columns.stop, rows.stop))
    whole = _largest([line for line in found if line.height >= 0.45 * em], MAX_LINES)
    lines = [part for line in whole for part in _split(line, ink.mask, em)]
    return _with_marks(lines, _largest([line for line in found if line.height < 0.45 * em], MAX_MARKS), em)


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
    letters = heights[(heights >= MIN_LINE_PX) & (heights < 0.1 * mask.shape[0]) & (widths < 4 * heights)]
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
    if smooth[cut] > 0.35 * smooth.max():
        return [line]
    upper = Line(line.left, line.top, line.right, line.top + cut)
    lower = Line(line.left, line.top + cut, line.right, line.bottom)
    return [*_split(upper, mask, em), *_split(lower, mask, em)]


def _with_marks(lines: list[Line], marks: list[Line], em: int) -> list[Line]:
    """Dots, accents and bullets join the line they belong to; specks belong to none."""
    grown = dict(enumerate(lines))
    alone: list[Line] = []
    for mark in marks:
        if mark.height * mark.width < 0.012 * em * em:
            continue
        near = [
            (max(line.left - mark.right, mark.left - line.right, 0), index)
            for index, line in grown.items()
            if line.top - 0.35 * em <= mark.middle <= line.bottom + 0.25 * em
        ]
        gap, index = min(near, default=(em * 9, -1))
        if gap <= 0.4 * em:
            line = grown[index]
            grown[index] = Line(
                min(line.left, mark.left), min(line.top, mark.top),
                max(line.right, mark.right), max(line.bottom, mark.bottom),
            )  # fmt: skip
        elif gap <= 3 * em:  # a bullet, a dash in a table
            pad = round(0.3 * em)
            alone.append(Line(mark.left, max(0, mark.top - pad), mark.right, mark.bottom + pad))
    return [*grown.values(), *alone]


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


def in_order(lines: Sequence[Line], uprights: Sequence[Line] = ()) -> list[Part]:
    """Lines and tables as they are read: columns one after the other, each from top to bottom."""
    if not lines:
        return []
    order = _Order(float(np.median([line.height for line in lines])), uprights)
    return order.parts(lines)


def _bands(lines: Sequence[Line]) -> list[list[Line]]:
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


class _Order:
    """``em``: height of a line. ``uprights``: vertical ruled lines."""

    def __init__(self, em: float, uprights: Sequence[Line]) -> None:
        self._em, self._uprights = em, uprights

    def parts(self, lines: Sequence[Line]) -> list[Part]:
        return [part for group in self._groups(_bands(lines)) for part in self._read(group)]

    def _gutters(self, lines: Sequence[Line]) -> list[tuple[float, float]]:
        """Strips that no line of these crosses: white and wide, or with a ruled line in them."""
        gutters: list[tuple[float, float]] = []
        top, bottom = min(line.top for line in lines), max(line.bottom for line in lines)
        reach = -1.0
        for line in sorted(lines, key=lambda one: one.left):
            if reach >= 0 and line.left > reach:
                is_ruled = self._is_ruled(reach - 2, line.left + 2, top, bottom)
                if is_ruled or line.left - reach >= GUTTER_EM * self._em:
                    gutters.append((reach, line.left))
            reach = max(reach, line.right)
        return gutters

    def _groups(self, bands: Sequence[Sequence[Line]]) -> list[list[Line]]:
        """Bands under each other that keep a gutter in common; others alone."""
        groups: list[list[Line]] = []
        open_group: list[Line] = []
        for band in bands:
            joined = [*open_group, *band]
            # a short last line above a table is none of its rows
            if open_group and self._gutters(open_group) and self._gutters(joined):
                gap = min(line.top for line in band) - max(line.bottom for line in open_group)
                if gap < 2.5 * self._em:
                    open_group = joined
                    continue
            if open_group:
                groups.append(open_group)
            open_group = list(band)
        if open_group:
            groups.append(open_group)
        return groups

    def _read(self, group: list[Line]) -> list[Part]:
        gutters = self._gutters(group)
        if not gutters:
            return [_joined(band) for band in _bands(group)]
        split = self._text_columns(group, gutters)
        if split is not None:
            return [part for column in split for part in self.parts(column)]
        columns = _cut(group, gutters)
        rows = _rows(columns)
        if len(rows) == 1 or self._is_list(columns):
            return [_across(row) for row in rows]
        end = len(rows)
        while end > 1 and sum(cell is not None for cell in rows[end - 1]) < 2:
            end -= 1  # text under a table, too short to cross its columns
        after = [
            part for row in rows[end:] for part in self.parts([cell for cell in row if cell is not None])
        ]
        if not self._is_table(rows[:end]):  # words of spread lines, under each other by chance
            return [*(_across(row) for row in rows[:end]), *after]
        return [Table(tuple(tuple(row) for row in rows[:end])), *after]

    def _text_columns(
        self, group: Sequence[Line], gutters: Sequence[tuple[float, float]]
    ) -> list[list[Line]] | None:
        """Both sides of the gutter nearest the middle that has running text on one side at least; ``None``
        for a table.
        """
        middle = (min(line.left for line in group) + max(line.right for line in group)) / 2
        for gutter in sorted(gutters, key=lambda strip: abs((strip[0] + strip[1]) / 2 - middle)):
            sides = _cut(group, [gutter])
            if min(_extent(side) for side in sides) < 8 * self._em:
                continue
            if max(len(_bands(side)) for side in sides) < 3:
                continue
            if not all(self._is_narrow(side) for side in sides) or not self._in_step(*sides):
                return sides
        return None

    def _in_step(self, left: Sequence[Line], right: Sequence[Line]) -> bool:
        """Rows on both sides lie at the same heights, as those of a table do."""
        heights = [float(np.median([line.bottom for line in band])) for band in _bands(left)]
        bands = _bands(right)
        beside = [
            min(abs(height - float(np.median([line.bottom for line in band]))) for height in heights)
            for band in bands
        ]
        return sum(gap < 0.3 * self._em for gap in beside) >= 0.6 * len(bands)

    def _is_narrow(self, side: Sequence[Line]) -> bool:
        """Cells rather than text."""
        gutters = self._gutters(side)
        if gutters and not self._is_list(_cut(side, gutters)):
            return True
        return float(np.median([_extent(band) for band in _bands(side)])) < 8 * self._em

    def _is_list(self, columns: Sequence[Sequence[Line]]) -> bool:
        """Bullets or numbers beside what they point at."""
        widest = max(line.width for line in columns[0])
        text = max(line.width for line in columns[-1])
        return len(columns) == 2 and widest < 1.6 * self._em and text > 4 * self._em

    def _is_table(self, rows: Sequence[Sequence[Line | None]]) -> bool:
        columns = [[cell for cell in column if cell is not None] for column in zip(*rows, strict=True)]
        if sum(map(len, columns)) < 0.6 * len(rows) * len(columns) or len(rows) < 2:
            return False
        cells = [cell for column in columns for cell in column]
        left, right = min(cell.left for cell in cells), max(cell.right for cell in cells)
        top, bottom = min(cell.top for cell in cells), max(cell.bottom for cell in cells)
        if self._is_ruled(left, right, top, bottom):
            return True
        if len(rows) < 3:
            return False
        return all(self._is_aligned(column, at_right=column is not columns[-1]) for column in columns)

    def _is_ruled(self, left: float, right: float, top: int, bottom: int) -> bool:
        """A vertical line stands between, along most of the height."""
        return any(
            left <= rule.left
            and rule.right <= right
            and min(bottom, rule.bottom) - max(top, rule.top) > 0.6 * (bottom - top)
            for rule in self._uprights
        )

    def _is_aligned(self, column: Sequence[Line], *, at_right: bool) -> bool:
        """At the left, in the middle or at the right, as cells of a table are; justified text is at the right
        of its last column, too.
        """
        cells = [_joined(band) for band in _bands(column)]
        edges: list[list[float]] = [
            [cell.left for cell in cells],
            [(cell.left + cell.right) / 2 for cell in cells],
        ]
        if at_right or len(cells) > 3:
            edges.append([cell.right for cell in cells])
        return any(max(edge) - min(edge) <= 0.4 * self._em for edge in edges)


def _cut(group: Sequence[Line], gutters: Sequence[tuple[float, float]]) -> list[list[Line]]:
    edges = [(start + end) / 2 for start, end in gutters]
    columns: list[list[Line]] = [[] for _ in range(len(edges) + 1)]
    for line in group:
        columns[sum(line.left > edge for edge in edges)].append(line)
    return columns


def _across(row: Sequence[Line | None]) -> Line:
    return _joined([cell for cell in row if cell is not None])


def _extent(lines: Sequence[Line]) -> int:
    return max(line.right for line in lines) - min(line.left for line in lines)


def _rows(columns: Sequence[Sequence[Line]]) -> list[list[Line | None]]:
    """Cells beside each other; of two lines in one cell the second makes a row of its own."""
    rows: list[list[Line | None]] = []
    for number, column in enumerate(columns):
        for line in (_joined(band) for band in _bands(column)):
            for row in rows:
                beside = next((cell for cell in row if cell is not None), None)
                if row[number] is None and beside is not None and line.is_beside(beside):
                    row[number] = line
                    break
            else:
                fresh: list[Line | None] = [None] * len(columns)
                fresh[number] = line
                rows.append(fresh)
    return sorted(rows, key=lambda row: min(cell.middle for cell in row if cell is not None))


def _joined(lines: Sequence[Line]) -> Line:
    return Line(
        min(line.left for line in lines), min(line.top for line in lines),
        max(line.right for line in lines), max(line.bottom for line in lines),
    )  # fmt: skip
