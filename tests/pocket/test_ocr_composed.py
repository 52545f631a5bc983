"""What was read in regions becomes Markdown or plain text: lists, headings, tables, broken words."""

from dataclasses import replace

import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, needs_font, printed_page, row

from app.output.hyphens import flowed, unbroken
from app.output.markdown import of_blocks
from app.pocket.layout.blocks import Region, regions_of
from app.pocket.layout.bullets import DASH, STAR
from app.pocket.layout.composed import compose, page_blocks
from app.pocket.layout.lines import Line, Table
from app.pocket.layout.lists import Bullet
from app.pocket.layout.page import cut_page


@needs_font
@pytest.mark.parametrize("size", [20, 28, 44])
def test_bullets_are_named_by_their_form(size: int) -> None:
    image = Image.new("L", (1200, 700), 255)
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(FAMILY.regular, size)
    signs = "•*-–◦▪"  # noqa: RUF001
    for number, sign in enumerate(signs):
        draw.text((50, 40 + 2 * size * number), sign, font=font)
        draw.text((50 + 2 * size, 40 + 2 * size * number), "Pebbles of quartz lie", font=font)
    page = cut_page(image).page
    assert page is not None
    found = [page.leads[line].bullet or "?" for line in page.lines if line in page.leads]
    assert "".join(found) == signs


def test_markdown_of_what_was_read() -> None:
    heading, first, second, third = (Line(0, top, 300, top + 20) for top in (0, 40, 70, 100))
    cells = row(200, (0, 50), (100, 150)) + row(230, (0, 50), (100, 150))
    regions = [
        Region("sub_title", (0, 0, 300, 20), (heading,)),
        Region("text", (0, 40, 300, 120), (first, second, third), {first: "•", third: "–"}),  # noqa: RUF001
        Region("table", (0, 200, 150, 250), Table((((cells[0],), (cells[1],)), ((cells[2],), ())))),
    ]
    texts = ["On  paper", "one\nthing", "goes on", "another", "a", "b", "c <b>"]
    blocks = compose(regions, texts, as_markdown=True)
    assert (blocks[0].type, blocks[0].bbox, blocks[0].text) == ("sub_title", (0, 0, 300, 20), "## On paper")
    assert of_blocks(blocks).markdown == (
        "## On paper\n\n- one thing goes on\n- another\n\n"
        "<table><tr><td>a</td><td>b</td></tr><tr><td>c &lt;b></td><td></td></tr></table>"
    )
    plain = "\n\n".join(block.text for block in compose(regions, texts, as_markdown=False))
    assert plain == "On paper\n\n• one thing\ngoes on\n– another\n\na b\nc <b>"  # noqa: RUF001


@pytest.mark.parametrize(
    ("lines", "flow"),
    [
        (("a large trans-", "formation of it"), "a large transformation of it"),
        (("a state-of-the-", "art thing"), "a state-of-the-art thing"),
        (("the Franco-", "Prussian war"), "the Franco-Prussian war"),
        (("LARGE TRANS-", "FORMATIONS"), "LARGE TRANSFORMATIONS"),
        (("pages 12-", "15 of it"), "pages 12-15 of it"),
        (("well -", "or not"), "well - or not"),
        (("one", "- two"), "one - two"),
        (("ends here-", "", "after"), "ends hereafter"),
    ],
)
def test_words_broken_at_a_lines_end_are_whole_again(lines: tuple[str, ...], flow: str) -> None:
    assert flowed(lines) == flow
    shown = [line for line in lines if line]
    assert " ".join(unbroken(shown)) == flow
    assert len(unbroken(shown)) <= len(shown)


