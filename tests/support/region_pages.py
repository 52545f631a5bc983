"""What the tests of regions draw their pages with."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from app.pocket.layout.ink import Ink, find_ink
from app.pocket.layout.lines import Line
from app.pocket.layout.page import cut_page
from app.pocket.layout.prints import PageLines
from training.layout import Family

FONTS = Path("/usr/share/fonts/truetype/dejavu")
FAMILY = Family(FONTS / "DejaVuSans.ttf", FONTS / "DejaVuSans-Bold.ttf")
A4 = (1240, 1754)
needs_font = pytest.mark.skipif(
    not FAMILY.bold.is_file(), reason="needs the Debian package fonts-dejavu-core"
)


def row(top: int, *spans: tuple[int, int]) -> list[Line]:
    """Cells beside each other, from ``(left, right)`` of each."""
    return [Line(left, top, right, top + 20) for left, right in spans]


def ink_of(image: Image.Image) -> Ink:
    ink = find_ink(image)
    assert ink is not None
    return ink


def printed_page(rows: list[tuple[int, int, str]], size: int = 24) -> PageLines:
    """Words at (left, top), cut by the service's own code."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    for left, top, text in rows:
        draw.text((left, top), text, font=ImageFont.truetype(FAMILY.regular, size))
    page = cut_page(image).page
    assert page is not None
    return page
