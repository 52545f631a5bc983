"""Lines are cut where columns and cells are, not where a typewriter or justifying set words far apart."""

from itertools import combinations

import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, FONTS, ink_of, needs_font

from app.pocket.layout.finding import find_lines
from app.pocket.layout.gutters import gutters_of
from app.pocket.layout.lines import Line, Table, is_stacked
from app.pocket.layout.page import cut_page
from app.pocket.layout.stretches import stretches_of

MONO = FONTS / "DejaVuSansMono.ttf"
SIZE, LEFT, RIGHT, STEP = 22, 100, 1100, 34
WORDS = [
    "Pebbles of quartz lie in the river below",
    "an old bridge where three foxes sleep until",
    "noon it is 'quiet' and all that fills the",
    "long valley is rain from hills in the west",
    "most will come back when evening falls here",
    "'some' of them ran far off into the woods",
]


def justified(draw: ImageDraw.ImageDraw, top: int, words: list[str], font: ImageFont.FreeTypeFont) -> None:
    space = (RIGHT - LEFT - sum(font.getlength(word) for word in words)) / (len(words) - 1)
    left = float(LEFT)
    for word in words:
        draw.text((round(left), top), word, font=font)
        left += font.getlength(word) + space


@needs_font
@pytest.mark.parametrize("name", ["DejaVuSansMono.ttf", "DejaVuSans.ttf"])
def test_justified_lines_are_whole_whatever_their_letters(name: str) -> None:
    """A typewriter's letters stand as far apart as other fonts' words do."""
    image, font = Image.new("L", A4, 255), ImageFont.truetype(FONTS / name, SIZE)
    for at, words in enumerate(WORDS * 2):
        justified(ImageDraw.Draw(image), 100 + STEP * at, words.split(), font)
    page = cut_page(image).page
    assert page is not None
    assert [type(part) for part in page.parts] == [Line] * 12
    assert {(line.left // 10, line.right // 10) for line in page.lines} <= {
        (left, right) for left in (9, 10) for right in (108, 109, 110)
    }


@needs_font
def test_two_spaces_part_cells_in_a_typewriters_letters() -> None:
    image, font = Image.new("L", A4, 255), ImageFont.truetype(MONO, SIZE)
    rows = [("river stones", "12", "of quartz"), ("oak leaves", "480", "in autumn"), ("rain", "7", "at noon")]
    for at, cells in enumerate(rows):
        text = "".join(cell.ljust(width) for cell, width in zip(cells, (14, 5, 9), strict=True))
        ImageDraw.Draw(image).text((LEFT, 100 + STEP * at), text, font=font)
    page = cut_page(image).page
    assert page is not None
    (table,) = page.parts
    assert isinstance(table, Table)
    assert [len(cells) for cells in table.rows] == [3, 3, 3]


def column(left: int, top: int, count: int, width: int = 300) -> list[Line]:
    return [Line(left, top + 30 * at, left + width - 9 * (at % 3), top + 30 * at + 20) for at in range(count)]


@pytest.mark.parametrize("shift", [0, 15])
def test_a_narrow_gutter_is_one_where_lines_begin_under_each_other(shift: int) -> None:
    """No wider than a line is high; lines of the columns beside each other or between each other."""
    (gutter,) = gutters_of([*column(0, 0, 8), *column(320, shift, 8)], 20)
    assert (gutter.right, gutter.top) == (320, 0)
    assert gutter.bottom >= 230
    heading = Line(0, -60, 620, -40)
    assert gutters_of([heading, *column(0, 0, 8), *column(320, shift, 8)], 20) == [gutter]


def test_white_that_ends_with_the_next_line_is_no_gutter() -> None:
    """Spaces of spread lines, numbers before items, and few lines beside each other."""
    spread = [
        Line(left, 30 * at, right, 30 * at + 20)
        for at in range(12)
        for left, right in ((0, 200 + 17 * (at % 5)), (220 + 17 * (at % 5), 600))
    ]
    assert gutters_of(spread, 20) == []
    items = [
        Line(left, 30 * at, right, 30 * at + 20) for at in range(8) for left, right in ((0, 14), (34, 600))
    ]
    assert gutters_of(items, 20) == []
    assert gutters_of([*column(0, 0, 3), *column(320, 0, 3)], 20) == []


@needs_font
def test_columns_as_near_as_words_are_read_one_after_the_other() -> None:
    """The gap is one letter's size, as a browser sets it, and lines of both sides are spread."""
    image, font = Image.new("L", A4, 255), ImageFont.truetype(FAMILY.regular, 20)
    draw = ImageDraw.Draw(image)
    for side, left in enumerate((100, 100 + 400 + 20)):
        for at in range(12):
            words = WORDS[(at + side) % 6].split()[:7]
            space = (400 - sum(font.getlength(word) for word in words)) / 6
            place = float(left)
            for word in words:
                draw.text((round(place), 100 + 30 * at), word, font=font)
                place += font.getlength(word) + space
    page = cut_page(image).page
    assert page is not None
    assert [line.left < 500 for line in page.lines] == [True] * 12 + [False] * 12


@needs_font
def test_a_binding_beside_a_heading_is_no_part_of_it() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    draw.rectangle((60, 50, 75, 900), fill=0)
    for top in range(60, 900, 40):
        draw.rectangle((76, top, 92, top + 14), fill=0)
    draw.text((112, 90), "Pebbles of quartz", font=ImageFont.truetype(FAMILY.bold, 44))
    for at in range(8):
        draw.text(
            (130, 200 + 40 * at), "lie in the old river below", font=ImageFont.truetype(FAMILY.regular, 24)
        )
    found = [line for line in find_lines(ink_of(image)) if line.left > 100]
    assert len(found) == 9
    assert max(line.height for line in found) < 60


@needs_font
def test_white_between_two_rules_with_print_beside_them_is_no_line() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    for at in range(8):
        draw.text(
            (130, 400 + 40 * at), "lie in the old river below", font=ImageFont.truetype(FAMILY.regular, 24)
        )
    for left in (103, 109):
        draw.rectangle((left, 60, left + 1, 360), fill=0)
    for left in (80, 114):
        draw.rectangle((left, 100, left + 18, 180), fill=0)
    lines = find_lines(ink_of(image))
    assert len([line for line in lines if line.top > 390]) == 8
    assert all(ink_of(image).mask[line.top : line.bottom, line.left : line.right].any() for line in lines)


@needs_font
def test_words_of_a_spread_line_are_whole_beside_a_column() -> None:
    """Spaces as wide as letters are high, all of a line alike; low words beside high ones."""
    image, font = Image.new("L", A4, 255), ImageFont.truetype(FAMILY.regular, 20)
    draw = ImageDraw.Draw(image)
    for left in (100, 580):
        for at, text in enumerate([*WORDS[:5], "foxes sleep"]):
            words = text.split()[: 6 - at % 2]
            space = (400 - sum(font.getlength(word) for word in words)) / (len(words) - 1)
            place = float(left)
            for word in words:
                draw.text((round(place), 100 + 30 * at), word, font=font)
                place += font.getlength(word) + (space if at < 5 else 8)
    lines = find_lines(ink_of(image))
    spans = {(round(line.left, -1), round(line.right, -1)) for line in lines if line.top < 240}
    assert {(left, round(right, -1)) for left, right in spans} == {(100, 500), (580, 980)}


@needs_font
def test_even_rows_of_a_table_are_cells() -> None:
    """White between the cells of its first row is as wide everywhere, and under it is white again."""
    image, font = Image.new("L", A4, 255), ImageFont.truetype(FAMILY.regular, 20)
    rows = ["river stone quartz", "old foxes sleep", "noon quiet fills"]
    for at, text in enumerate(rows):
        left = 100.0
        for word, first in zip(text.split(), rows[0].split(), strict=True):
            ImageDraw.Draw(image).text((round(left), 100 + 34 * at), word, font=font)
            left += font.getlength(first) + 30
    page = cut_page(image).page
    assert page is not None
    (table,) = page.parts
    assert isinstance(table, Table)
    assert [len(cells) for cells in table.rows] == [3, 3, 3]


def test_pieces_that_overlap_are_one() -> None:
    """As letters that lean over the comma before them."""
    image = Image.new("L", (400, 120), 255)
    pieces = [Line(left, 40 + at % 2, left + 60, 60 + at % 2) for at, left in enumerate((40, 92, 144, 196))]
    for piece in pieces:
        for left in range(piece.left, piece.right, 8):
            ImageDraw.Draw(image).rectangle((left, piece.top, left + 4, piece.bottom - 1), fill=0)
    (line,) = stretches_of(pieces, ink_of(image), 20)
    assert (line.left, line.right) == (40, 256)


@needs_font
def test_lines_that_touch_are_apart_from_what_did_not_touch_beside_them() -> None:
    """A stroke joins a line to the end of the next one; its begin stands alone."""
    image = Image.new("L", A4, 255)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(FAMILY.regular, 24)
    for top, left in ((100, 240), (132, 254), (164, 240), (196, 240)):
        draw.text((100, top), "Pebbles lie", font=font)
        draw.text((left, top), "in the river below the bridge", font=font)
    draw.line((400, 120, 400, 144), fill=0, width=3)
    lines = find_lines(ink_of(image))
    for one, other in combinations(lines, 2):
        assert not (one.is_beside(other) and is_stacked(one, other)), (one, other)
    assert sum(line.left == 102 for line in lines) == 4
    assert all(line.width > 0 for line in lines)
