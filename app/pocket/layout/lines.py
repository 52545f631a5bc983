"""Define a line of print and a table, and the positions of lines relative to each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from app.pocket.layout.masks import Mask

CELL_GAP_EM = 0.42
"""Least white between stretches of a line, as between cells of a table, in line heights."""
BESIDE = 0.45
"""Share of the lower of two heights that lines must share. A star stands high beside letters that are all
low.
"""


@dataclass(frozen=True, slots=True)
class Line:
    """An unbroken stretch of a printed line: pixels from (left, top) to before (right, bottom).

    ``space``: usual white between two of its words in pixels; 0 if not measured or there is one word.
    ``gaps``: where that white is, from left to right; empty if not measured.
    """

    left: int
    top: int
    right: int
    bottom: int
    space: float = field(default=0.0, compare=False)
    gaps: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    def is_beside(self, other: "Line") -> bool:
        """Tell whether both are on the same printed line."""
        shared = min(self.bottom, other.bottom) - max(self.top, other.top)
        return shared > BESIDE * min(self.height, other.height)


Cell = tuple[Line, ...]
"""A table's cell: its lines from top to bottom; empty for an empty cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as rows of cells."""

    rows: tuple[tuple[Cell, ...], ...]

    @property
    def lines(self) -> list[Line]:
        return [line for row in self.rows for cell in row for line in cell]


Part = Line | Table
Gap = tuple[int, int]
"""White from one column of pixels to before another."""
Row = list[Line]
"""Stretches beside each other, from left to right."""


def lines_of(part: Part) -> list[Line]:
    return part.lines if isinstance(part, Table) else [part]


def gaps_of(line: Line, mask: Mask, least: float) -> list[Gap]:
    """Find white in the line that is at least ``least`` wide, in pixels of the page."""
    return gaps_in(mask[line.top : line.bottom, line.left : line.right], line.left, least)


def gaps_in(mask: Mask, left: int, least: float) -> list[Gap]:
    """Find white in ``mask``, (H, W), that is at least ``least`` pixels wide.

    The mask begins at column ``left`` of the page, and so do the results.
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([True], mask.any(axis=0), [True])).astype(np.int8)))
    return [
        (left + start, left + end) for start, end in edges.reshape(-1, 2).tolist() if end - start >= least
    ]


def cut_at(line: Line, gaps: Sequence[Gap]) -> list[Line]:
    """Cut a line at gaps. A gap at its end leaves a part without width."""
    starts = [line.left, *(end for _, end in gaps)]
    ends = [*(start for start, _ in gaps), line.right]
    return [Line(start, line.top, end, line.bottom) for start, end in zip(starts, ends, strict=True)]


def joined(lines: Sequence[Line]) -> Line:
    return Line(
        min(line.left for line in lines), min(line.top for line in lines),
        max(line.right for line in lines), max(line.bottom for line in lines),
        max(line.space for line in lines),
    )  # fmt: skip


def extent(lines: Sequence[Line]) -> int:
    """Return the width from the leftmost to the rightmost pixel of the lines."""
    return max(line.right for line in lines) - min(line.left for line in lines)


def bands_of(lines: Sequence[Line]) -> list[list[Line]]:
    """Group lines that overlap in height, from top to bottom, each band from left to right."""
    bands: list[list[Line]] = []
    bottom = -1.0
    for line in sorted(lines, key=lambda one: one.top):
        core_top, core_bottom = line.top + 0.2 * line.height, line.bottom - 0.2 * line.height
        if bands and core_top < bottom:
            bands[-1].append(line)
            bottom = max(bottom, core_bottom)
        else:
            bands.append([line])
            bottom = core_bottom
    return [sorted(band, key=lambda one: one.left) for band in bands]


def rows_of(band: Sequence[Line]) -> list[Row]:
    """Group lines that stand beside each other. A second line in one cell begins a row of its own."""
    rows: list[Row] = []
    for line in sorted(band, key=lambda one: one.middle):
        for row in rows:
            if any(line.is_beside(cell) for cell in row) and not any(is_stacked(line, cell) for cell in row):
                row.append(line)
                break
        else:
            rows.append([line])
    return [sorted(row, key=lambda one: one.left) for row in rows]


def is_stacked(one: Line, other: Line) -> bool:
    """Tell whether both cover some of the same columns of pixels."""
    return min(one.right, other.right) - max(one.left, other.left) > 0
