"""A page in regions, and the text that is made of what was read in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy import ndimage

from app.ocr.regions.ink import Ink, find_ink
from app.ocr.regions.lines import Line, Part, Table, find_lines, find_uprights, in_order
from app.ocr.regions.views import find_words, line_views

PARAGRAPH_PITCH = 1.22
"""Lines farther apart than this many times the usual pitch begin a paragraph."""
TITLE_SIZE = 1.33
"""Of a title's capitals, in those of the page's lines."""
TITLE_WEIGHT = 1.5
WEIGHT = 1.2
"""Size times thickness of strokes of a title and of a heading, likewise."""
MIN_LETTER_PX = 4
SHORT_EM = 4
BULLET = re.compile(r"[•·\-–*°»▪●]\s+(?=\S)")  # noqa: RUF001 - the look-alikes are the point
HEADINGS = {"title": "#", "sub_title": "##"}
ITEM, NUMBERED = "item", "number"
FORGED = re.compile(r"<\|/?(?:ref|det)\|>|</?td>")
"""Tokens with a meaning in the model's format; what is printed has none of it."""
NUMBER = re.compile(r"(\d{1,3})\s?([.)])\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class Print:
    """Height of a line's capitals and thickness of its strokes, in those of the page's lines."""

    size: float
    stroke: float


@dataclass(frozen=True, slots=True)
class Region:
    """Lines that belong together, or a table. ``box``: x1, y1, x2, y2 in 0..999 of the page."""

    kind: str
    box: tuple[int, int, int, int]
    part: tuple[Line, ...] | Table
    bulleted: frozenset[Line] = frozenset()
    """Lines with a bullet before them, which is not part of the line."""

    @property
    def lines(self) -> list[Line]:
        return self.part.lines if isinstance(self.part, Table) else list(self.part)


@dataclass(frozen=True, slots=True)
class PageRegions:
    """``views``: gray images, for every line of every region in order. ``counts``: of views, a line."""

    regions: tuple[Region, ...]
    views: tuple[Image.Image, ...]
    counts: tuple[int, ...]


def cut_page(image: Image.Image) -> PageRegions:
    """Everything printed on an upright page. A blank one has no regions."""
    ink = find_ink(image)
    regions = [] if ink is None else find_regions(ink)
    if ink is None or not regions:
        return PageRegions((), (), ())
    typical = _typical_px([line for region in regions for line in region.lines])
    views: list[Image.Image] = []
    counts: list[int] = []
    for region in regions:
        for line in region.lines:
            made = line_views(ink, line, typical)
            views += made
            counts.append(len(made))
    return PageRegions(tuple(regions), tuple(views), tuple(counts))


def find_regions(ink: Ink) -> list[Region]:
    """In reading order."""
    parts = in_order(find_lines(ink), find_uprights(ink))
    lines = [line for part in parts for line in _lines_of(part)]
    return _regions(parts, ink, _typical_px(lines)) if lines else []


def _typical_px(lines: Sequence[Line]) -> float:
    return float(np.median([line.height for line in lines]))


def _lines_of(part: Part) -> list[Line]:
    return part.lines if isinstance(part, Table) else [part]


def _regions(parts: Sequence[Part], ink: Ink, typical: float) -> list[Region]:
    bulleted: set[Line] = set()
    texts: list[Part] = []
    for part in parts:
        text = _after_bullet(ink, part, typical) if isinstance(part, Line) else None
        if text is not None:
            bulleted.add(text)
        texts.append(part if text is None else text)
    prints = _prints(ink, [line for part in texts for line in _lines_of(part)])
    pitch = _usual_pitch(texts, typical)
    groups: list[list[Line] | Table] = []
    for part in texts:
        before = groups[-1] if groups else None
        if isinstance(part, Table):
            groups.append(part)
        elif isinstance(before, list) and _goes_on(before[-1], part, pitch, typical, prints):
            before.append(part)
        else:
            groups.append([part])
    return [_region(group, ink, prints, bulleted) for group in groups]


def _after_bullet(ink: Ink, line: Line, typical: float) -> Line | None:
    """The line without the bullet it begins with; ``None`` if it begins with none."""
    words = find_words(ink, line, typical)
    if len(words) < 2 or words[1].left - words[0].right < 0.4 * typical:
        return None
    mark = ink.mask[line.top : line.bottom, words[0].left : words[0].right]
    rows = np.flatnonzero(mark.any(axis=1))
    low = rows[-1] - rows[0] + 1 <= 0.62 * typical
    if not low or words[0].right - words[0].left > 0.8 * typical:
        return None
    return Line(words[1].left, line.top, line.right, line.bottom)


def _prints(ink: Ink, lines: Sequence[Line]) -> dict[Line, Print]:
    sizes = np.array([_capitals(ink, line) for line in lines])
    strokes = np.array([_stroke(ink, line) for line in lines])
    sizes, strokes = sizes / np.median(sizes), strokes / np.median(strokes)
    return {
        line: Print(float(size), float(stroke))
        for line, size, stroke in zip(lines, sizes, strokes, strict=True)
    }


def _region(group: list[Line] | Table, ink: Ink, prints: dict[Line, Print], bulleted: set[Line]) -> Region:
    lines = group.lines if isinstance(group, Table) else group
    height, width = ink.mask.shape
    box = (
        int(min(line.left for line in lines) / width * 999),
        int(min(line.top for line in lines) / height * 999),
        int(max(line.right for line in lines) / width * 999),
        int(max(line.bottom for line in lines) / height * 999),
    )
    if isinstance(group, Table):
        return Region("table", box, group)
    size = float(np.median([prints[line].size for line in lines]))
    weight = size * float(np.median([prints[line].stroke for line in lines]))
    kind = "text"
    if len(lines) <= 2 and not bulleted & set(lines):
        if size >= TITLE_SIZE and weight >= TITLE_WEIGHT:
            kind = "title"
        elif len(lines) == 1 and weight >= WEIGHT and size > 0.9:
            kind = "sub_title"
    return Region(kind, box, tuple(lines), frozenset(bulleted & set(lines)))


def _goes_on(above: Line, below: Line, pitch: float, typical: float, prints: dict[Line, Print]) -> bool:
    """In the same paragraph."""
    step = below.bottom - above.bottom
    overlap = min(above.right, below.right) - max(above.left, below.left)
    one, other = prints[above], prints[below]
    if min(one.size, other.size) >= TITLE_SIZE:
        return 0 < step <= 1.7 * max(above.height, below.height) and overlap > 0
    # a few letters say little of how a line is printed
    is_short = min(above.width, below.width) < SHORT_EM * typical
    alike = 0.84 < other.size / one.size < 1.19 and 0.84 < other.stroke / one.stroke < 1.19
    return 0 < step <= PARAGRAPH_PITCH * pitch + 0.1 * typical and overlap > 0 and (alike or is_short)


def _usual_pitch(parts: Sequence[Part], typical: float) -> float:
    """From line to line of running text."""
    steps = [
        below.bottom - above.bottom
        for above, below in pairwise(parts)
        if isinstance(above, Line) and isinstance(below, Line)
    ]
    near = [step for step in steps if 0.8 * typical < step < 2.6 * typical]
    return float(np.percentile(near, 35)) if near else 1.4 * typical


def _capitals(ink: Ink, line: Line) -> float:
    """Height of its taller letters in pixels."""
    labels, count = ndimage.label(ink.mask[line.top : line.bottom, line.left : line.right], np.ones((3, 3)))
    heights = [rows.stop - rows.start for rows, _ in ndimage.find_objects(labels)] if count else []
    letters = [height for height in heights if height >= MIN_LETTER_PX]
    return float(np.percentile(letters, 85)) if letters else float(line.height)


def _stroke(ink: Ink, line: Line) -> float:
    """Thickness of its strokes in pixels, about: ink over half its edge."""
    mask = ink.mask[line.top : line.bottom, line.left : line.right]
    edge = int(mask.sum()) - int(ndimage.binary_erosion(mask).sum())
    return 2 * float(mask.sum()) / max(1, edge)


@dataclass(slots=True)
class _Written:
    """A block of the answer. ``form``: ``item`` and ``number`` for lists, else the region's kind."""

    form: str
    kind: str
    box: tuple[int, int, int, int]
    lines: list[str]

    def takes(self, other: "_Written") -> bool:
        """A list goes on, though its items stand apart."""
        return self.form == other.form and self.form in (ITEM, NUMBERED)

    def take(self, other: "_Written") -> None:
        left, top, right, bottom = zip(self.box, other.box, strict=True)
        self.box = (min(left), min(top), max(right), max(bottom))
        self.lines += other.lines


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
            "".join(f"<td>{'' if cell is None else next(cells)}</td>" for cell in row)
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
        elif blocks and blocks[-1].form == form:
            blocks[-1].lines.append(item)
        else:
            blocks.append(_Written(form, "text", region.box, [item]))
    return blocks


def _item(region: Region, line: Line, text: str, blocks: Sequence[_Written]) -> tuple[str | None, str]:
    """(form, Markdown) of a line that begins an item of a list; (None, "") of one that goes on."""
    if line in region.bulleted:
        return ITEM, f"- {text}"
    if bullet := BULLET.match(text):
        return ITEM, f"- {text[bullet.end() :]}"
    if number := NUMBER.match(text):
        return NUMBERED, f"{number[1]}{number[2]} {text[number.end() :]}"
    first, *others = region.lines
    hangs = any(other.left - first.left > 0.8 * first.height for other in others)
    if blocks and blocks[-1].form == NUMBERED and hangs and abs(line.left - first.left) < 0.5 * line.height:
        # its number was misread: it stands where numbers stand
        before = NUMBER.match(blocks[-1].lines[-1])
        rest = text.split(" ", 1)[-1]
        return NUMBERED, f"{int(before[1]) + 1}{before[2]} {rest}" if before else text
    return None, ""


def _plain(region: Region, read: Sequence[str]) -> _Written:
    if isinstance(region.part, Table):
        cells = iter(read)
        rows = ([next(cells) for cell in row if cell is not None] for row in region.part.rows)
        return _Written("table", "table", region.box, [" ".join(filter(None, row)) for row in rows])
    lines = [
        f"• {text}" if line in region.bulleted else text
        for line, text in zip(region.lines, read, strict=True)
        if text
    ]
    return _Written(region.kind, region.kind, region.box, lines)
