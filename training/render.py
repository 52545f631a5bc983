"""Rendered pages: an image, its text, and the place of every character.

A page is drawn, resized to "native" (what a scanner or a PDF rasterizer would deliver), degraded, and only
then padded to its view, as the service does with an upload.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from training.layout import Family, Layout, LayoutStyle
from training.printed import Box, Mark, Piece, PrintedPage
from training.text import TextSource

PATCH_PX = 64
CELL_WIDTH_PX, CELL_HEIGHT_PX = 8, 16
BLANK_SHARE = 0.02
CELLS_PER_PATCH = (PATCH_PX // CELL_WIDTH_PX) * (PATCH_PX // CELL_HEIGHT_PX)
PAD_GRAY = 127
BICUBIC = Image.Resampling.BICUBIC


PAGE_SHAPES = (297 / 210, 297 / 210, 11 / 8.5, 11 / 8.5, 1.5, 1.2, 1.0, 0.75, 210 / 297)
"""Height over width: mostly A4 and letter, then books, squares, screens, and A4 in landscape."""


@dataclass(frozen=True, slots=True)
class PageStyle:
    """Sizes and chances of pages in a padded view of ``view_px``.

    ``em_px``: range of the body text's size in the view. ``scale``: range of the upload's pixels for each
    pixel of the view. ``degraded``: chance of scan damage. ``structured``: chance of headings, lists, tables,
    columns and page numbers.
    """

    view_px: int
    em_px: tuple[float, float]
    scale: tuple[float, float]
    structured: float
    degraded: float
    max_characters: int
    square: bool = False
    """Draw a square page, without gray beside it, as in the view of a region."""


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """A page and its text.

    ``native``: the gray page as it would be uploaded. ``pixels``: (V, V) uint8, its padded view. ``marks``:
    centres in pixels of ``pixels``.
    """

    native: Image.Image
    pixels: npt.NDArray[np.uint8]
    marks: tuple[Mark, ...]
    markdown: tuple[Piece, ...]
    plain: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The right answer to "Free OCR."."""
        return "".join(piece for piece, _ in self.plain)

    @property
    def grounded(self) -> str:
        """The right answer to the grounded prompt."""
        return "".join(piece for piece, _ in self.markdown)


class PageRenderer:
    """Renders pages. The same seed and style give the same page."""

    def __init__(self, text: TextSource, families: Sequence[Family]) -> None:
        missing = [
            str(font) for family in families for font in (family.regular, family.bold) if not font.is_file()
        ]
        if missing:
            raise FileNotFoundError(f"fonts not installed: {', '.join(missing)} (see training/README.md)")
        self._text = text
        self._families = families

    def page(self, seed: int, style: PageStyle) -> RenderedPage:
        rng = random.Random(seed)
        shape = 1.0 if style.square else rng.choice(PAGE_SHAPES) * rng.uniform(0.97, 1.03)
        native = rng.uniform(*style.scale)
        longer = style.view_px * native
        size = (longer / shape, longer) if shape > 1 else (longer, longer * shape)
        drawn = rng.choice([1.0, 1.5])
        page = PrintedPage(size[0] * drawn, size[1] * drawn)
        if rng.random() >= BLANK_SHARE:
            em = rng.uniform(*style.em_px) * native * drawn
            layout = LayoutStyle(page.width, page.height, em, style.structured, style.max_characters)
            page = Layout(rng, self._text, self._families, layout).fill()
        image = draw_page(rng, page).resize((round(size[0]), round(size[1])), BICUBIC)
        placed = [(x / page.width, y / page.height, character) for x, y, character in page.marks]
        if rng.random() < style.degraded:
            image, placed = degrade(rng, image, placed)
        return RenderedPage(
            native=image,
            pixels=np.asarray(padded(image, style.view_px)),
            marks=_in_view(placed, image.size, style.view_px),
            markdown=tuple(_markdown(page)),
            plain=tuple(_joined([block.plain for block in page.blocks])),
        )


def padded(image: Image.Image, view_px: int) -> Image.Image:
    """Pad an image to its view as the service does."""
    return ImageOps.pad(image, (view_px, view_px), method=BICUBIC, color=PAD_GRAY)


def _in_view(placed: Sequence[Mark], size: tuple[int, int], view_px: int) -> tuple[Mark, ...]:
    """Convert marks from shares of the image's sides to pixels of its padded view."""
    scale = view_px / max(size)
    width, height = size[0] * scale, size[1] * scale
    left, top = (view_px - width) / 2, (view_px - height) / 2
    return tuple((left + x * width, top + y * height, character) for x, y, character in placed)


