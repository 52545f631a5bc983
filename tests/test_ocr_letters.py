"""The size of a line, told by the same letters elsewhere on the page."""

from math import log

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from region_pages import A4, FAMILY, FONTS, needs_font, printed_page

from app.ocr.regions.letters import Alike, beside_the_same, named_letters
from app.ocr.regions.page import cut_page

FINE = 4
BODY = "Pebbles of quartz lie in the river below the bridge, BUT nobody counts them"


def alike_of(word: str, font: str, size: float, *, is_worn: bool) -> Alike:
    """A line of its own, above text of 28 pixels."""
    # drawn larger and made smaller: fonts fit letters of few pixels to whole ones
    image = Image.new("L", (FINE * A4[0], FINE * A4[1] // 3), 255)
    draw = ImageDraw.Draw(image)
    draw.text((FINE * 100, FINE * 100), word, font=ImageFont.truetype(FONTS / font, FINE * size))
    for at in range(6):
        place = FINE * 100, FINE * (180 + 40 * at)
        draw.text(place, BODY, font=ImageFont.truetype(FAMILY.regular, FINE * 28))
    image = image.reduce(FINE)
    if is_worn:
        noise = np.random.default_rng(0).normal(0, 6, image.size[::-1])
        worn = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8))) * 0.7 + 60 + noise
        image = Image.fromarray(np.clip(worn, 0, 255).astype(np.uint8))
    page = cut_page(image).page
    assert page is not None
    texts = [word, *[BODY] * 6]
    letters = {line: page.prints[line].letters for line in page.lines}
    return beside_the_same(named_letters(letters, dict(zip(page.lines, texts, strict=True))))[page.lines[0]]


@needs_font
@pytest.mark.parametrize("is_worn", [False, True])
@pytest.mark.parametrize("word", ["Pebbles of quartz", "BUT", "nobody counts"])
@pytest.mark.parametrize("scale", [1.0, 1.07, 1.5])
def test_a_line_is_as_large_as_its_letters_say(word: str, scale: float, *, is_worn: bool) -> None:
    alike = alike_of(word, FAMILY.regular.name, 28 * scale, is_worn=is_worn)
    assert alike.count == len(word.replace(" ", ""))
    assert alike.height == pytest.approx(log(scale), abs=0.025)
    assert alike.width == pytest.approx(log(scale), abs=0.06)


@needs_font
def test_letters_of_another_font_are_not_all_wider_by_as_much() -> None:
    same = alike_of("nobody counts the river", FAMILY.regular.name, 28, is_worn=True)
    other = alike_of("nobody counts the river", "DejaVuSerif.ttf", 28, is_worn=True)
    assert other.spread > 3 * same.spread


@needs_font
def test_words_whose_letters_are_not_told_apart_say_nothing() -> None:
    assert alike_of("Pebbles", FAMILY.regular.name, 28, is_worn=False).count == 7
    image = Image.new("L", A4, 255)
    ImageDraw.Draw(image).text((100, 100), "Pebbles", font=ImageFont.truetype(FAMILY.regular, 28))
    page = cut_page(image).page
    assert page is not None
    letters = {line: page.prints[line].letters for line in page.lines}
    for text in ("", "Pebble", "Peb bles", "?!"):
        assert beside_the_same(named_letters(letters, {page.lines[0]: text})) == {page.lines[0]: Alike()}


@needs_font
def test_letters_with_a_dot_say_nothing_of_those_without() -> None:
    """Two lines of one size that have few letters in common: "i" and "t" are higher than "e"."""
    page = printed_page([(100, 100, "titi tilt sets"), (100, 150, "warn our man")])
    texts = ["titi tilt sets", "warn our man"]
    letters = {line: page.prints[line].letters for line in page.lines}
    alike = beside_the_same(named_letters(letters, dict(zip(page.lines, texts, strict=True))))[page.lines[1]]
    assert alike.count > 3
    assert abs(alike.height) < 0.04
