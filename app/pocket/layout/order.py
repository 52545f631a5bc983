"""Put lines in reading order: columns one after the other, with tables told apart from columns."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from app.pocket.layout.gutters import ALIGNED_EM, gutters_of
from app.pocket.layout.lines import Line, Part, Row, Table, bands_of, extent, joined, rows_of
from app.pocket.layout.ruled import RuledTable
from app.pocket.layout.rules import Rules
from app.pocket.layout.tables import parts_of_rows

GUTTER_EM = 1.05  # line heights, least white between columns
LARGE_GUTTER_EM = 0.75  # heights of large lines beside it, least white; less is a space in a heading
MAX_BREAK_EM = 6.0  # line heights of white across all columns over which they still continue
APART_EM = 1.5  # line heights of white, at least, between a running head and columns
MIN_COLUMN_EM = 8.0  # line heights, least width of a column
MAX_CELL_EM = 9.0  # line heights, greatest usual width of a table's cells
MAX_LEAD_EM = 1.7  # line heights, greatest width of a bullet or a number before an item of a list
MIN_MARGIN = 5  # least number of signs that stand in a margin
MAX_MARGIN_EM = 2.5  # line heights, greatest width of print in a margin
MARGIN_GAP_EM = 3.5  # line heights of white beside it: wider than between a list's numbers and its items
MARGIN_STEP_EM = 0.15  # line heights; a sign that is nearer to a line counts as level with it
MIN_TEXT_EM = 10.0  # line heights, least width of a column of running text
FULL = 0.8  # of a column's width, least share that lines of running text fill
MAX_SPREAD = 0.1  # greatest share of a column's lines with white as wide as a gutter
MIN_STEPS = 3  # least lines on a side whose heights tell that it is no row of cells
MIN_RUNNING = 3  # full lines in succession that prove running text
SAME_STEP_EM = 0.3  # line heights by which rows of a table differ at most
MIN_IN_STEP = 0.6  # least share of a side's rows that are level with the other's


NO_RULES = Rules()


def in_order(lines: Sequence[Line], rules: Rules = NO_RULES, ruled: Sequence[RuledTable] = ()) -> list[Part]:
    """Put lines and tables in reading order: columns one after the other, each from top to bottom.

    ``ruled``: tables that were found by their rules. Lines inside them are not placed again.
    """
    cells = [line for one in ruled for line in one.table.lines]
    free = [line for line in lines if not any(one.holds(line) for one in ruled)]
    if not free and not cells:
        return []
    em = float(np.median([line.height for line in [*free, *cells]]))
    # a table is placed like a line as high and wide as its rules
    order = _Order(em, rules, gutters_of(free, em), {one.box: one.table for one in ruled})
    return order.parts([*free, *(one.box for one in ruled)])


class _Order:
    """Reading order of one page.

    ``em``: height of a line. ``known``: gutters, however narrow. ``tables``: tables found by their rules, by
    their boxes.
    """

    def __init__(self, em: float, rules: Rules, known: Sequence[Line], tables: dict[Line, Table]) -> None:
        self._em, self._rules, self._known, self._tables = em, rules, known, tables

    def parts(self, lines: Sequence[Line]) -> list[Part]:
        parts: list[Part] = []
        rows: list[Row] = []  # rows so far that are not in columns
        for group in self._groups(_shifted_together(bands_of(lines))):
            columns = self._text_columns(group)
            if columns is None:
                rows += [row for band in bands_of(group) for row in rows_of(band)]
                continue
            parts += self._parts_of_rows(rows)
            rows = []
            for column in columns:
                parts += self.parts(column)
        return [*parts, *self._parts_of_rows(rows)]

    def _parts_of_rows(self, rows: Sequence[Row]) -> list[Part]:
        parts: list[Part] = []
        between: list[Row] = []
        for row in rows:
            if not any(line in self._tables for line in row):
                between.append(row)
                continue
            parts += parts_of_rows(between, self._em, self._rules)
            parts += [self._tables.get(line, line) for line in row]
            between = []
        return [*parts, *parts_of_rows(between, self._em, self._rules)]

    def _gutters(self, lines: Sequence[Line]) -> list[tuple[float, float]]:
        """Find strips that no line crosses: wide white, or strips with a ruled line in them."""
        gutters: list[tuple[float, float]] = []
        top, bottom = min(line.top for line in lines), max(line.bottom for line in lines)
        farthest: Line | None = None
        for line in sorted(lines, key=lambda one: one.left):
            if farthest is not None and line.left > farthest.right:
                is_ruled = self._rules.has_upright(farthest.right - 2, line.left + 2, top, bottom)
                size = min(0 if one in self._tables else one.height for one in (line, farthest))
                least = max(GUTTER_EM * self._em, LARGE_GUTTER_EM * size)
                is_known = is_ruled or self._is_known(farthest.right, line.left, top, bottom)
                if is_known or line.left - farthest.right >= least:
                    gutters.append((farthest.right, line.left))
            farthest = line if farthest is None or line.right > farthest.right else farthest
        return gutters

    def _is_known(self, left: float, right: float, top: float, bottom: float) -> bool:
        near = ALIGNED_EM * self._em
        return any(
            left <= gutter.left + near
            and gutter.right <= right + near
            and min(bottom, gutter.bottom) - max(top, gutter.top) > 0.5 * min(gutter.height, bottom - top)
            for gutter in self._known
        )

    def _may_go_on(self, group: Sequence[Line]) -> bool:
        return bool(self._gutters(group)) or self._is_in_column(group)

    def _is_in_column(self, lines: Sequence[Line]) -> bool:
        """Tell whether a known gutter runs beside all lines and none crosses it, as where a column begins."""
        return any(
            all(
                gutter.top <= line.middle <= gutter.bottom
                and (line.right <= gutter.left + 1 or line.left >= gutter.right - ALIGNED_EM * self._em)
                for line in lines
            )
            for gutter in self._known
        )

    def _groups(self, bands: Sequence[Sequence[Line]]) -> list[list[Line]]:
        """Group bands under each other that have a gutter in common; other bands stay alone."""
        groups: list[list[Line]] = []
        open_group: list[Line] = []
        for band in bands:
            together = [*open_group, *band]
            # a short last line above a table is not one of its rows
            if open_group and self._may_go_on(open_group) and self._gutters(together):
                gap = min(line.top for line in band) - max(line.bottom for line in open_group)
                begins = gap > APART_EM * self._em and self._begins_columns(band, together)
                if (
                    gap < MAX_BREAK_EM * self._em
                    and not begins
                    and not self._is_crossed(open_group, together)
                ):
                    open_group = together
                    continue
            if open_group:
                groups.append(open_group)
            open_group = list(band)
        if open_group:
            groups.append(open_group)
        return groups

    def _begins_columns(self, band: Sequence[Line], together: Sequence[Line]) -> bool:
        """Tell whether columns begin at this band, under a running head that crosses them."""
        return bool(self._wide_gutters(band)) and not self._wide_gutters(together)

    def _is_crossed(self, group: Sequence[Line], together: Sequence[Line]) -> bool:
        """Tell whether columns of text in the group end here, even if another gutter goes on."""
        if not self._wide_gutters(group) or self._wide_gutters(together):
            return False
        return self._text_columns(group) is not None

    def _wide_gutters(self, lines: Sequence[Line]) -> list[tuple[float, float]]:
        """Keep the gutters with room for a column on both sides."""
        left, right = min(line.left for line in lines), max(line.right for line in lines)
        room = MIN_COLUMN_EM * self._em
        return [(a, b) for a, b in self._gutters(lines) if a - left >= room and right - b >= room]

    def _text_columns(self, group: Sequence[Line]) -> list[list[Line]] | None:
        """Split the lines at the gutter nearest the middle that can separate columns of text.

        Returns ``None`` if these are rows.
        """
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
            return self._is_margin(left, right) or self._is_margin(right, left)
        if max(len(bands_of(side)) for side in sides) < 3:
            return False
        if self._are_ruled_together(left, right, edge) or self._are_leads(left, right):
            return False
        if any(map(self._is_text, sides)) or all(map(self._is_wide, sides)):
            return True
        return min(len(bands_of(side)) for side in sides) >= MIN_STEPS and not self._in_step(left, right)

    def _is_margin(self, side: Sequence[Line], text: Sequence[Line]) -> bool:
        """Recognise signs under each other that belong to no line, such as text that runs upwards."""
        if len(side) < MIN_MARGIN or extent(side) > MAX_MARGIN_EM * self._em:
            return False
        one, other = joined(side), joined(text)
        white = max(one.left - other.right, other.left - one.right)
        return white > MARGIN_GAP_EM * self._em and not self._in_step(text, side, MARGIN_STEP_EM)

    def _are_leads(self, side: Sequence[Line], text: Sequence[Line]) -> bool:
        """Tell whether one side has the numbers of items and the other their texts, under something wider."""
        narrow = [line for line in side if line.width <= MAX_LEAD_EM * self._em]
        return len(narrow) > FULL * len(side) and self._in_step(text, narrow)

    def _are_ruled_together(self, left: Sequence[Line], right: Sequence[Line], edge: float) -> bool:
        """Tell whether horizontal rules cross the gutter between rows."""
        box = joined([*left, *right])
        reach = self._em
        top, bottom = box.top + reach / 2, box.bottom - reach / 2
        return self._rules.count_levels(edge - reach, edge + reach, top, bottom) >= 2

    def _is_wide(self, side: Sequence[Line]) -> bool:
        """Tell whether lines are longer than cells of a table."""
        bands = bands_of(side)
        apart = [band for band in bands if self._gutters(band)]
        num_leads = sum(band[0].width <= MAX_LEAD_EM * self._em for band in apart)
        num_spread = len(apart) - num_leads
        if len(bands) < 2 or num_spread > MAX_SPREAD * len(bands) or 2 * num_leads > len(bands):
            return False  # boxes of a form and their labels stand in rows
        return float(np.median([extent(band) for band in bands])) > MAX_CELL_EM * self._em

    def _is_text(self, side: Sequence[Line]) -> bool:
        """Tell whether these are lines of running text, in one column or several."""
        if self._is_running(side):
            return True
        for gutter in self._known:
            beside = [line for line in side if gutter.top <= line.middle <= gutter.bottom]
            edge = (gutter.left + gutter.right) / 2
            columns = (
                [line for line in beside if line.right <= edge],
                [line for line in beside if line.left > edge],
            )
            if all(columns) and any(map(self._is_running, columns)):
                return True
        return False

    def _is_running(self, side: Sequence[Line]) -> bool:
        """Tell whether there are lines of text under each other that reach from edge to edge."""
        width = extent(side)
        if width < MIN_TEXT_EM * self._em:
            return False  # these may be cells of about the same width
        run = 0
        for band in bands_of(side):
            run = run + 1 if extent(band) >= FULL * width and not self._gutters(band) else 0
            if run == MIN_RUNNING:
                return True
        return False

    def _in_step(self, left: Sequence[Line], right: Sequence[Line], near_em: float = SAME_STEP_EM) -> bool:
        """Tell whether rows on both sides lie at the same heights, as in a table.

        Compares their tops or, where only one has letters that reach up or down, the other edge.
        """
        edges, others = (
            np.array(
                [
                    (median(line.top for line in band), median(line.bottom for line in band))
                    for band in bands_of(side)
                ]
            )
            for side in (left, right)
        )
        beside = np.abs(edges[:, None] - others).min(axis=(0, 2))
        return bool((beside < near_em * self._em).sum() >= MIN_IN_STEP * len(others))


def _shifted_together(bands: Sequence[list[Line]]) -> list[list[Line]]:
    """Merge bands that reach into each other: columns whose lines do not stand at the same heights."""
    together: list[list[Line]] = []
    for band in bands:
        if together and _reach_into(together[-1], band):
            together[-1] += band
        else:
            together.append([*band])
    return together


def _reach_into(upper: Sequence[Line], lower: Sequence[Line]) -> bool:
    pairs = [(one, other) for one in upper for other in lower if one.bottom > other.top]
    return bool(pairs) and not any(min(a.right, b.right) > max(a.left, b.left) for a, b in pairs)
