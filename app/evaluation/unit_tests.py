"""Facts about pages, as olmOCR-bench has them: a text is there, or not, or before another; cells of tables.

Formulas are compared as TeX, where the benchmark renders them: that is stricter. Written from the benchmark's
description.
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
"""Words of what is repeated at the end."""
_PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u2026": "...", "\u00a0": " ",
})  # fmt: skip
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,2}(?=\S)|(?<=\S)_{1,2}(?!\w)|</?(?:b|i|em|strong|sup|sub)>")
NEIGHBOURS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


@dataclass(frozen=True, slots=True)
class CheckedPage:
    """``name``: of the document and, where it has several, the page."""

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
        """Every test's outcome, and of each kind of test. A page that was not read passes none."""
        samples: dict[str, tuple[float, float]] = {}
        for test in (*self.tests, {"type": "baseline"}):
            passed = float(bool(markdown.strip()) and passes(test, markdown))
            for metric in ("tests_passed", f"tests_passed_{test['type']}"):
                total, count = samples.get(metric, (0.0, 0.0))
                samples[metric] = (total + passed, count + 1)
        return PageScore(self.name, samples)


def read_unit_tests(folder: Path) -> list[CheckedPage]:
    """All ``*.jsonl`` of a folder. Raises ``TruthError``."""
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
    """What a tool may have called its file of a page; the benchmark's own names first."""
    yield f"{name}_pg{page}_repeat1.md"
    yield f"{name}_pg{page}.md"
    if page == 1:
        yield f"{name}.md"
        yield f"{name}.txt"


def passes(test: Mapping[str, Any], markdown: str) -> bool:
    """Whether what was read agrees with one fact."""
    passed: bool = _KINDS[test["type"]](test, markdown)
    return passed


def plain(text: str) -> str:
    """Text with one kind of quotes and dashes, single spaces, and no emphasis."""
    return one_spaced(_EMPHASIS.sub("", unicodedata.normalize("NFC", text).translate(_PLAIN)))


def _needle(test: Mapping[str, Any], name: str) -> tuple[str, float]:
    """What is looked for, and the least likeness in [0, 100]."""
    text = plain(str(test[name]))
    allowed = min(float(test.get("max_diffs", 0)), len(text))
    return text, 100 * (1 - allowed / max(1, len(text)))


def _places(needle: str, least: float, text: str) -> list[int]:
    """Where ``needle`` begins, in no order: exactly, or else so alike."""
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
    if len(needle) > len(text):  # the likeness below would look for the text in the needle
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
    """The outermost cell with text, and whatever is marked as a heading."""
    written = [cell for cell in cells if cell is not None and cell.text]
    return [cell for place, cell in enumerate(written) if place == 0 or cell.is_heading]


def _has_formula(test: Mapping[str, Any], markdown: str) -> bool:
    needle = comparable_formula(str(test["math"]))
    return bool(needle) and needle in comparable_formula(markdown)


def _is_sound(test: Mapping[str, Any], markdown: str) -> bool:
    """There is text, and its end is no loop."""
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
