"""Compose the text of a page's regions into blocks of Markdown or of plain text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

from app.document import FARTHEST, Block
from app.output.escape import escaped, escaped_cell, escaped_heading
from app.output.hyphens import flowed, unbroken
from app.output.markdown import block_of
from app.pocket.layout.blocks import PAGE_NUMBER, Region, regions_of
from app.pocket.layout.lines import Line, Table
from app.pocket.layout.lists import BULLET, Bullet
from app.pocket.layout.numbers import FIRST, OF_ITEM, shown_number
from app.pocket.layout.prints import PageLines

HEADINGS = {"title": "#", "sub_title": "##"}
ITEM = "item"
NUMBERED = "number"
APART = 10  # thousandths of the page, white between items of different lists
FULL = 3.0  # line heights of white at the end of a line, in which a word would have fitted
SAME_LEFT = 0.4  # line heights by which the left edges of a paragraph's lines differ at most
NUMBER_ALONE = re.compile(r"\d{1,2}[.)]")
MAX_COUNT = 3  # greatest difference between the numbers of neighbouring items; some may not have been read


@dataclass(slots=True)
class _Written:
    """A block of the answer. ``form``: ``item`` and ``number`` for lists, else the region's kind."""

    form: str
    kind: str
    box: tuple[int, int, int, int]
    lines: list[str]
    bullets: list[Bullet] = field(default_factory=list)
    """Known bullets, or numbers, of the items."""

    def takes(self, other: "_Written") -> bool:
        """Tell whether ``other`` continues this list, even if its items stand apart."""
        if self.form != other.form or self.form not in (ITEM, NUMBERED):
            return False
        steps = _steps(other.lines[0], self.lines[-1]) if self.form == NUMBERED else 1
        if not 0 < steps <= MAX_COUNT:
            return False
        if not self.bullets or not other.bullets:
            return True
        if self.form == NUMBERED:
            return other.bullets[0].counts_on(self.bullets[-1], is_next=steps == 1)
        is_apart = other.box[1] - self.box[3] > APART
        return other.bullets[0].is_of_list(self.bullets, is_apart=is_apart)

    def take(self, other: "_Written") -> None:
        left, top, right, bottom = zip(self.box, other.box, strict=True)
        self.box = (min(left), min(top), max(right), max(bottom))
        self.lines += other.lines
        self.bullets += other.bullets


def _follows(item: str, above: str) -> bool:
    """Tell whether a numbered item goes on from the one above; counting back, or far on, does not."""
    return 0 < _steps(item, above) <= MAX_COUNT


def _steps(item: str, above: str) -> int:
    """Count from the number above to the item's: 1 if either has none, 0 if they are written differently."""
    one, other = OF_ITEM.match(above), OF_ITEM.match(item)
    if one is None or other is None:
        return 1
    return int(other[1]) - int(one[1]) if one[2] == other[2] else 0


def page_blocks(
    page: PageLines, texts: Sequence[str], *, as_markdown: bool, turns: int = 0
) -> tuple[Block, ...]:
    """Make the blocks of a page in reading order.

    ``texts``: of every line of the page, in order. ``as_markdown``: with headings, lists and tables as
    Markdown, else line by line as printed. ``turns``: quarter turns, counter-clockwise, after which the page
    was cut; boxes are of the page before them.
    """
    return compose(regions_of(page, texts), texts, as_markdown=as_markdown, turns=turns)


def compose(
    regions: Sequence[Region], texts: Sequence[str], *, as_markdown: bool, turns: int = 0
) -> tuple[Block, ...]:
    """Make the blocks of known regions. ``texts``: of every line of every region, in order."""
    at = 0
    written: list[_Written] = []
    cleaned = [" ".join(text.split()) for text in texts]
    for region in regions:
        count = len(region.lines)
        read = cleaned[at : at + count]
        at += count
        if not any(read):
            continue
        for block in _markdown(region, read) if as_markdown else [_plain(region, read)]:
            last = next((one for one in reversed(written) if one.form != PAGE_NUMBER), None)
            if last is not None and last.takes(block):
                last.take(block)
            else:
                written.append(block)
    ordered = _with_number_outside(written)
    return tuple(_block(block, turns, as_markdown=as_markdown) for block in ordered)


def _with_number_outside(written: Sequence[_Written]) -> list[_Written]:
    """Move the page's number before or after all text.

    Under the first of two columns it would separate them.
    """
    text = [block for block in written if block.form != PAGE_NUMBER]
    numbers = [block for block in written if block.form == PAGE_NUMBER]
    above = [one for one in numbers if text and one.box[1] < min(block.box[1] for block in text)]
    return [*above, *text, *(one for one in numbers if one not in above)]


def _block(written: _Written, turns: int, *, as_markdown: bool) -> Block:
    body = "\n".join(_as_print(written.form if as_markdown else "", line) for line in written.lines)
    return block_of(written.kind, turned_back(written.box, turns), body)


def _as_print(form: str, line: str) -> str:
    """Escape a line of Markdown so that only what was composed is markup."""
    if form == "table":
        return line
    if form in HEADINGS:
        mark, _, text = line.partition(" ")
        return f"{mark} {escaped_heading(text)}"
    if form in (ITEM, NUMBERED):
        mark, _, text = line.partition(" ")
        return f"{mark} {escaped(text)}"
    return escaped(line)


