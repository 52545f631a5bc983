"""Pages that a machine prints: an image, its text, and which character stands where."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from training.text import TextSource

PATCH_PX = 64
CELL_WIDTH_PX, CELL_HEIGHT_PX = 8, 16
BLANK_SHARE = 0.02
CELLS_PER_PATCH = (PATCH_PX // CELL_WIDTH_PX) * (PATCH_PX // CELL_HEIGHT_PX)


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """``pixels``: (V, V) uint8 gray. ``marks``: (x, y, character), centres in pixels of what is printed."""

    pixels: npt.NDArray[np.uint8]
    text: str
    marks: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True)
class PageStyle:
    view_px: int
    em_px: tuple[int, int]
    max_lines: int


class PageRenderer:
    """Short pages of printed text in a square view. The same seed gives the same page."""

    def __init__(self, text: TextSource, fonts: list[Path]) -> None:
        missing = [str(font) for font in fonts if not font.is_file()]
        if missing:
            raise FileNotFoundError(f"fonts not installed: {', '.join(missing)} (see training/README.md)")
        self._text = text
        self._fonts = fonts
        self._loaded: dict[tuple[Path, int], ImageFont.FreeTypeFont] = {}

    def page(self, seed: int, style: PageStyle) -> RenderedPage:
        rng = random.Random(seed)
        # Rendered larger and scaled down half of the time: the service never sees letters on whole pixels.
        scale = rng.choice([1.0, 1.0, rng.uniform(1.3, 3.0)])
        em = rng.uniform(*style.em_px)
        font = self._font(rng.choice(self._fonts), max(1, round(em * scale)))
        side = round(style.view_px * scale)
        blank = rng.random() < BLANK_SHARE
        lines = [] if blank else list(self._lines(rng, font, em * scale, side, style.max_lines))
        image, marks = _draw(rng, lines, font, side)
        if scale != 1.0:
            image = image.resize((style.view_px, style.view_px), Image.Resampling.BICUBIC)
        factor = style.view_px / side
        placed = tuple((x * factor, y * factor, character) for x, y, character in marks)
        return RenderedPage(_degrade(rng, image), "\n".join(line for line, _, _ in lines), placed)

    def _font(self, path: Path, size: int) -> ImageFont.FreeTypeFont:
        key = (path, size)
        if key not in self._loaded:
            self._loaded[key] = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        return self._loaded[key]

    def _lines(
        self, rng: random.Random, font: ImageFont.FreeTypeFont, em: float, side: int, max_lines: int
    ) -> Iterator[tuple[str, float, float]]:
        """(line, x, baseline y) from top to bottom, each inside the page."""
        left = rng.uniform(0.02, 0.15) * side
        width = side * rng.uniform(0.85, 0.99) - left
        advance = em * rng.uniform(1.0, 1.5)
        baseline = rng.uniform(0.02, 0.12) * side + em
        fitting = int((side * 0.985 - em * 0.3 - baseline) / advance) + 1
        most = max(1, min(max_lines, fitting))
        num_lines = max(rng.randint(1, most), rng.randint(1, most))
        if rng.random() < 0.3:
            baseline += rng.random() * max(0.0, side * 0.95 - em * 0.3 - (num_lines - 1) * advance - baseline)
        centred = rng.random() < 0.15
        words = self._text.paragraph(rng, num_lines * 8)
        for index in range(num_lines):
            line = _fill(words, font, width * (1.0 if index < num_lines - 1 else rng.uniform(0.3, 1.0)))
            if not line:
                return
            x = left + (width - font.getlength(line)) / 2 if centred else left
            yield line, x, baseline + index * advance


def _fill(words: list[str], font: ImageFont.FreeTypeFont, width: float) -> str:
    """Take words from the front while they fit; a word wider than the page is cut to what fits."""
    line = ""
    while words:
        longer = f"{line} {words[0]}" if line else words[0]
        if font.getlength(longer) > width:
            if not line:
                word = words.pop(0)
                while word and font.getlength(word) > width:
                    word = word[:-1]
                return word
            return line
        line = longer
        words.pop(0)
    return line


def _draw(
    rng: random.Random, lines: list[tuple[str, float, float]], font: ImageFont.FreeTypeFont, side: int
) -> tuple[Image.Image, list[tuple[float, float, str]]]:
    paper = rng.randint(225, 255) if rng.random() < 0.4 else 255
    image = Image.new("L", (side, side), paper)
    draw = ImageDraw.Draw(image)
    ink = rng.randint(0, 70) if rng.random() < 0.4 else 0
    marks: list[tuple[float, float, str]] = []
    for line, x, baseline in lines:
        draw.text((x, baseline), line, font=font, fill=ink, anchor="ls")
        ends = [font.getlength(line[: end + 1]) for end in range(len(line))]
        middle = baseline - font.size * 0.3
        for start, end, character in zip([0.0, *ends], ends, line, strict=False):
            if character != " ":
                marks.append((x + (start + end) / 2, middle, character))
    return image, marks


def _degrade(rng: random.Random, image: Image.Image) -> npt.NDArray[np.uint8]:
    """A third of the pages get what a mild scan does: blur, and noise of a few gray levels."""
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
    pixels = np.asarray(image)
    if rng.random() < 0.2:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 8), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return pixels


def cell_targets(page: RenderedPage, view_px: int, class_of: dict[str, int]) -> npt.NDArray[np.int64]:
    """(patches, 32) classes: whose centre lies in each 8 x 16 px cell of each patch token; 0 is nobody's."""
    side = view_px // PATCH_PX
    columns = PATCH_PX // CELL_WIDTH_PX
    target = np.zeros((side * side, CELLS_PER_PATCH), dtype=np.int64)
    for x, y, character in page.marks:
        if 0 <= x < view_px and 0 <= y < view_px:
            patch = int(y // PATCH_PX) * side + int(x // PATCH_PX)
            cell = int(y % PATCH_PX // CELL_HEIGHT_PX) * columns + int(x % PATCH_PX // CELL_WIDTH_PX)
            target[patch, cell] = class_of[character]
    return target
