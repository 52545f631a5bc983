"""Rows of a table whose cells have several lines."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from app.ocr.regions.lines import Cell, Line

SAME_LEVEL_EM, SAME_MIDDLE_EM = 0.25, 0.3
"""By how much lines beside each other, and cells of one row, are apart at most, in heights of a line."""
APART_EM = 0.12
"""White between rows, beyond that between the lines of a cell, at least."""
MAX_CELL_LINES = 5
NARROW_TABLE, MIN_UNRULED = 2, 3
"""Columns in which nothing tells a cell beside several rows; rows and columns that are none by chance."""
Column = Sequence[Line]
Level = list[tuple[int, Line]]


def wrapped_rows(columns: Sequence[Column], em: float, *, is_ruled: bool) -> list[tuple[Cell, ...]] | None:
    """``columns``: their lines from top to bottom; ``em``: height of a line. ``None`` where cells have one
    line each, or lines are not where those of cells would be: with their middles, or their first lines,
    beside each other, and with more white between rows than between the lines of a cell. Lines of text stand
    like the latter by chance, where no rules are around them.
    """
    levels = _levels(columns, em)
    ways = [_middled(levels, len(columns), em)]
    if is_ruled or len(columns) >= MIN_UNRULED:
        ways.append(_topped(levels, len(columns)))
    for rows in ways:
        is_enough = is_ruled or len(rows) >= MIN_UNRULED
        if is_enough and any(map(_is_wrapped, rows)) and _are_apart(rows, em):
            return rows
    return None


def _middled(levels: Sequence[Level], num_columns: int, em: float) -> list[tuple[Cell, ...]]:
    """A row ends where the cells of all columns are there, with their middles beside each other. None where
    some are left over.
    """
    rows: list[tuple[Cell, ...]] = []
    row: list[list[Line]] = [[] for _ in range(num_columns)]
    for level in levels:
        for at, line in level:
            row[at].append(line)
        if max(map(len, row)) > MAX_CELL_LINES:
            return []
        middles = [(cell[0].middle + cell[-1].middle) / 2 for cell in row if cell]
        if all(row) and max(middles) - min(middles) <= SAME_MIDDLE_EM * em:
            rows.append(tuple(map(tuple, row)))
            row = [[] for _ in range(num_columns)]
    wrapped = list(filter(_is_wrapped, rows))
    return [] if any(row) or sum(map(_is_spanned, wrapped)) > len(wrapped) / 2 else rows


def _topped(levels: Sequence[Level], num_columns: int) -> list[tuple[Cell, ...]]:
    """A row begins where all columns have a line. None where the first lacks some."""
    rows: list[list[list[Line]]] = []
    for level in levels:
        if len({at for at, _ in level}) == num_columns:
            rows.append([[] for _ in range(num_columns)])
        if not rows:
            return []
        for at, line in level:
            rows[-1][at].append(line)
            if len(rows[-1][at]) > MAX_CELL_LINES:
                return []
    return [tuple(map(tuple, row)) for row in rows]


def _levels(columns: Sequence[Column], em: float) -> list[Level]:
    """Lines with the numbers of their columns, together where they stand beside each other."""
    levels: list[Level] = []
    lines = [(at, line) for at, column in enumerate(columns) for line in column]
    for at, line in sorted(lines, key=lambda one: one[1].middle):
        if levels and line.middle - levels[-1][0][1].middle <= SAME_LEVEL_EM * em:
            levels[-1].append((at, line))
        else:
            levels.append([(at, line)])
    return levels


def _is_wrapped(row: Sequence[Column]) -> bool:
    return len(set(map(len, row))) > 1


def _is_spanned(row: Sequence[Column]) -> bool:
    """One cell stands beside several rows of all others."""
    counts = sorted(map(len, row))
    return len(row) > NARROW_TABLE and counts[0] == 1 and counts[1] == counts[-1]


def _are_apart(rows: Sequence[Sequence[Column]], em: float) -> bool:
    within = [below.middle - above.middle for row in rows for cell in row for above, below in pairwise(cell)]
    between = [
        under[0].middle - over[-1].middle
        for upper, lower in pairwise(rows)
        for over, under in zip(upper, lower, strict=True)
        if len(over) > 1 or len(under) > 1
    ]
    return not between or min(between) >= median(within) + APART_EM * em
