"""Find narrow gutters between columns, no wider than the spaces of a spread line.

Unlike such spaces they are straight for many lines.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from app.pocket.layout.lines import Line, joined

LEAST_EM = 0.7  # line heights, least white before a line of the right column
MOST_EM = 3.0  # line heights, greatest white before a line of the right column
STRIP_EM = 0.6  # line heights, width of the strip left of the right column that nothing crosses
ALIGNED_EM = 0.15  # line heights by which the left edges of the right column's lines differ
APART = 0.8  # of the lower line's height, greatest vertical gap between neighbouring lines of two columns
NEXT_EM = 3.0  # line heights of white, at most, between lines of a column
MIN_LINES = 5  # least lines of the right column that begin at the strip
LEAST = 0.25  # of all lines right of the strip, least share that begin at it
LARGE_EM = 1.4  # line heights, least height of words of a heading
LARGE_SPACE = 0.75  # heights of such words, greatest white between two of them
MIN_COLUMN_EM = 8.0  # line heights, least width of the columns on both sides
MIN_LINE_EM = 3.0  # line heights, least usual width of lines beside the strip; bullets are narrower


def gutters_of(lines: Sequence[Line], em: float) -> list[Line]:
    """Find strips of white with a column of text on both sides, as high as these columns are side by side.

    ``lines``: stretches in any order. ``em``: height of a line.
    """
    lines = _with_headings_whole(lines, em)
    beside = _beside(lines, em)
    found: list[Line] = []
    taken: set[int] = set()
    for right in sorted(beside, key=lambda one: lines[one].left):
        if right in taken:
            continue
        edge = lines[right].left
        aligned = [one for one in beside if 0 <= lines[one].left - edge <= 2 * ALIGNED_EM * em]
        if len(aligned) < MIN_LINES:
            continue
        gutters = _straight(lines, beside, aligned, edge, em)
        if gutters:
            taken.update(aligned)
        found += gutters
    return found


def _with_headings_whole(lines: Sequence[Line], em: float) -> list[Line]:
    """Join the words of each heading into one line, which then crosses the white between them."""
    whole = [line for line in lines if line.height < LARGE_EM * em]
    large = sorted((line for line in lines if line.height >= LARGE_EM * em), key=lambda one: one.left)
    headings: list[Line] = []
    for line in large:
        near = (
            one
            for one in headings
            if one.is_beside(line) and line.left - one.right < LARGE_SPACE * min(one.height, line.height)
        )
        before = next(near, None)
        if before is None:
            headings.append(line)
        else:
            headings[headings.index(before)] = joined([before, line])
    return [*whole, *headings]


def _beside(lines: Sequence[Line], em: float) -> dict[int, int]:
    """Map each line's index to its nearest line on the left, if the white between is as between columns."""
    if not lines:
        return {}
    left, top, right, bottom = np.array([(one.left, one.top, one.right, one.bottom) for one in lines]).T
    height = bottom - top
    shared = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)  # (N, N)
    gap = (left[:, None] - right).astype(float)  # from the second one's end to the first one's begin
    gap[(gap < 0) | (shared < -APART * np.minimum(height[:, None], height))] = np.inf
    nearest = gap.argmin(axis=1)
    white = gap[np.arange(len(lines)), nearest]
    is_gutter = (white >= LEAST_EM * em) & (white <= MOST_EM * em)
    return {int(one): int(nearest[one]) for one in np.flatnonzero(is_gutter)}


def _straight(
    lines: Sequence[Line], beside: dict[int, int], aligned: Sequence[int], edge: int, em: float
) -> list[Line]:
    """Find strips left of ``edge`` between the lines that cross it."""
    start = edge - STRIP_EM * em
    near = ALIGNED_EM * em
    crossing = sorted(line.middle for line in lines if line.left < edge - near and line.right > start)
    bounds = [-np.inf, *crossing, np.inf]
    found: list[Line] = []
    for above, below in pairwise(bounds):
        own = [one for one in aligned if above < lines[one].middle < below]
        if len(own) < MIN_LINES:
            continue
        top, bottom = min(lines[one].top for one in own), max(lines[one].bottom for one in own)
        beyond = [
            one
            for one, other in beside.items()
            if top <= lines[one].middle <= bottom and lines[other].right <= start < lines[one].left
        ]
        if len(own) < LEAST * len(beyond):
            continue
        around = [line for line in lines if top <= line.middle <= bottom]
        widths = edge - min(line.left for line in around), max(line.right for line in around) - edge
        sides = own, [beside[one] for one in own]
        usual = [np.median([lines[one].width for one in side]) for side in sides]
        if min(widths) >= MIN_COLUMN_EM * em and min(usual) >= MIN_LINE_EM * em:
            between = [line for line in lines if above < line.middle < below]
            found.append(_grown(Line(int(start), top, edge, bottom), between, NEXT_EM * em))
    return found


def _grown(gutter: Line, lines: Sequence[Line], most: float) -> Line:
    """Extend a gutter along the lines beside it, over white of at most ``most`` pixels."""
    top, bottom = gutter.top, gutter.bottom
    for line in sorted(lines, key=lambda one: -one.bottom):
        top = min(top, line.top) if line.bottom > top - most else top
    for line in sorted(lines, key=lambda one: one.top):
        bottom = max(bottom, line.bottom) if line.top < bottom + most else bottom
    return replace(gutter, top=top, bottom=bottom)
