"""Check facts about pages in olmOCR-bench's format: a text is present, absent or before another; table cells.

Formulas are compared as TeX. The benchmark compares them rendered, which is less strict. Written from the
benchmark's description.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from app.evaluation.html_tables import Cell, Table
from app.evaluation.markdown_parts import split_markdown
from app.evaluation.normal_forms import comparable_formula, one_spaced
from app.evaluation.omnidocbench import TruthError
from app.evaluation.scores import PageScore

MAX_REPEATS = 30
MAX_PERIOD = 5
"""Length, in characters, of the longest text whose repetition at the end counts as a loop."""
_PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
    "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\uff3f": "_", "\u00b5": "\u03bc", "\u00a0": " ",
})  # fmt: skip
_BREAK = re.compile(r"<br/?>")
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,2}(?=\S)|(?<=\S)_{1,2}(?!\w)|</?[bi]>")
_DISALLOWED = re.compile(
    "[\u3040-\u30ff\u4e00-\u9fff\U0001f1e0-\U0001f1ff\U0001f300-\U0001f64f\U0001f680-\U0001f6ff]"
)
"""Chinese, Japanese and emoji: the benchmark's documents have none, so a page that has was made up."""
_IMAGE = re.compile(r"!\[[^\]\n]*\]\([^)\n]*\)")
LEAST_CELL = 0.5
"""Similarity, in [0, 1], that a cell needs whatever ``max_diffs`` allows."""
REQUIRED = {
    "present": ("text",), "absent": ("text",), "order": ("before", "after"), "table": ("cell",),
    "math": ("math",), "baseline": (),
}  # fmt: skip
"""Texts that a test needs, by its type."""
TEXTS = ("up", "down", "left", "right", "top_heading", "left_heading")
COUNTS = {"page": 1, "max_diffs": 0, "first_n": 0, "last_n": 0, "max_length": 0, "max_repeats": 0}
"""Numbers that a test may have, with the least."""
NEIGHBOURS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


@dataclass(frozen=True, slots=True)
class CheckedPage:
    """A page with its tests. ``name``: stem of the document's file name. ``number``: of the page, from 1."""

    name: str
    number: int
    tests: tuple[Mapping[str, Any], ...]

    @property
    def label(self) -> str:
        return f"{self.name}_pg{self.number}"

    @property
    def attributes(self) -> dict[str, str]:
        return {}

    @property
    def key(self) -> str:
        return json.dumps([self.name, self.number, *self.tests], sort_keys=True)

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
        return PageScore(self.label, samples)


def read_unit_tests(folder: Path) -> list[CheckedPage]:
    """Read the tests in all ``*.jsonl`` of a folder. Raise ``TruthError`` if a line is not a known test."""
    pages: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                test = json.loads(line)
                _require_test(test)
            except (ValueError, RecursionError) as error:
                raise TruthError(f"{path}:{number}: not a test of olmOCR-bench: {error}") from error
            page = PurePosixPath(test["pdf"]).stem, test.get("page") or 1
            pages.setdefault(page, []).append(test)
    return [CheckedPage(name, page, tuple(tests)) for (name, page), tests in pages.items()]


def _require_test(test: Any) -> None:
    """Raise ``ValueError``, which says what is wrong, unless a test has its fields."""
    if not isinstance(test, dict) or not isinstance(test.get("type"), str):
        raise ValueError("no object with a type")
    if test["type"] not in _KINDS:
        raise ValueError(f"unknown type of test {test['type']!r}")
    for name in ("pdf", *REQUIRED[test["type"]]):
        if not isinstance(test.get(name), str) or not test[name].strip():
            raise ValueError(f"{name} must be a text, got {test.get(name)!r}")
    for name in TEXTS:
        if not isinstance(test.get(name, ""), str | None):
            raise ValueError(f"{name} must be a text, got {test[name]!r}")
    for name, least in COUNTS.items():
        count = test.get(name)
        if count is not None and (type(count) is not int or count < least):
            raise ValueError(f"{name} must be a whole number from {least}, got {count!r}")
    json.dumps(test, ensure_ascii=False).encode()  # half a surrogate pair cannot be written


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
    text = unicodedata.normalize("NFC", _BREAK.sub(" ", text)).translate(_PLAIN)
    return one_spaced(_EMPHASIS.sub("", text))


def _needle(test: Mapping[str, Any], name: str) -> tuple[str, float]:
    """Return the text to look for, and the least similarity in [0, 1] that ``max_diffs`` allows."""
    text = plain(str(test[name]))
    allowed = min(float(test.get("max_diffs", 0)), len(text))
    return text, 1 - allowed / max(1, len(text))


