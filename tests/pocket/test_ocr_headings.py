"""Headings on printed pages: which are one, and which are titles."""

import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, needs_font

from app.pocket.layout.blocks import regions_of
from app.pocket.layout.lines import Line
from app.pocket.layout.page import cut_page

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
    ("text", "white", "is_heading"),
    [("3.1.2 No state", 30, True), ("3.1.2 No state", 0, False), ("3.1.2 No state is this.", 30, False)],
)
def test_a_section_is_a_heading_however_it_is_printed(text: str, white: int, is_heading: bool) -> None:
    rows = paragraph(100, 100, 16)
    rows += [(100, 236 + white, text, 22, False), *paragraph(100, 270 + 2 * white, 16)]
    assert ("sub_title" in [kind for kind, _ in kinds_of(rows)]) == is_heading


@needs_font
@pytest.mark.parametrize(
    ("size", "is_bold", "white", "kind"),
    [
        (22, True, 24, "sub_title"),
        (22, True, 0, "text"),
        (25, False, 24, "sub_title"),
        (36, False, 0, "title"),
        (22, False, 24, "text"),
    ],
)
def test_size_weight_and_white_make_a_heading(size: int, is_bold: bool, white: int, kind: str) -> None:
    """Print as bold as the text around it needs white above; print as large as a title needs nothing."""
    text = "Pebbles and old bridges"
    rows = [*paragraph(100, 100, 16), (100, 236 + white, text, size, is_bold)]
    rows += paragraph(100, 270 + 2 * white + max(0, size - 22), 16)
    found = {words: one for one, words in kinds_of(rows)}
    assert found.get(text, "text") == kind


@needs_font
def test_a_paragraph_in_large_print_is_no_heading() -> None:
    abstract = [
        (100, 100 + 40 * at, "Pebbles of quartz lie in the river below", 30, False) for at in range(5)
    ]
    rows = [*abstract, *(part for top in (340, 700) for part in paragraph(100, top, 16, 8))]
    assert {kind for kind, _ in kinds_of(rows)} == {"text"}
