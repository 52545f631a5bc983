"""A reader without error: returns what is printed in a line's box, from the places of the page's marks."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from app.pocket.layout.ink import Ink
from app.pocket.layout.lines import Line
from benchmarks.accuracy.pages import DPI, DrawnPage
from training.layout import BULLETS
from training.printed import Piece

HTML = "{http://www.w3.org/1999/xhtml}"
POINTS = 72
NO_UNIT = -1


@dataclass(frozen=True, slots=True)
class Glyph:
    """A character, or a word, with its centre in pixels of the page's image.

    ``word``: its number. ``unit``: number of the printed line or cell that should be found in one piece;
    ``NO_UNIT`` for signs that need not be in any, such as bullets.
    """

    x: float
    y: float
    text: str
    word: int
    unit: int


class Oracle:
    """Reads lines of one page's ink."""

    def __init__(self, glyphs: Sequence[Glyph], ink: Ink) -> None:
        self._glyphs = glyphs
        self._at = np.array([ink.placed(glyph.x, glyph.y) for glyph in glyphs]).reshape(-1, 2)  # (G, 2)

    def inside(self, line: Line) -> list[Glyph]:
        """Return the glyphs in a line's box, from left to right."""
        x, y = self._at.T
        held = (line.left <= x) & (x < line.right) & (line.top <= y) & (y < line.bottom)
        found = np.flatnonzero(held)
        return [self._glyphs[index] for index in found[np.argsort(x[found], kind="stable")]]

    def read(self, line: Line) -> str:
        pieces: list[str] = []
        word = None
        for glyph in self.inside(line):
            pieces += [" "] if word not in (None, glyph.word) else []
            pieces.append(glyph.text)
            word = glyph.word
        return "".join(pieces)

    def faults(self, lines: Sequence[Line]) -> "Faults":
        held = [self.inside(line) for line in lines]
        units = [{glyph.unit for glyph in glyphs} - {NO_UNIT} for glyphs in held]
        times = [unit for found in units for unit in found]
        wanted = {glyph.unit for glyph in self._glyphs} - {NO_UNIT}
        read = {id(glyph) for glyphs in held for glyph in glyphs}
        return Faults(
            units=len(wanted),
            lost=len(wanted - set(times)),
            split=len(times) - len(set(times)),
            merged=sum(len(found) > 1 for found in units),
            characters_lost=sum(
                len(glyph.text) for glyph in self._glyphs if glyph.unit != NO_UNIT and id(glyph) not in read
            ),
        )


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults in finding printed lines and cells.

    ``lost``: not found at all. ``split``: number of splits. ``merged``: found lines that hold several.
    """

    units: int = 0
    lost: int = 0
    split: int = 0
    merged: int = 0
    characters_lost: int = 0


def glyphs_of(page: DrawnPage) -> list[Glyph]:
    """Return the characters of a rendered page."""
    glyphs: list[Glyph] = []
    word = unit = 0
    for block in page.printed.blocks:
        bullets = _bullets(block.markdown)
        breaks = _unit_breaks(block.markdown if block.kind == "table" else block.plain)
        word, unit = word + 1, unit + 1
        for _, mark in block.plain:
            if mark < 0:
                word += 1
                continue
            unit += mark in breaks
            x, y, character = page.marks[mark]
            glyphs.append(Glyph(x, y, character, word, NO_UNIT if mark in bullets else unit))
    return glyphs


def _bullets(markdown: Sequence[Piece]) -> set[int]:
    """Return the marks of bullets before items. Numbers are not among them: they are part of their line."""
    starts = [0, *(at + 1 for at, (piece, _) in enumerate(markdown) if piece == "\n")]
    first = [markdown[at : at + 2] for at in starts if at + 1 < len(markdown)]
    return {
        pair[0][1] for pair in first if pair[0][0] in BULLETS and pair[0][1] >= 0 and pair[1] == (" ", -1)
    }


def _unit_breaks(pieces: Sequence[Piece]) -> set[int]:
    """Return the marks that begin a printed line or a cell."""
    breaks: set[int] = set()
    begins = False
    for piece, mark in pieces:
        if mark >= 0:
            breaks |= {mark} if begins else set()
            begins = False
        else:
            begins = begins or piece in ("\n", "<td>")
    return breaks


def words_of(pdf: Path) -> list[Glyph]:
    """Return the words of a PDF's first page, placed on its image at ``DPI``, as poppler finds them."""
    # images show the crop box, so words are placed in it
    command = ["pdftotext", "-cropbox", "-bbox", "-l", "1", str(pdf), "-"]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    clean = "".join(character for character in text if character >= " " or character in "\n\t")
    words = ElementTree.fromstring(clean).iter(f"{HTML}word")  # noqa: S314 - poppler's own answer
    return [
        Glyph(
            (float(word.attrib["xMin"]) + float(word.attrib["xMax"])) / 2 * DPI / POINTS,
            (float(word.attrib["yMin"]) + float(word.attrib["yMax"])) / 2 * DPI / POINTS,
            (word.text or "").strip(), number, NO_UNIT,
        )
        for number, word in enumerate(words)
    ]  # fmt: skip
