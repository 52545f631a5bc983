"""Rows of print -> lines of text and tables: rows in a table keep the same strips white."""

from collections.abc import Sequence
from itertools import pairwise, repeat
from statistics import median

import numpy as np

from app.ocr.regions.lines import CELL_GAP_EM, Cell, Line, Part, Row, Table, cut_at, joined
from app.ocr.regions.rules import Rules
from app.ocr.regions.wrapped import wrapped_rows

MAX_ROW_GAP_EM = 2.2
"""White between rows of a table, in heights of a line."""
MAX_NUMBER_EM, WIDEST_NUMBER_EM = 1.7, 3.0
"""Width of bullets or numbers before the items of a list, usually, and of any of them, at most."""
MIN_ITEM_EM = 4.0
ALIGNED_EM = 0.4
MANY_CELLS, SURE_ROWS = 5, 3
SURE_STRIP_EM = 0.9
"""White between cells that spread words never have."""
SPREAD, MAX_SPREAD_ROWS = 0.7, 0.25
"""The narrowest white in a spread line, in the widest; and the share of a table's rows that may look so."""
LONGEST_WORD_EM, SPACE_EM, SHORT_EM = 8.0, 0.33, 1.0
"""By what a justified line's spaces are wider, all together, at most: the next word did not fit; a usual
space; white at its right that no justified line has; in heights of a line."""
HANG_EM = 2.4
"""From where a list's number begins to where its text does, at most."""
SAME_STEP = (0.75, 1.2)
"""From row to row, in the usual step of a table's."""
SAME_WHITE = 0.9
"""White between cells is no narrower than any other of their row; but for what letters have beside them."""
MIN_WRAPPED, MAX_WRAPPED = 3, 60
"""Printed rows of a table with cells of several lines, at least and at most."""
MAX_BELOW = 4
"""Short lines under it that leave its strips white, at most."""
Strip = tuple[float, float]
ENDLESS = float("inf")


def parts_of_rows(rows: Sequence[Row], em: float, rules: Rules) -> list[Part]:
    """Rows from top to bottom -> tables, and the others as lines. ``em``: height of a line."""
    parts: list[Part] = []
    middles = [median(cell.middle for cell in row) for row in rows]
    at = 0
    while at < len(rows):
        if (wrapped := _wrapped_table(rows[at : at + MAX_WRAPPED], em)) is not None:
            table, num_rows = wrapped
            parts.append(table)
            at += num_rows
            continue
        grid = _Grid(rows, at, em, rules, middles)
        above = rows[at - 1] if at > 0 and parts and isinstance(parts[-1], Line) else None
        has_head = above is not None and not grid.is_table() and grid.take_ruled(above)
        if grid.is_table():
            has_head = has_head or (above is not None and grid.take_head(above))
            grid.take_on(rows)
            parts = parts[:-1] if has_head else parts
            parts.append(Table(tuple(tuple((cell,) if cell else () for cell in row) for row in grid.cells)))
            at = grid.end
            continue
        # of a list no item begins a table, however short those that follow are
        end = at + grid.count_items() if grid.is_list() else at + 1
        parts += [joined(row) for row in rows[at:end]]
        at = end
    return parts


def _wrapped_table(rows: Sequence[Row], em: float) -> tuple[Table, int] | None:
    """Whose cells have several lines, beside the middle of their row; and how many of the rows are its."""
    strips: list[list[Strip]] = []  # white through the first rows, as long as there is some beside the first
    inked: list[Strip] = []
    for at, row in enumerate(rows):
        inked = _joined_spans([*inked, *((line.left, line.right) for line in row)], CELL_GAP_EM * em)
        is_apart = at > 0 and _white_between(rows[at - 1], row) > MAX_ROW_GAP_EM * em
        if is_apart or (at > 0 and len(inked) < 2):
            break
        strips.append([(left[1], right[0]) for left, right in pairwise(inked)])
    for end in range(len(strips), max(MIN_WRAPPED, len(strips) - MAX_BELOW) - 1, -1):
        cells = [_in_columns(row, strips[end - 1]) for row in rows[:end]]
        if all(None not in row for row in cells):
            return None
        columns = [[cell for cell in column if cell] for column in zip(*cells, strict=True)]
        if max(line.width for line in columns[0]) < MAX_NUMBER_EM * em:
            continue  # items of a list
        found = wrapped_rows(columns, em, is_ruled=False)
        if found is not None and all(map(_are_even, zip(*found, strict=True), repeat(em))):
            return Table(tuple(found)), end
    return None


def _joined_spans(spans: Sequence[Strip], least: float) -> list[Strip]:
    """Those with less white between them as one, from left to right."""
    joined_spans: list[Strip] = []
    for left, right in sorted(spans):
        if joined_spans and left - joined_spans[-1][1] < least:
            joined_spans[-1] = joined_spans[-1][0], max(right, joined_spans[-1][1])
        else:
            joined_spans.append((left, right))
    return joined_spans


def _white_between(above: Row, below: Row) -> float:
    return min(cell.top for cell in below) - max(cell.bottom for cell in above)


def _are_even(column: Sequence[Cell], em: float) -> bool:
    """A head may stand otherwise."""
    head, *others = column
    lines = [line for cell in others for line in cell]
    return _is_even(lines, em) or _is_even([*head, *lines], em)


