"""Training views are what the service shows, and their texts what stands in them."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from training_pages import FAMILY, FONT, needs_font

from app.pocket.layout.finding import find_lines
from app.pocket.layout.ink import find_ink
from app.pocket.layout.lines import Line
from app.pocket.layout.views import (
    LINE_OF_EM,
    ROOM_PX,
    ROW_PX,
    VIEW_PX,
    LineView,
    Word,
    find_words,
    line_rows,
    line_text,
    line_views,
)
from training.lines import LineRenderer, LineStyle
from training.printed import Face, PrintedPage
from training.render import PATCH_PX
from training.text import TextSource

MONO = FONT.with_name("DejaVuSansMono.ttf")
CLEAN = LineStyle((16, 36), structured=0.0, degraded=0.0, worn=0.0)
WORN = LineStyle((16, 36), structured=0.5, degraded=1.0, worn=1.0, stretched=0.7)

pytestmark = needs_font


@pytest.fixture
def renderer(tmp_path: Path) -> LineRenderer:
    path = tmp_path / "words"
    path.write_text(
        "\n".join("page letter fold Dustbin margin quartz sphinx of it a office".split()), "utf-8"
    )
    return LineRenderer(TextSource(path, common=0.5, ledger=0.3, technical=0.3), [FAMILY])


@pytest.mark.parametrize("style", [CLEAN, WORN])
def test_a_seed_gives_the_same_views(renderer: LineRenderer, style: LineStyle) -> None:
    one, other = (renderer.views(random.Random(4), style, 7) for _ in range(2))
    assert len(one) == len(other) == 7
    for left, right in zip(one, other, strict=True):
        assert (left.pixels == right.pixels).all()
        assert left.text == right.text


@pytest.mark.parametrize("style", [CLEAN, WORN])
def test_each_character_stands_where_its_mark_is(renderer: LineRenderer, style: LineStyle) -> None:
    """In the row of patches that its line of text says, with ink around it."""
    inked = printed = 0
    for seed in range(6):
        for view in renderer.views(random.Random(seed), style, 5):
            assert view.pixels.shape == (VIEW_PX, VIEW_PX)
            rows = view.text.split("\n") if view.text else []
            at = iter(view.marks)
            for number, row in enumerate(rows):
                for character in row.replace(" ", ""):
                    x, y, marked = next(at)
                    assert marked == character
                    assert y // PATCH_PX == number
                    around = view.pixels[int(y) - 12 : int(y) + 12, max(0, int(x) - 12) : int(x) + 12]
                    inked, printed = inked + int(around.min() < 160), printed + 1
            assert next(at, None) is None
    assert printed > 300
    assert inked > 0.97 * printed


def test_ligatures_are_drawn_as_one_glyph_and_read_as_letters() -> None:
    page, other = PrintedPage(900, 100), PrintedPage(900, 100)
    face = Face(FONT, 30, ligatures=True)
    pieces = page.print_word("office-waffle", 10, 60, face)
    assert "".join(character for character, _ in pieces) == "office-waffle"
    assert "\N{LATIN SMALL LIGATURE FFI}" in page.runs[0].text
    places = [x for x, _, _ in page.marks]
    assert places == sorted(set(places)), "each letter has a place of its own"
    assert places[-1] < 10 + face.width("office-waffle")
    other.print_word("office-waffle", 10, 60, Face(FONT, 30))
    assert other.runs[0].text == "office-waffle"


def drawn(text: str, font: Path, size: int = 24) -> Image.Image:
    image = Image.new("L", (1400, 300), 255)
    ImageDraw.Draw(image).text((20, 120), text, font=ImageFont.truetype(font, size), fill=0)
    return image


def words_of(image: Image.Image) -> list[Word]:
    ink = find_ink(image)
    assert ink is not None
    return [word for line in find_lines(ink) for word in find_words(ink, line, line.height / LINE_OF_EM)]


@pytest.mark.parametrize("font", [FONT, MONO])
def test_words_are_told_from_letters(font: Path) -> None:
    assert len(words_of(drawn("ill filling will fill it all in little", font))) == 8


def test_letters_that_stand_apart_are_no_words() -> None:
    assert len(words_of(drawn("P R E F A C E", FONT))) == 1


def test_a_word_wider_than_a_row_is_cut_and_joined_again() -> None:
    ink = find_ink(drawn("an honorificabilitudinitatibus_of_forty_letters end", FONT))
    assert ink is not None
    (line,) = find_lines(ink)
    views = line_rows(ink, line, line.height)
    rows = [row for view in views for row in view]
    assert any(row.is_cut for row in rows)
    assert all(row.size[0] <= ROOM_PX for row in rows)
    assert rows[0].source[0] <= line.left + 1
    assert rows[-1].source[2] >= line.right - 1
    for before, after in pairwise(rows):
        if after.is_cut:
            assert abs(after.source[0] - before.source[2]) <= 2, "nothing is left out"


@pytest.mark.parametrize("leader", ["." * 30, ". " * 12, "…" * 8])
def test_dots_that_lead_on_are_counted_and_not_read(leader: str) -> None:
    ink = find_ink(drawn(f"Of rivers {leader} 17", FONT))
    assert ink is not None
    lines = sorted(find_lines(ink), key=lambda line: line.left)
    views = [view for line in lines for view in line_views(ink, line, lines[0].height)]
    words = ["Of rivers", "17"]
    shown = [sum(len(view.cuts) for view in line_views(ink, line, lines[0].height)) for line in lines]
    assert sum(shown) == len(words)
    read = iter(words)
    text = line_text(views, ["\n".join(next(read) for _ in view.cuts) for view in views])
    dots = leader.replace("…", "...").replace(" ", "")
    assert text == f"Of rivers {dots} 17"


def test_what_ends_with_a_few_dots_is_read_as_it_is() -> None:
    ink = find_ink(drawn("and so on ... to the end...", FONT))
    assert ink is not None
    (line,) = find_lines(ink)
    assert not any(row.dots for view in line_rows(ink, line, line.height) for row in view)


def test_rows_keep_to_rows_of_patches() -> None:
    ink = find_ink(drawn("quick brown foxes jump over lazy dogs, again and again", FONT, 30))
    assert ink is not None
    (line,) = find_lines(ink)
    for view in line_rows(ink, line, line.height):
        for number, row in enumerate(view):
            assert number * ROW_PX <= row.place[1]
            assert row.place[1] + row.size[1] <= (number + 1) * ROW_PX


def test_rows_are_joined_by_spaces_but_where_a_word_was_cut() -> None:
    image = Image.new("L", (VIEW_PX, VIEW_PX))
    views = [LineView(image, (False, True)), LineView(image, (True, False))]
    assert line_text(views, ["honor\nifica", "tion of\nmine"]) == "honorification of mine"
    assert line_text(views, ["one row", "in\nthree\nrows"]) == "one row in three rows"
    assert line_text(views, ["", "\nmine"]) == "mine"


def test_points_of_the_page_are_found_again_after_it_is_straightened() -> None:
    image = Image.new("L", (900, 600), 255)
    draw = ImageDraw.Draw(image)
    for top in range(60, 540, 40):
        draw.text((80, top), "straight lines of print " * 2, font=ImageFont.truetype(FONT, 22), fill=0)
    turned = image.rotate(-1.0, Image.Resampling.BICUBIC, fillcolor=255)
    straight, ink = find_ink(image), find_ink(turned)
    assert straight is not None
    assert ink is not None
    assert ink.degrees == pytest.approx(1.0, abs=0.11)

    def first(lines: list[Line]) -> Line:
        return min(lines, key=lambda line: line.top)

    here, there = first(find_lines(straight)), first(find_lines(ink))
    angle = np.radians(-1.0)
    x, y = here.left - 450, here.middle - 300
    on_turned = 450 + x * np.cos(angle) + y * np.sin(angle), 300 + y * np.cos(angle) - x * np.sin(angle)
    found = ink.placed(*on_turned)
    assert found[0] == pytest.approx(there.left, abs=4)
    assert found[1] == pytest.approx(there.middle, abs=4)


def test_a_cropped_line_is_print() -> None:
    image = drawn("one line cut out of a page", FONT, 30).crop((0, 105, 1400, 170))
    assert len(words_of(image)) == 7
