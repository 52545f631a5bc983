"""What of a page is ink: pale print beside black stains, strokes thinner than a pixel."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, ink_of, needs_font

from app.pocket.layout.finding import find_lines


def page_of(shades: list[int], *, stain: bool = False) -> Image.Image:
    """Lines in these shades of gray, from the top."""
    image = Image.new("L", A4, 250)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(FAMILY.regular, 24)
    for at, shade in enumerate(shades):
        draw.text((100, 100 + 40 * at), "Pebbles of quartz lie in the river", font=font, fill=shade)
    if stain:
        draw.ellipse((900, 1200, 980, 1280), fill=0)
    return image


@needs_font
@pytest.mark.parametrize("shade", [150, 170])
def test_pale_print_is_ink_beside_a_black_stain(shade: int) -> None:
    """As on a receipt that faded: found like black print, and shown as dark."""
    black, pale = (ink_of(page_of([shade] * 10, stain=stain)) for shade, stain in ((0, False), (shade, True)))
    lines = [[line for line in find_lines(ink) if line.top < 600] for ink in (black, pale)]
    assert [len(found) for found in lines] == [10, 10]
    assert abs(lines[0][0].width - lines[1][0].width) <= 2
    text = slice(100, 500), slice(100, 500)
    assert pale.gray[text].min() < 60


@needs_font
def test_what_shines_through_from_the_back_is_no_ink() -> None:
    image = page_of([0] * 6 + [225] * 6)
    lines = find_lines(ink_of(image))
    assert len(lines) == 6
    assert max(line.bottom for line in lines) < 100 + 40 * 6
    back = find_lines(ink_of(page_of([205] * 10, stain=True)))
    assert not [line for line in back if line.top < 600]


@needs_font
def test_black_print_is_left_as_it_is() -> None:
    page = page_of([0] * 10)
    gray = np.asarray(page.convert("L")).astype(int)
    assert (np.abs(ink_of(page).gray - np.clip(gray + 5, 0, 255)) <= 1).all()


@needs_font
def test_hairlines_are_ink_and_the_edges_of_letters_are_not_more_of_it() -> None:
    """A dash of a light font is a row of gray, with white around; beside black, gray is an edge."""
    image = Image.new("L", (600, 400), 255)
    draw = ImageDraw.Draw(image)
    for top in (40, 80):
        draw.text((100, top), "Pebbles of quartz", font=ImageFont.truetype(FAMILY.regular, 24))
    draw.rectangle((100, 200, 120, 220), fill=0)
    for top, width in ((221, 20), (240, 12), (260, 3), (280, 300)):
        draw.line((100, top, 100 + width, top), fill=180)
    mask = ink_of(image).mask
    assert mask[240, 100:113].all()
    assert not mask[221].any()
    assert not mask[260].any()
    assert not mask[280].any(), "ruled paper"
