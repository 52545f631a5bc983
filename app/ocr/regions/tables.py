"""Rows of print -> lines of text and tables: rows in a table keep the same strips white."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from app.ocr.regions.lines import CELL_GAP_EM, Line, Part, Row, Table, joined
from app.ocr.regions.rules import Rules

MAX_ROW_GAP_EM = 2.2
"""White between rows of a table, in heights of a line."""
MAX_NUMBER_EM = 1.7
"""Width of a bullet or a number before an item of a list."""
MIN_ITEM_EM = 4.0
ALIGNED_EM = 0.4
MANY_CELLS = 5
SURE_STRIP_EM = 0.9
"""White between cells that spread words never have."""
SPREAD, MAX_SPREAD_ROWS = 0.7, 0.25
"""The narrowest white in a spread line, in the widest; and the share of a table's rows that may look so."""
Strip = tuple[float, float]
ENDLESS = float("inf")


def parts_of_rows(rows: Sequence[Row], em: float, rules: Rules) -> list[Part]:
    """Rows from top to bottom -> tables, and the others as lines. ``em``: height of a line."""
    parts: list[Part] = []
    at = 0
    while at < len(rows):
        grid = _Grid(rows, at, em, rules)
        if grid.is_table():
            # the first row may lack its first cell, and looks like a row of fewer columns
            has_head = at > 0 and bool(parts) and isinstance(parts[-1], Line) and grid.takes(rows[at - 1])
            cells = [*([grid.in_columns(rows[at - 1])] if has_head else []), *grid.cells]
            parts = parts[:-1] if has_head else parts
            parts.append(Table(tuple(tuple((cell,) if cell else () for cell in row) for row in cells)))
            at = grid.end
            continue
        # of a list no item begins a table, however short those that follow are
        end = grid.end if grid.is_list() else at + 1
        parts += [joined(row) for row in rows[at:end]]
        at = end
    return parts


class _Grid:
    """The most rows, from one on, that have strips in common: ``rows[start:end]``."""

    def __init__(self, rows: Sequence[Row], start: int, em: float, rules: Rules) -> None:
        self._em, self._rules = em, rules
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

    def takes(self, row: Row) -> bool:
        """The row above keeps all strips white, and stands as near as the rows do."""
        if len(row) < 2 or len(self._still_white(self._strips, [*self._taken, row])) < len(self._strips):
            return False
        middles = [float(np.median([cell.middle for cell in one])) for one in (row, *self._taken)]
        step, *others = np.diff(middles)
        return bool(step <= 1.2 * np.median(others))

    def _grow(self, rows: Sequence[Row], start: int) -> None:
        strips = self._strips
        for at in range(start + 1, len(rows)):
            gap = min(cell.top for cell in rows[at]) - max(cell.bottom for cell in rows[at - 1])
            left = self._still_white(strips, rows[start : at + 1])
            if self._is_break(rows[start : at + 2], at - start) or gap > MAX_ROW_GAP_EM * self._em:
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

    def _is_break(self, rows: Sequence[Row], at: int) -> bool:
        """Row ``at`` stands farther below than those before it below each other; than the one before and the
        one after it, where there are no more.
        """
        middles = [float(np.median([cell.middle for cell in row])) for row in rows]
        steps = np.diff(middles)
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
        return all(self._is_aligned(column, at_right=column is not found[-1]) for column in found)

    def is_list(self) -> bool:
        """Bullets or numbers beside what they point at."""
        columns = self._columns()
        if len(self.cells) < 2 or len(columns) != 2 or not all(columns):
            return False
        widest = float(np.median([line.width for line in columns[0]]))
        text = max(line.width for line in columns[-1])
        return widest < MAX_NUMBER_EM * self._em and text > MIN_ITEM_EM * self._em

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
        if num_whole < 3 and len(self._strips) == 1 and narrowest < SURE_STRIP_EM:
            return True
        return is_flush and (narrowest < SURE_STRIP_EM or num_whole < 3)

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


def _in_columns(row: Row, strips: Sequence[Strip]) -> list[Line | None]:
    """One cell a column, ``None`` where there is none."""
    columns: list[list[Line]] = [[] for _ in range(len(strips) + 1)]
    for line in row:
        columns[sum(line.left >= (a + b) / 2 for a, b in strips)].append(line)
    return [joined(column) if column else None for column in columns]
