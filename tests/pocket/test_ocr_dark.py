"""Print in white on dark areas is found like other print; pictures and what is beside the paper are not."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps
from region_pages import A4, FAMILY, needs_font

from app.pocket.layout.dark import without_dark_areas
from app.pocket.layout.ink import find_ink
from app.pocket.layout.lines import Line
from app.pocket.layout.page import cut_page

WORDS = "Pebbles of quartz lie in the river below the bridge"


def _page(lines: int = 12, size: int = 24, top: int = 300) -> Image.Image:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    for number in range(lines):
        draw.text((150, top + 40 * number), WORDS, font=ImageFont.truetype(FAMILY.regular, size))
    return image


def _lines(image: Image.Image) -> list[Line]:
    page = cut_page(image).page
    return [] if page is None else page.lines


@needs_font
@pytest.mark.parametrize("size", [16, 24, 40])
def test_a_page_without_dark_areas_stays_as_it_is(size: int) -> None:
    gray = np.asarray(_page(size=size))
    assert without_dark_areas(gray) is gray


@needs_font
@pytest.mark.parametrize("ground", [0, 40, 90])
def test_a_page_printed_in_white_is_read_like_one_in_black(ground: int) -> None:
    page = _page()
    white = ImageOps.invert(page).point(lambda shade: max(shade, ground))
    assert len(_lines(white)) == 12
    one, other = find_ink(page), find_ink(white)
    assert one is not None
    assert other is not None
    assert np.mean(one.mask != other.mask) < 0.01


@needs_font
@pytest.mark.parametrize(("height", "size"), [(40, 20), (60, 26), (110, 50)])
def test_white_print_on_a_bar_is_a_line(height: int, size: int) -> None:
    image = _page()
    draw = ImageDraw.Draw(image)
    draw.rectangle((140, 150, 1100, 150 + height), fill=60)
    draw.text((160, 150 + (height - size) // 2 - 2), "Gravel and what it", fill=255,
              font=ImageFont.truetype(FAMILY.bold, size))  # fmt: skip
    lines = _lines(image)
    assert len(lines) == 13
    assert 150 <= lines[0].top < lines[0].bottom <= 150 + height


@needs_font
def test_pictures_and_the_scanners_border_are_no_print() -> None:
    image = _page()
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 60, A4[1]), fill=10)
    draw.rectangle((0, 1660, *A4), fill=10)
    noise = np.random.default_rng(5).integers(0, 90, (400, 500), dtype=np.uint8)
    rows, columns = np.mgrid[:400, :500]
    noise[(rows - 200) ** 2 + (columns - 250) ** 2 < 150**2] = 170
    image.paste(Image.fromarray(noise), (400, 900))
    assert len(_lines(image)) == 12
