"""What stands in rows is a table, ruled or not, and ends where it ends."""

from dataclasses import replace

import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, needs_font, row

from app.output.markdown import of_blocks
from app.pocket.layout.blocks import regions_of
from app.pocket.layout.composed import compose, page_blocks
from app.pocket.layout.lines import Line, Table
from app.pocket.layout.order import in_order
from app.pocket.layout.page import cut_page
from app.pocket.layout.rules import Rules


def test_aligned_cells_are_a_table_and_text_around_it_is_not() -> None:
    above = row(0, (50, 900))
    cells = [row(top, (50, 110), (300, 380), (600, 640)) for top in (60, 95, 130)]
    below = row(190, (50, 880))
    parts = in_order([*below, *(cell for cells_of_row in cells for cell in cells_of_row), *above])
    assert [type(part) for part in parts] == [Line, Table, Line]
    table = parts[1]
    assert isinstance(table, Table)
    assert [[cell for (cell,) in cells_of_row] for cells_of_row in table.rows] == cells


def test_cells_with_little_white_between_are_a_table_and_spread_words_are_not() -> None:
    cells = [row(top, (50, 200), (212, 300 + top), (420, 470 + top)) for top in (0, 30, 60)]
    (table,) = in_order([cell for cells_of_row in cells for cell in cells_of_row])
    assert isinstance(table, Table)
    assert [[cell for (cell,) in cells_of_row] for cells_of_row in table.rows] == cells
    spread = [row(top, (50, 250 + top), (265 + top, 500)) for top in (0, 8)]
    spread[1] = row(30, (50, 251), (266, 500))
    parts = in_order([stretch for stretches in spread for stretch in stretches])
    assert [type(part) for part in parts] == [Line, Line]


def test_spread_words_under_each_other_are_no_table() -> None:
    """Narrow columns of justified text have white that columns of a table have, in some lines all over."""
    spread = [
        [(100, 180), (200, 290), (310, 380), (400, 500)],
        [(70, 180), (201, 270), (291, 410), (431, 500)],
    ]
    lines = [line for at, spans in enumerate(spread) for line in row(30 * at, *spans)]
    assert [type(part) for part in in_order(lines)] == [Line, Line]
    cells = [
        line for at, spans in enumerate(spread) for line in row(30 * at, spans[0], (320, 380), (470, 500))
    ]
    assert [type(part) for part in in_order(cells)] == [Table]


def test_few_rows_are_a_table_where_no_justified_line_would_end() -> None:
    """Short of the text's right edge, or with so much white that the next word would have fit."""
    cells = [cell for top in (0, 30) for cell in row(top, (50, 120), (160, 240), (280, 340))]
    wide = [cell for top in (0, 30) for cell in row(top, (50, 120), (330, 400), (620, 700))]
    text = [line for top in (100, 130, 160) for line in row(top, (50, 700))]
    assert [type(part) for part in in_order([*cells, *text])] == [Table, Line, Line, Line]
    assert [type(part) for part in in_order([*wide, *text])] == [Table, Line, Line, Line]
    flush = [replace(cell, right=700) if cell.right == 340 else cell for cell in cells]
    assert [type(part) for part in in_order([*flush, *text])] == [Line] * 5


def long_row(top: int, *gaps: tuple[int, int]) -> Line:
    """A row of long cells: one stretch from 50 to 420."""
    return Line(50, top, 420, top + 20, gaps=gaps)


def drawn_table(
    draw: ImageDraw.ImageDraw, cells: list[list[str]], box: tuple[int, int, int], *, grid: bool
) -> int:
    """``box``: left, top, width. Rules above, under the first row and below; a grid around all. -> bottom"""
    font = ImageFont.truetype(FAMILY.regular, 24)
    left, top, width = box
    pitch, edges = 44, [top]
    step = width // len(cells[0])
    y = top
    for number, words in enumerate(cells):
        for column, word in enumerate(words):
            draw.multiline_text((left + 10 + step * column, y + 8), word, font=font, spacing=6)
        y += pitch + 34 * max(word.count("\n") for word in words)
        edges += [y] if grid or number in (0, len(cells) - 1) else []
    for edge in edges:
        draw.line((left, edge, left + width, edge), fill=0, width=2)
    for column in range(len(cells[0]) + 1) if grid else ():
        draw.line((left + step * column, top, left + step * column, y), fill=0, width=2)
    return y


