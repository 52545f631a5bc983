"""Rows of a table whose cells have several lines."""

from collections.abc import Sequence
from itertools import chain, pairwise
from statistics import median

from app.ocr.regions.lines import Cell, Line

SAME_LEVEL_EM, SAME_MIDDLE_EM = 0.25, 0.3
"""By how much lines beside each other, and cells of one row, are apart at most, in heights of a line."""
APART_EM = 0.12
"""White between rows, beyond that between the lines of a cell, at least."""
SLACK_EM = 0.3
"""Of room in a column that a word may have lacked."""
MAX_CELL_LINES = 5
NARROW_TABLE, MIN_UNRULED = 2, 3
"""Columns in which nothing tells a cell beside several rows; rows and columns that are none by chance."""
Column = Sequence[Line]
Level = list[tuple[int, Line]]


def wrapped_rows(
    columns: Sequence[Column], em: float, *, is_ruled: bool, is_row: bool = False
) -> list[tuple[Cell, ...]] | None:
    """``columns``: their lines from top to bottom; ``em``: height of a line. ``None`` where cells have one
    line each, or lines are not where those of cells would be: with their middles, or their first lines,
    beside each other, and with more white between rows than between the lines of a cell. Lines of text stand
    like the latter by chance, where no rules are around them. ``is_row``: rules are between rows, so that no
    cell stands beside several.
    """
    levels = _levels(columns, em)
    steps = [below.middle - above.middle for column in columns for above, below in pairwise(column)]
    near = min(steps, default=0.0) + APART_EM * em / 2
    may_be_topped = is_ruled or len(columns) >= MIN_UNRULED
    ways: list[list[tuple[Cell, ...]]] = []
    for least in (0.0, near):
        parted = [_middled(levels, len(columns), em, least, may_span=not is_row)]
        parted += [_topped(levels, len(columns), least)] if may_be_topped else []
        ways += [rows for rows in parted if not least or len(rows) > 1]
    for rows in ways:
        if not any(map(_is_wrapped, rows)):
            continue
        if _are_apart(rows, em):
            found = _with_even_rows_joined(rows, em)
            return found if is_ruled or len(found) >= MIN_UNRULED else None
        if is_ruled and _are_broken(rows, em):
            return rows
    return None


def _middled(
    levels: Sequence[Level], num_columns: int, em: float, least: float, *, may_span: bool
) -> list[tuple[Cell, ...]]:
    """A row ends where the cells of all columns are there, with their middles beside each other, and what
    follows in any of them is farther than ``least`` pixels. None where some are left over.
    """
    rows: list[tuple[Cell, ...]] = []
    row: list[list[Line]] = [[] for _ in range(num_columns)]
    for number, level in enumerate(levels, 1):
        for at, line in level:
            row[at].append(line)
        if max(map(len, row)) > MAX_CELL_LINES:
            return []
        if all(row) and _are_level(row, em) and not _goes_on(row, levels[number:], least):
            rows.append(tuple(map(tuple, row)))
            row = [[] for _ in range(num_columns)]
    wrapped = list(filter(_is_wrapped, rows))
    return [] if any(row) or (may_span and _are_spanned(wrapped)) else rows


def _are_level(row: Sequence[Column], em: float) -> bool:
    middles = [(cell[0].middle + cell[-1].middle) / 2 for cell in row]
    return max(middles) - min(middles) <= SAME_MIDDLE_EM * em


def _goes_on(row: Sequence[Column], below: Sequence[Level], least: float) -> bool:
    """Lines follow in its columns, as near as those of a cell are."""
    last = [cell[-1].middle for cell in row]
    near = (level for level in below if level[0][1].middle - max(last) <= 2 * least)
    return any(0 < line.middle - last[at] <= least for level in near for at, line in level)


def _topped(levels: Sequence[Level], num_columns: int, least: float) -> list[tuple[Cell, ...]]:
    """A row begins where all columns have a line, more than ``least`` pixels below what is above it in any of
    them. None where the first lacks some.
    """
    rows: list[list[list[Line]]] = []
    for number, level in enumerate(levels):
        is_whole = len({at for at, _ in level}) == num_columns
        if is_whole and not (rows and _goes_on(rows[-1], levels[number : number + 1], least)):
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


def _are_spanned(rows: Sequence[Sequence[Column]]) -> bool:
    """Cells of the same columns stand beside several rows of all others, each time; or the first of each."""
    if any(len(row) <= NARROW_TABLE for row in rows):
        return False
    alone = [[len(cell) == 1 for cell in row] for row in rows]
    heights = [{len(cell) for cell in row if len(cell) > 1} for row in rows]
    are_alike = all(len(counts) == 1 for counts in heights) and all(one == alone[0] for one in alone)
    if len(rows) > 1 and are_alike and 2 * sum(alone[0]) < len(alone[0]):
        return True
    spanned = sum(
        one[0] and sum(one) == 1 and len(counts) == 1 for one, counts in zip(alone, heights, strict=True)
    )
    return spanned > len(rows) / 2


def _are_apart(rows: Sequence[Sequence[Column]], em: float) -> bool:
    between = [step for pair in pairwise(rows) if (step := _step(*pair)) and max(map(len, chain(*pair))) > 1]
    return not between or min(between) >= _step_within(rows) + APART_EM * em


def _step_within(rows: Sequence[Sequence[Column]]) -> float:
    """From line to line of a cell, pixels."""
    cells = [cell for row in rows for cell in row]
    return median(below.middle - above.middle for cell in cells for above, below in pairwise(cell))


def _step(upper: Sequence[Column], lower: Sequence[Column]) -> float:
    """From the last lines of a row to the first of the next, pixels: in the column where they are nearest."""
    return min(under[0].middle - over[-1].middle for over, under in zip(upper, lower, strict=True))


def _with_even_rows_joined(rows: Sequence[tuple[Cell, ...]], em: float) -> list[tuple[Cell, ...]]:
    """Rows whose cells have all as many lines: those are as near to each other as in other cells."""
    near = _step_within(rows) + APART_EM * em / 2
    joined: list[tuple[Cell, ...]] = []
    for row in rows:
        if joined and not _is_wrapped(joined[-1]) and not _is_wrapped(row) and _step(joined[-1], row) <= near:
            joined[-1] = tuple((*over, *under) for over, under in zip(joined[-1], row, strict=True))
        else:
            joined.append(row)
    return joined


def _are_broken(rows: Sequence[Sequence[Column]], em: float) -> bool:
    """Lines of a cell end where the next one's first word had no room, in the width of its column; rows are
    named by a first cell of one line.
    """
    if any(len(row[0]) > 1 for row in rows):
        return False
    for column in zip(*rows, strict=True):
        right = max(line.right for cell in column for line in cell)
        for above, below in (pair for cell in column for pair in pairwise(cell)):
            first_px = (below.gaps[0][0] if below.gaps else below.right) - below.left
            if above.right + above.space + first_px <= right - SLACK_EM * em:
                return False
    return True
