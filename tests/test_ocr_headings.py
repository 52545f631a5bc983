"""Headings on printed pages: which are one, and which are titles."""

import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, needs_font

from app.ocr.regions.blocks import regions_of
from app.ocr.regions.lines import Line
from app.ocr.regions.page import cut_page

BODY = "Pebbles of quartz lie in the river below the old bridge and nobody takes them home"
Printed = list[tuple[int, int, str, int, bool]]
"""Left, top, text, size and whether it is bold."""


def kinds_of(rows: Printed) -> list[tuple[str, str]]:
    """Kinds of the regions, and their texts."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    for left, top, text, size, is_bold in rows:
        font = ImageFont.truetype(FAMILY.bold if is_bold else FAMILY.regular, size)
        draw.text((left, top), text, font=font)
    page = cut_page(image).page
    assert page is not None
    printed = {(left, top): text for left, top, text, _, _ in rows}
    texts = [printed[min(printed, key=lambda at: distance(at, line))] for line in page.lines]
    named = dict(zip(page.lines, texts, strict=True))
    return [(one.kind, " ".join(named[line] for line in one.lines)) for one in regions_of(page, texts)]


def distance(at: tuple[int, int], line: Line) -> int:
    return abs(at[0] - line.left) + abs(at[1] + 6 - line.top)


def paragraph(left: int, top: int, words: int, count: int = 4) -> Printed:
    text = " ".join(BODY.split()[:words])
    return [(left, top + 34 * at, text, 22, False) for at in range(count)]


@needs_font
@pytest.mark.parametrize(
    ("second", "count"), [("Old bridges", 2), ("Bridges and everything that lies below them", 1)]
)
def test_headings_on_end_are_two_where_the_seconds_word_would_have_fit(second: str, count: int) -> None:
    first = "Rivers" if count == 2 else "Rivers of the northern plains and what they have below their"
    rows = [(100, 100, first, 24, True), (100, 134, second, 24, True)]
    found = kinds_of([*rows, *paragraph(100, 200, 16), *paragraph(100, 400, 16)])
    assert [kind == "text" for kind, _ in found] == [False] * count + [True] * 2


@needs_font
def test_a_heading_across_columns_is_their_title() -> None:
    """However large the others are."""
    title = [(100, 100, "Rivers of the northern plains and their old bridges in the evening", 27, True)]
    columns = [
        part
        for left in (100, 640)
        for part in [(left, 170, "Pebbles", 28, True), *paragraph(left, 230, 8, 12)]
    ]
    found = [kind for kind, _ in kinds_of([*title, *columns]) if kind != "text"]
    assert found == ["title", "sub_title", "sub_title"]


@needs_font
@pytest.mark.parametrize(
    ("text", "white", "is_heading"),
    [("3.1.2 No state", 30, True), ("3.1.2 No state", 0, False), ("3.1.2 No state is this.", 30, False)],
)
def test_a_section_is_a_heading_however_it_is_printed(text: str, white: int, is_heading: bool) -> None:
    rows = paragraph(100, 100, 16)
    rows += [(100, 236 + white, text, 22, False), *paragraph(100, 270 + 2 * white, 16)]
    assert ("sub_title" in [kind for kind, _ in kinds_of(rows)]) == is_heading


@needs_font
def test_headings_are_told_on_a_page_of_little_else() -> None:
    """More than half of the letters are theirs: what is usual on the page is no measure of them."""
    rows: Printed = [
        (100, 100, "PEBBLES OF THE NORTHERN", 40, True),
        (100, 150, "PLAINS AND BRIDGES", 40, True),
        (100, 220, "RIVERS AND EVERYTHING THAT LIES BELOW", 23, True),
        (100, 280, "What the foxes say of them in winter", 23, True),
        *paragraph(100, 340, 8, 2),
    ]
    assert [kind for kind, _ in kinds_of(rows)] == ["title", "sub_title", "sub_title", "text"]


@needs_font
@pytest.mark.parametrize("text", ["What the foxes say of winter", "An old bridge and the river"])
def test_a_line_in_another_font_is_a_heading_though_it_is_no_larger(text: str) -> None:
    """Its letters are as high and as heavy as the body's, and have other shapes."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    body = ImageFont.truetype(FAMILY.regular, 22)
    serif = ImageFont.truetype(FAMILY.regular.with_name("DejaVuSerif.ttf"), 22)
    rows = [*paragraph(100, 100, 16), (100, 256, text, 22, False), *paragraph(100, 312, 16)]
    for left, top, words, _, _ in rows:
        draw.text((left, top), words, font=serif if words == text else body)
    page = cut_page(image).page
    assert page is not None
    texts = [words for _, _, words, _, _ in rows]
    named = dict(zip(page.lines, texts, strict=True))
    kinds = [(one.kind, [named[line] for line in one.lines]) for one in regions_of(page, texts)]
    assert [kind for kind, lines in kinds if text in lines] == ["sub_title"]
    assert sum(kind != "text" for kind, _ in kinds) == 1


@needs_font
@pytest.mark.parametrize("is_centred", [True, False])
def test_a_heading_in_the_middle_of_the_page_is_a_title_over_one_column(is_centred: bool) -> None:
    """No larger than the others; the second column is empty."""
    title = "Rivers of the North"
    width = ImageFont.truetype(FAMILY.bold, 26).getlength(title)
    left = round((A4[0] - width) / 2) if is_centred else 120
    rows = [(left, 100, title, 26, True), *paragraph(120, 180, 7, 8)]
    rows += [(120, 480, "Pebbles and sand", 26, True), *paragraph(120, 530, 7, 8)]
    rows += [(120, 840, "Old bridges", 26, True), *paragraph(120, 890, 7, 8)]
    found = [kind for kind, _ in kinds_of(rows) if kind != "text"]
    assert found == ["title" if is_centred else "sub_title", "sub_title", "sub_title"]


@needs_font
def test_a_title_in_the_middle_of_the_text_is_one_though_a_table_is_wider() -> None:
    prose = paragraph(120, 180, 16, 8)
    right = 120 + ImageFont.truetype(FAMILY.regular, 22).getlength(prose[0][2])
    title = "Rivers of the North"
    width = ImageFont.truetype(FAMILY.bold, 26).getlength(title)
    rows = [(round((120 + right - width) / 2), 100, title, 26, True), *prose]
    rows += [(120, 480, "Pebbles and sand", 26, True), *paragraph(120, 530, 16, 8)]
    for at in range(3):
        texts = ((120, "Tees"), (480, f"1{at}7"), (1150, f"{at}8"))
        rows += [(left, 850 + 34 * at, text, 22, False) for left, text in texts]
    found = [kind for kind, _ in kinds_of(rows) if kind not in ("text", "table")]
    assert found == ["title", "sub_title"]
