"""Pages that a machine prints: an image, what is to be read of it, and which character stands where.

A page is drawn, made "native" (what a scanner or a PDF rasterizer would deliver), degraded, and only then
stretched over the tiles, as the service does with an upload.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from training.layout import Box, Family, Layout, LayoutStyle, Mark, Piece, PrintedPage
from training.text import TextSource

PATCH_PX = 64
CELL_WIDTH_PX, CELL_HEIGHT_PX = 8, 16
BLANK_SHARE = 0.02
CELLS_PER_PATCH = (PATCH_PX // CELL_WIDTH_PX) * (PATCH_PX // CELL_HEIGHT_PX)
PAD_GRAY = 127
BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True, slots=True)
class PageStyle:
    """Pages over ``grid`` (columns, rows) tiles of ``view_px``; one tile is a page without tiles, its view
    alone.

    ``em_px``: size of the body text after stretching. ``degraded``: chance of scan damage. ``structured``:
    chance of headings, lists, tables, columns and page numbers.
    """

    view_px: int
    grid: tuple[int, int]
    em_px: tuple[float, float]
    structured: float
    degraded: float
    max_characters: int

    @property
    def has_tiles(self) -> bool:
        return self.grid != (1, 1)


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """``native``: the page as it would be uploaded, gray. ``pixels``: (H, W) uint8, over the whole grid.

    ``view``: (V, V) uint8, the padded global view. ``marks``: centres in pixels of ``pixels``.
    """

    native: Image.Image
    pixels: npt.NDArray[np.uint8]
    view: npt.NDArray[np.uint8]
    marks: tuple[Mark, ...]
    markdown: tuple[Piece, ...]
    plain: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """What "Free OCR." is to answer."""
        return "".join(piece for piece, _ in self.plain)

    @property
    def grounded(self) -> str:
        """What the grounded prompt is to answer."""
        return "".join(piece for piece, _ in self.markdown)


class PageRenderer:
    """The same seed and style give the same page."""

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
        columns, rows = style.grid
        size = (columns * style.view_px, rows * style.view_px)
        # Pixels of the upload for each pixel of the grid. A single view is not stretched.
        native = rng.uniform(0.6, 1.0) if style.has_tiles else rng.choice([1.0, 1.0, rng.uniform(1.3, 3.0)])
        drawn = native * rng.choice([1.0, 1.5])
        # Sides are stretched apart a little, as most pages are by the nearest grid.
        stretch = rng.uniform(0.96, 1.04) if style.has_tiles else 1.0
        width, height = size[0] * drawn * stretch, size[1] * drawn / stretch
        em = rng.uniform(*style.em_px) * drawn
        blank = rng.random() < BLANK_SHARE
        layout = LayoutStyle(width, height, em, style.structured, 0 if blank else style.max_characters)
        page = (
            Layout(rng, self._text, self._families, layout).fill()
            if not blank
            else PrintedPage(width, height)
        )
        image = draw_page(rng, page)
        native_size = (round(size[0] * native * stretch), round(size[1] * native / stretch))
        if image.size != native_size:
            image = image.resize(native_size, BICUBIC)
        placed = [(x / width, y / height, character) for x, y, character in page.marks]
        if rng.random() < style.degraded:
            image, placed = degrade(rng, image, placed)
        marks = tuple((x * size[0], y * size[1], character) for x, y, character in placed)
        view = ImageOps.pad(image, (style.view_px, style.view_px), method=BICUBIC, color=PAD_GRAY)
        canvas = image.resize(size, BICUBIC) if style.has_tiles else view
        return RenderedPage(
            native=image,
            pixels=np.asarray(canvas),
            view=np.asarray(view),
            marks=marks,
            markdown=tuple(_markdown(page)),
            plain=tuple(_joined([block.plain for block in page.blocks])),
        )


def _markdown(page: PrintedPage) -> list[Piece]:
    """Grounding tags and Markdown of every block, as the model writes them."""
    regions: list[list[Piece]] = []
    for block in page.blocks:
        corners = ", ".join(str(value) for value in _per_mille(block.box, page))
        tag: list[Piece] = [("<|ref|>", -1), *_unprinted(block.kind), ("<|/ref|>", -1), ("<|det|>", -1)]
        tag += [*_unprinted(f"[[{corners}]]"), ("<|/det|>", -1), ("\n", -1)]
        regions.append([*tag, *block.markdown])
    return _joined(regions)


def _per_mille(box: Box, page: PrintedPage) -> tuple[int, int, int, int]:
    """Corners in thousandths of the page's sides, 0 to 999."""
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
    """Black or dark print on white or gray paper, (W, H) gray."""
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
    """What a mild scan does: skew of up to a degree, blur, noise, shading, JPEG. ``marks`` in shares of the
    sides."""
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


def patch_of(x: float, y: float, pixels: npt.NDArray[np.uint8]) -> int:
    """Row-major number of the patch token over the whole page that a point lies in; -1 outside."""
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    if not (0 <= x < width and 0 <= y < height):
        return -1
    return int(y // PATCH_PX) * (width // PATCH_PX) + int(x // PATCH_PX)


def cell_targets(page: RenderedPage, class_of: dict[str, int]) -> npt.NDArray[np.int64]:
    """(patches, 32) classes, row-major over the whole page: whose centre lies in each 8 x 16 px cell of each
    patch token; 0 is nobody's.
    """
    height, width = page.pixels.shape
    columns = PATCH_PX // CELL_WIDTH_PX
    target = np.zeros((height // PATCH_PX * (width // PATCH_PX), CELLS_PER_PATCH), dtype=np.int64)
    for x, y, character in page.marks:
        patch = patch_of(x, y, page.pixels)
        if patch >= 0:
            cell = int(y % PATCH_PX // CELL_HEIGHT_PX) * columns + int(x % PATCH_PX // CELL_WIDTH_PX)
            target[patch, cell] = class_of[character]
    return target
