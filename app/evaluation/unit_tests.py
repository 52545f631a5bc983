"""Check facts about pages in olmOCR-bench's format: a text is present, absent or before another; table cells.

Formulas are compared as TeX. The benchmark compares them rendered, which is less strict. Written from the
benchmark's description.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from app.evaluation.html_tables import Cell, Table
from app.evaluation.markdown_parts import split_markdown
from app.evaluation.normal_forms import comparable_formula, one_spaced
from app.evaluation.omnidocbench import TruthError
from app.evaluation.scores import PageScore

MAX_PLACES = 20
MAX_REPEATS = 30
MAX_PERIOD = 5
"""Length, in words, of the longest phrase whose repetition at the end counts as a loop."""
_PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u2026": "...", "\u00a0": " ",
})  # fmt: skip
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,2}(?=\S)|(?<=\S)_{1,2}(?!\w)|</?(?:b|i|em|strong|sup|sub)>")
NEIGHBOURS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


@dataclass(frozen=True, slots=True)
class CheckedPage:
    """A page with its tests. ``name``: stem of the document's file name. ``page``: its number, from 1."""

    name: str
    page: int
    tests: tuple[Mapping[str, Any], ...]

    @property
    def attributes(self) -> dict[str, str]:
        return {}

    @property
    def key(self) -> str:
        return json.dumps([self.name, self.page, *self.tests], sort_keys=True)

    def score(self, markdown: str) -> PageScore:
        """Count the passed tests, in total and by type. A page that was not read passes none.

        One ``baseline`` test is added to every page's own tests.
        """
        samples: dict[str, tuple[float, float]] = {}
        for test in (*self.tests, {"type": "baseline"}):
            passed = float(bool(markdown.strip()) and passes(test, markdown))
            for metric in ("tests_passed", f"tests_passed_{test['type']}"):
                total, count = samples.get(metric, (0.0, 0.0))
                samples[metric] = (total + passed, count + 1)
        return PageScore(self.name, samples)


def read_unit_tests(folder: Path) -> list[CheckedPage]:
    """Read the tests in all ``*.jsonl`` of a folder. Raise ``TruthError`` if a line is not a known test."""
    pages: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                test = json.loads(line)
                name, page = PurePosixPath(test["pdf"]).stem, int(test.get("page", 1))
                if test["type"] not in _KINDS:
                    raise TruthError(f"unknown type of test {test['type']!r}")
            except (ValueError, KeyError, TypeError) as error:
                raise TruthError(f"{path}:{number}: not a test of olmOCR-bench: {error}") from error
            pages.setdefault((name, page), []).append(test)
    return [CheckedPage(name, page, tuple(tests)) for (name, page), tests in pages.items()]


def prediction_names(name: str, page: int) -> Iterator[str]:
    """Yield the names that a tool may have given its file of a page, the benchmark's own names first."""
    yield f"{name}_pg{page}_repeat1.md"
    yield f"{name}_pg{page}.md"
    if page == 1:
        yield f"{name}.md"
        yield f"{name}.txt"


def passes(test: Mapping[str, Any], markdown: str) -> bool:
    """Tell whether the Markdown passes one test."""
    passed: bool = _KINDS[test["type"]](test, markdown)
    return passed


def plain(text: str) -> str:
    """Normalise a text: one kind of quotes and dashes, single spaces, no emphasis."""
    return one_spaced(_EMPHASIS.sub("", unicodedata.normalize("NFC", text).translate(_PLAIN)))


def _needle(test: Mapping[str, Any], name: str) -> tuple[str, float]:
    """Return the text to look for, and the least similarity in [0, 100] that ``max_diffs`` allows."""
    text = plain(str(test[name]))
    allowed = min(float(test.get("max_diffs", 0)), len(text))
    return text, 100 * (1 - allowed / max(1, len(text)))


