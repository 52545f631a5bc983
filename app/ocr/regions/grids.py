"""Rows of print that keep the same strips white, as those of a table do."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from app.ocr.regions.lines import CELL_GAP_EM, Line, Row, cut_at, joined
from app.ocr.regions.rules import Rules

MAX_ROW_GAP_EM = 2.2
"""White between rows of a table, in heights of a line."""
MAX_NUMBER_EM, WIDEST_NUMBER_EM = 1.7, 3.0
"""Width of bullets or numbers before the items of a list, usually, and of any of them, at most."""
MIN_ITEM_EM = 4.0
ALIGNED_EM = 0.4
MANY_CELLS, SURE_ROWS, HEADED = 5, 3, 4
"""Cells of a column, and rows, that tell more than fewer do; and rows of a table with its head."""
SURE_STRIP_EM = 0.9
"""White between cells that spread words never have."""
SPREAD, MAX_SPREAD_ROWS = 0.7, 0.25
"""The narrowest white in a spread line, in the widest; and the share of a table's rows that may look so."""
LONGEST_WORD_EM, SPACE_EM, SHORT_EM = 8.0, 0.33, 1.0
"""By what a justified line's spaces are wider, all together, at most: the next word did not fit; a usual
space; white at its right that no justified line has; in heights of a line."""
INDENT_EM = (0.7, 3.5)
"""Of a paragraph's first line."""
HANG_EM = 2.4
"""From where a list's number begins to where its text does, at most."""
SAME_STEP = (0.75, 1.2)
"""From row to row, in the usual step of a table's."""
SAME_WHITE, WIDER_WHITE = 0.9, 1.15
"""White between cells is no narrower than any other of their row, but for what letters have beside them; it
is wider where nothing else tells the row from one of text.
"""
Strip = tuple[float, float]
ENDLESS = float("inf")