def _markdown(page: PrintedPage) -> list[Piece]:
    """Write the grounding tags and the Markdown of every block, as the model should."""
    regions: list[list[Piece]] = []
    for block in page.blocks:
        corners = ", ".join(str(value) for value in _per_mille(block.box, page))
        tag: list[Piece] = [("<|ref|>", -1), *_unprinted(block.kind), ("<|/ref|>", -1), ("<|det|>", -1)]
        tag += [*_unprinted(f"[[{corners}]]"), ("<|/det|>", -1), ("\n", -1)]
        regions.append([*tag, *block.markdown])
    return _joined(regions)


def _per_mille(box: Box, page: PrintedPage) -> tuple[int, int, int, int]:
    """Convert a box to thousandths of the page's sides, 0 to 999."""
    left, top, right, bottom = box
    xs = [min(999, max(0, int(x / page.width * 999))) for x in (left, right)]
    ys = [min(999, max(0, int(y / page.height * 999))) for y in (top, bottom)]
    return xs[0], ys[0], xs[1], ys[1]


def _joined(regions: Sequence[Sequence[Piece]]) -> list[Piece]:
    joined: list[Piece] = []
    for region in regions:
        joined += [("\n", -1), ("\n", -1)] if joined else []
        joined += region
    return joined


def _unprinted(text: str) -> list[Piece]:
    return [(character, -1) for character in text]


def draw_page(rng: random.Random, page: PrintedPage) -> Image.Image:
    """Draw black or dark print on white or gray paper: a gray image of the page's size."""
    paper = rng.randint(215, 255) if rng.random() < 0.3 else 255
    ink = rng.randint(0, 80) if rng.random() < 0.4 else 0
    image = Image.new("L", (round(page.width), round(page.height)), paper)
    draw = ImageDraw.Draw(image)
    for run in page.runs:
        draw.text((run.x, run.baseline), run.text, font=run.face.font, fill=ink, anchor="ls")
    thickness = max(1, round(page.width / 1000 * rng.uniform(0.5, 1.6)))
    for left, top, right, bottom in page.rules:
        draw.line((left, top, right, bottom), fill=ink, width=thickness)
    return image


def degrade(rng: random.Random, image: Image.Image, marks: list[Mark]) -> tuple[Image.Image, list[Mark]]:
    """Apply mild scan damage: skew of up to a degree, blur, noise, shading, JPEG.

    ``marks`` are in shares of the sides and move with the page.
    """
    if rng.random() < 0.4:
        image, marks = _skewed(image, marks, rng.uniform(-1.0, 1.0))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    if rng.random() < 0.5:
        pixels = np.asarray(image, dtype=np.float32)
        generator = np.random.default_rng(rng.getrandbits(32))
        noise = generator.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 10)
        if rng.random() < 0.4:  # darker towards one edge
            shade = np.linspace(0, rng.uniform(-25, 0), pixels.shape[1], dtype=np.float32)
            noise += shade if rng.random() < 0.5 else shade[::-1]
        image = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        coded = io.BytesIO()
        image.save(coded, "JPEG", quality=rng.randint(30, 85))
        image = Image.open(coded).convert("L")
    return image, marks


def _skewed(image: Image.Image, marks: list[Mark], degrees: float) -> tuple[Image.Image, list[Mark]]:
    width, height = image.size
    paper = int(np.median(np.asarray(image)[:: max(1, height // 64), :: max(1, width // 64)]))
    turned = image.rotate(degrees, BICUBIC, fillcolor=paper)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved: list[Mark] = []
    for x, y, character in marks:
        dx, dy = (x - 0.5) * width, (y - 0.5) * height
        # PIL turns counter-clockwise, with y pointing down.
        moved.append(
            (0.5 + (dx * cosine + dy * sine) / width, 0.5 + (dy * cosine - dx * sine) / height, character)
        )
    return turned, moved


def patch_of(x: float, y: float, view_px: int) -> int:
    """Return the row-major number of the patch token that a point of the view lies in; -1 outside."""
    if not (0 <= x < view_px and 0 <= y < view_px):
        return -1
    return int(y // PATCH_PX) * (view_px // PATCH_PX) + int(x // PATCH_PX)


def cell_targets(page: RenderedPage, class_of: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return the class of the character centred in each 8 x 16 px cell; 0 for none. (patches, 32) int64."""
    view_px = page.pixels.shape[0]
    columns = PATCH_PX // CELL_WIDTH_PX
    target = np.zeros(((view_px // PATCH_PX) ** 2, CELLS_PER_PATCH), dtype=np.int64)
    for x, y, character in page.marks:
        patch = patch_of(x, y, view_px)
        if patch >= 0:
            cell = int(y % PATCH_PX // CELL_HEIGHT_PX) * columns + int(x % PATCH_PX // CELL_WIDTH_PX)
            target[patch, cell] = class_of[character]
    return target
