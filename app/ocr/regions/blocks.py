"""Lines in reading order -> regions: headings, paragraphs, lists, tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import log
from statistics import median

import numpy as np

from app.ocr.regions.headings import KINDS, heading_chances
from app.ocr.regions.letters import beside_the_same
from app.ocr.regions.levels import Heading, are_titles
from app.ocr.regions.lines import Line, Table, joined, lines_of
from app.ocr.regions.lists import BULLET, Bullet
from app.ocr.regions.numbers import numbered_items, page_number, with_leads_told
from app.ocr.regions.prints import INDENTED_EM, Lead, PageLines, Print, is_centred
from app.ocr.regions.traits import beside_body, named_of, size_of

TEXT, TABLE, PAGE_NUMBER = KINDS[0], "table", "page_number"
LEAST_CHANCE, HALF = 1e-6, 0.5
FULL = 0.8
"""Of the widest line, that full ones are wide."""
TALL = re.compile(r"[A-Z0-9bdfhkl]")
"""Letters as high as capitals; of a line without any, the size is that of its small letters."""
PARAGRAPH_PITCH, HANGING_PITCH = 1.27, 1.7
"""Lines farther apart than this many times the usual pitch begin a paragraph; those of an item, that stand
under its text, go on longer."""
HEADING_PITCH, TITLE_PITCH = 1.45, 1.9
"""Likewise lines of one heading, in heights of a line of their size; a page seldom has two titles on end."""
SECTION = re.compile(r"\d{1,2}(?:\.\d{1,2}){1,3}\.?\s+[A-Z].*[^.,;:]")
"""A number of several levels, and what is no sentence."""
MAX_HEADING_LINES = 3
SAME_LEFT_EM, SPACE_EM, UNEVEN_LETTERS = 0.5, 0.4, 1.15
"""How far apart lines of one heading begin, at most, that are flush left; what a word needs beside its
letters; and by how much these may be wider than the line's are.
"""
FEW_LETTERS, MIN_LETTERS, MANY_LETTERS = 2, 4, 12
"""That tell that two lines are of one size; that they are not; and that they tell it finely."""
SAME_SIZE, OTHER_SIZE, SURE_SIZE = 0.05, 0.08, 0.055
"""By how much lines of one heading differ in it; and lines of two, if few and if many letters tell it; as a
logarithm."""


@dataclass(frozen=True, slots=True)
class Region:
    """Lines that belong together, or a table. ``box``: x1, y1, x2, y2 in 0..999 of the page."""

    kind: str
    box: tuple[int, int, int, int]
    part: tuple[Line, ...] | Table
    bulleted: Mapping[Line, str] = field(default_factory=dict)
    """Lines with a bullet before them, which is not part of the line, and that bullet."""
    bullet: Bullet | None = None
    """Of the first line, or its number."""
    hanging: frozenset[Line] = frozenset()
    """Lines that begin under the text of an item."""

    @property
    def lines(self) -> list[Line]:
        return self.part.lines if isinstance(self.part, Table) else list(self.part)


def regions_of(page: PageLines, texts: Sequence[str]) -> list[Region]:
    """``texts``: of all lines in order. The regions have the same lines in the same order."""
    by_line = dict(zip(page.lines, texts, strict=True))
    blocks = _Blocks(with_leads_told(page, by_line), by_line)
    groups: list[list[Line] | Table] = []
    for part in page.parts:
        before = groups[-1] if groups else None
        if isinstance(part, Table):
            groups.append(part)
        elif isinstance(before, list) and blocks.goes_on(before, part):
            before.append(part)
        else:
            groups.append([part])
    return [blocks.region(group, kind) for group, kind in zip(groups, blocks.kinds(groups), strict=True)]


class _Blocks:
    def __init__(self, page: PageLines, texts: dict[Line, str]) -> None:
        self._named = named_of(page, texts)
        self._page, self._alike = page, beside_the_same(self._named)
        self._chances = heading_chances(page, texts, self._alike)
        text = {line for line, chances in self._chances.items() if chances[0] >= HALF}
        if text and len(text) < len(self._chances):
            body = [line for line in page.lines if line in text or line not in self._chances]
            self._page, self._alike = beside_body(page, self._named, body)
            self._chances = heading_chances(self._page, texts, self._alike)
        self._texts = texts
        self._edges = (
            min((line.left for line in page.lines), default=0),
            max((line.right for line in page.lines), default=0),
        )
        widest = max((line.width for line in page.lines), default=0)
        full = [line.right for line in page.lines if line.width > FULL * widest]
        self._full_right = round(median(full)) if full else self._edges[1]
        boxes = [joined(lines_of(part)) for part in page.parts]
        self._second = [
            below for above, below in pairwise(boxes) if above.right < below.left and below.top < above.top
        ]
        """What columns that are not the first begin with."""
        self._number = page_number(page, texts)
        self._items = numbered_items(page, texts)

    def kinds(self, groups: Sequence[list[Line] | Table]) -> list[str]:
        """Titles are told from other headings when all headings of the page are known."""
        kinds = [TABLE if isinstance(group, Table) else self._kind(group) for group in groups]
        found = [at for at, kind in enumerate(kinds) if kind in KINDS[1:]]
        headings = [self._heading(group) for at in found if not isinstance(group := groups[at], Table)]
        for at, is_title in zip(found, are_titles(headings), strict=True):
            kinds[at] = KINDS[1 if is_title else 2]
        return kinds

    def _heading(self, lines: Sequence[Line]) -> Heading:
        """Its lines are of one level."""
        size = float(np.median([log(self._size(line)) for line in lines]))
        chances = np.log([np.maximum(self._chances[line][1:], LEAST_CHANCE) for line in lines])  # (L, 2)
        are_centred = all(map(self._is_centred, lines))
        return Heading(size, chances.sum(axis=0), are_centred or self._is_across(lines))

    def _is_centred(self, line: Line) -> bool:
        """Over what is printed, or over its full lines, where a table is wider; or on the page, as over
        columns of which one is empty.
        """
        em, (left, right) = self._page.em, self._edges
        is_on_page = is_centred(line, 0, self._page.width, em) and line.left - left > INDENTED_EM * em
        return is_on_page or any(is_centred(line, left, end, em) for end in (right, self._full_right))

    def _is_across(self, lines: Sequence[Line]) -> bool:
        """Above the begin of a second column, and left of it too."""
        heading, em = joined(lines), self._page.em
        return any(
            heading.left + em < column.left < heading.right - em and heading.bottom <= column.top
            for column in self._second
        )

    def _size(self, line: Line) -> float:
        return size_of(self._page.prints[line], self._alike[line])

    def region(self, group: list[Line] | Table, kind: str) -> Region:
        if isinstance(group, Table):
            return Region(kind, self._box(group.lines), group)
        return Region(
            kind,
            self._box(group),
            tuple(group),
            self._bullets(group),
            self._bullet(group[0]),
            frozenset(line for at, line in enumerate(group) if self._hangs(group[:at], line)),
        )

    def _bullets(self, lines: Sequence[Line]) -> dict[Line, str]:
        leads = ((line, self._page.leads.get(line)) for line in lines)
        return {line: lead.bullet for line, lead in leads if lead is not None and lead.bullet is not None}

    def _bullet(self, line: Line) -> Bullet | None:
        lead, em = self._page.leads.get(line), self._page.em
        if lead is None:
            return None
        left, text_left = lead.left / em, lead.text_left / em
        is_number = lead.bullet is None
        return Bullet(left, lead.width / em, lead.height / em, text_left, is_number)

    def _box(self, lines: Sequence[Line]) -> tuple[int, int, int, int]:
        whole = joined(lines)
        return (
            int(whole.left / self._page.width * 999),
            int(whole.top / self._page.height * 999),
            int(whole.right / self._page.width * 999),
            int(whole.bottom / self._page.height * 999),
        )

    def goes_on(self, group: Sequence[Line], below: Line) -> bool:
        """In the same heading, paragraph or item."""
        first, above = group[0], group[-1]
        if self._begins(below) or above is self._number or not self._page.is_below(above, below):
            return False
        are_headings = [self._is_heading(line) for line in (above, below)]
        step = self._page.step(above, below)
        if all(are_headings):
            return len(group) < MAX_HEADING_LINES and self._heading_goes_on(group, below, step)
        if any(are_headings):
            return False
        em, pitch = self._page.em, self._page.pitch
        if self._hangs(group, below):
            return step <= HANGING_PITCH * pitch
        lead = self._last_lead(group)
        if self._is_list(group) and below not in self._page.leads and lead and below.left < lead.text_left:
            return False
        ends = self._is_bulleted(first) and (below.left < first.left or above.right < below.right - 3 * em)
        return not ends and not self._is_indented(above, below) and step <= PARAGRAPH_PITCH * pitch

    def _begins(self, line: Line) -> bool:
        """Whatever is above it."""
        is_read = line in self._page.leads and BULLET.match(self._texts[line]) is not None
        return line is self._number or line in self._items or self._is_bulleted(line) or is_read

    def _is_bulleted(self, line: Line) -> bool:
        return line in self._page.leads and self._page.leads[line].is_bullet

    def _is_heading(self, line: Line) -> bool:
        if line in self._items or self._is_bulleted(line) or not any(map(str.isalpha, self._texts[line])):
            return False
        is_section = SECTION.fullmatch(self._texts[line]) is not None
        return (is_section and self._stands_alone(line)) or bool(self._chances[line][0] < HALF)

    def _stands_alone(self, line: Line) -> bool:
        """With more white above and below than lines of a paragraph have."""
        at, most = self._page.parts.index(line), PARAGRAPH_PITCH * self._page.pitch
        around = (None, *self._page.parts, None)[at : at + 3]
        return not any(
            self._page.is_below(upper, lower) and self._page.step(upper, lower) <= most
            for upper, lower in pairwise(around)
            if isinstance(upper, Line) and isinstance(lower, Line)
        )

    def _heading_goes_on(self, group: Sequence[Line], below: Line, step: float) -> bool:
        above = group[-1]
        alike = self._are_of_one_size(above, below)
        are_titles = all(self._kind([line]) == "title" for line in (above, below))
        # titles are broken where their sense is
        is_broken = self._texts[below][:1].islower() or (are_titles and len(group) == 1)
        if not is_broken and self._would_have_fit(above, below):
            return False
        pitch = TITLE_PITCH if are_titles else HEADING_PITCH
        most = max(pitch * self._page.em * self._size(above), PARAGRAPH_PITCH * self._page.pitch)
        return alike and step <= most

    def _would_have_fit(self, above: Line, below: Line) -> bool:
        """The first word of a line, at the end of the one above it that begins at the same left."""
        em = self._page.em * self._size(above)
        text = self._texts[below]
        if abs(above.left - below.left) > SAME_LEFT_EM * em or not text:
            return False
        first = UNEVEN_LETTERS * below.width * len(text.split()[0]) / len(text)
        return above.right + SPACE_EM * em + first < self._column_right(below) - SPACE_EM * em

    def _column_right(self, line: Line) -> int:
        """Where the lines below it end."""
        parts = self._page.parts
        right, last = line.right, line
        for part in parts[parts.index(line) + 1 :]:
            if isinstance(part, Table):
                continue
            if not self._page.is_below(last, part):
                break
            right, last = max(right, part.right), part
        return right

    def _are_of_one_size(self, above: Line, below: Line) -> bool:
        """By the letters that both have, or that the page has too; by their boxes, where those are few."""
        prints = {line: self._page.prints[line] for line in (above, below)}
        alike = beside_the_same({line: self._named[line] for line in prints})[below]
        apart = abs(alike.height)
        if alike.count < MIN_LETTERS:
            one, other = (self._alike[line] for line in prints)
            alike, apart = min(one, other, key=lambda one: one.count), abs(one.height - other.height)
        if alike.count >= FEW_LETTERS and apart <= SAME_SIZE:
            return True
        if alike.count >= MIN_LETTERS and apart > (OTHER_SIZE if alike.count < MANY_LETTERS else SURE_SIZE):
            return False
        is_low = any(not TALL.search(self._texts[line]) for line in prints)
        return is_low or _are_alike(*prints.values())

    def _hangs(self, group: Sequence[Line], line: Line) -> bool:
        """Under the text of the group's last item."""
        lead = self._last_lead(group)
        return lead is not None and abs(line.left - lead.text_left) < 0.5 * self._page.em

    def _last_lead(self, group: Sequence[Line]) -> Lead | None:
        """Of the last item; a spread line that hangs under its text may seem to begin with a number, too."""
        last: Lead | None = None
        for line in group:
            lead = self._page.leads.get(line)
            if lead is not None and (last is None or abs(line.left - last.text_left) >= 0.5 * self._page.em):
                last = lead
        return last

    def _is_list(self, group: Sequence[Line]) -> bool:
        """Lines of the group hang under the text of others."""
        leads = self._page.leads
        edges = [leads[line].text_left for line in group if line in leads]
        hanging = [line for line in group if line not in leads]
        return any(abs(line.left - edge) < 0.3 * self._page.em for line in hanging for edge in edges)

    def _is_indented(self, above: Line, below: Line) -> bool:
        """As the first line of a paragraph is; centred lines are not."""
        em = self._page.em
        shift = below.left - above.left
        centred = abs(below.left + below.right - above.left - above.right) < em
        return 0.7 * em < shift < 3.5 * em and not centred and below not in self._page.leads

    def _kind(self, lines: Sequence[Line]) -> str:
        if lines[0] is self._number:
            return PAGE_NUMBER
        if not self._is_heading(lines[0]):
            return TEXT
        return KINDS[1 + int(self._heading(lines).chances.argmax())]


def _are_alike(one: Print, other: Print) -> bool:
    """Of about the same size: their capitals, or their lower-case letters, which more lines have."""
    pairs = [(one.size, other.size), (one.lower, other.lower)]
    return any(a is not None and b is not None and 0.88 < b / a < 1.14 for a, b in pairs)
