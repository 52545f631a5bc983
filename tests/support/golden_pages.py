"""Golden pages: ``tests/pages/NAME.page`` says what is printed where, ``NAME.md`` how the layout reads it.

Lines are read without error, so that the expected Markdown depends on no model. After a change that is meant:

    PYTHONPATH=. python tests/support/golden_pages.py    # writes every NAME.md anew, and says which changed

A page is a list of commands, one a line; lengths are pixels of the page:

    size WIDTH HEIGHT
    face NAME PX                  the font of what follows, of FACES
    ink LEVEL                     its gray level
    line X BASELINE TEXT
    words BASELINE X:WORD ...     words that were spread, each at its own place
    flow X RIGHT TEXT             a paragraph, broken into lines; from the line below the last flow or line
    flush X RIGHT TEXT            the same, justified
    step PX                       from line to line of a flow; 1.25 times the font's size if it was not set
    down PX                       white above the next flow
    rule LEFT TOP RIGHT BOTTOM    a filled box: a ruled line, a dark area
    turn DEGREES                  the whole page, counter-clockwise, as a scanner would
"""

import sys
from dataclasses import dataclass, field
from functools import cache
from math import cos, radians, sin
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from app.output.markdown import of_blocks
from app.pocket.layout.composed import page_blocks
from app.pocket.layout.ink import find_ink
from app.pocket.layout.page import find_print
from benchmarks.layout.oracle import NO_UNIT, Glyph, Oracle

PAGES = Path(__file__).resolve().parents[1] / "pages"
FONTS = Path("/usr/share/fonts/truetype/dejavu")
FACES = {
    "sans": "DejaVuSans.ttf",
    "sans-bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif-bold": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
}
LINE_STEP = 1.25  # font sizes
MIDDLE = 0.3  # font sizes above the baseline, where a letter is looked for


@dataclass(slots=True)
class GoldenPage:
    """A page as its commands draw it, and every word that is on it."""

    image: Image.Image = field(default_factory=lambda: Image.new("L", (900, 1100), 255))
    glyphs: list[Glyph] = field(default_factory=list)
    face: str = "sans"
    size: float = 22.0
    ink: int = 0
    step: float | None = None
    below: float = 60.0

    def run(self, command: str) -> None:  # noqa: C901 - a case a command
        name, _, rest = command.partition(" ")
        match name:
            case "size":
                width, height = map(int, rest.split())
                self.image = Image.new("L", (width, height), 255)
            case "face":
                self.face, size = rest.split()
                self.size = float(size)
            case "ink":
                self.ink = int(rest)
            case "line":
                x, baseline, text = rest.split(" ", 2)
                self._line(text, float(x), float(baseline))
            case "words":
                baseline, *placed = rest.split(" ")
                for one in placed:
                    x, _, word = one.partition(":")
                    self._line(word, float(x), float(baseline))
            case "flow" | "flush":
                left, right, text = rest.split(" ", 2)
                self._flow(text, float(left), float(right), is_flush=name == "flush")
            case "step":
                self.step = float(rest)
            case "down":
                self.below += float(rest)
            case "rule":
                x1, y1, x2, y2 = map(float, rest.split())
                ImageDraw.Draw(self.image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=self.ink)
            case "turn":
                self._turn(float(rest))
            case _:
                raise ValueError(f"no such command: {command}")

    def _line(self, text: str, x: float, baseline: float) -> None:
        font = _font(self.face, self.size)
        draw = ImageDraw.Draw(self.image)
        space = font.getlength(" ")
        for word in text.split():
            draw.text((x, baseline), word, font=font, fill=self.ink, anchor="ls")
            self._remember(word, x, baseline, font)
            x += font.getlength(word) + space
        self.below = baseline + self._step()

    def _remember(self, word: str, x: float, baseline: float, font: ImageFont.FreeTypeFont) -> None:
        number = len(self.glyphs)
        for letter in word:
            wide = font.getlength(letter)
            self.glyphs.append(Glyph(x + wide / 2, baseline - MIDDLE * self.size, letter, number, NO_UNIT))
            x += wide

    def _step(self) -> float:
        return LINE_STEP * self.size if self.step is None else self.step

    def _flow(self, text: str, left: float, right: float, *, is_flush: bool) -> None:
        font = _font(self.face, self.size)
        space = font.getlength(" ")
        lines: list[list[str]] = [[]]
        for word in text.split():
            if lines[-1] and font.getlength(" ".join([*lines[-1], word])) > right - left:
                lines.append([])
            lines[-1].append(word)
        for number, words in enumerate(lines):
            baseline = self.below
            inked = sum(map(font.getlength, words))
            is_spread = is_flush and number < len(lines) - 1 and len(words) > 1
            gap = (right - left - inked) / (len(words) - 1) if is_spread else space
            x = left
            for word in words:
                self._line(word, x, baseline)
                x += font.getlength(word) + gap
            self.below = baseline + self._step()

    def _turn(self, degrees: float) -> None:
        width, height = self.image.size
        self.image = self.image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255)
        cosine, sine = cos(radians(degrees)), sin(radians(degrees))
        self.glyphs = [
            Glyph(
                width / 2 + (one.x - width / 2) * cosine + (one.y - height / 2) * sine,
                height / 2 + (one.y - height / 2) * cosine - (one.x - width / 2) * sine,
                one.text, one.word, one.unit,
            )
            for one in self.glyphs
        ]  # fmt: skip


@cache
def _font(face: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / FACES[face], size, layout_engine=ImageFont.Layout.BASIC)


def page_names() -> list[str]:
    return sorted(path.stem for path in PAGES.glob("*.page"))


def draw(name: str) -> GoldenPage:
    page = GoldenPage()
    for line in (PAGES / f"{name}.page").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            page.run(line.strip())
    return page


def markdown_of(page: GoldenPage) -> str:
    """Read the page's lines without error and put them together."""
    ink = find_ink(page.image)
    found = None if ink is None else find_print(ink)
    if ink is None or found is None:
        return ""
    oracle = Oracle(page.glyphs, ink)
    texts = [oracle.read(line) for line in found.lines]
    return of_blocks(page_blocks(found, texts, as_markdown=True)).markdown


def main() -> None:
    for name in sys.argv[1:] or page_names():
        path = PAGES / f"{name}.md"
        before = path.read_text(encoding="utf-8") if path.exists() else None
        after = markdown_of(draw(name)).rstrip("\n") + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print("changed:", path.name)  # noqa: T201


if __name__ == "__main__":
    main()
