"""Print on a page, and how much of it is outside what was read."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from printed_pages import A4, LINES, lines_box, printed

from app.output.coverage import find_print

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
