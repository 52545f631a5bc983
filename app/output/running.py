"""Find running heads and feet, and page numbers: what pages repeat above and below their text.

Only repetition tells them from text: the same words, or the same but for a number that counts with the
pages, at the same height at the edge of several pages. A heading must repeat on more pages than other text.
So must text on pages without boxes, where only the first and the last paragraph are considered. On two pages
a heading is a running head only where a sentence continues below it, or where it is small and alone at the
very edge.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from app.output.flow import begins_in_a_sentence, breaks_off
from app.output.parts import Part
from app.output.plain import to_plain

Furniture = Literal["page_header", "page_footer", "page_number"]

# heights and distances in thousandths of the page
MARGIN = 140  # height of the zone at the edge of a page where heads and feet stand
EDGE = 70  # height of the zone at the edge where no text begins
MAX_HEIGHT = 40  # largest height of a head or foot
SMALL = 18  # largest height of a single line of a head or foot
MIN_WHITE = 8  # least white space between a head and the text
MAX_SHIFT = 15  # largest vertical shift of the same head between pages
MAX_CHARS = 150  # most characters of a head or foot
MAX_ROWS = 2  # most rows of a head or foot
MAX_IN_ROW = 4  # most blocks side by side in one row
END: tuple[int, int, list[int]] = (2000, 2000, [])
MIN_PAGES = 2  # least number of pages on which a head repeats
MIN_PAGES_OF_HEADING = 3  # the same, for a text that the model calls a heading
MIN_PAGES_WITHOUT_BOXES = 3  # the same, on pages without boxes
MIN_SHARE_OF_HEADING = 0.4  # least share of all pages; heads of left and right pages differ
MIN_PARAGRAPHS = 3  # least paragraphs of a page without boxes for its first or last to be a head
HEADINGS = frozenset({"title", "sub_title", "heading", "section_header"})
HEADS = frozenset({"header", "page_header", "running_head"})
FEET = frozenset({"footer", "page_footer"})
NUMBERS = frozenset({"page_number"})
NEVER = frozenset({"table", "image", "figure", "picture", "equation", "formula", "code", "list"})
WORD = re.compile(r"[^\W\d_]{2,}")
MIN_WORDS = 2
NUMBER = re.compile(r"[0-9]{1,6}")
LONE_ROMAN = re.compile(r"(?P<before>[-–—\s]*)(?P<number>[ivxlc]{1,7})(?P<after>[-–—\s.]*)", re.IGNORECASE)  # noqa: RUF001
PAGE_NUMBER = re.compile(
    r"[-–—\s\[(]*(?:(?:page|p\.|pg\.|seite|pagina|página)\s*)?[0-9]{1,6}"  # noqa: RUF001
    r"(?:\s*(?:of|/|von|de|sur|di)\s*[0-9]{1,6})?[-–—\s\])|.]*",  # noqa: RUF001
    re.IGNORECASE,
)
ROMAN_DIGITS = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A part that may be a running head or foot.

    ``page``, ``part``: its place. ``index``: of the page in the document. ``key``: its text with ``#`` for
    every number; ``numbers``: those numbers. ``y``: its middle in thousandths of the page, -1 without a
    box.
    """

    page: int
    part: int
    index: int
    is_head: bool
    y: int
    key: str
    numbers: tuple[int, ...]
    type: str | None
    is_heading: bool
    is_apart: bool
    is_at_edge: bool

    @property
    def is_number(self) -> bool:
        """Whether it is nothing but a page number."""
        is_number = PAGE_NUMBER.fullmatch(self.key.replace("#", "1")) is not None
        return self.type in NUMBERS or (is_number and not self.is_heading)

    @property
    def may_count(self) -> bool:
        """Whether a number in it may be the page's.

        A number that alone tells one heading from another may not.
        """
        return self.is_number or (not self.is_heading and len(WORD.findall(self.key)) >= MIN_WORDS)


