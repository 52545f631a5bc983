"""Find tables between ruled lines: rows between rules of one length, columns separated by white or rules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np

from app.pocket.layout.lines import Cell, Line, Table, joined, rows_of
from app.pocket.layout.masks import Mask
from app.pocket.layout.rules import Rules

SAME_EDGE_EM = 0.7  # line heights by which the ends of one table's rules differ at most
CLOSED_EM = 1.0  # line heights, at most, from the end of a rule to an upright one
DOUBLE_EM = 0.3  # line heights; rules that are nearer count as one
MIN_STRIP_EM = 0.4  # line heights, least white between columns, through all rows
STRIP_SPACES = 1.25  # spaces between other words of these lines, least white between columns
FEWEST_RULES = 3  # least rules of a table
MAX_CELLS_FILLED = 0.7  # of rows times columns between two rules; if more are filled, each line is a row
ALIKE = 0.6  # least share of columns with the same number of lines
MAX_PAIRED = 3  # most columns of a grid whose cells of two lines are one row
MAX_TEXT_LINES = 3  # full lines under each other that prove text in columns, not cells
MIN_TEXT_EM = 10.0  # line heights, least width of such lines
FULL = 0.85  # of its column's widest line, least width of a full line
MIN_ALONG = 0.6  # of a table's height, least length of an upright rule
SPECK_PX = 1  # ink in a column of pixels that still counts as white
Strip = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RuledTable:
    """A table found by its rules. ``box``: the area between the outer rules."""

    box: Line
    table: Table

    def holds(self, line: Line) -> bool:
        across = (line.left + line.right) / 2
        return self.box.left <= across <= self.box.right and self.box.top <= line.middle <= self.box.bottom


@dataclass(frozen=True, slots=True)
class _Slab:
    """The print between two rules."""

    box: Line
    lines: tuple[Line, ...]


def ruled_tables(mask: Mask, lines: Sequence[Line], rules: Rules) -> list[RuledTable]:
    """Find tables with at least three level rules of one length and columns between them.

    ``mask``: (H, W), ink without rules.
    """
    if not lines or len(rules.levels) < FEWEST_RULES:
        return []
    em = float(np.median([line.height for line in lines]))
    finder = _Finder(mask, rules, em)
    return [found for levels in _of_one_length(rules.levels, em) for found in finder.tables(levels, lines)]


def _of_one_length(levels: Sequence[Line], em: float) -> list[list[Line]]:
    """Group rules that begin and end below each other, from top to bottom."""
    groups: list[list[Line]] = []
    for level in sorted(levels, key=lambda one: one.top):
        near = SAME_EDGE_EM * em
        for group in groups:
            if abs(group[-1].left - level.left) <= near and abs(group[-1].right - level.right) <= near:
                if level.top - group[-1].bottom >= DOUBLE_EM * em:
                    group.append(level)
                break
        else:
            groups.append([level])
    return [group for group in groups if len(group) >= FEWEST_RULES]


class _Finder:
    """Search for the tables of one page between its rules."""

    def __init__(self, mask: Mask, rules: Rules, em: float) -> None:
        self._mask, self._rules, self._em = mask, rules, em

    def tables(self, levels: Sequence[Line], lines: Sequence[Line]) -> list[RuledTable]:
        """Find the tables between rules of one length."""
        found: list[RuledTable] = []
        run: list[_Slab] = []
        for slab in [*_slabs(levels, lines), None]:
            if slab is not None and self._goes_on(run, slab):
                run.append(slab)
                continue
            # here begins another table of that length, or text between two
            if (made := self._table(run)) is not None:
                found.append(made)
            run = [slab] if slab is not None and self._edges([slab]) else []
        return found

    def _goes_on(self, run: Sequence[_Slab], slab: _Slab) -> bool:
        """Tell whether the slab continues the table above it.

        It may belong to another, or be text between two.
        """
        edges = self._edges([*run, slab])
        if not run:
            return bool(edges)
        if self._is_closed(run[-1]) != self._is_closed(slab):
            return False
        is_text = len(slab.lines) == 1 and len(edges) < len(self._edges(run))
        return bool(edges) and (self._is_closed(slab) or not is_text)

    def _is_closed(self, slab: _Slab) -> bool:
        """Tell whether the slab is between two upright rules, as the rows of a grid and nothing else are."""
        near, box = CLOSED_EM * self._em, slab.box
        return all(
            any(
                abs((rule.left + rule.right) / 2 - edge) <= near
                and min(rule.bottom, box.bottom) - max(rule.top, box.top) > MIN_ALONG * box.height
                for rule in self._rules.uprights
            )
            for edge in (box.left, box.right)
        )

    def _edges(self, slabs: Sequence[_Slab]) -> list[float]:
        """Find where columns end; empty if the last slab is empty."""
        if not slabs[-1].lines and not self._uprights([slabs[-1]]):
            return []
        box = joined([slab.box for slab in slabs])
        ruled = self._uprights(slabs)
        if ruled and all(map(self._is_closed, slabs)):
            return ruled  # in a grid, white inside a cell separates words
        strips = self._strips([line for slab in slabs for line in slab.lines], box)
        free = [(a, b) for a, b in strips if not any(a - 3 <= x <= b + 3 for x in ruled)]
        return sorted([*ruled, *((a + b) / 2 for a, b in free)])

    def _uprights(self, slabs: Sequence[_Slab]) -> list[float]:
        """Find upright rules along all slabs, except those at the outer edges."""
        box = joined([slab.box for slab in slabs])
        found = [
            (rule.left + rule.right) / 2
            for rule in self._rules.uprights
            if box.left + self._em < rule.left
            and rule.right < box.right - self._em
            and min(rule.bottom, box.bottom) - max(rule.top, box.top) > MIN_ALONG * box.height
        ]
        return [
            x for at, x in enumerate(sorted(found)) if at == 0 or x - sorted(found)[at - 1] > self._em / 2
        ]

    def _strips(self, lines: Sequence[Line], box: Line) -> list[Strip]:
        """Find the strips that are white in all lines."""
        ink = np.zeros(box.width, np.int64)
        for line in lines:
            ink += self._mask[line.top : line.bottom, box.left : box.right].sum(axis=0)
        edges = np.flatnonzero(np.diff((np.concatenate(([0], ink, [0])) > SPECK_PX).astype(np.int8)))
        inner = edges[1:-1].reshape(-1, 2) + box.left  # white between the first ink and the last
        wide = [(int(a), int(b)) for a, b in inner if b - a >= MIN_STRIP_EM * self._em]
        words: list[float] = [
            end - start
            for line in lines
            for start, end in line.gaps
            if not any(start < b and a < end for a, b in wide)
        ]
        spaces = words or [line.space for line in lines if line.space]
        least = STRIP_SPACES * float(np.median(spaces)) if spaces else 0.0
        return [(a, b) for a, b in wide if b - a >= least]

    def _table(self, slabs: Sequence[_Slab]) -> RuledTable | None:
        if len(slabs) < FEWEST_RULES - 1 or not any(slab.lines for slab in slabs):
            return None
        box = joined([slab.box for slab in slabs])
        edges = self._edges(slabs)
        if not edges or (not self._uprights(slabs) and self._is_text(slabs, edges)):
            return None
        rows = [row for slab in slabs for row in self._rows(slab, edges, len(slabs))]
        return RuledTable(box, Table(tuple(rows)))

    def _is_text(self, slabs: Sequence[_Slab], edges: Sequence[float]) -> bool:
        """Tell whether the columns are running text between rules across the page."""
        rows = [row for slab in slabs for row in self._text_rows(slab, edges)]
        for column in range(len(edges) + 1):
            cells = [row[column] for row in rows]
            widest = max((cell.width for cell in cells if cell), default=0)
            run = 0
            for cell in cells:
                run = run + 1 if cell and cell.width >= FULL * widest >= MIN_TEXT_EM * self._em else 0
                if run == MAX_TEXT_LINES:
                    return True
        return False

    def _text_rows(self, slab: _Slab, edges: Sequence[float]) -> list[list[Line | None]]:
        """Cut every printed line into columns."""
        return [
            [self._inked(row, left, right) for left, right in _columns(slab.box, edges)]
            for row in rows_of(slab.lines)
        ]

    def _inked(self, row: Sequence[Line], left: float, right: float) -> Line | None:
        """Return the print of the row between two edges."""
        near = [line for line in row if line.left < right and line.right > left]
        if not near:
            return None
        whole = joined(near)
        start, stop = max(round(left), whole.left), min(round(right), whole.right)
        filled = np.flatnonzero(self._mask[whole.top : whole.bottom, start:stop].any(axis=0))
        if not len(filled):
            return None
        left, right = start + int(filled[0]), start + int(filled[-1]) + 1
        gaps = tuple(gap for line in near for gap in line.gaps if left < gap[0] and gap[1] < right)
        return Line(left, whole.top, right, whole.bottom, whole.space, gaps)

    def _rows(self, slab: _Slab, edges: Sequence[float], num_slabs: int) -> list[tuple[Cell, ...]]:
        """Make one row of a slab, whose cells may have several lines, or several rows.

        Several if most columns have the same number of lines.
        """
        texts = self._text_rows(slab, edges)
        columns = [[cell for cell in column if cell] for column in zip(*texts, strict=True)]
        if not texts:
            return [((),) * (len(edges) + 1)]
        usual, times = Counter(map(len, columns)).most_common(1)[0]
        is_grid = bool(self._uprights([slab])) and num_slabs >= FEWEST_RULES
        is_pair = is_grid and max(map(len, columns)) == 2 and len(columns) <= MAX_PAIRED
        if usual > 1 and times >= ALIKE * len(columns) and not is_pair:
            alike = [column for column in columns if len(column) == usual]
            return _nearest(columns, [fmean(line.middle for line in row) for row in zip(*alike, strict=True)])
        filled = sum(map(len, columns)) / (len(texts) * len(columns))
        if is_pair or (num_slabs >= FEWEST_RULES and filled <= MAX_CELLS_FILLED):
            return [tuple(map(tuple, columns))]
        return [tuple((cell,) if cell else () for cell in row) for row in texts]


def _nearest(columns: Sequence[Sequence[Line]], middles: Sequence[float]) -> list[tuple[Cell, ...]]:
    """Assign lines to the nearest row, or to the first of two that are equally near."""
    rows: list[list[list[Line]]] = [[[] for _ in columns] for _ in middles]
    for at, column in enumerate(columns):
        for line in column:
            distances = [abs(line.middle - middle) // 3 for middle in middles]
            rows[distances.index(min(distances))][at].append(line)
    return [tuple(map(tuple, row)) for row in rows]


def _slabs(levels: Sequence[Line], lines: Sequence[Line]) -> list[_Slab]:
    slabs: list[_Slab] = []
    for above, below in pairwise(levels):
        left, right = min(above.left, below.left), max(above.right, below.right)
        box = Line(left, above.top, right, below.bottom)
        held = [
            line
            for line in lines
            if box.top < line.middle < box.bottom and left <= (line.left + line.right) / 2 <= right
        ]
        slabs.append(_Slab(box, tuple(held)))
    return slabs


def _columns(box: Line, edges: Sequence[float]) -> list[tuple[float, float]]:
    bounds = [box.left, *edges, box.right]
    return list(pairwise(bounds))
