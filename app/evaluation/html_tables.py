"""Parse Markdown and HTML tables into grids of cells, and measure how similar two tables are."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser

from docling_metrics_table.docling_metrics_table import (
    TableMetric,
    TableMetricHTMLInputSample,
    TableMetricKind,
)
from rapidfuzz.distance import Levenshtein

MAX_SPAN = 100
MAX_CELLS = 2000
"""Cells after which a table is cut off: model text may ask for a million."""
ALIKE = 0.5
"""Least similarity, in [0, 1], at which two cells count as agreeing at all."""
_DASHES = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One table cell. ``is_heading``: it is a ``<th>``, or in the first row of a pipe table."""

    text: str
    row_span: int = 1
    column_span: int = 1
    is_heading: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table as rows of cells. A cell that spans several rows or columns is listed once, where it begins."""

    rows: tuple[tuple[Cell, ...], ...]

    def grid(self) -> list[list[Cell | None]]:
        """Return the table as a rectangle: each cell repeated in every place it spans, ``None`` in gaps."""
        places = {
            (y + dy, x + dx): cell
            for (y, x), cell in self._placed()
            for dy in range(cell.row_span)
            for dx in range(cell.column_span)
        }
        width = max((x for _, x in places), default=-1) + 1
        return [[places.get((y, x)) for x in range(width)] for y in range(len(self.rows))]

    def regular(self) -> "Table":
        """Return the table with spans clipped to ``grid``'s rectangle and gaps filled with empty cells."""
        starts = dict(self._placed())
        grid = self.grid()
        return Table(
            tuple(
                tuple(
                    starts.get((y, x), Cell(""))
                    for x, cell in enumerate(row)
                    if cell is None or (y, x) in starts
                )
                for y, row in enumerate(grid)
            )
        )

    def _placed(self) -> list[tuple[tuple[int, int], Cell]]:
        """Return (row, column) of each cell's start, with the cell.

        Spans are cut at the table's last row and at other cells. Cells that exceed ``MAX_CELLS`` places are
        left out.
        """
        taken: set[tuple[int, int]] = set()
        placed: list[tuple[tuple[int, int], Cell]] = []
        for y, row in enumerate(self.rows):
            x = 0
            for cell in row:
                while (y, x) in taken:
                    x += 1
                height = min(cell.row_span, len(self.rows) - y)
                width = next((dx for dx in range(cell.column_span) if (y, x + dx) in taken), cell.column_span)
                if len(taken) + height * width > MAX_CELLS:
                    return placed
                taken.update((y + dy, x + dx) for dy in range(height) for dx in range(width))
                placed.append(((y, x), replace(cell, row_span=height, column_span=width)))
                x += width
        return placed

    @property
    def text(self) -> str:
        return " ".join(cell.text for row in self.rows for cell in row if cell.text)

    def html(self) -> str:
        """Return bare HTML as OmniDocBench compares it: no head, body or ``<th>``; only span attributes."""
        return f"<table>{''.join(_row_html(row) for row in self.rows)}</table>"


def _row_html(row: Sequence[Cell]) -> str:
    def spans(cell: Cell) -> str:
        row_span = f' rowspan="{cell.row_span}"' if cell.row_span > 1 else ""
        return row_span + (f' colspan="{cell.column_span}"' if cell.column_span > 1 else "")

    return f"<tr>{''.join(f'<td{spans(cell)}>{html.escape(cell.text)}</td>' for cell in row)}</tr>"


