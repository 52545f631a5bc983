"""Print on a page, and how much of it is outside what was read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from printed_pages import A4, LINES, lines_box, printed

from app.output.coverage import find_print, is_blank

WHOLE = (0, 0, 999, 999)
GROUNDS: dict[str, tuple[int, int]] = {
    "black on white": (0, 255),
    "white on black": (255, 0),
    "light gray on white": (215, 255),
    "black on gray": (0, 150),
    "gray on dark": (90, 30),
}


@pytest.mark.parametrize("name", GROUNDS)
def test_the_share_is_that_of_the_lines_outside_the_boxes(name: str) -> None:
    ink, paper = GROUNDS[name]
    found = find_print(printed(ink, paper))
    assert found.is_visible
    assert found.share_outside([WHOLE]) == 0
    assert found.share_outside([]) == 1
    for num_read in (3, 15, 27):
        outside = found.share_outside([lines_box(0, num_read)])
        assert outside == pytest.approx(1 - num_read / LINES, abs=0.02)


def test_what_the_reader_left_out_is_unread_though_a_block_covers_it() -> None:
    found = find_print(printed())
    assert found.share_outside([WHOLE], [lines_box(10, 16)]) == pytest.approx(6 / LINES, abs=0.02)


def test_a_turned_page_and_another_script_have_print() -> None:
    turned = printed().rotate(10, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    assert find_print(turned).share_outside([]) == 1
    assert find_print(printed(words="\u25a0\u25c6\u25b2 \u25a0\u25c6")).is_visible, "shapes like letters"


def _white(_: np.random.Generator) -> Image.Image:
    return Image.new("RGB", A4, "white")


def _grainy(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(np.clip(rng.normal(225, 7, A4[::-1]), 0, 255).astype(np.uint8)).convert("RGB")


def _shaded(_: np.random.Generator) -> Image.Image:
    across = np.linspace(255, 190, A4[0])
    return Image.fromarray(np.tile(across, (A4[1], 1)).astype(np.uint8)).convert("RGB")


def _edges(_: np.random.Generator) -> Image.Image:
    """The lid of a scanner, dust, a hair."""
    image = Image.new("L", A4, 240)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 18, A4[1]), fill=40)
    draw.rectangle((0, A4[1] - 9, *A4), fill=90)
    for number in range(40):
        draw.rectangle(
            (97 * number % 1200, 331 * number % 1700, 97 * number % 1200 + 2, 331 * number % 1700 + 2), fill=0
        )
    return image.convert("RGB")


def _frames(_: np.random.Generator) -> Image.Image:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    for number in range(12):
        draw.rectangle((100, 100 + 90 * number, 460, 150 + 90 * number), outline=0, width=2)
        draw.line((500, 100 + 90 * number, 1100, 100 + 90 * number), fill=0, width=2)
        draw.rectangle((1120, 100 + 90 * number, 1200, 160 + 90 * number), fill=60)
    return image.convert("RGB")


PAPERS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "white": _white,
    "grainy": _grainy,
    "shaded": _shaded,
    "edges and dust": _edges,
    "an empty form": _frames,
}


@pytest.mark.parametrize("name", PAPERS)
def test_paper_rules_and_frames_are_no_print(name: str) -> None:
    found = find_print(PAPERS[name](np.random.default_rng(0)))
    assert not found.is_visible
    assert found.share_outside([]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1), st.booleans())
def test_any_image_has_a_share(width: int, height: int, seed: int, is_noise: bool) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (height, width)) if is_noise else np.full((height, width), seed % 256)
    found = find_print(Image.fromarray(levels.astype(np.uint8)).convert("RGB"))
    assert 0 <= found.share_outside([(10, 10, 400, 400)], [(100, 100, 200, 200)]) <= 1


def test_a_photograph_beside_the_text_is_no_unread_print_and_alone_it_is_not_hidden() -> None:
    """Worn print may look like a photograph, so that an empty text is never excused by one."""
    rng = np.random.default_rng(3)
    tones = np.asarray(
        Image.fromarray(rng.integers(0, 256, (70, 110)).astype(np.uint8)).resize(
            (1000, 600), Image.Resampling.BICUBIC
        )
    )
    grained = np.clip(tones * 0.5 + rng.normal(60, 12, tones.shape), 0, 255).astype(np.uint8)
    page = printed(lines=16)
    page.paste(Image.fromarray(grained).convert("RGB"), (120, 1000))
    text = lines_box(0, 16)
    found = find_print(page)
    assert found.in_picture.any()
    assert found.share_outside([text]) < 0.05
    assert found.share_outside([lines_box(0, 8)]) > 0.3
    assert found.share_outside([]) == 1


def _with_grain(levels: np.ndarray[Any, Any], grain: float, seed: int = 0) -> Image.Image:
    """(H, W, 3) levels and the standard deviation of the grain in levels."""
    noise = np.random.default_rng(seed).normal(0, grain, (*levels.shape[:2], 1))
    return Image.fromarray(np.clip(levels + noise, 0, 255).round().astype(np.uint8))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grain", [0, 0.5, 1.5, 3, 6])
def test_light_even_paper_is_blank(grain: float, seed: int) -> None:
    paper = np.full((900, 640, 3), np.random.default_rng(seed).integers(190, 256, 3), np.float64)
    assert is_blank(_with_grain(paper, grain, seed))


@pytest.mark.parametrize("lines", [1, LINES])
@pytest.mark.parametrize("grain", [0, 1, 3, 6])
@pytest.mark.parametrize("paper", [255, 200])
def test_print_however_faint_is_not_blank(paper: int, grain: float, lines: int) -> None:
    """Fainter print than twice the grain is for nobody to read."""
    faint = printed(paper - max(2, round(2 * grain)), paper, lines=lines)
    assert not is_blank(_with_grain(np.asarray(faint, np.float64), grain))


def _marked(mark: Callable[[ImageDraw.ImageDraw], None], paper: str = "white") -> Image.Image:
    image = Image.new("RGB", (900, 1200), paper)
    mark(ImageDraw.Draw(image))
    return image


MARKS: dict[str, Image.Image] = {
    "a point": _marked(lambda draw: draw.point((501, 601), "#c0c0c0")),
    "a hair line": _marked(lambda draw: draw.line((101, 601, 800, 601), "#f8f8f8")),
    "yellow on white": _marked(
        lambda draw: draw.text((99, 99), "stock", "#fffff0", ImageFont.load_default(26))
    ),
    "blue on gray of the same lightness": _marked(
        lambda draw: draw.text((99, 99), "stock", "#b8b8dc", ImageFont.load_default(26)), "#bcbcbc"
    ),
    "small print": _marked(lambda draw: draw.text((99, 99), "stock", "#f0f0f0", ImageFont.load_default(9))),
    "a pale word as large as the page": _marked(
        lambda draw: draw.text((9, 299), "DRAFT", "#fcfcfc", ImageFont.load_default(300))
    ),
    "a page number": _marked(lambda draw: draw.text((450, 1170), "7", "#e8e8e8", ImageFont.load_default(14))),
    "a black page": Image.new("RGB", (900, 1200), "black"),
    "an image of a few pixels": Image.new("RGB", (20, 20), "white"),
}


@pytest.mark.parametrize("name", MARKS)
def test_the_least_mark_is_not_blank(name: str) -> None:
    assert not is_blank(MARKS[name])


@pytest.mark.parametrize("name", ["edges and dust", "an empty form"])
def test_what_has_no_print_is_not_blank_for_that(name: str) -> None:
    assert not is_blank(PAPERS[name](np.random.default_rng(0)))
