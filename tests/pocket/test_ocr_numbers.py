"""Numbers of pages and of items: told from text, and told where they were misread."""

import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, needs_font, printed_page

from app.output.markdown import of_blocks
from app.pocket.layout.blocks import regions_of
from app.pocket.layout.composed import compose, page_blocks
from app.pocket.layout.page import cut_page
from app.pocket.layout.prints import PageLines


@needs_font
@pytest.mark.parametrize("number", ["- 7 -", "Page 7", "7 of 12", "xii"])
@pytest.mark.parametrize("at", [40, 1650])
def test_the_pages_number_is_no_part_of_the_text(number: str, at: int) -> None:
    text = [(100, 400 + 36 * line, "Pebbles of quartz lie in") for line in range(8)]
    beside = [(700, top, words) for _, top, words in text]
    page = printed_page([(250, at, number), *text, *beside])
    read = [number.removeprefix("- ") if line.top < 90 or line.top > 1600 else "said" for line in page.lines]
    blocks = of_blocks(compose(regions_of(page, read), read, as_markdown=True)).blocks
    kinds = [block.type for block in blocks]
    assert kinds.index("page_number") == (0 if at == 40 else len(kinds) - 1)
    assert blocks[kinds.index("page_number")].text == number
    assert kinds.count("page_number") == 1


@needs_font
def test_items_that_follow_each_other_are_no_headings() -> None:
    """Bold and short, but numbered one after the other."""
    font = ImageFont.truetype(FAMILY.bold, 24)
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    texts = ["1. Pebbles", "2. Quartz", "3. Rivers"]
    for number, text in enumerate(texts):
        draw.text((100, 100 + 60 * number), text, font=font)
    for number in range(8):
        draw.text(
            (100, 320 + 34 * number),
            "Pebbles of quartz lie in the river below the bridge.",
            font=ImageFont.truetype(FAMILY.regular, 24),
        )
    page = cut_page(image).page
    assert page is not None
    read = [*texts, *["Pebbles of quartz lie in the river below the bridge."] * 8]
    regions = regions_of(page, read)
    assert {region.kind for region in regions[:3]} == {"text"}


def list_page(printed: list[str]) -> PageLines:
    """Items with these numbers; lines without one hang under the texts of those above."""
    rows = []
    for at, number in enumerate(printed):
        top = 100 + 36 * at
        rows += [(100, top, number)] if number else []
        rows.append((148, top, "Pebbles of quartz lie"))
    page = printed_page(rows)
    assert len(page.lines) == len(printed)
    return page


@needs_font
@pytest.mark.parametrize(("read", "shown"), [("220-", "- 220 -"), ("44.", "- 44 -"), ("5 -", "- 5 -")])
def test_a_pages_number_has_two_dashes_or_none(read: str, shown: str) -> None:
    page = printed_page([(600, 1600, "- 220 -"), *((100, 400 + 36 * at, "Pebbles lie") for at in range(8))])
    texts = [read if line.top > 1500 else "said" for line in page.lines]
    rendered = of_blocks(page_blocks(page, texts, as_markdown=True))
    assert rendered.blocks[-1].text == shown
    assert rendered.markdown.endswith(f"\n\\{shown}"), "which is no item of a list"


@needs_font
def test_a_list_that_counts_back_is_another_one() -> None:
    page = list_page(["1.", "2.", "2.", "3)"])
    markdown = of_blocks(
        page_blocks(page, ["1. one", "2. two", "2. other", "3) last"], as_markdown=True)
    ).markdown
    assert markdown == "1. one\n2. two\n\n2. other\n\n3) last"


@needs_font
def test_what_hangs_under_an_item_keeps_its_words() -> None:
    page = list_page(["1.", "", "2.", "", "3."])
    read = ["1. one", "of which", "2. two", "of them", "3. three"]
    markdown = of_blocks(page_blocks(page, read, as_markdown=True)).markdown
    assert markdown == "1. one of which\n2. two of them\n3. three"


@needs_font
def test_a_list_that_counts_far_on_is_another_one() -> None:
    page = list_page(["1.", "2.", "9.", "10."])
    markdown = of_blocks(
        page_blocks(page, ["1. one", "2. two", "9. other", "10. last"], as_markdown=True)
    ).markdown
    assert markdown == "1. one\n2. two\n\n9. other\n10. last"


NARROW = "A plain line of text here"


@needs_font
def test_items_that_a_mere_space_parts_from_their_numbers_are_a_list() -> None:
    """As browsers print them; lines that hang under an item's text belong to it."""
    font = ImageFont.truetype(FAMILY.regular, 24)
    hang = 100 + round(font.getlength("1. "))
    rows = [(100, 60, NARROW * 2)]
    for at, number in enumerate(["1.", "", "2.", "3."]):
        rows.append((100 if number else hang, 140 + 34 * at, f"{number} Pebbles of quartz lie".strip()))
    page = printed_page([*rows, (100, 320, NARROW * 2)])
    read = [text for _, _, text in [*rows, (0, 0, NARROW * 2)]]
    markdown = of_blocks(page_blocks(page, read, as_markdown=True)).markdown
    quartz = "Pebbles of quartz lie"
    items = f"1. {quartz} {quartz}\n2. {quartz}\n3. {quartz}"
    assert markdown == f"{NARROW * 2}\n\n{items}\n\n{NARROW * 2}"


@needs_font
def test_lines_hang_under_an_item_however_wide_its_spaces_are() -> None:
    """Of a justified line, whose first word has more white after it than the number."""
    rows = [
        (100, 100, "1."),
        (140, 100, "It"),
        (190, 100, "was a femur of unusual size, as"),
        (140, 134, "it is said"),
    ]
    page = printed_page(rows)
    read = ["1. It was a femur of unusual size, as", "it is said"]
    assert of_blocks(page_blocks(page, read, as_markdown=True)).markdown == " ".join(read)