def test_lists_are_apart_from_what_is_around_them_and_go_on_over_regions() -> None:
    """A paragraph, two numbered items, a list in two regions."""
    lines = [Line(0, 0, 300, 20), Line(0, 30, 300, 50), Line(30, 60, 300, 80), Line(0, 90, 300, 110)]
    bullets = [Line(0, 140, 300, 160), Line(0, 180, 300, 200)]
    regions = [
        Region("text", (0, 0, 300, 110), tuple(lines)),
        *(Region("text", (0, at.top, 300, at.bottom), (at,), {at: "•"}) for at in bullets),
    ]
    texts = ["As follows", "1. one", "and more", "2. two", "dot", "dash"]
    tagged = compose(regions, texts, as_markdown=True)
    assert of_blocks(tagged).markdown == "As follows\n\n1. one and more\n2. two\n\n- dot\n- dash"
    assert of_blocks(tagged).blocks[-1].bbox == (0, 140, 300, 200)


def test_a_sentence_that_ends_with_a_number_begins_no_list() -> None:
    lines = tuple(Line(0, top, 300, top + 20) for top in (0, 30, 60))
    texts = ["There were as many as", "60. Nobody knows", "what became of them"]
    region = Region("text", (0, 0, 300, 80), lines)
    assert of_blocks(compose([region], texts, as_markdown=True)).markdown == " ".join(texts)
    for above, below in ((Line(0, 0, 120, 20), lines[2]), (lines[0], Line(30, 60, 300, 80))):
        item = Region("text", (0, 0, 300, 80), (above, lines[1], below))
        markdown = of_blocks(compose([item], texts, as_markdown=True)).markdown
        assert markdown == "There were as many as\n\n60. Nobody knows what became of them"


def moved(bullet: Bullet, by: float) -> Bullet:
    return replace(bullet, left=bullet.left + by, text_left=bullet.text_left + by)


def test_bullets_of_one_list_are_alike_and_under_each_other() -> None:
    disc, dash = Bullet(1.0, 0.4, 0.4, 2.5), Bullet(1.0, 0.6, 0.1, 2.5)
    shifted, inner, column = (moved(disc, by) for by in (0.3, 1.5, 19.0))
    for one, other in ((disc, dash), (disc, shifted), (dash, column)):
        for is_apart in (False, True):
            assert not one.is_of_list([other], is_apart=is_apart)
            assert not other.is_of_list([one], is_apart=is_apart)
    assert column.is_of_list([disc], is_apart=True)
    assert inner.is_of_list([disc], is_apart=False)
    assert not inner.is_of_list([disc], is_apart=True)


def test_bullets_of_one_list_are_as_far_from_their_texts() -> None:
    disc = Bullet(1.0, 0.4, 0.4, 2.5)
    nearer, about_there = replace(disc, text_left=1.9), replace(disc, text_left=2.35)
    assert not nearer.is_of_list([disc], is_apart=False)
    assert about_there.is_of_list([disc], is_apart=False)
    flush_right = Bullet(2.2, 0.9, 0.1, 4.2)
    assert flush_right.is_of_list([disc], is_apart=False)


def test_a_list_steps_out_only_to_where_its_items_stood() -> None:
    outer = Bullet(1.0, 0.4, 0.4, 2.5)
    inner = moved(outer, 1.5)
    assert outer.is_of_list([outer, inner], is_apart=False)
    assert not outer.is_of_list([inner], is_apart=False)


@needs_font
def test_lists_of_other_bullets_are_apart_on_a_printed_page() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    body = ImageFont.truetype(FAMILY.regular, 24)
    texts = ["Pebbles of quartz lie", "beside the old bridge", "and nobody takes them", "home in the evening"]
    for at, (mark, text) in enumerate(zip("••––", texts, strict=True)):  # noqa: RUF001 - dashes as bullets
        draw.text((120, 100 + 36 * at), mark, font=body)
        draw.text((160, 100 + 36 * at), text, font=body)
    page = cut_page(image).page
    assert page is not None
    markdown = of_blocks(compose(regions_of(page, texts), texts, as_markdown=True)).markdown
    first, second, third, fourth = texts
    assert markdown == f"- {first}\n- {second}\n\n- {third}\n- {fourth}"