class _TableParser(HTMLParser):
    """Collects table cells from ``<tr>``, ``<td>`` and ``<th>``. Other tags give only their text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[Cell]] = []
        self._words: list[str] | None = None
        self._shape = (1, 1, False)
        self._num_cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._end_cell()
            self.rows.append([])
        elif tag in ("td", "th"):
            self._end_cell()
            values = dict(attrs)
            self._shape = (_span(values.get("rowspan")), _span(values.get("colspan")), tag == "th")
            self._words = []
        elif tag == "br" and self._words is not None:
            self._words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "tr", "table"):
            self._end_cell()

    def handle_data(self, data: str) -> None:
        if self._words is not None:
            self._words.append(data)

    def _end_cell(self) -> None:
        if self._words is None:
            return
        text = _SPACE.sub(" ", "".join(self._words)).strip()
        self._words = None
        self._num_cells += 1
        if self._num_cells > MAX_CELLS:
            return
        if not self.rows:
            self.rows.append([])
        self.rows[-1].append(Cell(text, *self._shape))


def _span(value: str | None) -> int:
    return min(int(value), MAX_SPAN) or 1 if value is not None and value.isdecimal() else 1


def parse_html_table(text: str) -> Table:
    """Parse the HTML of a table. Drop rows without cells. Never fails."""
    parser = _TableParser()
    parser.feed(text)
    parser.close()
    return Table(tuple(tuple(row) for row in parser.rows if row))


def is_dash_line(line: str) -> bool:
    """Tell whether a line of dashes separates the heading of a pipe table from its rows."""
    return "|" in line and "-" in line and _DASHES.fullmatch(line) is not None


def parse_pipe_table(lines: Sequence[str]) -> Table:
    """Parse the lines of a Markdown pipe table. The first is the heading, the second its dash line."""
    rows = [
        tuple(Cell(cell.strip().replace(r"\|", "|"), is_heading=y == 0) for cell in _pipe_cells(line))
        for y, line in enumerate(lines)
        if not (y == 1 and is_dash_line(line))
    ]
    return Table(tuple(rows))


def _pipe_cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith(r"\|"):
        inner = inner[:-1]
    return re.split(r"(?<!\\)\|", inner)


@dataclass(frozen=True, slots=True)
class TableScores:
    """How similar two tables are, by four measures. Each is in [0, 1]; equal tables have 1."""

    teds: float
    teds_structure: float
    grits: float
    cells: float


_teds = TableMetric(metrics=[TableMetricKind.TEDS])
_grits = TableMetric(metrics=[TableMetricKind.GRITS])


def compare_tables(read: Table, truth: Table) -> TableScores:
    """Compute TEDS with and without content, GriTS of content, and ``cell_agreement``.

    A table without rows scores 0 everywhere.
    """
    if not read.rows or not truth.rows:
        return TableScores(0.0, 0.0, 0.0, 0.0)
    return TableScores(
        teds=_compared_by_teds(read, truth, structure_only=False),
        teds_structure=_compared_by_teds(read, truth, structure_only=True),
        grits=_compared_by_grits(read.regular(), truth.regular()),  # GriTS fails on rows of unequal length
        cells=cell_agreement(read, truth),
    )


def _compared_by_teds(read: Table, truth: Table, *, structure_only: bool) -> float:
    sample = TableMetricHTMLInputSample(
        id="", html_a=truth.html(), html_b=read.html(), structure_only=structure_only
    )
    scores = _teds.evaluate_sample(sample).teds
    return max(0.0, scores.teds) if scores else 0.0


def _compared_by_grits(read: Table, truth: Table) -> float:
    sample = TableMetricHTMLInputSample(id="", html_a=truth.html(), html_b=read.html())
    scores = _grits.evaluate_sample(sample).grits
    return (scores.grits_content or 0.0) if scores else 0.0


def cell_agreement(read: Table, truth: Table) -> float:
    """Compute the share, in [0, 1], of cells that are in the right row and column.

    Rows are aligned in order, columns by number. An edit distance hardly notices a value that moved to the
    next column. Here it counts as wrong twice: where it is, and where it should be. Places that are empty in
    both tables do not count.
    """
    left, right = ([[_text(cell) for cell in row] for row in table.grid()] for table in (read, truth))
    num_cells = sum(bool(text) for grid in (left, right) for row in grid for text in row)
    if num_cells == 0:
        return 1.0 if len(left) == len(right) else 0.0
    best = [0.0] * (len(right) + 1)  # one row of the dynamic programme that aligns rows
    for row in left:
        before, best = best, [0.0]
        for x, other in enumerate(right):
            best.append(max(best[x], before[x + 1], before[x] + _row_agreement(row, other)))
    return 2 * best[-1] / num_cells


def _row_agreement(left: Sequence[str], right: Sequence[str]) -> float:
    pairs = ((a, b) for a, b in zip(left, right, strict=False) if a and b)
    likeness = (Levenshtein.normalized_similarity(a, b) for a, b in pairs)
    return sum(value for value in likeness if value >= ALIKE)


def _text(cell: Cell | None) -> str:
    return "" if cell is None else _SPACE.sub("", cell.text)
