"""Layout of training pages: headings, paragraphs, lists, tables, in one column or two.

A page is laid out in drawing pixels. It knows the centre of every character it prints. The text to be read is
the sequence of its blocks.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.printed import Face, Piece, PrintedBlock, PrintedPage
from training.text import TextSource

BULLETS = "•–-*"  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Family:
    """Fonts of one design; ``bold`` may be the same file as ``regular``."""

    regular: Path
    bold: Path


@dataclass(frozen=True, slots=True)
class LayoutStyle:
    """Sizes and chances of a page's layout.

    ``em``: size of the body text, in drawing pixels. ``structured``: chance of headings, lists, tables and
    columns. ``tracking``: white between letters, in ems. ``ligatures``: print fi, fl and the like as one
    glyph. ``levels``: sizes of first-level and second-level headings, in sizes of the body text; ``None``
    draws a size for each heading.
    """

    width: float
    height: float
    em: float
    structured: float
    max_characters: int
    tracking: float = 0.0
    ligatures: bool = False
    levels: tuple[float, float] | None = None


class Layout:
    """Fills one page from top to bottom, column by column."""

    def __init__(
        self, rng: random.Random, text: TextSource, families: Sequence[Family], style: LayoutStyle
    ) -> None:
        self._rng, self._text, self._style = rng, text, style
        self.page = PrintedPage(style.width, style.height)
        family = rng.choice(families)
        body = family.bold if rng.random() < 0.06 else family.regular
        self._body = Face(body, style.em, style.tracking, ligatures=style.ligatures)
        heading = family if rng.random() < 0.7 else rng.choice(families)
        self._heading_font = heading.bold if rng.random() < 0.8 else heading.regular
        self._strong = Face(family.bold, style.em)
        self._leading = style.em * rng.choice([rng.uniform(1.08, 1.35), rng.uniform(1.15, 1.7)])
        roomy = min(style.width, style.height) > 14 * style.em
        self._is_structured = roomy and rng.random() < style.structured
        self._justified = rng.random() < 0.4
        self._indent = style.em * rng.uniform(0.8, 2) if rng.random() < 0.3 else 0.0
        self._gap = style.em * rng.uniform(0.35, 1.3) if not self._indent else style.em * rng.uniform(0, 0.5)
        self._column: tuple[float, float] = (0.0, 0.0)  # left, right
        self._y = 0.0
        self._bottom = 0.0

    def fill(self) -> PrintedPage:
        rng, style = self._rng, self._style
        small = min(style.width, style.height) < 30 * style.em
        low, high = (0.015, 0.06) if small else (0.05, 0.13)
        left = rng.uniform(low, high) * style.width
        right = style.width * (1 - rng.uniform(low, high))
        top = rng.uniform(low, high) * style.height
        self._bottom = style.height * (1 - rng.uniform(low, high)) - 0.3 * style.em
        self._column, self._y = (left, right), top
        number = self._is_structured and not small and rng.random() < 0.55
        if self._is_structured and rng.random() < 0.6:
            self._heading(1)
        elif rng.random() < 0.2:
            self._y += rng.random() * 0.4 * (self._bottom - top)
        end = self._bottom if rng.random() < 0.7 else self._y + rng.random() * (self._bottom - self._y)
        bottom, self._bottom = self._bottom, max(end, self._y + 1.5 * style.em)
        two = self._is_structured and right - left > 40 * style.em * 0.5 and rng.random() < 0.35
        gutter = style.em * rng.uniform(1.2, 3)
        middle = (left + right) / 2
        columns = [(left, middle - gutter / 2), (middle + gutter / 2, right)] if two else [(left, right)]
        top = self._y
        for column in columns:
            self._column, self._y = column, top
            while self._has_room(1) and self.page.characters < style.max_characters:
                self._block()
        if number:
            self._page_number(left, right, bottom)
        return self.page

    def _has_room(self, lines: int) -> bool:
        return self._y + self._style.em + (lines - 1) * self._leading <= self._bottom

    def _block(self) -> None:
        kind = self._rng.random() if self._is_structured else 1.0
        if kind < 0.14 and self._has_room(4):
            self._heading(2)
        elif kind < 0.30 and self._has_room(2):
            self._list()
        elif kind < 0.39 and self._has_room(4):
            self._table()
        else:
            self._paragraph()
        self._y += self._gap

    def _heading(self, level: int) -> None:
        rng, style = self._rng, self._style
        if style.levels is not None:
            scale = style.levels[level - 1]
        else:
            scale = rng.uniform(1.35, 2.1) if level == 1 else rng.uniform(1.05, 1.35)
        face = Face(self._heading_font, style.em * scale, style.tracking, ligatures=style.ligatures)
        left, right = self._column
        words = [fitted for word in self._text.heading(rng) if (fitted := face.fit(word))]
        lines = list(_wrap(words, face, [right - left] * 3))[: 2 if level == 1 else 1]
        if not lines:
            return
        centred = level == 1 and rng.random() < 0.5
        pieces: list[Piece] = []
        first = self._y
        for line in lines:
            x = left + (right - left - _natural(line, face)) / 2 if centred else left
            baseline = self._y + face.size
            if baseline + 0.3 * face.size > self._bottom:
                break
            pieces += [(" ", -1)] if pieces else []
            pieces += self.page.print_line(line, x, baseline, face)
            self._y += face.size * 1.25
        if pieces:
            kind, mark = ("title", "# ") if level == 1 else ("sub_title", "## ")
            self._add(kind, first, [*_unprinted(mark), *pieces], pieces)
            self._y += style.em * rng.uniform(0.2, 0.9)

    def _paragraph(self) -> None:
        rng = self._rng
        left, right = self._column
        most = max(1, int((self._bottom - self._y - self._style.em) / self._leading) + 1)
        num_lines = rng.randint(1, min(most, rng.choice([3, 6, 9, 14])))
        self._flow("text", left, right, num_lines, [], [], indent=self._indent)

    def _flow(
        self, kind: str, left: float, right: float, num_lines: int, before: list[Piece],
        before_plain: list[Piece], *, indent: float = 0.0,
    ) -> None:  # fmt: skip
        """Print a paragraph of up to ``num_lines`` lines at the cursor and add it as a block."""
        rng, face = self._rng, self._body
        width = right - left
        budget = int(num_lines * width / (face.size * 2.4)) + 4
        words = [fitted for w in self._text.paragraph(rng, budget) if (fitted := face.fit(w))]
        widths = [width - indent, *[width] * num_lines]
        widths[num_lines - 1] *= rng.uniform(0.25, 1.0)
        markdown, plain = list(before), list(before_plain)
        first = self._y
        lines = list(_wrap(words, face, widths[:num_lines]))
        for index, line in enumerate(lines):
            x = left + (indent if index == 0 else 0.0)
            room = right - x
            spread = self._justified and index < len(lines) - 1 and _natural(line, face) > 0.7 * room
            baseline = self._y + face.size
            pieces = self.page.print_line(line, x, baseline, face, room if spread else None)
            markdown += [*([(" ", -1)] if index else []), *pieces]
            plain += [*([("\n", -1)] if index else []), *pieces]
            self._y += self._leading
        if lines:
            self._add(kind, first, markdown, plain)

    def _list(self) -> None:
        rng, face = self._rng, self._body
        numbered = rng.random() < 0.45
        bullet = rng.choice([b for b in BULLETS if face.fit(b)])
        after = rng.choice([".", ".", ")"])
        left, right = self._column
        mark_x = left + face.size * rng.uniform(0, 1.5)
        text_x = mark_x + face.size * rng.uniform(1.0 if not numbered else 1.6, 2.4)
        first_number = 1 if rng.random() < 0.85 else rng.randint(2, 12)
        begin, markdown, plain = self._y, list[Piece](), list[Piece]()
        blocks_before = len(self.page.blocks)
        for number in range(first_number, first_number + rng.randint(2, 6)):
            if not self._has_room(1):
                break
            printed = f"{number}{after}" if numbered else bullet
            pieces = self.page.print_word(printed, mark_x, self._y + face.size, face)
            sign = pieces if numbered else [("-", pieces[0][1])]
            most = max(1, min(rng.choice([1, 1, 2, 3]), int((self._bottom - self._y) / self._leading)))
            self._flow("text", text_x, right, most, [*sign, (" ", -1)], [*pieces, (" ", -1)])
            markdown += [("\n", -1)] if markdown else []
            plain += [("\n", -1)] if plain else []
            item = self.page.blocks.pop()
            markdown += item.markdown
            plain += item.plain
            self._y += rng.choice([0.0, self._gap / 2])
        if len(self.page.blocks) == blocks_before and markdown:
            self._add("text", begin, markdown, plain)

    def _table(self) -> None:
        rng, style = self._rng, self._style
        left, right = self._column
        columns = rng.randint(2, max(2, min(5, int((right - left) / (6 * style.em)))))
        pad = style.em * rng.uniform(0.25, 0.7)
        height = style.em * rng.uniform(1.25, 1.9)
        rows = min(rng.randint(2, 8), int((self._bottom - self._y) / height))
        if rows < 2:
            self._paragraph()
            return
        header = self._strong if rng.random() < 0.5 else self._body
        room = (right - left) / columns - 2 * pad
        cells = [
            [self._cell_words(header if row == 0 else self._body, room) for _ in range(columns)]
            for row in range(rows)
        ]
        widths = [
            max(_natural(cells[row][column], header if row == 0 else self._body) for row in range(rows))
            + 2 * pad
            for column in range(columns)
        ]
        left_over = max(0.0, right - left - sum(widths)) * rng.choice([0.0, 0.3, 1.0])
        widths = [width + left_over / columns for width in widths]
        centred = rng.random() < 0.3
        top, begin = self._y, self._y
        markdown, plain = _unprinted("<table>"), list[Piece]()
        for row in range(rows):
            x = left
            baseline = self._y + height / 2 + 0.35 * style.em
            markdown += _unprinted("<tr>")
            for column, words in enumerate(cells[row]):
                face = header if row == 0 else self._body
                shift = (widths[column] - _natural(words, face)) / 2 if centred else pad
                pieces = self.page.print_line(words, x + shift, baseline, face)
                markdown += [("<td>", -1), *pieces, ("</td>", -1)]
                plain += [*([(" ", -1)] if column and pieces else []), *pieces]
                x += widths[column]
            markdown += _unprinted("</tr>")
            plain += [("\n", -1)] if row < rows - 1 else []
            self._y += height
        markdown += _unprinted("</table>")
        self._rule_table(left, top, widths, height, rows)
        self._add("table", begin, markdown, plain)
        self._y += 0.4 * style.em

    def _cell_words(self, face: Face, room: float) -> list[str]:
        words = [fitted for word in self._text.cell(self._rng) if (fitted := face.fit(word))]
        while words and _natural(words, face) > room:
            words.pop()
        return words if words or self._rng.random() < 0.3 else [str(self._rng.randint(0, 99))]

    def _rule_table(self, left: float, top: float, widths: Sequence[float], height: float, rows: int) -> None:
        kind = self._rng.random()
        right, bottom = left + sum(widths), top + rows * height
        horizontal = range(rows + 1) if kind < 0.55 else (0, 1, rows) if kind < 0.8 else ()
        self.page.rules += [(left, top + row * height, right, top + row * height) for row in horizontal]
        if kind < 0.45:
            edges = [left + sum(widths[:column]) for column in range(len(widths) + 1)]
            self.page.rules += [(x, top, x, bottom) for x in edges]

    def _page_number(self, left: float, right: float, bottom: float) -> None:
        rng = self._rng
        number = rng.randint(1, 400)
        words = rng.choice([f"{number}", f"{number}", f"- {number} -", f"Page {number}", f"{number} of 400"])
        face = Face(self._body.path, self._style.em * rng.uniform(0.8, 1.0))
        printed = words.split()
        width = _natural(printed, face)
        x = rng.choice([left, (left + right - width) / 2, (left + right - width) / 2, right - width])
        baseline = bottom + (self._style.height - bottom) * rng.uniform(0.3, 0.7)
        if baseline + 0.3 * face.size > self._style.height:
            return
        pieces = self.page.print_line(printed, x, baseline, face)
        self._column = (x, x + width)
        self._y = baseline
        self._add("page_number", baseline - face.size, pieces, pieces)

    def _add(self, kind: str, top: float, markdown: list[Piece], plain: list[Piece]) -> None:
        left, right = self._column
        box = (left, top, right, min(self._y, self._style.height))
        self.page.blocks.append(PrintedBlock(kind, box, markdown, plain))


def _unprinted(text: str) -> list[Piece]:
    return [(character, -1) for character in text]


def _natural(words: Sequence[str], face: Face) -> float:
    return sum(face.width(word) for word in words) + face.advance(" ") * max(0, len(words) - 1)


def _wrap(words: list[str], face: Face, widths: Sequence[float]) -> Iterator[list[str]]:
    """Break words into lines of these widths; cut a word that is wider than its line to what fits."""
    space = face.advance(" ")
    position = 0
    for width in widths:
        line: list[str] = []
        used = 0.0
        while position < len(words):
            word = words[position]
            needed = face.width(word) + (space if line else 0.0)
            if used + needed > width:
                if line:
                    break
                while word and face.width(word) > width:
                    word = word[:-1]
                needed = face.width(word)
            if word:
                line.append(word)
            used += needed
            position += 1
        if not line:
            return
        yield line