@needs_font
@pytest.mark.parametrize("mark", ["“", "'", "3."])
def test_what_is_no_bullet_is_left_in_its_line(mark: str) -> None:
    page = printed_page([(100, 100, mark), (140, 100, "Pebbles of quartz lie"), (140, 136, "in the river")])
    assert not any(lead.is_bullet for lead in page.leads.values())


@needs_font
@pytest.mark.parametrize("sign", ["•", "◦", "▪"])
def test_a_bullet_needs_no_more_than_a_space_after_it(sign: str) -> None:
    font = ImageFont.truetype(FAMILY.regular, 26)
    image = Image.new("L", (1200, 400), 255)
    draw = ImageDraw.Draw(image)
    left = 60 + round(font.getbbox(sign)[2]) + 6
    for number in range(3):
        draw.text((60, 40 + 44 * number), sign, font=font)
        draw.text((left, 40 + 44 * number), "Pebbles of quartz lie", font=font)
    page = cut_page(image).page
    assert page is not None
    assert [page.leads[line].bullet for line in page.lines] == [sign] * 3


@needs_font
@pytest.mark.parametrize("word", ["o f", "'Tis", "\u2019s", "a b", "e. g."])
def test_signs_of_a_text_are_no_bullets(word: str) -> None:
    page = printed_page([(100, 100, f"{word} pebbles of quartz lie"), (100, 140, "in the river below")])
    assert not any(lead.is_bullet for lead in page.leads.values())


@needs_font
@pytest.mark.parametrize("mark", ["'", "\u2019", "`", "^"])
def test_marks_of_a_text_under_each_other_are_no_bullets(mark: str) -> None:
    """As wide as a space apart from their letters, which a typewriter's are."""
    right = 100 + round(ImageFont.truetype(FAMILY.regular, 24).getbbox(mark)[2])
    rows = [(100, 100 + 40 * at, mark) for at in range(3)]
    texts = [(right + 4, 100 + 40 * at, "economic pebbles of quartz") for at in range(3)]
    page = printed_page([*rows, *texts])
    assert not any(lead.is_bullet for lead in page.leads.values())


@needs_font
def test_a_quotation_mark_far_from_its_word_is_no_bullet() -> None:
    """As a typewriter sets it: low pieces stand high, as no bullet does."""
    rows = [(100, 100 + 40 * at, "'") for at in range(3)]
    texts = [(118, 100 + 40 * at, "pebbles of quartz") for at in range(3)]
    page = printed_page([*rows, *texts])
    assert not any(lead.is_bullet for lead in page.leads.values())


@needs_font
@pytest.mark.parametrize("mark", ["`", "^", "'"])
def test_accents_that_a_spread_line_begins_with_are_no_bullets(mark: str) -> None:
    page = printed_page([(100, 100, mark), (130, 100, "pebbles of quartz"), (100, 140, "lie in the river")])
    assert not any(lead.is_bullet for lead in page.leads.values())


@needs_font
def test_a_number_that_hangs_under_an_item_is_of_its_text() -> None:
    """Unless a list inside it begins there, and goes on."""

    def markdown(*texts: str) -> str:
        rows = [(100, 100, "1)"), *((150, 100 + 36 * at, text) for at, text in enumerate(texts))]
        read = [f"1) {texts[0]}", *texts[1:]]
        return of_blocks(compose(regions_of(printed_page(rows), read), read, as_markdown=True)).markdown

    words = "pebbles of quartz"
    assert markdown(words, f"84. Rivers and {words}", words).count("\n") == 0
    assert markdown(words, f"1. Rivers and {words}", f"2. Bridges and {words}").split("\n\n") == [
        f"1) {words}",
        f"1. Rivers and {words}\n2. Bridges and {words}",
    ]


def numbered(left: float, text_left: float) -> Bullet:
    return Bullet(left, 0.8, 1.0, text_left, is_number=True)