@needs_font
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 0.7])
def test_ruled_tables_end_with_their_rules(*, grid: bool, degrees: float) -> None:
    """Items of a list stand as its cells do; a table as wide follows; text stands beside them."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(FAMILY.regular, 24)
    cells = [["Sand", "12"], ["", "7"], ["Clay of Kent", "19"]]
    for at in range(3):
        draw.text((110, 100 + 34 * at), f"{at + 1}.      Pebbles of quartz", font=font)
    bottom = drawn_table(draw, cells, (100, 210, 460), grid=grid)
    bottom = drawn_table(draw, [*cells, ["Gravel", "3"]], (100, bottom + 20, 460), grid=grid)
    for at in range(12):
        draw.text((620, 100 + 34 * at), "The quick brown fox jumps over it", font=font)
    page = cut_page(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255)).page
    assert page is not None
    tables = [part for part in page.parts if isinstance(part, Table)]
    assert [[[len(cell) for cell in row] for row in table.rows] for table in tables] == [
        [[1, 1], [0, 1], [1, 1]],
        [[1, 1], [0, 1], [1, 1], [1, 1]],
    ]
    assert len(page.lines) == 3 + 5 + 7 + 12


@needs_font
def test_a_heading_between_grids_of_one_width_is_none_of_their_rows() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    cells = [["Sand", "12", "of it"], ["Mud", "7", "of them"], ["Clay", "19", "in all"]]
    bottom = drawn_table(draw, cells * 2, (100, 210, 480), grid=True)
    draw.text((104, bottom + 12), "A. Stones", font=ImageFont.truetype(FAMILY.bold, 28))
    drawn_table(draw, cells, (100, bottom + 56, 480), grid=True)
    page = cut_page(image).page
    assert page is not None
    kinds = [len(part.rows) if isinstance(part, Table) else "line" for part in page.parts]
    assert kinds == [6, "line", 3]


@needs_font
def test_a_grid_without_print_is_no_table_and_costs_nothing_else() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    drawn_table(draw, [["", ""], ["", ""], ["", ""]], (100, 400, 460), grid=True)
    draw.text((100, 200), "Pebbles of quartz lie in", font=ImageFont.truetype(FAMILY.regular, 24))
    page = cut_page(image).page
    assert page is not None
    markdown = of_blocks(page_blocks(page, ["read"] * len(page.lines), as_markdown=True)).markdown
    assert "read" in markdown
    assert "<table>" not in markdown


def test_no_item_of_a_list_begins_a_table_however_short_it_is() -> None:
    items = [cell for at, right in enumerate((250, 130, 140)) for cell in row(30 * at, (50, 65), (90, right))]
    assert [type(part) for part in in_order(items)] == [Line] * 3


def test_items_are_no_table_however_short_all_of_them_are() -> None:
    items = [cell for at, right in enumerate((150, 130, 140)) for cell in row(30 * at, (50, 65), (90, right))]
    assert [type(part) for part in in_order(items)] == [Line] * 3
    cells = [
        cell for at, right in enumerate((200, 180, 190)) for cell in row(30 * at, (50, 65), (140, right))
    ]
    assert [type(part) for part in in_order(cells)] == [Table]


def test_an_item_above_a_table_is_no_row_of_it() -> None:
    """Its bullet and its text stand in one column."""
    cells = [cell for top in (30, 60) for cell in row(top, (50, 120), (280, 330), (480, 560))]
    parts = in_order([*row(0, (50, 60), (90, 200)), *cells])
    assert [len(part.rows) for part in parts if isinstance(part, Table)] == [2]


@needs_font
def test_a_row_between_rules_has_cells_of_several_lines() -> None:
    image = Image.new("L", A4, 255)
    cells = [["Where", "What"], ["Kent", "clay\nand sand"], ["North\nbank", "gravel"], ["Weir", "mud\nreeds"]]
    drawn_table(ImageDraw.Draw(image), cells, (100, 200, 700), grid=True)
    page = cut_page(image).page
    assert page is not None
    read = ["Where", "What", "Kent", "clay", "and sand", "North", "bank", "gravel", "Weir", "mud", "reeds"]
    (region,) = regions_of(page, read)
    assert isinstance(region.part, Table)
    assert [[len(cell) for cell in row] for row in region.part.rows] == [[1, 1], [1, 2], [2, 1], [1, 2]]
    markdown = of_blocks(compose([region], read, as_markdown=True)).markdown
    assert "<tr><td>North bank</td><td>gravel</td></tr><tr><td>Weir</td><td>mud reeds</td></tr>" in markdown


def test_a_head_in_the_middle_above_numbers_at_the_right_is_of_their_column() -> None:
    """As browsers set it; between the columns' strips, under no number."""
    head = row(0, (60, 160), (420, 480))
    cells = [row(top, (50, 150 + top), (640 - top, 700)) for top in (40, 80, 120, 160)]
    lines = [*head, *(cell for cells_of_row in cells for cell in cells_of_row)]
    (table,) = in_order(lines)
    assert isinstance(table, Table)
    assert [[cell for (cell,) in cells_of_row] for cells_of_row in table.rows] == [head, *cells]


def test_numbers_above_a_long_word_are_cells() -> None:
    """No list has as wide a number among its others."""
    cells = [((0, 30), (176, 284)), ((0, 24), (176, 283)), ((0, 24), (176, 270)), ((0, 146), (176, 208))]
    (table,) = in_order([line for at, spans in enumerate(cells) for line in row(35 * at, *spans)])
    assert isinstance(table, Table)
    assert [len(one) for one in table.rows] == [2] * 4


