"""Rows of print -> lines of text and tables: rows in a table keep the same strips white."""

from collections.abc import Sequence
from itertools import pairwise, repeat
from statistics import median

import numpy as np

from app.ocr.regions.grids import (
    MAX_NUMBER_EM,
    MAX_ROW_GAP_EM,
    Grid,
    Strip,
    in_columns,
    is_even,
    white_between,
)
from app.ocr.regions.lines import CELL_GAP_EM, Cell, Line, Part, Row, Table, joined
from app.ocr.regions.rules import Rules
from app.ocr.regions.wrapped import wrapped_rows

MIN_STEPS, WIDER_STEP = 3, 1.2
"""Between rows that may be of two tables, at least; and of the usual one, what may part them."""
MIN_WRAPPED, MAX_WRAPPED = 3, 60
"""Printed rows of a table with cells of several lines, at least and at most."""
MAX_BELOW = 4
"""Short lines under it that leave its strips white, at most."""


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
        grid = _grid_at(rows, at, em, rules, middles)
        if grid.is_table() and len(rows[at + 1]) > len(grid.cells[0]):
            below = Grid(rows, at + 1, em, rules, middles)
            grid = below if below.end >= grid.end and below.take_first(rows[at]) else grid
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


def _grid_at(rows: Sequence[Row], start: int, em: float, rules: Rules, middles: Sequence[float]) -> Grid:
    """From the row on; before the widest step between its rows, where only those make a table."""
    grid = Grid(rows, start, em, rules, middles)
    steps = np.diff(middles[start : grid.end])
    if len(steps) < MIN_STEPS or grid.is_table():
        return grid
    widest = int(steps.argmax())
    if steps[widest] < WIDER_STEP * np.median(steps):
        return grid
    shorter = Grid(rows[: start + widest + 1], start, em, rules, middles)
    return shorter if shorter.is_table() else grid


def _wrapped_table(rows: Sequence[Row], em: float) -> tuple[Table, int] | None:
    """Whose cells have several lines, beside the middle of their row; and how many of the rows are its."""
    strips: list[list[Strip]] = []  # white through the first rows, as long as there is some beside the first
    inked: list[Strip] = []
    for at, row in enumerate(rows):
        inked = _joined_spans([*inked, *((line.left, line.right) for line in row)], CELL_GAP_EM * em)
        is_apart = at > 0 and white_between(rows[at - 1], row) > MAX_ROW_GAP_EM * em
        if is_apart or (at > 0 and len(inked) < 2):
            break
        strips.append([(left[1], right[0]) for left, right in pairwise(inked)])
    for end in range(len(strips), max(MIN_WRAPPED, len(strips) - MAX_BELOW) - 1, -1):
        cells = [in_columns(row, strips[end - 1]) for row in rows[:end]]
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


def _are_even(column: Sequence[Cell], em: float) -> bool:
    """A head may stand otherwise."""
    head, *others = column
    lines = [line for cell in others for line in cell]
    return is_even(lines, em) or is_even([*head, *lines], em)