def test_numbers_of_one_list_or_their_texts_are_under_each_other() -> None:
    """Numbers that are not the next ones are so only if both are."""
    first, right = numbered(1.0, 3.0), replace(numbered(0.2, 3.0), width=1.6)
    beside, elsewhere = numbered(2.0, 3.0), numbered(2.0, 4.0)
    assert first.counts_on(first, is_next=False)
    assert right.counts_on(first, is_next=False)  # "10." under "9."
    assert beside.counts_on(first, is_next=True)
    assert not beside.counts_on(first, is_next=False)
    assert not elsewhere.counts_on(first, is_next=True)
    assert numbered(20.0, 22.0).counts_on(first, is_next=False)  # in the next column


@needs_font
def test_numbered_lists_that_begin_elsewhere_are_apart() -> None:
    texts = ["1. Pebbles of quartz", "2. and sand", "5. Rivers of the north", "6. and bridges"]
    places = [(120, 170), (120, 170), (150, 210), (150, 210)]
    rows = [
        part
        for at, (text, (left, text_left)) in enumerate(zip(texts, places, strict=True))
        for number, words in [text.split(" ", 1)]
        for part in [(left, 100 + 36 * at, number), (text_left, 100 + 36 * at, words)]
    ]
    markdown = of_blocks(page_blocks(printed_page(rows), texts, as_markdown=True)).markdown
    assert markdown == f"{texts[0]}\n{texts[1]}\n\n{texts[2]}\n{texts[3]}"


@needs_font
def test_a_dash_before_a_line_that_another_one_hangs_under_is_a_bullet() -> None:
    """However wide what is above it, and flush with it."""
    rows = [
        (100, 100, "Rivers of the north and all that lies below their old bridges"),
        (100, 136, DASH), (150, 136, "Pebbles of quartz"), (150, 172, "and sand"),
        (100, 208, DASH), (150, 208, "Bridges"),
    ]  # fmt: skip
    page = printed_page(rows)
    assert [lead.bullet for lead in page.leads.values() if lead.is_bullet] == [DASH, DASH]


@needs_font
def test_a_star_stands_beside_letters_that_are_all_low() -> None:
    rows = [
        part
        for at, text in enumerate(("over an arrow", *["Rivers of the north"] * 4, "some"))
        for part in [(120, 97 + 40 * at, "*"), (180, 100 + 40 * at, text)]
    ]
    page = printed_page(rows, size=30)
    assert [page.leads[line].bullet for line in page.lines if line in page.leads] == [STAR] * 6


@needs_font
def test_an_item_begins_where_its_bullet_was_read_though_it_was_not_seen() -> None:
    """A sign that is like none is no bullet by its form."""
    rows = [(100, 100, "Pebbles of quartz lie in the"), (100, 132, "river")]
    rows += [(130, 164, "x"), (180, 164, "Bridges"), (130, 196, "x"), (180, 196, "Rivers")]
    texts = ["Pebbles of quartz lie in the", "river", "* Bridges", "* Rivers"]
    markdown = of_blocks(page_blocks(printed_page(rows), texts, as_markdown=True)).markdown
    assert markdown == "Pebbles of quartz lie in the river\n\n- Bridges\n- Rivers"


@pytest.mark.parametrize(
    ("numbers", "is_list"),
    [(("1.", "2."), True), (("7)", "8)"), True), (("1.", "3."), False), (("1", "2"), False)],
)
def test_rows_of_numbers_that_count_and_one_cell_are_items(
    numbers: tuple[str, str], *, is_list: bool
) -> None:
    """However short they are."""
    cells = row(0, (0, 20), (100, 150)) + row(30, (0, 20), (100, 150))
    table = Table((((cells[0],), (cells[1],)), ((cells[2],), (cells[3],))))
    texts = [numbers[0], "Pebbles", numbers[1], "Sand"]
    markdown = of_blocks(compose([Region("table", (0, 0, 150, 50), table)], texts, as_markdown=True)).markdown
    if is_list:
        assert markdown == f"{numbers[0]} Pebbles\n{numbers[1]} Sand"
    else:
        assert markdown.startswith("<table>")
