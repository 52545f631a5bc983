"""Find rows of print that keep the same strips white, as those of a table do."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from app.pocket.layout.lines import CELL_GAP_EM, Line, Row, joined
from app.pocket.layout.rules import Rules

MAX_ROW_GAP_EM = 2.2  # line heights of white, at most, between rows of a table
MAX_NUMBER_EM = 1.7  # line heights, greatest usual width of the bullets or numbers of a list
WIDEST_NUMBER_EM = 3.0  # line heights, greatest width of any of them
MIN_ITEM_EM = 4.0  # line heights, least width of the widest item of a list
HANG_EM = 2.4  # line heights, at most, from the left edge of a list's number to that of its text
ALIGNED_EM = 0.4  # line heights by which aligned cells of a column differ at most
MANY_CELLS = 5  # least cells of a column in which one may be out of line because a sign was lost
SURE_ROWS = 3  # least rows that show a centred first column
HEADED = 4  # least complete rows of a table whose first row may be aligned differently
MIN_FILLED = 0.55  # least share of a table's cells that are not empty
MIN_KEPT = 0.5  # least share of a table's strips that a row must leave white
SURE_STRIP_EM = 0.9  # line heights of white, more than spread words ever have
SURE_NUM_WHOLE = 3  # rows without an empty cell that are proof of a table
LONGEST_WORD_EM = 8.0  # line heights of white, beyond spaces, in which one more word would have fitted
SPACE_EM = 0.33  # line heights, a usual space
SHORT_EM = 1.0  # line heights of white at the right end, more than any justified line has
INDENT_EM = (0.7, 3.5)  # line heights, least and greatest indent of a paragraph's first line
Strip = tuple[float, float]
ENDLESS = float("inf")


class Grid:
    """The longest sequence of rows, ``rows[start:end]``, that have white strips in common."""

    def __init__(self, rows: Sequence[Row], start: int, em: float, rules: Rules) -> None:
        self._em, self._rules = em, rules
        self._left, self._right = min(row[0].left for row in rows), max(row[-1].right for row in rows)
        self.end = start + 1
        self._taken = [rows[start]]
        self._strips: list[Strip] = [
            (left.right, right.left) for left, right in zip(rows[start], rows[start][1:], strict=False)
        ]
        if self._strips:
            self._grow(rows, start)
        self.cells = [_in_columns(row, self._strips) for row in self._taken]

    def _grow(self, rows: Sequence[Row], start: int) -> None:
        strips, taken = self._strips, [rows[start]]
        for at in range(start + 1, len(rows)):
            row, gap = rows[at], white_between(rows[at - 1], rows[at])
            if gap > MAX_ROW_GAP_EM * self._em:
                return
            left = self._still_white(strips, [*taken, row])
            if not self._may_lose(strips, left, row, at - start):
                return
            taken.append(row)
            if len(left) > len(strips) and at - start > 1 and not self._has_rules(taken):
                return  # these are words of a spread line
            strips = left
            num_cells = sum(cell is not None for cell in _in_columns(row, strips))
            if num_cells > 1:
                # text under a table may be too short to cross its strips
                self._strips, self._taken, self.end = strips, [*taken], at + 1

    def _still_white(self, strips: Sequence[Strip], rows: Sequence[Row]) -> list[Strip]:
        """Return the parts of the strips that the last row leaves white."""
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
        """Tell whether a row may close some strips and still belong.

        A first row may have gaps by chance. After two rows, a row that closes many strips is not part of the
        table.
        """
        alive = sum(any(a <= c and d <= b for c, d in left) for a, b in strips)
        if alive == len(strips) or (alive and num_before == 1 and len(row) > 1):
            return True
        return len(row) > 1 and alive > MIN_KEPT * len(strips)

    def is_table(self) -> bool:
        found = _columns_of(self.cells)
        if len(self.cells) < 2 or len(found) < 2:
            return False
        if sum(map(len, found)) < MIN_FILLED * len(self.cells) * len(found) or not all(found):
            return False
        if self._has_rules(found):
            return True
        if self.is_list():
            return False
        whole = sum(None not in row for row in self.cells)
        if whole < 2 or self._may_be_justified(whole):
            return False
        return self._are_aligned(found, is_headed=whole == len(self.cells) >= HEADED)

    def _are_aligned(self, columns: Sequence[Sequence[Line]], *, is_headed: bool) -> bool:
        """Tell whether cells are aligned in all columns.

        ``is_headed``: there are enough rows, and they are complete, so the first may be aligned differently.
        """
        first = columns[0]
        sides = ([cell.left for cell in first], [(cell.left + cell.right) / 2 for cell in first])
        is_flush, is_centred = (max(side) - min(side) <= ALIGNED_EM * self._em for side in sides)
        at_right = is_centred and not is_flush and len(first) >= SURE_ROWS
        if all(self._is_aligned(one, at_right=one is not columns[-1] or at_right) for one in columns):
            return True
        return is_headed and all(self._is_aligned(one[1:], at_right=True) for one in columns)

    def is_list(self) -> bool:
        """Tell whether this is a list: bullets or numbers beside their items."""
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
        """Count the rows of a list, up to the first whose first cell is not under a bullet or number."""
        leads = [(at, row[0]) for at, row in enumerate(self.cells) if row[0] is not None]
        first = leads[0][1]
        near = ALIGNED_EM * self._em
        is_under = (min(abs(one.left - first.left), abs(one.right - first.right)) <= near for _, one in leads)
        return next(
            (at for (at, _), under in zip(leads, is_under, strict=True) if not under), len(self.cells)
        )

    def _may_be_justified(self, num_whole: int) -> bool:
        """Tell whether this may be justified text, whose spread words are under each other by chance."""
        narrowest = min(b - a for a, b in self._strips) / self._em
        near = ALIGNED_EM * self._em
        left, right = [row[0].left for row in self._taken], [row[-1].right for row in self._taken]
        first = left[1] if self._is_indented(left) else left[0]
        is_flush = max(max(first, *left[1:]) - min(first, *left[1:]), max(right) - min(right)) <= near
        is_flush = is_flush and max(right) > self._right - SHORT_EM * self._em
        if num_whole < SURE_NUM_WHOLE and len(self._strips) == 1 and narrowest < SURE_STRIP_EM:
            return True
        if all(map(self._lacks_words, self._taken)):
            return False
        return is_flush and (narrowest < SURE_STRIP_EM or num_whole < SURE_NUM_WHOLE)

    def _is_indented(self, left: Sequence[float]) -> bool:
        """Tell whether the first row is indented as in a paragraph and the others begin at the left edge."""
        near = ALIGNED_EM * self._em
        least, most = (share * self._em for share in INDENT_EM)
        return least < left[0] - left[1] < most and max(left[1:]) - self._left <= near

    def _lacks_words(self, row: Row) -> bool:
        """Tell whether the row has so much white that, as a line of text, it would hold more words."""
        white = [end - start - SPACE_EM * self._em for start, end in _between(row)]
        return sum(white) > LONGEST_WORD_EM * self._em

    def _has_rules(self, rows: Sequence[Row]) -> bool:
        box = joined([cell for row in rows for cell in row])
        if self._rules.has_upright(box.left, box.right, box.top, box.bottom):
            return True
        around = 1.3 * self._em
        return self._rules.count_levels(box.left, box.right, box.top - around, box.bottom + around) >= 3

    def _is_aligned(self, column: Sequence[Line], *, at_right: bool) -> bool:
        """Tell whether cells are aligned at the left, in the middle or at the right, as in a table.

        With ``at_right`` false, right edges do not count in a short column, because justified text is aligned
        there too.
        """
        edges: list[list[float]] = [
            [cell.left for cell in column],
            [(cell.left + cell.right) / 2 for cell in column],
        ]
        if at_right or len(column) > 3:
            edges.append([cell.right for cell in column])
        centres = sorted(edges[1])
        if len(centres) >= MANY_CELLS:  # one cell may have lost a sign
            centres = min(centres[1:], centres[:-1], key=lambda some: some[-1] - some[0])
        edges[1] = centres
        return any(max(edge) - min(edge) <= ALIGNED_EM * self._em for edge in edges)


def _between(row: Row) -> list[tuple[int, int]]:
    """Return the white between stretches."""
    return [(left.right, right.left) for left, right in pairwise(row)]


def _common(strips: Sequence[Strip], row: Row) -> list[Strip]:
    """Return the parts of the strips that a row leaves white."""
    edges = [-ENDLESS, *(side for cell in row for side in (cell.left, cell.right)), ENDLESS]
    white = list(zip(edges[::2], edges[1::2], strict=True))
    common = ((max(a, c), min(b, d)) for a, b in strips for c, d in white)
    return [(a, b) for a, b in common if b > a]


def _columns_of(rows: Sequence[Sequence[Line | None]]) -> list[list[Line]]:
    """Return each column's cells that are not empty."""
    return [[cell for cell in column if cell is not None] for column in zip(*rows, strict=True)]


def _in_columns(row: Row, strips: Sequence[Strip]) -> list[Line | None]:
    """Return one cell per column, ``None`` where the row has none."""
    columns: list[list[Line]] = [[] for _ in range(len(strips) + 1)]
    for line in row:
        columns[sum(line.left >= (a + b) / 2 for a, b in strips)].append(line)
    return [joined(column) if column else None for column in columns]


def white_between(above: Row, below: Row) -> float:
    return min(cell.top for cell in below) - max(cell.bottom for cell in above)
