"""A page as printed: what is drawn where, the centre of each character, and how it is to be read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import ImageFont

from training.vocabulary import CHARACTERS

Mark = tuple[float, float, str]
"""(x, y, character): a printed character and its centre in pixels."""
Piece = tuple[str, int]
"""A character or special token to be read, and the number of its mark; -1 when it is not printed."""
Box = tuple[float, float, float, float]


@cache
def _loaded(path: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


LIGATURES = {"ffi": "\ufb03", "ffl": "\ufb04", "ff": "\ufb00", "fi": "\ufb01", "fl": "\ufb02"}
"""Letters that books and PDFs print as one glyph, longest first. They are still read as letters."""


@cache
def _ligatures(path: Path) -> dict[str, str]:
    """Return the ligatures that the font has glyphs for."""
    font = _loaded(path, 32)
    missing = bytes(font.getmask("\U000f1234"))
    return {letters: glyph for letters, glyph in LIGATURES.items() if bytes(font.getmask(glyph)) != missing}


@cache
def printable(path: Path) -> frozenset[str]:
    """Return the characters of the vocabulary that the font has; it draws the same box for all others."""
    font = _loaded(path, 32)
    missing = bytes(font.getmask("\U000f1234"))
    return frozenset(c for c in CHARACTERS if c.isascii() or bytes(font.getmask(c)) != missing)


class Face:
    """A font at a size, in drawing pixels; caches the widths of its characters."""

    def __init__(self, path: Path, size: float, tracking: float = 0.0, *, ligatures: bool = False) -> None:
        """Load a font. ``tracking``: white after each character, in sizes. ``ligatures``: use the font's."""
        self.path = path
        self._ligatures = _ligatures(path) if ligatures and not tracking else {}
        self.tracking = tracking * size
        self.font = _loaded(path, round(size, 1))
        self.size = size
        self._has = printable(path)
        self._advance: dict[str, float] = {}

    def width(self, text: str) -> float:
        return sum(self.advance(glyph) for glyph, _ in self.glyphs(text))

    def glyphs(self, text: str) -> list[tuple[str, str]]:
        """Split text into glyphs: (what is drawn, the characters it is read as)."""
        drawn: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            letters = next((one for one in self._ligatures if text.startswith(one, at)), text[at])
            drawn.append((self._ligatures.get(letters, letters), letters))
            at += len(letters)
        return drawn

    def advance(self, character: str) -> float:
        if character not in self._advance:
            self._advance[character] = self.font.getlength(character) + self.tracking
        return self._advance[character]

    def fit(self, word: str) -> str:
        """Return the word without the characters that the font lacks."""
        return "".join(character for character in word if character in self._has)


@dataclass(frozen=True, slots=True)
class Run:
    """Text drawn in one go. (``x``, ``baseline``) is its left end."""

    text: str
    x: float
    baseline: float
    face: Face


@dataclass(slots=True)
class PrintedBlock:
    """A region of the page. ``markdown`` and ``plain``: its text for each of the two prompts."""

    kind: str
    box: Box
    markdown: list[Piece]
    plain: list[Piece]


@dataclass(slots=True)
class PrintedPage:
    width: float
    height: float
    runs: list[Run] = field(default_factory=list)
    rules: list[Box] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    blocks: list[PrintedBlock] = field(default_factory=list)
    characters: int = 0

    def print_word(self, word: str, x: float, baseline: float, face: Face) -> list[Piece]:
        pieces: list[Piece] = []
        middle = baseline - 0.3 * face.size
        glyphs = face.glyphs(word)
        if not face.tracking:
            self.runs.append(Run("".join(glyph for glyph, _ in glyphs), x, baseline, face))
        for glyph, characters in glyphs:
            advance = face.advance(glyph)
            if face.tracking:
                self.runs.append(Run(glyph, x, baseline, face))
            wide = (advance - face.tracking) / len(characters)
            for place, character in enumerate(characters):
                pieces.append((character, len(self.marks)))
                self.marks.append((x + (place + 0.5) * wide, middle, character))
            x += advance
        self.characters += len(word)
        return pieces

    def print_line(
        self, words: Sequence[str], x: float, baseline: float, face: Face, width: float | None = None
    ) -> list[Piece]:
        """Print words beside each other; spread them to ``width`` when it is given."""
        space = face.advance(" ")
        if width is not None and len(words) > 1:
            space = (width - sum(face.width(word) for word in words)) / (len(words) - 1)
        pieces: list[Piece] = []
        for index, word in enumerate(words):
            if index:
                pieces.append((" ", -1))
            pieces += self.print_word(word, x, baseline, face)
            x += face.width(word) + space
        return pieces