def test_a_table_under_a_list_keeps_its_rows() -> None:
    """Its first cells are as narrow as bullets, but not under them."""
    items = [line for at in range(4) for line in row(30 * at, (12, 20), (60, 400 + 20 * at))]
    spans = [(0, 43), (116, 169), (235, 279), (348, 417)]
    wide = [(0, 92), (117, 211), (236, 283), (348, 394)]
    cells = [line for at in range(5) for line in row(124 + 30 * at, *(spans if at < 2 else wide))]
    *lines, table = in_order([*items, *cells])
    assert len(lines) == 4
    assert isinstance(table, Table)
    assert [len(one) for one in table.rows] == [4] * 5


def columns_of(lines: list[Line], rules: Rules | None = None) -> list[int]:
    """Of every row of the only table."""
    (table,) = (part for part in in_order(lines, rules or Rules()) if isinstance(part, Table))
    return [len(cells) for cells in table.rows]


def test_a_line_of_text_under_a_table_is_no_row_where_a_space_stands_in_line() -> None:
    rows = [line for top in (0, 30, 60) for line in row(top, (50, 110), (150, 200), (240, 300))]
    spaces = ((110, 119), (142, 150), (190, 199), (231, 240), (270, 279))
    parts = in_order([*rows, Line(50, 98, 420, 118, gaps=spaces)])
    assert [type(part) for part in parts] == [Table, Line]
    assert isinstance(parts[0], Table)
    assert len(parts[0].rows) == 3


def test_the_spread_first_lines_of_an_indented_paragraph_are_no_table() -> None:
    spread = [*row(0, (81, 180), (290, 500)), *row(30, (50, 180), (287, 500))]
    text = [line for top in (60, 90, 120) for line in row(top, (50, 500))]
    assert all(isinstance(part, Line) for part in in_order([*spread, *text]))
    short = [*row(0, (81, 180), (290, 400)), *row(30, (50, 180), (287, 397))]
    assert isinstance(in_order([*short, *text])[0], Table)


@needs_font
def test_a_small_grid_is_a_table_and_two_near_each_other_are_two() -> None:
    image = Image.new("L", A4, 255)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(FAMILY.regular, 20)
    for left, top, middle, right in ((100, 400, 160, 216), (500, 400, 600, 760), (500, 489, 640, 760)):
        for at in range(3):
            draw.line((left, top + 40 * at, right, top + 40 * at), fill=0, width=2)
        for x in (left, middle, right):
            draw.line((x, top, x, top + 80), fill=0, width=2)
        for at in range(2):
            draw.text((left + 8, top + 40 * at + 8), f"1{at}", font=font)
            draw.text((middle + 8, top + 40 * at + 8), f"3{at}", font=font)
    for top in range(700, 1500, 34):
        draw.text((100, top), "Pebbles of quartz lie in the river below the old bridge", font=font)
    page = cut_page(image).page
    assert page is not None
    tables = [part for part in page.parts if isinstance(part, Table)]
    assert [(len(table.rows), len(table.rows[0])) for table in tables] == [(2, 2)] * 3


@needs_font
def test_columns_between_rules_may_be_hardly_farther_apart_than_words() -> None:
    image = Image.new("L", A4, 255)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(FAMILY.regular, 24)
    left = 110 + font.getlength("lump of clay") + 11
    for at, (one, other) in enumerate((("sand", "body"), ("lump of clay", "and all"), ("mud", "stones"))):
        draw.line((100, 300 + 50 * at, 420, 300 + 50 * at), fill=0, width=2)
        draw.text((110, 308 + 50 * at), one, font=font)
        draw.text((left, 308 + 50 * at), other, font=font)
    draw.line((100, 450, 420, 450), fill=0, width=2)
    page = cut_page(image).page
    assert page is not None
    (table,) = page.parts
    assert isinstance(table, Table)
    assert [[len(cell) for cell in cells] for cells in table.rows] == [[1, 1]] * 3


@needs_font
def test_white_between_words_of_a_grids_cells_makes_no_column() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    drawn_table(draw, [["old c", "12 at"], ["one b", "37 in"]], (100, 300, 320), grid=True)
    page = cut_page(image).page
    assert page is not None
    (table,) = page.parts
    assert isinstance(table, Table)
    assert [len(cells) for cells in table.rows] == [2, 2]


def test_a_head_may_stand_at_the_left_of_cells_at_the_right() -> None:
    head = row(0, (50, 100), (220, 280), (420, 460))
    cells = [row(30 * at, (50, 90 + 10 * at), (360 - 30 * at, 400), (500 - 20 * at, 540)) for at in (1, 2, 3)]
    lines = [line for line_row in [head, *cells] for line in line_row]
    assert columns_of(lines) == [3] * 4
    assert all(isinstance(part, Line) for part in in_order(lines[:-3]))  # two rows tell nothing
