"""Reading in regions: everything that is printed is shown, once, in reading order."""

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from region_pages import A4, FAMILY, FONTS, needs_font

from app.document import Page, ReadOptions
from app.errors import BadOption
from app.open_reader import open_reader
from app.output.markdown import of_blocks
from app.pocket.layout.blocks import Region, regions_of
from app.pocket.layout.composed import compose
from app.pocket.layout.finding import find_lines
from app.pocket.layout.ink import find_ink
from app.pocket.layout.lines import Line
from app.pocket.layout.page import cut_page
from app.pocket.layout.views import VIEW_PX, line_views
from app.pocket.reader import MAX_VIEWS, PocketReader
from training.errors_in_text import character_error_rate
from training.layout import Layout, LayoutStyle
from training.printed import PrintedPage
from training.render import degrade, draw_page
from training.text import TextSource
from training.vocabulary import PLAIN_PROMPT


@pytest.fixture
def text(tmp_path: Path) -> TextSource:
    path = tmp_path / "words"
    words = "page letter fold Dustbin margin quartz sphinx holding paper yellow jumping agreement of it"
    path.write_text("\n".join(words.split()), encoding="utf-8")
    return TextSource(path)


def printed(text: TextSource, seed: int, structured: float) -> tuple[Image.Image, PrintedPage]:
    rng = random.Random(seed)
    style = LayoutStyle(*A4, em=rng.uniform(19, 29), structured=structured, max_characters=1500)
    page = Layout(rng, text, [FAMILY], style).fill()
    return draw_page(rng, page), page


def lines_of_page(image: Image.Image) -> list[Line]:
    page = cut_page(image).page
    return [] if page is None else page.lines


def shown(image: Image.Image, page: PrintedPage) -> str:
    """What somebody who reads without error would read in the regions, one after the other."""
    texts = []
    for line in lines_of_page(image):
        inside = [
            (x, character)
            for x, y, character in page.marks
            if line.left <= x <= line.right and line.top <= y <= line.bottom
        ]
        texts.append("".join(character for _, character in sorted(inside)))
    return "".join(texts)


@needs_font
@pytest.mark.parametrize(("structured", "most"), [(0.0, 0.005), (1.0, 0.12)])
def test_a_page_is_shown_whole_and_in_reading_order(text: TextSource, structured: float, most: float) -> None:
    """Bullets are taken off their lines and written back, so they are not in the regions."""
    read, truth = [], []
    for seed in range(16):
        image, page = printed(text, seed, structured)
        if page.characters < 100:
            continue
        pieces = [piece for block in page.blocks for piece, mark in block.plain if mark >= 0]
        read.append(shown(image, page))
        truth.append("".join(pieces))
    assert len(read) > 8
    assert character_error_rate(read, truth) <= most


@needs_font
def test_scans_are_cut_like_the_page_itself(text: TextSource) -> None:
    for seed in range(6):
        image, page = printed(text, seed, 0.0)
        if page.characters < 100:
            continue
        scan, _ = degrade(random.Random(seed), image, [])
        lines = [len(lines_of_page(one)) for one in (image, scan)]
        assert abs(lines[0] - lines[1]) <= max(1, 0.05 * lines[0])


@needs_font
def test_every_word_of_a_line_is_in_one_of_its_views(text: TextSource) -> None:
    image, _ = printed(text, 3, 0.0)
    ink = find_ink(image)
    assert ink is not None
    lines = find_lines(ink)
    typical = float(np.median([line.height for line in lines]))
    for line in lines:
        views = [view.image for view in line_views(ink, line, typical)]
        assert views
        assert {view.size for view in views} == {(VIEW_PX, VIEW_PX)}
        assert all(np.asarray(view).min() < 128 for view in views), "no view is empty"
        dark = sum(int((np.asarray(view) < 128).sum()) for view in views)
        assert dark > 0.5 * int(ink.mask[line.top : line.bottom, line.left : line.right].sum())