def _is_even(column: Sequence[Line], em: float) -> bool:
    """Cells that begin, end or have their middles under each other."""
    edges = (
        [cell.left for cell in column],
        [(cell.left + cell.right) / 2 for cell in column],
        [cell.right for cell in column],
    )
    return any(max(edge) - min(edge) <= ALIGNED_EM * em for edge in edges)


class _Grid:
    """The most rows, from one on, that have strips in common: ``rows[start:end]``."""

    def __init__(
        self, rows: Sequence[Row], start: int, em: float, rules: Rules, middles: Sequence[float]
    ) -> None:
        self._em, self._rules, self._middles = em, rules, middles
        self._right = max(row[-1].right for row in rows)
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
        return _in_columns(row, self._strips)

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
        return self._put_above(row, cells if len(cells) - cells.count(None) > 1 else self._cut(row))

    def _is_between_columns(self, row: Row) -> bool:
        """It has a stretch for each column, that no other column is under."""
        columns = [joined(column) for column in self._columns()]
        return len(row) == len(columns) and all(
            left.right <= column.left and before.right <= right.left
            for (left, right), (before, column) in zip(pairwise(row), pairwise(columns), strict=True)
        )

    def take_ruled(self, row: Row) -> bool:
        """The row above one that stands alone, with lines ruled around both."""
        if len(self._taken) > 1 or not self._strips or not self._has_rules([row, *self._taken]):
            return False
        return self._put_above(row, self._cut(row))

    def take_on(self, rows: Sequence[Row]) -> None:
        """Rows below that have little white between their cells."""
        while self.end < len(rows) and self._is_in_step(rows[self.end], is_above=False):
            cells = self._cut(rows[self.end])
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

    def _cut(self, row: Row) -> list[Line | None] | None:
        """Cells of a row whose widest white stands in the strips, and what is between in line with the
        columns; ``None`` for any other.
        """
        white = sorted([*(gap for cell in row for gap in cell.gaps), *_between(row)])
        apart: list[tuple[int, int]] = []
        for a, b in self._strips:
            crossing = [gap for gap in white if min(gap[1], b) > max(gap[0], a)]
            if not crossing:
                return None
            apart.append(max(crossing, key=lambda gap: gap[1] - gap[0]))
        others = [end - start for start, end in white if (start, end) not in apart]
        if min(end - start for start, end in apart) < SAME_WHITE * max(others, default=0):
            return None
        cells = cut_at(joined(row), apart)
        columns = zip(self._columns(), cells, strict=True)
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
        return _is_even([*column, cell], self._em)

    def _grow(self, rows: Sequence[Row], start: int) -> None:
        strips = self._strips
        for at in range(start + 1, len(rows)):
            gap = _white_between(rows[at - 1], rows[at])
            left = self._still_white(strips, rows[start : at + 1])
            if self._is_break(start, at - start) or gap > MAX_ROW_GAP_EM * self._em:
                return
            if not self._may_lose(strips, left, rows[at], at - start):
                return
            if len(left) > len(strips) and at - start > 1 and not self._has_rules(rows[start : at + 1]):
                return  # words of a spread line
            strips = left
            num_cells = sum(cell is not None for cell in _in_columns(rows[at], strips))
            if num_cells > 1 or self._is_ruled_in(rows[start : at + 1]):
                # text under a table may be too short to cross its strips
                self._strips, self._taken, self.end = strips, list(rows[start : at + 1]), at + 1

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
        edges = [-ENDLESS, *(side for cell in last for side in (cell.left, cell.right)), ENDLESS]
        white = list(zip(edges[::2], edges[1::2], strict=True))
        common = ((max(a, c), min(b, d)) for a, b in strips for c, d in white)
        top, bottom = min(cell.top for cell in rows[0]), max(cell.bottom for cell in last)
        return [
            (a, b)
            for a, b in common
            if b - a >= 0.9 * CELL_GAP_EM * self._em
            or (b > a and self._rules.has_upright(a - 2, b + 2, top, bottom))
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
        found = self._columns()
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
        sides = ([cell.left for cell in found[0]], [(cell.left + cell.right) / 2 for cell in found[0]])
        is_flush, is_centred = (max(side) - min(side) <= ALIGNED_EM * self._em for side in sides)
        at_right = is_centred and not is_flush and len(sides[0]) >= SURE_ROWS
        return all(self._is_aligned(column, at_right=column is not found[-1] or at_right) for column in found)

    def is_list(self) -> bool:
        """Bullets or numbers beside what they point at."""
        columns = self._columns()
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

    def _columns(self) -> list[list[Line]]:
        """Cells that are not empty."""
        return [[cell for cell in column if cell is not None] for column in zip(*self.cells, strict=True)]

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
        left, right = [row[0].left for row in self._taken], [row[-1].right for row in self._taken]
        is_flush = max(max(left) - min(left), max(right) - min(right)) <= ALIGNED_EM * self._em
        is_flush = is_flush and max(right) > self._right - SHORT_EM * self._em
        if num_whole < 3 and len(self._strips) == 1 and narrowest < SURE_STRIP_EM:
            return True
        if all(map(self._lacks_words, self._taken)):
            return False
        return is_flush and (narrowest < SURE_STRIP_EM or num_whole < 3)

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


def _in_columns(row: Row, strips: Sequence[Strip]) -> list[Line | None]:
    """One cell a column, ``None`` where there is none."""
    columns: list[list[Line]] = [[] for _ in range(len(strips) + 1)]
    for line in row:
        columns[sum(line.left >= (a + b) / 2 for a, b in strips)].append(line)
    return [joined(column) if column else None for column in columns]
