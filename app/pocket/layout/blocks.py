"""Group lines in reading order into regions: headings, paragraphs, lists, tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from app.pocket.layout.headings import MAX_LINES, SUB_TITLE, are_of_one_size, heading_lines, size_of
from app.pocket.layout.lines import Line, Table, joined
from app.pocket.layout.lists import BULLET, Bullet
from app.pocket.layout.numbers import numbered_items, page_number, with_leads_told
from app.pocket.layout.prints import Lead, PageLines

TEXT = "text"
TABLE = "table"
PAGE_NUMBER = "page_number"
PARAGRAPH_PITCH = 1.27  # usual steps between lines, at most, within a paragraph
HANGING_PITCH = 1.7  # usual steps, at most, between lines of an item that stand under its text
HEADING_PITCH = 1.9  # heights of a line of that size, at most, between lines of one heading
SECTION = re.compile(r"\d{1,2}(?:\.\d{1,2}){1,3}\.?\s+[A-Z].*[^.,;:]")
"""A section heading: a number of several levels, then text that does not end like a sentence."""


@dataclass(frozen=True, slots=True)
class Region:
    """Lines that belong together, or a table. ``box``: x1, y1, x2, y2 in 0..999 of the page."""

    kind: str
    box: tuple[int, int, int, int]
    part: tuple[Line, ...] | Table
    bulleted: Mapping[Line, str] = field(default_factory=dict)
    """Bullet of each line that has one before it. The bullet is not part of the line."""
    bullet: Bullet | None = None
    """Bullet or number of the first line."""
    hanging: frozenset[Line] = frozenset()
    """Lines that begin under the text of an item."""

    @property
    def lines(self) -> list[Line]:
        return self.part.lines if isinstance(self.part, Table) else list(self.part)


def regions_of(page: PageLines, texts: Sequence[str]) -> list[Region]:
    """Group a page's lines into regions. ``texts``: of all lines, in order.

    The regions hold the same lines in the same order.
    """
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
    """Grouping of a page's lines into regions."""

    def __init__(self, page: PageLines, texts: dict[Line, str]) -> None:
        self._page, self._texts = page, texts
        self._headings = heading_lines(page, texts)
        self._number = page_number(page, texts)
        self._items = numbered_items(page, texts)

    def kinds(self, groups: Sequence[list[Line] | Table]) -> list[str]:
        return [TABLE if isinstance(group, Table) else self._kind(group) for group in groups]

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
        """Tell whether ``below`` continues the heading, paragraph or item of ``group``."""
        first, above = group[0], group[-1]
        if self._begins(below) or above is self._number or not self._page.is_below(above, below):
            return False
        are_headings = [self._is_heading(line) for line in (above, below)]
        step = self._page.step(above, below)
        if all(are_headings):
            return len(group) < MAX_LINES and self._heading_goes_on(above, below, step)
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
        """Tell whether a line begins a region, whatever is above it."""
        is_read = line in self._page.leads and BULLET.match(self._texts[line]) is not None
        return line is self._number or line in self._items or self._is_bulleted(line) or is_read

    def _is_bulleted(self, line: Line) -> bool:
        return line in self._page.leads and self._page.leads[line].is_bullet

    def _is_heading(self, line: Line) -> bool:
        if line in self._items or self._is_bulleted(line) or not any(map(str.isalpha, self._texts[line])):
            return False
        is_section = SECTION.fullmatch(self._texts[line]) is not None
        return (is_section and self._stands_alone(line)) or line in self._headings

    def _stands_alone(self, line: Line) -> bool:
        """Tell whether there is more white above and below than between lines of a paragraph."""
        at, most = self._page.parts.index(line), PARAGRAPH_PITCH * self._page.pitch
        around = (None, *self._page.parts, None)[at : at + 3]
        return not any(
            self._page.is_below(upper, lower) and self._page.step(upper, lower) <= most
            for upper, lower in pairwise(around)
            if isinstance(upper, Line) and isinstance(lower, Line)
        )

    def _heading_goes_on(self, above: Line, below: Line, step: float) -> bool:
        prints = self._page.prints[above], self._page.prints[below]
        most = max(HEADING_PITCH * self._page.em * size_of(prints[0]), PARAGRAPH_PITCH * self._page.pitch)
        return are_of_one_size(*prints) and step <= most

    def _hangs(self, group: Sequence[Line], line: Line) -> bool:
        """Tell whether a line begins under the text of the group's last item."""
        lead = self._last_lead(group)
        return lead is not None and abs(line.left - lead.text_left) < 0.5 * self._page.em

    def _last_lead(self, group: Sequence[Line]) -> Lead | None:
        """Return the lead of the last item.

        A spread line that hangs under its text may seem to begin with a number.
        """
        last: Lead | None = None
        for line in group:
            lead = self._page.leads.get(line)
            if lead is not None and (last is None or abs(line.left - last.text_left) >= 0.5 * self._page.em):
                last = lead
        return last

    def _is_list(self, group: Sequence[Line]) -> bool:
        """Tell whether lines of the group hang under the text of others."""
        leads = self._page.leads
        edges = [leads[line].text_left for line in group if line in leads]
        hanging = [line for line in group if line not in leads]
        return any(abs(line.left - edge) < 0.3 * self._page.em for line in hanging for edge in edges)

    def _is_indented(self, above: Line, below: Line) -> bool:
        """Tell whether ``below`` is indented like the first line of a paragraph. Centred lines are not."""
        em = self._page.em
        shift = below.left - above.left
        centred = abs(below.left + below.right - above.left - above.right) < em
        return 0.7 * em < shift < 3.5 * em and not centred and below not in self._page.leads

    def _kind(self, lines: Sequence[Line]) -> str:
        if lines[0] is self._number:
            return PAGE_NUMBER
        if not self._is_heading(lines[0]):
            return TEXT
        return self._headings.get(lines[0], SUB_TITLE)