@pytest.mark.parametrize("kind", ["white", "gray", "noisy", "shaded", "black", "one pixel", "thin"])
def test_blank_pages_have_no_lines(kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(235, 6, (800, 600)).clip(0, 255).astype(np.uint8)
    shade = np.tile(np.linspace(200, 250, 600), (800, 1)).astype(np.uint8)
    images = {
        "white": Image.new("RGB", (600, 800), "white"),
        "gray": Image.new("RGB", (600, 800), (190, 190, 190)),
        "noisy": Image.fromarray(noise),
        "shaded": Image.fromarray(shade),
        "black": Image.new("RGB", (600, 800)),
        "one pixel": Image.new("RGB", (1, 1)),
        "thin": Image.new("RGB", (3000, 2), "white"),
    }
    cut = cut_page(images[kind])
    assert cut.page is None
    assert not cut.views


def test_hostile_pages_are_cut_without_error() -> None:
    rng = np.random.default_rng(1)
    chess = (np.indices((700, 900)).sum(axis=0) // 3 % 2 * 255).astype(np.uint8)
    static = rng.integers(0, 256, (500, 500), dtype=np.uint8)
    grid = Image.new("L", (900, 900), 255)
    draw = ImageDraw.Draw(grid)
    for at in range(0, 900, 30):
        draw.line((at, 0, at, 899), fill=0, width=2)
        draw.line((0, at, 899, at), fill=0, width=2)
    dust = Image.fromarray(np.where(rng.random((2400, 2400)) < 0.02, 0, 255).astype(np.uint8))
    for image in (
        dust,
        Image.fromarray(chess),
        Image.fromarray(static),
        grid,
        Image.new("L", (4000, 300), 40),
    ):
        cut = cut_page(image)
        assert sum(cut.counts) == len(cut.views)


@needs_font
def test_text_inside_a_drawn_frame_is_found() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    draw.ellipse((100, 100, 1100, 700), outline=0, width=3)
    for at in range(5):
        draw.text((350, 250 + 50 * at), "Pebbles of quartz", font=ImageFont.truetype(FAMILY.regular, 24))
    ink = find_ink(image)
    assert ink is not None
    assert [line.height < 40 and line.width < 400 for line in find_lines(ink)] == [True] * 5


@needs_font
@pytest.mark.parametrize("words", ["plunder, jovial, and", "Guzo vyfj jity lyfa", "the Comedians find old"])
@pytest.mark.parametrize("size", [24, 46])
def test_a_line_is_one_whatever_its_signs_and_its_size(words: str, size: int) -> None:
    """Signs hang under their neighbours; of large letters only some reach above the others."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    draw.text((100, 100), words, font=ImageFont.truetype(FAMILY.regular, size))
    body = ImageFont.truetype(FAMILY.regular, 24)
    for at in range(8):
        draw.text((100, 200 + 34 * at), "The quick brown fox jumps over the lazy dog at noon", font=body)
    ink = find_ink(image)
    assert ink is not None
    assert len(find_lines(ink)) == 9


@needs_font
def test_short_words_and_pages_of_capitals_are_lines() -> None:
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    body = ImageFont.truetype(FAMILY.regular, 24)
    lines = ["PEBBLES OF QUARTZ LIE BESIDE THE OLD BRIDGE", "AND 1984 MORE OF THEM", "some"] * 4
    for at, line in enumerate(lines):
        draw.text((100, 200 + 30 * at), line, font=body)
    ink = find_ink(image)
    assert ink is not None
    assert len(find_lines(ink)) == len(lines)


@needs_font
@pytest.mark.parametrize("below", [1, 2, 3])
def test_an_underline_takes_nothing_from_the_letters_above_it(below: int) -> None:
    """Whose base is so many pixels above the rule."""
    font = ImageFont.truetype(FAMILY.regular, 26)
    plain = Image.new("L", A4, 255)
    for base in range(100, 700, 40):
        words = "summer hour nine" if base == 300 else "summer hour nine is near the river where we are now"
        ImageDraw.Draw(plain).text((100, base), words, font=font, anchor="ls")
    ruled = plain.copy()
    ImageDraw.Draw(ruled).rectangle((100, 300 + below, 400, 301 + below), fill=0)
    wanted, found = find_ink(plain), find_ink(ruled)
    assert wanted is not None
    assert found is not None
    assert found.rules[300 + below, 100:400].all()
    assert (wanted.mask & ~found.mask).sum() <= 0.01 * wanted.mask[270:310].sum()
    assert not (found.mask & ~wanted.mask).any()


@needs_font
@pytest.mark.parametrize("left", [0, 4, 15])
def test_print_at_the_edge_of_a_page_is_cut_where_it_begins(left: int) -> None:
    image = Image.new("L", (600, 400), 255)
    font = ImageFont.truetype(FAMILY.regular, 28)
    for at in (60, 120):
        ImageDraw.Draw(image).text((left, at), "•", font=font)
        ImageDraw.Draw(image).text((left + 50, at), "Pebbles of quartz lie in", font=font)
    page = cut_page(image).page
    assert page is not None
    assert [page.leads[line].bullet for line in page.lines] == ["•", "•"]
    assert all(abs(page.leads[line].left - left) < 12 for line in page.lines)


def test_a_numbered_list_begins_anew() -> None:
    lines = tuple(Line(0, top, 300, top + 20) for top in (0, 30, 60, 90))
    region = Region("text", (0, 0, 300, 110), lines)
    tagged = compose([region], ["1. one", "2. two", "1. other", "2. more"], as_markdown=True)
    assert of_blocks(tagged).markdown == "1. one\n2. two\n\n1. other\n2. more"


@needs_font
@pytest.mark.parametrize("degrees", [0.0, 0.8])
def test_structure_of_a_printed_page(degrees: float) -> None:
    """A title of two lines, a bold heading, items that hang, a table whose cells are ruled on all sides."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    large, bold, body = (
        ImageFont.truetype(path, size)
        for path, size in ((FAMILY.bold, 44), (FAMILY.bold, 26), (FAMILY.regular, 24))
    )
    texts: list[str] = []

    def write(place: tuple[int, int], text: str, font: ImageFont.FreeTypeFont) -> None:
        draw.text(place, text, font=font)
        texts.append(text)

    for top, line in ((100, "Rivers of the northern plains"), (155, "and what they carry")):
        write((100, top), line, large)
    write((100, 250), "Gravel", bold)
    prose = "The quick brown fox jumps over the lazy dog and then it rests for a while"
    for top in (300, 334, 368):
        write((100, top), prose, body)
    for top in (430, 500):
        draw.text((120, top), "•", font=body)
        write((160, top), "Pebbles of quartz lie", body)
        write((160, top + 34), "beside the old bridge", body)
    for at, words in enumerate((("Sand", "12"), ("Clay", "7"))):
        for number, word in enumerate(words):
            box = (100 + 130 * number, 600 + 40 * at, 230 + 130 * number, 640 + 40 * at)
            draw.rectangle(box, outline=0, width=2)
            write((box[0] + 10, box[1] + 5), word, body)
    for top in (720, 754, 788):
        write((100, top), prose, body)
    page = cut_page(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255)).page
    assert page is not None
    regions = regions_of(page, texts)
    kinds = [region.kind for region in regions]
    assert kinds == ["title", "sub_title", "text", "text", "text", "table", "text"]
    assert [len(region.lines) for region in regions] == [2, 1, 3, 2, 2, 4, 3]
    assert [len(region.bulleted) for region in regions] == [0, 0, 0, 1, 1, 0, 0]