def find_furniture(pages: Sequence[tuple[int, Sequence[Part]]]) -> list[dict[int, Furniture]]:
    """Find the heads, feet and numbers of every page. ``pages``: index in the document, parts."""
    groups: dict[tuple[bool, bool, str], list[_Candidate]] = defaultdict(list)
    for at, (index, parts) in enumerate(pages):
        for one in _candidates(at, index, parts):
            groups[one.is_head, one.y < 0, one.key].append(one)
    running = _pages_in_a_sentence(pages, [one for group in groups.values() for one in group])
    num_pages = sum(bool(parts) for _, parts in pages)
    found: list[dict[int, Furniture]] = [{} for _ in pages]
    levels: set[tuple[bool, int]] = set()  # heights at which page numbers stand, in steps of MAX_SHIFT
    for level in (level for group in groups.values() for level in _levels(group)):
        same = _counting(level)
        if not _is_repeated(same, num_pages, running):
            continue
        # where so many agree, others that differ in a digit are misread
        for one in level if len(same) >= MIN_PAGES_OF_HEADING else same:
            found[one.page][one.part] = _furniture(one)
            if one.is_number:
                levels |= {(one.is_head, one.y // MAX_SHIFT + step) for step in (-1, 0, 1)}
    for one in (one for group in groups.values() for one in group):
        if one.type in NUMBERS and (one.is_head, one.y // MAX_SHIFT) in levels:
            found[one.page].setdefault(one.part, "page_number")  # its digits were misread
    return found


def _furniture(one: _Candidate) -> Furniture:
    if one.is_number:
        return "page_number"
    return "page_header" if one.is_head else "page_footer"


def _candidates(at: int, index: int, parts: Sequence[Part]) -> Iterator[_Candidate]:
    boxed = [(number, part) for number, part in enumerate(parts) if part.box is not None]
    if not boxed:
        if len(parts) >= MIN_PARAGRAPHS:
            for number in (0, len(parts) - 1):
                yield from _candidate((at, number), index, parts[number], number == 0, is_apart=True)
        return
    for is_head in (True, False):
        for row, is_apart in _edge_rows(boxed, is_head):
            for number, part in row:
                yield from _candidate((at, number), index, part, is_head, is_apart=is_apart)


def _edge_rows(
    boxed: Sequence[tuple[int, Part]], is_head: bool
) -> Iterator[tuple[list[tuple[int, Part]], bool]]:
    """Yield the rows in a margin, from the edge inwards, and whether white space separates each from the
    next."""
    edges = sorted((*_from_edge(part, is_head), number) for number, part in boxed)
    parts = dict(boxed)
    rows: list[tuple[int, int, list[int]]] = []
    for near, far, number in edges:
        if rows and near <= rows[-1][1]:
            start, end, numbers = rows[-1]
            rows[-1] = start, max(end, far), [*numbers, number]
        elif len(rows) <= MAX_ROWS:
            rows.append((near, far, [number]))
        else:
            break
    for (_, far, numbers), (following, _, _) in zip(rows[:MAX_ROWS], [*rows[1:], END], strict=False):
        if far > MARGIN or len(numbers) > MAX_IN_ROW:
            return
        yield [(number, parts[number]) for number in numbers], following - far >= MIN_WHITE


def _from_edge(part: Part, is_head: bool) -> tuple[int, int]:
    """Return the distances of a block's sides from the edge."""
    _, top, _, bottom = part.box or (0, 0, 0, 0)
    return (top, bottom) if is_head else (999 - bottom, 999 - top)


def _candidate(
    place: tuple[int, int], index: int, part: Part, is_head: bool, *, is_apart: bool
) -> Iterator[_Candidate]:
    kind = None if part.type is None else part.type.casefold()
    if (
        len(part.markdown) > 2 * MAX_CHARS
        or kind in NEVER
        or "caption" in (kind or "")
        or part.markdown.startswith(("<", "|", "```"))
    ):
        return
    text = " ".join(to_plain(part.markdown).split())
    height = part.box[3] - part.box[1] if part.box else 0
    if not text or len(text) > MAX_CHARS or height > MAX_HEIGHT or (not part.box and "\n" in part.markdown):
        return
    key, numbers = _key(text)
    y = (part.box[1] + part.box[3]) // 2 if part.box else -1
    is_heading = kind in HEADINGS or part.markdown.startswith("#")
    is_at_edge = (
        is_apart and part.box is not None and _from_edge(part, is_head)[1] <= EDGE and height <= SMALL
    )
    yield _Candidate(*place, index, is_head, y, key, numbers, kind, is_heading, is_apart, is_at_edge)


def _key(text: str) -> tuple[str, tuple[int, ...]]:
    if (roman := LONE_ROMAN.fullmatch(text)) is not None:
        return f"{roman['before']}#{roman['after']}", (_roman(roman["number"].lower()),)
    numbers = tuple(int(number) for number in NUMBER.findall(text))
    return NUMBER.sub("#", text.casefold()), numbers


def _roman(text: str) -> int:
    values = [ROMAN_DIGITS[letter] for letter in text]
    return sum(
        -value if value < following else value
        for value, following in zip(values, [*values[1:], 0], strict=True)
    )


def _levels(group: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """Group parts at the same height, at most one per page."""
    level: list[_Candidate] = []
    for one in sorted(group, key=lambda one: (one.y, one.index)):
        if level and one.y - level[0].y > MAX_SHIFT:
            yield level
            level = []
        if all(other.page != one.page for other in level[-MAX_ROWS:]):
            level.append(one)
    if level:
        yield level


def _counting(level: Sequence[_Candidate]) -> list[_Candidate]:
    """Keep parts whose numbers are the same on all pages, or count with them."""
    same = list(level)
    for at in range(len(level[0].numbers)):
        value, num_equal = Counter(one.numbers[at] for one in same).most_common(1)[0]
        offset, num_counting = Counter(one.numbers[at] - one.index for one in same).most_common(1)[0]
        is_own = level[0].is_number and at == 0
        if level[0].may_count and (is_own or num_counting > num_equal):
            same = [one for one in same if one.numbers[at] - one.index == offset]
        else:
            same = [one for one in same if one.numbers[at] == value]
    return same


def _pages_in_a_sentence(
    pages: Sequence[tuple[int, Sequence[Part]]], candidates: Sequence[_Candidate]
) -> set[int]:
    """Return pages that continue, below possible heads, a sentence of the page before."""
    edges = {(one.page, one.part) for one in candidates}
    inner = [
        [part for number, part in enumerate(parts) if (at, number) not in edges]
        for at, (_, parts) in enumerate(pages)
    ]
    return {
        at + 1
        for at, (above, below) in enumerate(pairwise(inner))
        if above and below and breaks_off(above[-1]) and begins_in_a_sentence(below[0])
    }


def _is_repeated(same: Sequence[_Candidate], num_pages: int, running: set[int]) -> bool:
    first = same[0]
    if len(same) < MIN_PAGES:
        return False
    if first.y < 0:
        least = max(MIN_PAGES_WITHOUT_BOXES, MIN_SHARE_OF_HEADING * num_pages if first.is_heading else 0)
        return len(same) >= least
    if first.is_number or first.type in HEADS | FEET:
        return True
    if any(one.is_heading for one in same):
        is_many = len(same) >= max(MIN_PAGES_OF_HEADING, MIN_SHARE_OF_HEADING * num_pages)
        is_inside = any(one.page in running for one in same)
        return is_many or is_inside or all(one.is_at_edge for one in same)
    return len(same) >= MIN_PAGES_OF_HEADING or all(one.is_apart for one in same)