def _is_present(test: Mapping[str, Any], markdown: str) -> bool:
    text, (needle, least) = plain(markdown), _needle(test, "text")
    if not test.get("case_sensitive", True):
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
    return fuzz.partial_ratio(needle, text) / 100 >= least


def _is_absent(test: Mapping[str, Any], markdown: str) -> bool:
    return not _is_present(test, markdown)


def _is_in_order(test: Mapping[str, Any], markdown: str) -> bool:
    text, most = plain(markdown), int(test.get("max_diffs", 0))
    before = near_matches(plain(str(test["before"])), text, most)
    after = near_matches(plain(str(test["after"])), text, most)
    return bool(before and after) and before[0] < after[-1]


def near_matches(needle: str, text: str, max_edits: int) -> list[int]:
    """Return where ``needle`` begins in ``text`` with at most ``max_edits`` edits, in ascending order.

    Overlapping matches count once, where they have the fewest edits. Sellers' algorithm, backwards, so that
    the dynamic programme ends where a match begins; a row of it is one array operation.
    """
    letters = np.array([ord(letter) for letter in reversed(text)], dtype=np.int64)
    places = np.arange(len(text) + 1)
    edits = np.zeros(len(text) + 1, dtype=np.int64)  # of the empty needle, wherever it begins
    for count, letter in enumerate(reversed(needle), start=1):
        kept = np.minimum(edits[1:] + 1, edits[:-1] + (letters != ord(letter)))
        # a letter of the text is left out: edits[j] = min over i <= j of kept[i] + (j - i)
        edits = np.minimum.accumulate(np.concatenate(([count], kept)) - places) + places
    edits = edits[::-1]  # edits[j]: needle against the best text that begins at j
    found = np.flatnonzero(edits <= max_edits)
    groups = np.split(found, np.flatnonzero(np.diff(found) > max(1, max_edits)) + 1)
    return [int(group[np.argmin(edits[group])]) for group in groups if len(group)]


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
    return cell is not None and fuzz.ratio(needle, plain(cell.text)) / 100 >= max(LEAST_CELL, least)


def _fits(test: Mapping[str, Any], table: Table, y: int, x: int) -> bool:
    """Tell whether a cell has the neighbours and headings of a test.

    A neighbour that would lie outside the table is not asked for.
    """
    grid = table.grid()
    for name, (dy, dx) in NEIGHBOURS.items():
        is_inside = 0 <= y + dy < len(grid) and 0 <= x + dx < len(grid[y])
        if test.get(name) and is_inside and not _is_like(test, name, grid[y + dy][x + dx]):
            return False
    column = [row[x] for row in grid]
    above = [cell for cell in column if cell and cell.is_heading] or column[:y]
    return all(
        not test.get(name) or any(cell and cell.text and _is_like(test, name, cell) for cell in cells)
        for name, cells in (("top_heading", above), ("left_heading", grid[y][: x + 1]))
    )


def _has_formula(test: Mapping[str, Any], markdown: str) -> bool:
    needle = comparable_formula(str(test["math"]))
    return bool(needle) and needle in comparable_formula(markdown)


def _is_sound(test: Mapping[str, Any], markdown: str) -> bool:
    """Tell whether there is text, its end is no loop, and it has no letters that the page cannot have.

    With ``max_length`` the page is blank, and only the number of letters and digits counts.
    """
    if (most := test.get("max_length")) is not None:
        skips_images = test.get("max_length_skips_image_alt_tags", False)
        return _num_alphanumeric(_IMAGE.sub("", markdown) if skips_images else markdown) <= int(most)
    if _num_alphanumeric(markdown) == 0:
        return False
    text = re.sub(r"\s+", " ", markdown)
    most = int(test.get("max_repeats", MAX_REPEATS))
    if any(_num_repeats(text, period) > most for period in range(1, MAX_PERIOD + 1)):
        return False
    return not test.get("check_disallowed_characters", True) or _DISALLOWED.search(markdown) is None


def _num_alphanumeric(text: str) -> int:
    return sum(letter.isalnum() for letter in text)


def _num_repeats(text: str, period: int) -> int:
    """Count how often the last ``period`` characters stand at the end, one after another."""
    tail, repeats = text[-period:], 1
    while text[-period * (repeats + 1) : -period * repeats] == tail:
        repeats += 1
    return repeats


_KINDS = {
    "present": _is_present,
    "absent": _is_absent,
    "order": _is_in_order,
    "table": _has_cell,
    "math": _has_formula,
    "baseline": _is_sound,
}
