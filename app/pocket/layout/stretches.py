"""Cut printed lines into stretches where white is wider than their spaces, as between cells or columns."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from app.pocket.layout.gutters import gutters_of
from app.pocket.layout.ink import Ink
from app.pocket.layout.lines import CELL_GAP_EM, Gap, Line, cut_at, gaps_of, joined
from app.pocket.layout.masks import Mask

MIN_SPACE_EM = 0.22  # line heights; narrower white is between letters
WORD_GAP_EM = 1.2  # line heights, greatest white between words of justified text
CELL_GAP_SPACES = 1.5  # spaces of its line, least white between stretches
FEW_SPACES = 5  # least spaces that tell a line's usual one; all of fewer may be between cells
MAX_SPACE_DEVIATION = 0.2  # line heights by which an even line's spaces differ from the usual one at most
MIN_EVEN_SHARE = 0.8  # least share of an even line's spaces that differ by no more
MIN_EXTRA_GAP = 0.25  # line heights by which white between stretches is wider than an even line's spaces
MIN_SPACES = 2  # least spaces of an even line
MIN_SPACE_SHARE = 0.5  # of the usual space; narrower white is between letters
MAX_SHARE_UNDER = 0.7  # of a line's white, greatest share that is white in the next line too; more is a table
MIN_OVERLAP = 0.5  # share of a gap's width, at least, that is white in another line too
MAX_FLUSH_GAP = 0.3  # line heights by which the ends of justified lines differ at most
NUM_AROUND = 4  # rows above and below that tell where a column ends
MIN_FLUSH = 2  # least other rows that end there
OVERLAP_EM = 1.5  # line heights by which stretches overlap, as a comma under the letter before it does
BESIDE_EM = 3.0  # line heights, greatest white between words of a printed row


def stretches_of(lines: Sequence[Line], ink: Ink, em: int) -> list[Line]:
    """Regroup lines: cut where white is wider than the spaces of their own line, join where it is not."""
    gaps = [gaps_of(line, ink.mask, _least_space(line, em)) for line in lines]
    gutters = gutters_of(lines, em)
    rows = _parted(lines, printed_rows(lines, em), gutters)
    spread = _spread(lines, rows, gaps, em)
    # rows also join low words to high ones
    in_rows = ((left, right) for row in rows if spread[row[0]] for left, right in pairwise(row))
    neighbours = sorted({*_neighbours(lines, spread, em), *in_rows})
    least = np.maximum(_cell_gaps(lines, gaps, neighbours, em), spread)
    groups: list[list[Line]] = []  # each holds the pieces of one stretch
    first: list[int] = []  # index of each line's first piece
    for line, inner, cell_gap in zip(lines, gaps, least, strict=True):
        first.append(len(groups))
        pieces = cut_at(line, [(start, end) for start, end in inner if end - start >= cell_gap])
        groups += [[piece] for piece in pieces]
    first.append(len(groups))
    for left, right in neighbours:
        one, other = groups[first[left + 1] - 1], groups[first[right]]
        gap = lines[right].left - lines[left].right
        if (
            one is not other
            and gap < min(least[left], least[right])
            and not _is_ruled_off(lines[left], lines[right], ink.rules)
            and not any(_is_between(gutter, lines[left], lines[right]) for gutter in gutters)
        ):
            one += other
            groups = [one if group is other else group for group in groups]
    whole = {id(group): group for group in groups}.values()
    return [_with_space(joined(group), ink.mask, em) for group in whole]


def printed_rows(lines: Sequence[Line], em: float) -> list[list[int]]:
    """Group the indices of lines beside each other, from left to right; rows from top to bottom."""
    rows: list[list[int]] = []
    for number in sorted(range(len(lines)), key=lambda one: lines[one].left):
        line = lines[number]
        near = (
            row
            for row in rows
            if line.left - lines[row[-1]].right < BESIDE_EM * em and line.is_beside(lines[row[-1]])
        )
        row = min(near, key=lambda one: abs(lines[one[-1]].middle - line.middle), default=None)
        if row is None:
            rows.append([number])
        else:
            row.append(number)
    return sorted(rows, key=lambda row: lines[row[0]].middle)


def _least_space(line: Line, em: int) -> float:
    """Return the least white between words, in pixels."""
    return MIN_SPACE_EM * max(em, line.height)


def _with_space(line: Line, mask: Mask, em: int) -> Line:
    gaps = gaps_of(line, mask, _least_space(line, em))
    if not gaps:
        return line
    return replace(line, space=float(np.median([end - start for start, end in gaps])), gaps=tuple(gaps))


def _cell_gaps(
    lines: Sequence[Line],
    gaps: Sequence[Sequence[Gap]],
    neighbours: Sequence[tuple[int, int]],
    em: int,
) -> list[float]:
    """Return the least white between stretches for each line, in pixels."""
    spaces = [end - start for inner in gaps for start, end in inner]
    spaces += [lines[right].left - lines[left].right for left, right in neighbours]
    usual = float(np.median(spaces)) if spaces else 0.0
    least: list[float] = []
    for line, inner in zip(lines, gaps, strict=True):
        own = [end - start for start, end in inner]
        # few gaps may all be between cells; justified lines have spaces of their own
        space = float(np.median(own)) if len(own) >= FEW_SPACES else usual * max(1.0, line.height / em)
        least.append(max(CELL_GAP_EM * max(em, line.height), CELL_GAP_SPACES * space))
    return least


def _spread(
    lines: Sequence[Line],
    rows: Sequence[Sequence[int]],
    gaps: Sequence[Sequence[Gap]],
    em: int,
) -> list[float]:
    """Return for each line the width in pixels that white must exceed to be no space of justified text.

    0 for lines that are not justified. ``rows``: indices of lines beside each other, in one column.
    """
    spread = [0.0] * len(lines)
    white = [_white_of([lines[number] for number in row], [gaps[number] for number in row]) for row in rows]
    ends = [(lines[row[0]].left, max(lines[number].right for number in row)) for row in rows]
    for at, row in enumerate(rows):
        spaces = np.array([end - start for start, end in white[at]])
        if len(spaces) < MIN_SPACES:
            continue
        usual = float(np.median(spaces))
        if usual <= 0:  # they overlap
            continue
        # narrower white is between letters
        deviations = np.abs(spaces - usual)[spaces >= MIN_SPACE_SHARE * usual]
        is_even = (deviations <= MAX_SPACE_DEVIATION * em).mean() >= MIN_EVEN_SHARE
        under = max((_share_under(white[at], white[other]) for other in _next_to(at, ends)), default=0.0)
        if is_even and under < MAX_SHARE_UNDER and _is_flush(at, ends, MAX_FLUSH_GAP * em):
            for number in row:
                spread[number] = usual + MIN_EXTRA_GAP * em
    return spread


def _next_to(at: int, ends: Sequence[Gap]) -> list[int]:
    """Return the indices of the rows above and below in the same column.

    ``ends``: left and right of every row.
    """
    above = (row for row in reversed(range(at)) if _are_stacked(ends[row], ends[at]))
    below = (row for row in range(at + 1, len(ends)) if _are_stacked(ends[row], ends[at]))
    return [row for row in (next(above, None), next(below, None)) if row is not None]


def _is_flush(at: int, ends: Sequence[Gap], near: float) -> bool:
    """Tell whether a row ends where others of its column do, and no row around it reaches further."""
    right = ends[at][1]
    below = [row for row in range(at + 1, len(ends)) if _are_stacked(ends[row], ends[at])]
    above = [row for row in range(at) if _are_stacked(ends[row], ends[at])]
    around = [ends[row][1] for row in [*above[-NUM_AROUND:], *below[:NUM_AROUND]]]
    others = sum(abs(ends[row][1] - right) <= near for row in [*above, *below])
    return others >= MIN_FLUSH and max(around) <= right + near


def _are_stacked(one: Gap, other: Gap) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _parted(lines: Sequence[Line], rows: Sequence[Sequence[int]], gutters: Sequence[Line]) -> list[list[int]]:
    """Cut rows in two at gutters."""
    parted: list[list[int]] = []
    for row in rows:
        parted.append([row[0]])
        for before, number in pairwise(row):
            if any(_is_between(gutter, lines[before], lines[number]) for gutter in gutters):
                parted.append([])
            parted[-1].append(number)
    return parted


def _white_of(row: Sequence[Line], gaps: Sequence[Sequence[Gap]]) -> list[Gap]:
    """Return the white in the lines and between them."""
    between = [(left.right, right.left) for left, right in pairwise(row)]
    return sorted([*(gap for inner in gaps for gap in inner), *between])


def _share_under(white: Sequence[Gap], around: Sequence[Gap]) -> float:
    """Return the share of gaps that are white in the neighbouring line too."""
    also = [
        any(min(end, b) - max(start, a) >= MIN_OVERLAP * (end - start) for a, b in around)
        for start, end in white
    ]
    return sum(also) / len(also)


def _neighbours(lines: Sequence[Line], spread: Sequence[float], em: int) -> list[tuple[int, int]]:
    """Find lines beside each other with no more white than between words, as indices (left, right)."""
    if not lines:
        return []
    left, top, right, bottom = np.array([(one.left, one.top, one.right, one.bottom) for one in lines]).T
    height = bottom - top
    widest = np.maximum(WORD_GAP_EM * np.maximum(em, height), spread)
    shared = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)  # (L, L)
    gap = left - right[:, None]
    smaller, larger = np.minimum(height[:, None], height), np.maximum(height[:, None], height)
    overlaps = (shared > 0.8 * smaller) & (larger < 2.2 * smaller) & (gap < 0)
    beside = (shared > 0.6 * larger) | overlaps
    beside &= (gap >= -OVERLAP_EM * em) & (left > left[:, None]) & (gap < np.minimum(widest[:, None], widest))
    return [(int(one), int(other)) for one, other in np.argwhere(beside)]


def _is_between(gutter: Line, left: Line, right: Line) -> bool:
    is_beside = gutter.top <= max(left.top, right.top) and min(left.bottom, right.bottom) <= gutter.bottom
    return is_beside and left.right <= gutter.left + 1 and gutter.right <= right.left


def _is_ruled_off(left: Line, right: Line, rules: Mask) -> bool:
    between = rules[max(left.top, right.top) : min(left.bottom, right.bottom), left.right : right.left]
    return bool(between.any())
