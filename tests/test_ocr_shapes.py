"""Shapes of letters: the same at any size, others in another font."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from region_pages import FAMILY, needs_font

from app.ocr.regions.letters import beside_the_same
from app.ocr.regions.page import cut_page
from app.ocr.regions.shapes import SIDE, Unlike, shapes_of, unlike_of
from app.ocr.regions.traits import named_of

SERIF = FAMILY.regular.with_name("DejaVuSerif.ttf")
PROSE = (
    "the quick brown fox jumps over the lazy dog",
    "and then it rests for a while under an old tree",
    "while the dog goes home and eats what it found",
    "nobody knows what the fox does in the evening",
    "when the river below the bridge is full of quartz",
    "but the dog was there before and took some home",
)


def unlike_lines(middle: str, size: int, font: str, *, worn: bool = False) -> list[Unlike]:
    """Six lines of prose, and one printed otherwise after the third."""
    image = Image.new("L", (1240, 700), 255)
    draw = ImageDraw.Draw(image)
    texts = [*PROSE[:3], middle, *PROSE[3:]]
    for at, text in enumerate(texts):
        is_middle = at == 3
        path = font if is_middle else FAMILY.regular
        draw.text((100, 60 + 50 * at), text, font=ImageFont.truetype(path, size if is_middle else 24))
    if worn:
        noise = np.random.default_rng(0).normal(0, 12, (700, 1240))
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), float) + noise
        image = Image.fromarray(np.clip(blurred, 0, 255).astype(np.uint8))
    page = cut_page(image).page
    assert page is not None
    assert len(page.lines) == len(texts)
    alike = beside_the_same(named_of(page, dict(zip(page.lines, texts, strict=True))))
    return [alike[line].unlike for line in page.lines]


@needs_font
@pytest.mark.parametrize("worn", [False, True])
@pytest.mark.parametrize("middle", ["what the foxes say of winter", "an old bridge and the river"])
def test_another_font_of_the_same_size_has_other_shapes(middle: str, worn: bool) -> None:
    lines = unlike_lines(middle, 24, str(SERIF), worn=worn)
    prose = [one.ratio for at, one in enumerate(lines) if at != 3]
    assert lines[3].ratio > max(prose) + 0.5
    assert lines[3].distance > 2 * max(one.distance for at, one in enumerate(lines) if at != 3)


@needs_font
def test_a_larger_line_of_the_same_font_has_the_same_shapes() -> None:
    same = unlike_lines("what the foxes say of winter", 24, str(FAMILY.regular))[3]
    larger = unlike_lines("what the foxes say of winter", 36, str(FAMILY.regular))[3]
    other = unlike_lines("what the foxes say of winter", 36, str(SERIF))[3]
    assert abs(larger.distance - same.distance) < 0.3 * (other.distance - same.distance)


@needs_font
def test_letters_that_stand_nowhere_else_say_nothing() -> None:
    assert unlike_lines("ZZZ XXX", 24, str(SERIF))[3] == Unlike()


def test_shapes_hang_neither_on_size_nor_on_place() -> None:
    letter = np.zeros((12, 8))
    letter[2:10, 1:3] = letter[8:10, 1:7] = 200.0
    (shape,) = shapes_of(letter, np.array([[1.0, 2.0, 7.0, 10.0]]), np.array([200.0]))
    twice = np.pad(letter.repeat(2, axis=0).repeat(2, axis=1), ((5, 0), (3, 0)))
    (same,) = shapes_of(twice, np.array([[5.0, 9.0, 17.0, 25.0]]), np.array([200.0]))
    assert shape.shape == (SIDE**2,)
    assert np.allclose(shape, same)
    assert shape.mean() == pytest.approx((letter > 0).sum() / 48)


def test_a_box_at_the_edge_is_measured() -> None:
    (shape,) = shapes_of(np.full((6, 4), 90.0), np.array([[0.0, 0.0, 4.0, 6.0]]), np.array([90.0]))
    assert np.allclose(shape, 1)


def test_no_letters_have_no_shapes() -> None:
    assert shapes_of(np.full((6, 4), 90.0), np.zeros((0, 4)), np.zeros(0)).shape == (0, SIDE**2)
    assert unlike_of({}) == {}
