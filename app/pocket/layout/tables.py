"""Separate rows of print into lines of text and tables: rows of a table keep the same strips white."""

from collections.abc import Sequence

from app.pocket.layout.grids import Grid
from app.pocket.layout.lines import Part, Row, Table, joined
from app.pocket.layout.rules import Rules


def parts_of_rows(rows: Sequence[Row], em: float, rules: Rules) -> list[Part]:
    """Return the tables among rows from top to bottom, and the other rows as lines.

    ``em``: height of a line.
    """
    parts: list[Part] = []
    at = 0
    while at < len(rows):
        grid = Grid(rows, at, em, rules)
        if grid.is_table():
            parts.append(Table(tuple(tuple((cell,) if cell else () for cell in row) for row in grid.cells)))
            at = grid.end
            continue
        # no item of a list begins a table, however short the following ones are
        end = at + grid.count_items() if grid.is_list() else at + 1
        parts += [joined(row) for row in rows[at:end]]
        at = end
    return parts