class Grid:
    """The most rows, from one on, that have strips in common: ``rows[start:end]``."""

    def __init__(
        self, rows: Sequence[Row], start: int, em: float, rules: Rules, middles: Sequence[float]
    ) -> None:
        self._em, self._rules, self._middles = em, rules, middles
        self._left, self._right = min(row[0].left for row in rows), max(row[-1].right for row in rows)
        self.end = start + 1
        self._taken = [rows[start]]
        self._strips: list[Strip] = [
            (left.right, right.left) for left, right in zip(rows[start], rows[start][1:], strict=False)
        ]
        if self._strips:
            self._grow(rows, start)
        self.cells = [self.in_columns(row) for row in self._taken]

    def in_columns(self, row: Row) -> list[Line | None]:
        """One cell a column, ``None`` where there is none."""
        return in_columns(row, self._strips)

    def take_head(self, row: Row) -> bool:
        """The row above, if it is one of the table: it may lack its first cell, and looks like a row of fewer
        columns, or have little white between its cells.
        """
        if not self._is_in_step(row, is_above=True):
            return False
        if self._is_between_columns(row):
            return self._put_above(row, [*row])
        kept = self._still_white(self._strips, [*self._taken, row]) if len(row) > 1 else []
        cells = self.in_columns(row) if len(kept) == len(self._strips) else []
        return self._put_above(row, cells if len(cells) - cells.count(None) > 1 else self._cut_in_line(row))

    def _is_between_columns(self, row: Row) -> bool:
        """It has a stretch for each column, that no other column is under."""
        columns = [joined(column) for column in _columns_of(self.cells)]
        return len(row) == len(columns) and all(
            left.right <= column.left and before.right <= right.left
            for (left, right), (before, column) in zip(pairwise(row), pairwise(columns), strict=True)
        )

    def take_ruled(self, row: Row) -> bool:
        """The row above one that stands alone, with lines ruled around both."""
        if len(self._taken) > 1 or not self._strips or not self._has_rules([row, *self._taken]):
            return False
        return self._put_above(row, self._cut_in_line(row))

    def take_first(self, row: Row) -> bool:
        """The row above, if both make a table; it may have little white between its cells."""
        return self.take_head(row) if self.is_table() else self.take_ruled(row)

    def take_on(self, rows: Sequence[Row]) -> None:
        """Rows below that have little white between their cells."""
        while self.end < len(rows) and self._is_in_step(rows[self.end], is_above=False):
            cells = self._cut_in_line(rows[self.end])
            if cells is None:
                return
            self.cells.append(cells)
            self._taken.append(rows[self.end])
            self.end += 1

    def _put_above(self, row: Row, cells: list[Line | None] | None) -> bool:
        if cells is None:
            return False
        self.cells.insert(0, cells)
        self._taken.insert(0, row)
        return True

    def _cut_in_line(self, row: Row) -> list[Line | None] | None:
        """As ``_cut``, beside all that was taken."""
        return self._cut(row, self._strips, self.cells)

    def _cut(
        self,
        row: Row,
        strips: Sequence[Strip],
        others: Sequence[Sequence[Line | None]],
        least: float = SAME_WHITE,
    ) -> list[Line | None] | None:
        """Cells of a row whose widest white stands in the strips, and what is between in line with the
        columns of the ``others``; ``None`` for any other. ``least``: of other white in the row, that in the
        strips is.
        """
        white = sorted([*(gap for cell in row for gap in cell.gaps), *_between(row)])
        apart: list[tuple[int, int]] = []
        for a, b in strips:
            crossing = [gap for gap in white if min(gap[1], b) > max(gap[0], a)]
            if not crossing:
                return None
            apart.append(max(crossing, key=lambda gap: gap[1] - gap[0]))
        inner = [end - start for start, end in white if (start, end) not in apart]
        if min(end - start for start, end in apart) < least * max(inner, default=0):
            return None
        cells = cut_at(joined(row), apart)
        columns = zip(_columns_of(others), cells, strict=True)
        return [*cells] if all(self._is_under(column, cell) for column, cell in columns) else None

    def _is_in_step(self, row: Row, *, is_above: bool) -> bool:
        """It stands as near to the first or last row as rows do to each other."""
        if len(self._taken) < 2:
            return False
        rows = [row, *self._taken] if is_above else [*self._taken, row]
        steps = np.diff([float(np.median([cell.middle for cell in one])) for one in rows])
        step, others = (steps[0], steps[1:]) if is_above else (steps[-1], steps[:-1])
        least, most = (share * float(np.median(others)) for share in SAME_STEP)
        return bool(least <= step <= most)

    def _is_under(self, column: Sequence[Line], cell: Line) -> bool:
        """At the left, in the middle or at the right, wherever all of the column are."""
        return is_even([*column, cell], self._em)

    def _grow(self, rows: Sequence[Row], start: int) -> None:
        strips, taken = self._strips, [rows[start]]
        for at in range(start + 1, len(rows)):
            row, gap = rows[at], white_between(rows[at - 1], rows[at])
            if self._is_break(start, at - start) or gap > MAX_ROW_GAP_EM * self._em:
                return
            left = self._still_white(strips, [*taken, row])
            if len(left) < len(strips) and not self._are_numbers(taken, strips):
                cells = self._cut(row, strips, [in_columns(one, strips) for one in taken], WIDER_WHITE)
                if cells is not None:  # they stand as near as words
                    row = [cell for cell in cells if cell is not None]
                    left = _common(strips, row)
            if not self._may_lose(strips, left, row, at - start):
                return
            taken.append(row)
            if len(left) > len(strips) and at - start > 1 and not self._has_rules(taken):
                return  # words of a spread line
            strips = left
            num_cells = sum(cell is not None for cell in in_columns(row, strips))
            if num_cells > 1 or self._is_ruled_in(taken):
                # text under a table may be too short to cross its strips
                self._strips, self._taken, self.end = strips, [*taken], at + 1

    def _are_numbers(self, rows: Sequence[Row], strips: Sequence[Strip]) -> bool:
        """Bullets or numbers of a list, before its items."""
        first = _columns_of([in_columns(row, strips) for row in rows])[0]
        return len(strips) == 1 and max((line.width for line in first), default=0) < MAX_NUMBER_EM * self._em

    def _is_break(self, start: int, at: int) -> bool:
        """Row ``at`` after the first stands farther below than those before it below each other; than the one
        before and the one after it, where there are no more.
        """
        steps = np.diff(self._middles[start : start + at + 2])
        around = steps[: at - 1] if at > 2 else np.delete(steps, at - 1)
        if len(around) < 2:
            return False
        if at > 2:
            return bool(steps[at - 1] > 1.45 * np.median(around) + 0.2 * self._em)
        return bool(steps[at - 1] > 1.3 * around.max())

    def _still_white(self, strips: Sequence[Strip], rows: Sequence[Row]) -> list[Strip]:
        """What the last row leaves of the strips."""
        last = rows[-1]
        top, bottom = min(cell.top for cell in rows[0]), max(cell.bottom for cell in last)
        return [
            (a, b)
            for a, b in _common(strips, last)
            if b - a >= 0.9 * CELL_GAP_EM * self._em
            or (a, b) in strips
            or self._rules.has_upright(a - 2, b + 2, top, bottom)
        ]

    def _may_lose(self, strips: Sequence[Strip], left: Sequence[Strip], row: Row, num_before: int) -> bool:
        """A first row may have gaps by chance; after two, a row that closes many is none of the table."""
        alive = sum(any(a <= c and d <= b for c, d in left) for a, b in strips)
        if alive == len(strips) or (alive and num_before == 1 and len(row) > 1):
            return True
        return len(row) > 1 and alive > 0.5 * len(strips)

    def _is_ruled_in(self, rows: Sequence[Row]) -> bool:
        """A line is ruled under the last row, as wide as those before it."""
        lines = [cell for row in rows for cell in row]
        left, right = min(line.left for line in lines), max(line.right for line in lines)
        bottom = max(line.bottom for line in rows[-1])
        return self._rules.count_levels(left, right, bottom - 0.2 * self._em, bottom + self._em) > 0

    def is_table(self) -> bool:
        found = _columns_of(self.cells)
        if len(self.cells) < 2 or len(found) < 2:
            return False
        if sum(map(len, found)) < 0.55 * len(self.cells) * len(found) or not all(found):
            return False
        if self._has_rules(found):
            return True
        if self.is_list() or self._is_spread():
            return False
        whole = sum(None not in row for row in self.cells)
        if whole < 2 or self._may_be_justified(whole):
            return False
        return self._are_aligned(found, is_headed=whole == len(self.cells) >= HEADED)

    def _are_aligned(self, columns: Sequence[Sequence[Line]], *, is_headed: bool) -> bool:
        """``is_headed``: rows enough, and whole, so that the first one may stand otherwise."""
        first = columns[0]
        sides = ([cell.left for cell in first], [(cell.left + cell.right) / 2 for cell in first])
        is_flush, is_centred = (max(side) - min(side) <= ALIGNED_EM * self._em for side in sides)
        at_right = is_centred and not is_flush and len(first) >= SURE_ROWS
        if all(self._is_aligned(one, at_right=one is not columns[-1] or at_right) for one in columns):
            return True
        return is_headed and all(self._is_aligned(one[1:], at_right=True) for one in columns)

    def is_list(self) -> bool:
        """Bullets or numbers beside what they point at."""
        columns = _columns_of(self.cells)
        if len(self.cells) < 2 or len(columns) != 2 or not all(columns):
            return False
        widths = [line.width for line in columns[0]]
        if max(widths) > WIDEST_NUMBER_EM * self._em:
            return False
        widest = float(np.median(widths))
        text = max(line.width for line in columns[-1])
        hang = min(row[1].left - row[0].left for row in self.cells if row[0] and row[1])
        is_item = text > MIN_ITEM_EM * self._em or hang < HANG_EM * self._em
        return widest < MAX_NUMBER_EM * self._em and is_item

    def count_items(self) -> int:
        """Rows of a list, before one whose first cell is under no bullet or number."""
        leads = [(at, row[0]) for at, row in enumerate(self.cells) if row[0] is not None]
        first = leads[0][1]
        near = ALIGNED_EM * self._em
        is_under = (min(abs(one.left - first.left), abs(one.right - first.right)) <= near for _, one in leads)
        return next(
            (at for (at, _), under in zip(leads, is_under, strict=True) if not under), len(self.cells)
        )

    def _is_spread(self) -> bool:
        """In some rows all words stand as far from each other as the cells do."""
        spread = 0
        for row, cells in zip(self._taken, self.cells, strict=True):
            white: list[float] = [right.left - left.right for left, right in pairwise(row)]
            if len(white) > 2 and row[0].width < MAX_NUMBER_EM * self._em:
                white = white[1:]  # what is after a number is as wide as the list wants it
            words = [cell.space for cell in row if cell.space]
            if words or len(row) > sum(cell is not None for cell in cells):
                white += words
                spread += min(white) >= max(CELL_GAP_EM * self._em, SPREAD * max(white))
        return spread > MAX_SPREAD_ROWS * len(self._taken)

    def _may_be_justified(self, num_whole: int) -> bool:
        """Spread words of a few lines may stand under each other by chance."""
        narrowest = min(b - a for a, b in self._strips) / self._em
        near = ALIGNED_EM * self._em
        left, right = [row[0].left for row in self._taken], [row[-1].right for row in self._taken]
        first = left[1] if self._is_indented(left) else left[0]
        is_flush = max(max(first, *left[1:]) - min(first, *left[1:]), max(right) - min(right)) <= near
        is_flush = is_flush and max(right) > self._right - SHORT_EM * self._em
        if num_whole < 3 and len(self._strips) == 1 and narrowest < SURE_STRIP_EM:
            return True
        if all(map(self._lacks_words, self._taken)):
            return False
        return is_flush and (narrowest < SURE_STRIP_EM or num_whole < 3)

    def _is_indented(self, left: Sequence[float]) -> bool:
        """The first row, as a paragraph's is: the others begin where all else does."""
        near = ALIGNED_EM * self._em
        least, most = (share * self._em for share in INDENT_EM)
        return least < left[0] - left[1] < most and max(left[1:]) - self._left <= near

    def _lacks_words(self, row: Row) -> bool:
        """More would have stood in the row, were it a line of text."""
        white = [end - start - SPACE_EM * self._em for start, end in _between(row)]
        return sum(white) > LONGEST_WORD_EM * self._em

    def _has_rules(self, rows: Sequence[Row]) -> bool:
        box = joined([cell for row in rows for cell in row])
        if self._rules.has_upright(box.left, box.right, box.top, box.bottom):
            return True
        around = 1.3 * self._em
        return self._rules.count_levels(box.left, box.right, box.top - around, box.bottom + around) >= 3

    def _is_aligned(self, column: Sequence[Line], *, at_right: bool) -> bool:
        """At the left, in the middle or at the right, as cells of a table are; justified text is at the right
        of its last column, too.
        """
        edges: list[list[float]] = [
            [cell.left for cell in column],
            [(cell.left + cell.right) / 2 for cell in column],
        ]
        if at_right or len(column) > 3:
            edges.append([cell.right for cell in column])
        centres = sorted(edges[1])
        if len(centres) >= MANY_CELLS:  # of one cell a sign may be lost
            centres = min(centres[1:], centres[:-1], key=lambda some: some[-1] - some[0])
        edges[1] = centres
        return any(max(edge) - min(edge) <= ALIGNED_EM * self._em for edge in edges)


