"""The order that lines are read in: columns one after the other, rows of a table together."""

import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, needs_font, printed_page, row

from app.pocket.layout.lines import Line, Table
from app.pocket.layout.order import in_order
from app.pocket.layout.page import cut_page


def test_columns_are_read_one_after_the_other() -> None:
    title = row(0, (100, 900))
    left = [line for top in range(60, 360, 30) for line in row(top, (50, 470))]
    right = [line for top in range(65, 365, 30) for line in row(top, (530, 950))]
    assert in_order([*right, *title, *left]) == [*title, *left, *right]


def spread_rows(gaps: list[int], left: int) -> list[list[tuple[int, int]]]:
    """Lines of 400 pixels with white of 30 that begins at each of these."""
    return [[(left, left + gap), (left + gap + 30, left + 400)] for gap in gaps]


def test_signs_in_a_margin_are_kept_out_of_the_lines() -> None:
    text = [line for top in range(0, 300, 30) for line in row(top, (100, 600))]
    margin = [Line(5, top, 17, top + 18) for top in range(3, 200, 22)]
    assert in_order([*text, *margin]) == [*margin, *text]
    numbers = [Line(5, line.top, 17, line.bottom) for line in text]
    assert len(in_order([*text, *numbers])) == len(text)
    items = [Line(60, line.top, 72, line.bottom - 5) for line in text[::2]]
    assert len(in_order([*text, *items])) == len(text), "numbers stand higher than letters that hang"


@needs_font
def test_numbers_of_items_under_a_wide_letterhead_stay_with_their_texts() -> None:
    items = range(200, 800, 100)
    numbers = [(340, top, f"{number}.") for number, top in enumerate(items, 23)]
    texts = [(410, top + line, "Pebbles of quartz lie in the river") for top in items for line in (0, 36)]
    page = printed_page([(60, 90, "The Society of Rivers"), (760, 90, "Of pebbles"), *numbers, *texts])
    body = [line for line in page.lines if line.top > 150]
    assert [line.left < 400 for line in body] == [True, False] * len(items)


@needs_font
def test_columns_under_a_running_head_that_stands_across_them() -> None:
    """What the head and a figure's scale keep white on the left is no reason to read across."""
    head = [(100, 60, "150"), (180, 60, "Of rivers, of stones and of whatever else is there")]
    scale = [(100, 160 + 90 * number, f"0.{number}") for number in range(6)]
    left = [(180, 160 + 36 * number, "Pebbles of quartz lie in") for number in range(30)]
    right = [(640, 160 + 36 * number, "beside the old bridge and nobody") for number in range(30)]
    page = printed_page([*head, *scale, *left, *right])
    sides = [line.left > 600 for line in page.lines if line.top > 120]
    assert sides == sorted(sides)
    assert sum(sides) == len(right)


def test_columns_whose_lines_stand_between_each_others_are_read_one_after_the_other() -> None:
    """As of two columns of which one begins half a line lower."""
    left = [line for top in range(60, 360, 34) for line in row(top, (50, 470))]
    right = [line for top in range(77, 360, 34) for line in row(top, (530, 950))]
    assert in_order([*right, *left]) == [*left, *right]


def test_columns_side_by_side_with_others_are_columns_of_text() -> None:
    """Four of them, two on each page of an open book: lines at the same heights all over."""
    edges = (0, 320, 700, 1020)
    sides = [[line for top in range(0, 360, 30) for line in row(top, (left, left + 300))] for left in edges]
    parts = in_order([line for lines in zip(*sides, strict=True) for line in lines])
    assert parts == [line for lines in sides for line in lines]


def test_a_column_that_begins_above_the_one_to_its_left_is_read_after_it() -> None:
    left = [line for top in range(60, 360, 30) for line in row(top, (50, 470))]
    right = [line for top in range(20, 350, 30) for line in row(top, (500, 920))]
    assert in_order([*right, *left]) == [*left, *right]


@needs_font
def test_a_title_of_few_capitals_is_as_large_as_they_are() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    sizes = {}
    for text in ("Creamier Verona", "Pebbles And Hills", "Ánnex on our own sea"):
        image.paste(255, (0, 0, *A4))
        draw.text((100, 100), text, font=ImageFont.truetype(FAMILY.bold, 44))
        for at in range(8):
            words = "Pebbles of quartz lie in the river below"
            draw.text((100, 200 + 40 * at), words, font=ImageFont.truetype(FAMILY.regular, 22))
        page = cut_page(image).page
        assert page is not None
        sizes[text] = page.prints[page.lines[0]].size
    assert all(1.8 < size < 2.3 for size in sizes.values()), sizes


def items(left: int, bottoms: list[int], going_on: list[int]) -> list[Line]:
    """Items whose texts are of several lengths, with their numbers, and lines that hang under them."""
    texts = [Line(left + 40, at - 20, left + 150 + at % 70, at) for at in [*bottoms, *going_on]]
    return [*texts, *(Line(left, at - 18, left + 14, at) for at in bottoms)]


def test_numbers_in_columns_of_a_table_are_cells() -> None:
    """Of what is counted and how often: no number of the second column stands where the first has none."""
    left, right = items(0, [50, 80, 110, 140], []), items(400, [50, 80, 140], [110])
    (table,) = in_order([*left, *right])
    assert isinstance(table, Table)


def test_two_lines_beside_an_item_are_no_column() -> None:
    """White in spread lines of one item, that are not quite as high as each other."""
    left = [Line(0, 0, 230, 26), Line(0, 36, 230, 62), Line(0, 72, 230, 98)]
    right = [Line(270, 0, 500, 18), Line(310, 72, 540, 98)]
    parts = in_order([*left, *right])
    assert [(part.left, part.right) for part in parts if isinstance(part, Line)] == [
        (0, 500),
        (0, 230),
        (0, 540),
    ]


def test_cells_with_letters_that_reach_down_are_in_step_with_others() -> None:
    left = [line for top in range(0, 150, 30) for line in row(top, (50, 120), (150, 220))]
    right = [Line(x, top, x + 70, top + 28) for top in range(0, 150, 30) for x in (400, 490)]
    (table,) = in_order([*left, *right])
    assert isinstance(table, Table)
    assert [len(cells) for cells in table.rows] == [4] * 5


@needs_font
@pytest.mark.parametrize("gap", [30, 44])
def test_a_title_stands_across_the_gutter_between_its_words(gap: int) -> None:
    """One of them begins where the second column does."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    body, large = (ImageFont.truetype(FAMILY.regular, size) for size in (20, 40))
    prose = "Pebbles of quartz lie in the river below"
    edge = 100 + int(body.getlength(prose))
    first = "Rivers of old"
    draw.text((edge + gap - 9 - large.getlength(first), 100), first, font=large)
    draw.text((edge + gap, 100), "reeds here", font=large)
    for left in (100, edge + gap):
        for at in range(14):
            draw.text((left, 180 + 30 * at), prose, font=body)
    page = cut_page(image).page
    assert page is not None
    assert len(page.lines) == 1 + 2 * 14
    assert page.lines[0].left < edge < page.lines[0].right