def turned_back(box: tuple[int, int, int, int], turns: int) -> tuple[int, int, int, int]:
    """Map a box in 0..999 of a page that was turned counter-clockwise to the page as it came."""
    left, top, right, bottom = box
    for _ in range(turns):  # clockwise
        left, top, right, bottom = FARTHEST - bottom, left, FARTHEST - top, right
    return left, top, right, bottom


def _markdown(region: Region, read: Sequence[str]) -> list[_Written]:
    if isinstance(region.part, Table):
        if items := _numbered(region.part, read):
            return [_Written(NUMBERED, "text", region.box, items)]
        cells = iter(read)
        rows = (
            "".join(f"<td>{escaped_cell(flowed(list(islice(cells, len(cell)))))}</td>" for cell in row)
            for row in region.part.rows
        )
        table = "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
        return [_Written("table", "table", region.box, [table])]
    if region.kind in HEADINGS:
        text = flowed(read)
        return [_Written(region.kind, region.kind, region.box, [f"{HEADINGS[region.kind]} {text}"])]
    if region.kind == PAGE_NUMBER:
        return [_Written(region.kind, region.kind, region.box, _printed(region, read))]
    return _paragraphs_and_lists(region, read)


def _numbered(table: Table, read: Sequence[str]) -> list[str]:
    """Return the items of a table that is a list: counting numbers, each before one cell.

    Empty for other tables.
    """
    if any([len(cell) for cell in row] != [1, 1] for row in table.rows):
        return []
    items = [f"{number} {text}" for number, text in zip(read[::2], read[1::2], strict=True)]
    if not all(NUMBER_ALONE.fullmatch(number) for number in read[::2]):
        return []
    return items if all(_steps(below, above) == 1 for above, below in pairwise(items)) else []


def _paragraphs_and_lists(region: Region, read: Sequence[str]) -> list[_Written]:
    """Join the lines of a paragraph or an item; put each item of a list on a line of its own."""
    blocks: list[_Written] = []
    are_numbered = sum(OF_ITEM.match(text) is not None for text in read) > 1
    for line, text in zip(region.lines, read, strict=True):
        if not text:
            continue
        form, item = _item(region, line, text, blocks)
        if form == NUMBERED and (
            (not are_numbered and _is_running(region.lines, line)) or _is_inside(region, line, item, blocks)
        ):
            form = None  # the end of a sentence, which is a number
        if form is None:
            if blocks:
                blocks[-1].lines[-1] = flowed((blocks[-1].lines[-1], text))
            else:
                blocks.append(_Written("text", "text", region.box, [text]))
        elif blocks and blocks[-1].form == form and (form == ITEM or _follows(item, blocks[-1].lines[-1])):
            blocks[-1].lines.append(item)
        else:
            blocks.append(_Written(form, "text", region.box, [item], _known(region.bullet, form)))
    return blocks


def _is_running(lines: Sequence[Line], line: Line) -> bool:
    """Tell whether the line above is full and the lines begin under each other.

    Then nothing hangs as under an item.
    """
    at = lines.index(line)
    near = SAME_LEFT * line.height
    is_full = at > 0 and lines[at - 1].right > max(one.right for one in lines) - FULL * line.height
    return is_full and all(abs(one.left - line.left) < near for one in lines[at - 1 : at + 2])


def _is_inside(region: Region, line: Line, item: str, blocks: Sequence[_Written]) -> bool:
    """Tell whether a line is an item's text, where no inner list begins or continues."""
    if line not in region.hanging or not blocks:
        return False
    number = OF_ITEM.match(item)
    is_first = number is not None and int(number[1]) == FIRST
    return not is_first and not (blocks[-1].form == NUMBERED and _follows(item, blocks[-1].lines[-1]))


def _known(bullet: Bullet | None, form: str) -> list[Bullet]:
    """Return the bullet found before an item or a number, as a list of one or none."""
    return [] if bullet is None or bullet.is_number == (form == ITEM) else [bullet]


def _item(region: Region, line: Line, text: str, blocks: Sequence[_Written]) -> tuple[str | None, str]:
    """Return (form, Markdown) of a line that begins an item of a list, (None, "") of any other line."""
    if line in region.bulleted:
        return ITEM, f"- {text}"
    bullet = BULLET.match(text)
    # a dash in an item's text may begin any of its lines
    goes_on = bool(blocks) and blocks[-1].form == ITEM and not region.bulleted
    if bullet and (line is region.lines[0] or goes_on):
        return ITEM, f"- {text[bullet.end() :]}"
    if number := OF_ITEM.match(text):
        return NUMBERED, f"{number[1]}{number[2]} {text[number.end() :]}"
    return None, ""


def _plain(region: Region, read: Sequence[str]) -> _Written:
    if isinstance(region.part, Table):
        cells = iter(read)
        rows = (list(islice(cells, sum(map(len, row)))) for row in region.part.rows)
        return _Written("table", "table", region.box, [" ".join(filter(None, row)) for row in rows])
    return _Written(region.kind, region.kind, region.box, unbroken(_printed(region, read)))


def _printed(region: Region, read: Sequence[str]) -> list[str]:
    """Return the lines with their bullets."""
    lines = [
        f"{region.bulleted[line]} {text}" if line in region.bulleted else text
        for line, text in zip(region.lines, read, strict=True)
        if text
    ]
    return list(map(shown_number, lines)) if region.kind == PAGE_NUMBER else lines