def _between(row: Row) -> list[tuple[int, int]]:
    """White between stretches."""
    return [(left.right, right.left) for left, right in pairwise(row)]


def _common(strips: Sequence[Strip], row: Row) -> list[Strip]:
    """What a row leaves white of them."""
    edges = [-ENDLESS, *(side for cell in row for side in (cell.left, cell.right)), ENDLESS]
    white = list(zip(edges[::2], edges[1::2], strict=True))
    common = ((max(a, c), min(b, d)) for a, b in strips for c, d in white)
    return [(a, b) for a, b in common if b > a]


def _columns_of(rows: Sequence[Sequence[Line | None]]) -> list[list[Line]]:
    """Cells that are not empty."""
    return [[cell for cell in column if cell is not None] for column in zip(*rows, strict=True)]


def in_columns(row: Row, strips: Sequence[Strip]) -> list[Line | None]:
    """One cell a column, ``None`` where there is none."""
    columns: list[list[Line]] = [[] for _ in range(len(strips) + 1)]
    for line in row:
        columns[sum(line.left >= (a + b) / 2 for a, b in strips)].append(line)
    return [joined(column) if column else None for column in columns]


def white_between(above: Row, below: Row) -> float:
    return min(cell.top for cell in below) - max(cell.bottom for cell in above)


def is_even(column: Sequence[Line], em: float) -> bool:
    """Cells that begin, end or have their middles under each other."""
    edges = (
        [cell.left for cell in column],
        [(cell.left + cell.right) / 2 for cell in column],
        [cell.right for cell in column],
    )
    return any(max(edge) - min(edge) <= ALIGNED_EM * em for edge in edges)