def _places(needle: str, least: float, text: str) -> list[int]:
    """Find up to ``MAX_PLACES`` offsets of ``needle``, in no order.

    Return exact matches if there are any, else matches with a similarity of at least ``least``.
    """
    exact = [match.start() for match in re.finditer(re.escape(needle), text)]
    if exact or least >= 100:
        return exact[:MAX_PLACES]
    found: list[int] = []
    for _ in range(MAX_PLACES):
        place = fuzz.partial_ratio_alignment(needle, text, score_cutoff=least)
        if place is None or place.dest_end <= place.dest_start or len(needle) > len(text):
            break
        found.append(place.dest_start)
        text = text[: place.dest_start] + "\0" * (place.dest_end - place.dest_start) + text[place.dest_end :]
    return found


def _is_present(test: Mapping[str, Any], markdown: str, *, case_sensitive: bool = True) -> bool:
    text, (needle, least) = plain(markdown), _needle(test, "text")
    if not test.get("case_sensitive", case_sensitive):
        text, needle = text.lower(), needle.lower()
    first, last = test.get("first_n"), test.get("last_n")
    if first and last:
        text = text[:first] + text[-last:]
    elif first:
        text = text[:first]
    elif last:
        text = text[-last:]
    if len(needle) > len(text):  # below, partial matching would look for the text in the needle
        return Levenshtein.distance(needle, text) <= float(test.get("max_diffs", 0))
    return bool(_places(needle, least, text))


def _is_absent(test: Mapping[str, Any], markdown: str) -> bool:
    return not _is_present(test, markdown, case_sensitive=False)


def _is_in_order(test: Mapping[str, Any], markdown: str) -> bool:
    text = plain(markdown)
    before = _places(*_needle(test, "before"), text)
    after = _places(*_needle(test, "after"), text)
    return bool(before and after) and min(before) < max(after)


def _has_cell(test: Mapping[str, Any], markdown: str) -> bool:
    tables = [part.table for part in split_markdown(markdown) if part.table is not None]
    return any(_fits(test, table, y, x) for table in tables for y, x in _cells_like(test, "cell", table))


def _cells_like(test: Mapping[str, Any], name: str, table: Table) -> list[tuple[int, int]]:
    return [
        (y, x)
        for y, row in enumerate(table.grid())
        for x, cell in enumerate(row)
        if _is_like(test, name, cell)
    ]


def _is_like(test: Mapping[str, Any], name: str, cell: Cell | None) -> bool:
    needle, least = _needle(test, name)
    return cell is not None and fuzz.ratio(needle, plain(cell.text)) >= least


def _fits(test: Mapping[str, Any], table: Table, y: int, x: int) -> bool:
    grid = table.grid()
    for name, (dy, dx) in NEIGHBOURS.items():
        if test.get(name) and not _is_like(test, name, _at(grid, y + dy, x + dx)):
            return False
    above = [row[x] for row in grid[:y]]
    before = grid[y][:x]
    return all(
        not test.get(name) or any(_is_like(test, name, cell) for cell in _headings(cells))
        for name, cells in (("top_heading", above), ("left_heading", before))
    )


def _at(grid: Sequence[Sequence[Cell | None]], y: int, x: int) -> Cell | None:
    return grid[y][x] if 0 <= y < len(grid) and 0 <= x < len(grid[y]) else None


def _headings(cells: Sequence[Cell | None]) -> list[Cell]:
    """Return the outermost cell with text and all cells marked as headings."""
    written = [cell for cell in cells if cell is not None and cell.text]
    return [cell for place, cell in enumerate(written) if place == 0 or cell.is_heading]


def _has_formula(test: Mapping[str, Any], markdown: str) -> bool:
    needle = comparable_formula(str(test["math"]))
    return bool(needle) and needle in comparable_formula(markdown)


def _is_sound(test: Mapping[str, Any], markdown: str) -> bool:
    """Tell whether there is text and its end is not a loop."""
    if not any(character.isalnum() for character in markdown):
        return False
    words = markdown.split()
    most = int(test.get("max_repeats", MAX_REPEATS))
    for period in range(1, MAX_PERIOD + 1):
        tail = words[-period:]
        repeats = 1
        while words[-period * (repeats + 1) : -period * repeats] == tail:
            repeats += 1
        if repeats > most:
            return False
    return True


_KINDS = {
    "present": _is_present,
    "absent": _is_absent,
    "order": _is_in_order,
    "table": _has_cell,
    "math": _has_formula,
    "baseline": _is_sound,
}
