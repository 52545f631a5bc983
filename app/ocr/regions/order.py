"""The order that lines are read in: columns one after the other, tables told from them."""

from collections.abc import Sequence

import numpy as np

from app.ocr.regions.lines import Line, Part, bands_of, extent, joined
from app.ocr.regions.tables import Row, Rules, parts_of_rows

GUTTER_EM = 1.15
"""White between columns, in heights of a line, at least."""
MAX_BREAK_EM = 6.0
"""White across all columns at which they still go on."""
MIN_COLUMN_EM, MAX_CELL_EM = 8.0, 9.0
FULL = 0.8
"""Of a column's width, that lines of running text fill."""


def in_order(lines: Sequence[Line], uprights: Sequence[Line] = (), levels: Sequence[Line] = ()) -> list[Part]:
    """Lines and tables as they are read: columns one after the other, each from top to bottom.

    ``uprights``, ``levels``: vertical and horizontal ruled lines.
    """
    if not lines:
        return []
    em = float(np.median([line.height for line in lines]))
    return _Order(em, Rules(tuple(uprights), tuple(levels))).parts(lines)


class _Order:
    """``em``: height of a line."""

    def __init__(self, em: float, rules: Rules) -> None:
        self._em, self._rules = em, rules

    def parts(self, lines: Sequence[Line]) -> list[Part]:
        parts: list[Part] = []
        rows: list[Row] = []  # not in columns, so far
        for group in self._groups(bands_of(lines)):
            columns = self._text_columns(group)
            if columns is None:
                rows += [row for band in bands_of(group) for row in _rows(band)]
                continue
            parts += parts_of_rows(rows, self._em, self._rules)
            rows = []
            for column in columns:
                parts += self.parts(column)
        return [*parts, *parts_of_rows(rows, self._em, self._rules)]

    def _gutters(self, lines: Sequence[Line]) -> list[tuple[float, float]]:
        """Strips that no line of these crosses: white and wide, or with a ruled line in them."""
        gutters: list[tuple[float, float]] = []
        top, bottom = min(line.top for line in lines), max(line.bottom for line in lines)
        reach = -1.0
        for line in sorted(lines, key=lambda one: one.left):
            if reach >= 0 and line.left > reach:
                is_ruled = self._rules.has_upright(reach - 2, line.left + 2, top, bottom)
                if is_ruled or line.left - reach >= GUTTER_EM * self._em:
                    gutters.append((reach, line.left))
            reach = max(reach, line.right)
        return gutters

    def _groups(self, bands: Sequence[Sequence[Line]]) -> list[list[Line]]:
        """Bands under each other that keep a gutter in common; others alone."""
        groups: list[list[Line]] = []
        open_group: list[Line] = []
        for band in bands:
            together = [*open_group, *band]
            # a short last line above a table is none of its rows
            if open_group and self._gutters(open_group) and self._gutters(together):
                gap = min(line.top for line in band) - max(line.bottom for line in open_group)
                if gap < MAX_BREAK_EM * self._em:
                    open_group = together
                    continue
            if open_group:
                groups.append(open_group)
            open_group = list(band)
        if open_group:
            groups.append(open_group)
        return groups

    def _text_columns(self, group: Sequence[Line]) -> list[list[Line]] | None:
        """Both sides of the gutter nearest the middle that columns of text may have; ``None`` for rows."""
        middle = (min(line.left for line in group) + max(line.right for line in group)) / 2
        gutters = self._gutters(group)
        for gutter in sorted(gutters, key=lambda strip: abs((strip[0] + strip[1]) / 2 - middle)):
            edge = (gutter[0] + gutter[1]) / 2
            sides = [
                [line for line in group if line.left <= edge],
                [line for line in group if line.left > edge],
            ]
            if self._are_columns(sides[0], sides[1], edge):
                return sides
        return None

    def _are_columns(self, left: Sequence[Line], right: Sequence[Line], edge: float) -> bool:
        sides = (left, right)
        if min(extent(side) for side in sides) < MIN_COLUMN_EM * self._em:
            return False
        if max(len(bands_of(side)) for side in sides) < 3:
            return False
        if self._are_ruled_together(left, right, edge):
            return False
        if any(map(self._is_running, sides)) or all(map(self._is_wide, sides)):
            return True
        return self._is_ruled_alone(left) or self._is_ruled_alone(right) or not self._in_step(left, right)

    def _are_ruled_together(self, left: Sequence[Line], right: Sequence[Line], edge: float) -> bool:
        """Horizontal lines cross the gutter between rows."""
        box = joined([*left, *right])
        reach = self._em
        top, bottom = box.top + reach / 2, box.bottom - reach / 2
        return self._rules.count_levels(edge - reach, edge + reach, top, bottom) >= 2

    def _is_ruled_alone(self, side: Sequence[Line]) -> bool:
        """A table stands on this side, and ends there."""
        box = joined(side)
        return self._rules.count_levels(box.left, box.right, box.top, box.bottom) >= 2

    def _is_wide(self, side: Sequence[Line]) -> bool:
        """Lines longer than cells of a table are."""
        bands = bands_of(side)
        return not any(self._gutters(band) for band in bands) and (
            float(np.median([extent(band) for band in bands])) > MAX_CELL_EM * self._em
        )

    def _is_running(self, side: Sequence[Line]) -> bool:
        """Lines of text under each other, from edge to edge."""
        width = extent(side)
        run = 0
        for band in bands_of(side):
            run = run + 1 if extent(band) >= FULL * width and not self._gutters(band) else 0
            if run == 3:
                return True
        return False

    def _in_step(self, left: Sequence[Line], right: Sequence[Line]) -> bool:
        """Rows on both sides lie at the same heights, as those of a table do."""
        heights = [float(np.median([line.bottom for line in band])) for band in bands_of(left)]
        bands = bands_of(right)
        beside = [
            min(abs(height - float(np.median([line.bottom for line in band]))) for height in heights)
            for band in bands
        ]
        return sum(gap < 0.3 * self._em for gap in beside) >= 0.6 * len(bands)


def _rows(band: Sequence[Line]) -> list[Row]:
    """What stands beside each other; of two lines in one cell the second makes a row of its own."""
    rows: list[Row] = []
    for line in sorted(band, key=lambda one: one.middle):
        for row in rows:
            if any(line.is_beside(cell) for cell in row) and not any(_is_stacked(line, cell) for cell in row):
                row.append(line)
                break
        else:
            rows.append([line])
    return [sorted(row, key=lambda one: one.left) for row in rows]


def _is_stacked(one: Line, other: Line) -> bool:
    return min(one.right, other.right) - max(one.left, other.left) > 0
