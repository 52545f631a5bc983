"""A page in regions, and the text that is made of what was read in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from PIL import Image

from app.ocr.regions.ink import Ink, find_ink
from app.ocr.regions.lines import Line, Part, Table, find_lines, joined
from app.ocr.regions.order import in_order
from app.ocr.regions.prints import Lead, Print, lead_of, prints_of
from app.ocr.regions.ruled import ruled_tables
from app.ocr.regions.rules import find_rules
from app.ocr.regions.views import LineView, line_views

PARAGRAPH_PITCH, HANGING_PITCH = 1.27, 1.7
"""Lines farther apart than this many times the usual pitch begin a paragraph; those of an item, that stand
under its text, go on longer."""
TITLE_SIZE, TOP_TITLE_SIZE, HEADING_SIZE = 1.4, 1.24, 1.12
"""Of a title's capitals, in those of the page's lines: anywhere, and where nothing stands above it; and of
what cannot be running text."""
TITLE_WEIGHT, WEIGHT = 1.5, 1.2
"""Size times thickness of strokes of a title and of a heading, likewise."""
MAX_HEADING_LINES = 2
SHORT_EM = 4
BULLET = re.compile(r"[•·\-–*°»▪●]\s+(?=\S)")  # noqa: RUF001 - the look-alikes are the point
HEADINGS = {"title": "#", "sub_title": "##"}
ITEM, NUMBERED = "item", "number"
SHIFTED, APART = 8, 10
"""Thousandths of the page: items that begin so far to the side and so far below belong to another list."""
FORGED = re.compile(r"<\|/?(?:ref|det)\|>|</?td>")
"""Tokens with a meaning in the model's format; what is printed has none of it."""
NUMBER = re.compile(r"(\d{1,3})\s?([.)])\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class Region:
    """Lines that belong together, or a table. ``box``: x1, y1, x2, y2 in 0..999 of the page."""

    kind: str
    box: tuple[int, int, int, int]
    part: tuple[Line, ...] | Table
    bulleted: frozenset[Line] = frozenset()
    """Lines with a bullet before them, which is not part of the line."""
    led: frozenset[Line] = frozenset()
    """Lines that begin with what may be a number, as white after it says."""

    @property
    def lines(self) -> list[Line]:
        return self.part.lines if isinstance(self.part, Table) else list(self.part)


@dataclass(frozen=True, slots=True)
class PageRegions:
    """``views``: for every line of every region in order. ``counts``: of views, a line."""

    regions: tuple[Region, ...]
    views: tuple[LineView, ...]
    counts: tuple[int, ...]


def cut_page(image: Image.Image) -> PageRegions:
    """Everything printed on an upright page. A blank one has no regions."""
    ink = find_ink(image)
    regions = [] if ink is None else find_regions(ink)
    if ink is None or not regions:
        return PageRegions((), (), ())
    typical = _typical_px([line for region in regions for line in region.lines])
    views: list[LineView] = []
    counts: list[int] = []
    for region in regions:
        for line in region.lines:
            made = line_views(ink, line, typical)
            views += made
            counts.append(len(made))
    return PageRegions(tuple(regions), tuple(views), tuple(counts))


def find_regions(ink: Ink) -> list[Region]:
    """In reading order."""
    found, rules = find_lines(ink), find_rules(ink)
    parts = in_order(found, rules, ruled_tables(ink.mask, found, rules))
    lines = [line for part in parts for line in _lines_of(part)]
    return _regions(parts, ink, _typical_px(lines)) if lines else []


def _typical_px(lines: Sequence[Line]) -> float:
    return float(np.median([line.height for line in lines]))


def _lines_of(part: Part) -> list[Line]:
    return part.lines if isinstance(part, Table) else [part]


def _regions(parts: Sequence[Part], ink: Ink, typical: float) -> list[Region]:
    lines = [line for part in parts for line in _lines_of(part)]
    page = _Print(prints_of(ink, lines), {}, typical)
    page.pitch = page.usual_pitch(parts)
    texts: list[Part] = [page.without_bullet(ink, part) if isinstance(part, Line) else part for part in parts]
    groups: list[list[Line] | Table] = []
    for part in texts:
        before = groups[-1] if groups else None
        if isinstance(part, Table):
            groups.append(part)
        elif isinstance(before, list) and page.goes_on(before, part):
            before.append(part)
        else:
            groups.append([part])
    return [
        Region(
            "table" if isinstance(group, Table) else page.kind(group, is_first=group is groups[0]),
            _box(group.lines if isinstance(group, Table) else group, ink),
            group if isinstance(group, Table) else tuple(group),
            frozenset() if isinstance(group, Table) else frozenset(filter(page.is_bulleted, group)),
            frozenset() if isinstance(group, Table) else frozenset(group) & page.leads.keys(),
        )
        for group in groups
    ]


def _box(lines: Sequence[Line], ink: Ink) -> tuple[int, int, int, int]:
    height, width = ink.mask.shape
    whole = joined(lines)
    return (
        int(whole.left / width * 999),
        int(whole.top / height * 999),
        int(whole.right / width * 999),
        int(whole.bottom / height * 999),
    )


@dataclass(slots=True)
class _Print:
    """How the page is printed. ``leads``: of lines that begin with a bullet, which is no part of them, or a
    number. ``em``: height of a line; ``pitch``: from line to line of running text, both in pixels.
    """

    prints: dict[Line, Print]
    leads: dict[Line, Lead]
    em: float
    pitch: float = 0.0

    def is_bulleted(self, line: Line) -> bool:
        return line in self.leads and self.leads[line].is_bullet

    def usual_pitch(self, parts: Sequence[Part]) -> float:
        steps = [
            self.prints[below].base - self.prints[above].base
            for above, below in pairwise(parts)
            if isinstance(above, Line) and isinstance(below, Line)
        ]
        near = [step for step in steps if 0.8 * self.em < step < 2.6 * self.em]
        return float(np.percentile(near, 35)) if near else 1.4 * self.em

    def without_bullet(self, ink: Ink, line: Line) -> Line:
        own = self.prints[line]
        lead = lead_of(ink, line, own.base, self.em * max(1.0, own.size))
        if lead is not None and lead.is_bullet:
            line = Line(lead.text_left, line.top, line.right, line.bottom)
            self.prints[line] = own
        if lead is not None:
            self.leads[line] = lead
        return line

    def goes_on(self, group: Sequence[Line], below: Line) -> bool:
        """In the same heading, paragraph or item."""
        first, above = group[0], group[-1]
        step = self.prints[below].base - self.prints[above].base
        overlap = min(above.right, below.right) - max(above.left, below.left)
        if self.is_bulleted(below) or step <= 0 or overlap <= 0:
            return False
        # a few letters say little of how a line is printed
        is_short = min(above.width, below.width) < SHORT_EM * self.em
        are_heavy = [self.prints[line].weight >= WEIGHT for line in (above, below)]
        if all(are_heavy):
            return self._heading_goes_on(above, below, step)
        if any(are_heavy) and not is_short:
            return False
        lead = self._last_lead(group)
        if lead is not None and abs(below.left - lead.text_left) < 0.5 * self.em:
            return step <= HANGING_PITCH * self.pitch
        if self._is_list(group) and below not in self.leads and lead and below.left < lead.text_left:
            return False
        ends = self.is_bulleted(first) and (
            below.left < first.left or above.right < below.right - 3 * self.em
        )
        return not ends and not self._is_indented(above, below) and step <= PARAGRAPH_PITCH * self.pitch

    def _last_lead(self, group: Sequence[Line]) -> Lead | None:
        """Of the last item; a spread line that hangs under its text may seem to begin with a number, too."""
        last: Lead | None = None
        for line in group:
            if line in self.leads and (last is None or abs(line.left - last.text_left) >= 0.5 * self.em):
                last = self.leads[line]
        return last

    def _is_list(self, group: Sequence[Line]) -> bool:
        """Lines of the group hang under the text of others."""
        edges = [self.leads[line].text_left for line in group if line in self.leads]
        hanging = [line for line in group if line not in self.leads]
        return any(abs(line.left - edge) < 0.3 * self.em for line in hanging for edge in edges)

    def _heading_goes_on(self, above: Line, below: Line, step: float) -> bool:
        one, other = self.prints[above], self.prints[below]
        alike = 0.88 < other.size / one.size < 1.14 or below.width < 2 * SHORT_EM * self.em
        leading = 1.45 * self.em * one.size if one.size >= HEADING_SIZE else PARAGRAPH_PITCH * self.pitch
        return alike and 0.8 < other.stroke / one.stroke < 1.25 and step <= leading

    def _is_indented(self, above: Line, below: Line) -> bool:
        """As the first line of a paragraph is; centred lines are not."""
        shift = below.left - above.left
        centred = abs(below.left + below.right - above.left - above.right) < self.em
        return 0.7 * self.em < shift < 3.5 * self.em and not centred and below not in self.leads

    def kind(self, lines: Sequence[Line], *, is_first: bool) -> str:
        if len(lines) > MAX_HEADING_LINES or any(map(self.is_bulleted, lines)):
            return "text"
        size = float(np.median([self.prints[line].size for line in lines]))
        weight = size * float(np.median([self.prints[line].stroke for line in lines]))
        if size >= (TOP_TITLE_SIZE if is_first else TITLE_SIZE) and weight >= TITLE_WEIGHT:
            return "title"
        is_heading = weight >= WEIGHT and size > 0.9 and (len(lines) == 1 or size >= HEADING_SIZE)
        return "sub_title" if is_heading else "text"


@dataclass(slots=True)
class _Written:
    """A block of the answer. ``form``: ``item`` and ``number`` for lists, else the region's kind."""

    form: str
    kind: str
    box: tuple[int, int, int, int]
    lines: list[str]

    def takes(self, other: "_Written") -> bool:
        """A list goes on, though its items stand apart."""
        if self.form != other.form or self.form not in (ITEM, NUMBERED):
            return False
        if self.form == NUMBERED:
            return _number(other.lines[0]) != 1
        is_shifted = abs(other.box[0] - self.box[0]) > SHIFTED
        return not (is_shifted and other.box[1] - self.box[3] > APART)

    def take(self, other: "_Written") -> None:
        left, top, right, bottom = zip(self.box, other.box, strict=True)
        self.box = (min(left), min(top), max(right), max(bottom))
        self.lines += other.lines


def _number(item: str) -> int:
    match = NUMBER.match(item)
    return int(match[1]) if match else 0


def compose(regions: Sequence[Region], texts: Sequence[str], *, tagged: bool) -> str:
    """``texts``: of every line of every region, in order. ``tagged``: Markdown with grounding tags, else
    plain text.
    """
    at = 0
    written: list[_Written] = []
    for region in regions:
        count = len(region.lines)
        read = [" ".join(FORGED.sub(" ", text).split()) for text in texts[at : at + count]]
        at += count
        if not any(read):
            continue
        for block in _markdown(region, read) if tagged else [_plain(region, read)]:
            if written and written[-1].takes(block):
                written[-1].take(block)
            else:
                written.append(block)
    return "\n\n".join(_with_tag(block) if tagged else "\n".join(block.lines) for block in written)


def _with_tag(block: _Written) -> str:
    corners = ", ".join(str(value) for value in block.box)
    body = "\n".join(block.lines)
    return f"<|ref|>{block.kind}<|/ref|><|det|>[[{corners}]]<|/det|>\n{body}"


def _markdown(region: Region, read: Sequence[str]) -> list[_Written]:
    if isinstance(region.part, Table):
        cells = iter(read)
        rows = (
            "".join(f"<td>{' '.join(filter(None, islice(cells, len(cell))))}</td>" for cell in row)
            for row in region.part.rows
        )
        table = "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
        return [_Written("table", "table", region.box, [table])]
    if region.kind in HEADINGS:
        text = " ".join(filter(None, read))
        return [_Written(region.kind, region.kind, region.box, [f"{HEADINGS[region.kind]} {text}"])]
    return _paragraphs_and_lists(region, read)


def _paragraphs_and_lists(region: Region, read: Sequence[str]) -> list[_Written]:
    """Lines of a paragraph or an item together; each item of a list on a line of its own."""
    blocks: list[_Written] = []
    for line, text in zip(region.lines, read, strict=True):
        if not text:
            continue
        form, item = _item(region, line, text, blocks)
        if form is None:
            if blocks:
                blocks[-1].lines[-1] += " " + text
            else:
                blocks.append(_Written("text", "text", region.box, [text]))
        elif blocks and blocks[-1].form == form and not (form == NUMBERED and _number(item) == 1):
            blocks[-1].lines.append(item)
        else:
            blocks.append(_Written(form, "text", region.box, [item]))
    return blocks


def _item(region: Region, line: Line, text: str, blocks: Sequence[_Written]) -> tuple[str | None, str]:
    """(form, Markdown) of a line that begins an item of a list; (None, "") of one that goes on."""
    if line in region.bulleted:
        return ITEM, f"- {text}"
    bullet = BULLET.match(text)
    if bullet and (line is region.lines[0] or (blocks and blocks[-1].form == ITEM)):
        return ITEM, f"- {text[bullet.end() :]}"
    if number := NUMBER.match(text):
        return NUMBERED, f"{number[1]}{number[2]} {text[number.end() :]}"
    first, *others = region.lines
    hangs = any(other.left - first.left > 0.8 * first.height for other in others)
    may_lead = line in region.led and blocks and blocks[-1].form == NUMBERED
    if may_lead and hangs and abs(line.left - first.left) < 0.5 * line.height:
        # its number was misread: it stands where numbers stand
        before = NUMBER.match(blocks[-1].lines[-1])
        rest = text.split(" ", 1)[-1]
        return NUMBERED, f"{int(before[1]) + 1}{before[2]} {rest}" if before else text
    return None, ""


def _plain(region: Region, read: Sequence[str]) -> _Written:
    if isinstance(region.part, Table):
        cells = iter(read)
        rows = (list(islice(cells, sum(map(len, row)))) for row in region.part.rows)
        return _Written("table", "table", region.box, [" ".join(filter(None, row)) for row in rows])
    lines = [
        f"• {text}" if line in region.bulleted else text
        for line, text in zip(region.lines, read, strict=True)
        if text
    ]
    return _Written(region.kind, region.kind, region.box, lines)