@needs_font
def test_text_begins_after_the_number_of_a_typewriter() -> None:
    """White between its digit and its dot is as wide as a space, white after them is wider."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    mono = ImageFont.truetype(FONTS / "DejaVuSansMono.ttf", 24)
    texts = ["1. Pebbles of quartz", "beside the bridge", "2. Nobody takes them", "home at night"]
    for at, text in enumerate(texts):
        *number, words = text.split(" ", 1) if text[0].isdigit() else [text]
        draw.text((100, 100 + 36 * at), "".join(number), font=mono)
        draw.text((160, 100 + 36 * at), words, font=mono)
    page = cut_page(image).page
    assert page is not None
    edges = [page.leads[line].text_left for line in page.lines if line.left < 120]
    assert edges == pytest.approx([160, 160], abs=6)
    markdown = of_blocks(compose(regions_of(page, texts), texts, as_markdown=True)).markdown
    assert markdown == f"{texts[0]} {texts[1]}\n{texts[2]} {texts[3]}"


def test_model_text_cannot_forge_regions() -> None:
    """What a view says is text, whatever it looks like: tags in it are tags of no region of ours."""
    line = Line(0, 0, 10, 10)
    text = "<|ref|>title<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>"
    rendered = of_blocks(compose([Region("text", (5, 6, 7, 8), (line,))], [text], as_markdown=True))
    assert [block.bbox for block in rendered.blocks] == [(5, 6, 7, 8)]


@needs_font
def test_pages_are_read_in_regions_and_can_be_cancelled(text: TextSource) -> None:
    image, _ = printed(text, 2, 0.0)
    page = Page(0, image.convert("RGB"))

    async def read() -> None:
        reader = open_reader("pocket", "cpu")
        assert isinstance(reader, PocketReader)
        try:
            with pytest.raises(BadOption):
                reader.submit(page, ReadOptions(mode="nonsense"), document_id="a")
            whole = reader.submit(page, ReadOptions(prompt=PLAIN_PROMPT), document_id="a")
            left = reader.submit(page, ReadOptions(), document_id="b")
            left.cancel()
            reading = await whole.result()
            assert "".join([piece async for piece in whole.pieces()]) == reading.text
            assert reading.finish_reason == "stop"
            assert len(reading.text) > 100
            assert reading.tokens.visual % 21 == 0, "views of 4 x 4 patches, row breaks and a separator"
            assert reading.tokens.kept < reading.tokens.visual
            assert (await left.result()).finish_reason == "cancelled"
            short = reader.submit(page, ReadOptions(max_output_tokens=20), document_id="c")
            cut = await short.result()
            assert cut.finish_reason == "length"
            specks = np.random.default_rng(2).integers(0, 40, (1200, 900)) == 0
            hostile = Page(1, Image.fromarray(np.where(specks, 0, 255).astype(np.uint8)).convert("RGB"))
            many = await reader.submit(hostile, ReadOptions(max_output_tokens=40), document_id="e").result()
            assert many.tokens.visual <= MAX_VIEWS * 21
            blank = Page(1, Image.new("RGB", A4, "white"))
            nothing = await reader.submit(blank, ReadOptions(), document_id="d").result()
            assert (nothing.text, nothing.finish_reason) == ("", "stop")
        finally:
            await reader.close()

    asyncio.run(read())


@needs_font
@pytest.mark.parametrize(("second", "size", "headings"), [
    ("Bridges and rivers", 44, 1), ("Bridges and rivers", 36, 2), ("AND", 44, 1), ("SHORES", 28, 2),
])  # fmt: skip
def test_lines_of_one_heading_are_of_one_size(second: str, size: int, headings: int) -> None:
    """Lines that differ more in size than measuring errs are two headings."""
    image = Image.new("L", A4, 255)
    draw = ImageDraw.Draw(image)
    bold, body = (
        (ImageFont.truetype(FAMILY.bold, px) for px in (44, size)),
        ImageFont.truetype(FAMILY.regular, 22),
    )
    title = "STONES OF THE LAND" if second == "AND" else "Pebbles of the long river"
    for top, text, font in zip((100, 160), (title, second), bold, strict=True):
        draw.text((120, top), text, font=font)
    texts = [title, second, *["Pebbles of Quartz LIE IN the rivers beside the SHORE, and AND so on"] * 8]
    for number, text in enumerate(texts[2:]):
        draw.text((120, 260 + 32 * number), text, font=body)
    page = cut_page(image).page
    assert page is not None
    assert [region.kind == "text" for region in regions_of(page, texts)].count(False) == headings
