"""Cut pictures out of a page: its figures at the page's resolution, and the whole page, smaller."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from app.document import Block, Box, Figure, Page, PageWarning, Picture
from app.output.figures import is_picture, with_figures
from app.output.markdown import MAX_COORDINATE, Rendered

PNG = "image/png"
JPEG = "image/jpeg"
PNG_LEVEL = 4  # up to 9: higher levels take far longer and save little
MIN_SIDE_PX = 8
"""Least side of a figure. Narrower ones show nothing: a rule, a box that the model made up."""
PAGE_SIDE_PX = 2400
"""Longest side of the picture of a page. Scaling takes seven times as long as encoding; most need none."""
PAGE_QUALITY = 70
MAX_SCALINGS = 4
SCALING_MARGIN = 0.9


@dataclass(frozen=True, slots=True)
class Pictured:
    """A page's text with references to its figures, and the pictures."""

    rendered: Rendered
    pictures: tuple[Picture, ...] = ()
    warnings: tuple[PageWarning, ...] = ()


def page_image_name(index: int) -> str:
    """Return the name of the picture of a page. ``index`` is 0-based, names count from 1."""
    return f"p{index + 1}.jpg"


def take_pictures(
    page: Page, rendered: Rendered, *, max_figures: int, max_bytes: int, keep_page: bool
) -> Pictured:
    """Cut a page's figures out and refer to them in its Markdown.

    An A4 page at 150 dpi takes 4 ms, a large one that is scaled 50 ms: call it in a thread.
    """
    boxes = _boxes(rendered.blocks, page.image.size)
    pictures: list[Picture] = []
    figures: dict[int, Figure] = {}
    num_scaled = 0
    for number, box in list(boxes.items())[:max_figures]:
        name = f"p{page.index + 1}-{len(pictures) + 1}.png"
        cut = page.image.crop(box)
        picture = _png(name, cut, max_bytes, rendered.blocks[number].bbox)
        if picture is not None:
            num_scaled += picture.width < cut.width
            pictures.append(picture)
            figures[number] = Figure(name, picture.width, picture.height)
    if keep_page:
        pictures.append(_page_picture(page))
    num_lost = len(boxes) - len(figures) if max_figures else 0
    return Pictured(
        with_figures(rendered, figures),
        tuple(pictures),
        tuple(_warnings(num_scaled, num_lost)),
    )


def _warnings(num_scaled: int, num_lost: int) -> list[PageWarning]:
    warnings: list[PageWarning] = []
    if num_scaled:
        detail = f"{num_scaled} figures are kept smaller than they are on the page."
        warnings.append(PageWarning("figure_scaled", detail))
    if num_lost:
        detail = f"{num_lost} figures of the page are not kept: they are over a limit."
        warnings.append(PageWarning("figures_left_out", detail))
    return warnings


def _boxes(blocks: Sequence[Block], size: tuple[int, int]) -> dict[int, Box]:
    """Return boxes of pictures in pixels, by their block's number.

    Skip repeated boxes and those that are too small.
    """
    boxes: dict[int, Box] = {}
    for number, block in enumerate(blocks):
        if is_picture(block):
            box = in_pixels(block.bbox, size)
            is_visible = box[2] - box[0] >= MIN_SIDE_PX and box[3] - box[1] >= MIN_SIDE_PX
            if is_visible and box not in boxes.values():
                boxes[number] = box
    return boxes


def in_pixels(bbox: Box, size: tuple[int, int]) -> Box:
    """Convert a box in thousandths of a page to pixels, all of them on the page."""
    width, height = size
    x1, y1, x2, y2 = (min(max(value, 0), MAX_COORDINATE) for value in bbox)
    most = MAX_COORDINATE
    # in integers: a rounding error would be a pixel beyond the edge
    return x1 * width // most, y1 * height // most, -(-x2 * width // most), -(-y2 * height // most)


def _png(name: str, image: Image.Image, max_bytes: int, bbox: Box) -> Picture | None:
    """Encode a figure, scaled down if needed. Return ``None`` if no sensible size is small enough."""
    for _ in range(MAX_SCALINGS):
        data = _encoded(image, "PNG", compress_level=PNG_LEVEL)
        if len(data) <= max_bytes:
            return Picture(name, PNG, data, *image.size, bbox)
        scale = SCALING_MARGIN * (max_bytes / len(data)) ** 0.5
        width, height = (round(side * scale) for side in image.size)
        if min(width, height) < MIN_SIDE_PX:
            return None
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return None


def _page_picture(page: Page) -> Picture:
    image = page.image
    if max(image.size) > PAGE_SIDE_PX:
        scale = PAGE_SIDE_PX / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    data = _encoded(image, "JPEG", quality=PAGE_QUALITY, optimize=False)
    return Picture(page_image_name(page.index), JPEG, data, *image.size)


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
