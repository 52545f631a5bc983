"""Tables of Markdown and HTML as grids of cells, and how alike two of them are."""

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
"""Beyond it a table is cut: model text may ask for a million cells."""
ALIKE = 0.5
"""Least likeness of two cells for their likeness to count."""
_DASHES = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Cell:
    """``is_heading``: marked as one, ``<th>``."""

    text: str
    row_span: int = 1
    column_span: int = 1
    is_heading: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, each cell where it begins."""

    rows: tuple[tuple[Cell, ...], ...]

    def grid(self) -> list[list[Cell | None]]:
        """A rectangle in which a cell stands in every place it spans; ``None`` where there is none."""
        places = {
            (y + dy, x + dx): cell
            for (y, x), cell in self._placed()
            for dy in range(cell.row_span)
            for dx in range(cell.column_span)
        }
        width = max((x for _, x in places), default=-1) + 1
        return [[places.get((y, x)) for x in range(width)] for y in range(len(self.rows))]

    def regular(self) -> "Table":
        """The same rectangle as rows of cells: spans clipped, gaps filled with empty cells."""
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
        """Where each cell begins, with spans that end at the table's last row and at other cells."""
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
        """Bare HTML: no head and body, no ``<th>``, spans only, as OmniDocBench compares it."""
        return f"<table>{''.join(_row_html(row) for row in self.rows)}</table>"


def _row_html(row: Sequence[Cell]) -> str:
    def spans(cell: Cell) -> str:
        row_span = f' rowspan="{cell.row_span}"' if cell.row_span > 1 else ""
        return row_span + (f' colspan="{cell.column_span}"' if cell.column_span > 1 else "")

    return f"<tr>{''.join(f'<td{spans(cell)}>{html.escape(cell.text)}</td>' for cell in row)}</tr>"


class _TableParser(HTMLParser):
    """Collects the cells of the outermost table; tables inside cells give their text."""

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
    """``<table>...`` -> its cells; rows without any are dropped. Never fails."""
    parser = _TableParser()
    parser.feed(text)
    parser.close()
    return Table(tuple(tuple(row) for row in parser.rows if row))


def is_dash_line(line: str) -> bool:
    """Tell whether a line parts the heading of a pipe table from its rows."""
    return "|" in line and "-" in line and _DASHES.fullmatch(line) is not None


def parse_pipe_table(lines: Sequence[str]) -> Table:
    """Lines of a Markdown pipe table, its dash line among them."""
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
    """All in [0, 1], 1 for equal tables."""

    teds: float
    teds_structure: float
    grits: float
    cells: float


_teds = TableMetric(metrics=[TableMetricKind.TEDS])
_grits = TableMetric(metrics=[TableMetricKind.GRITS])


def compare_tables(read: Table, truth: Table) -> TableScores:
    """TEDS with and without content, GriTS of content, and ``cell_agreement``."""
    if not read.rows or not truth.rows:
        return TableScores(0.0, 0.0, 0.0, 0.0)
    return TableScores(
        teds=_compared_by_teds(read, truth, structure_only=False),
        teds_structure=_compared_by_teds(read, truth, structure_only=True),
        grits=_compared_by_grits(read.regular(), truth.regular()),  # it fails on rows of unequal length
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
    """Share of cells that stand in their row and column: rows are aligned in order, columns by number.

    An edit distance hardly sees a value that went to the next column; here it counts as wrong twice, where
    it is and where it is not. Empty places count only if one side has text there.
    """
    left, right = ([[_text(cell) for cell in row] for row in table.grid()] for table in (read, truth))
    num_cells = sum(bool(text) for grid in (left, right) for row in grid for text in row)
    if num_cells == 0:
        return 1.0 if len(left) == len(right) else 0.0
    best = [0.0] * (len(right) + 1)  # a row of the alignment's table
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
