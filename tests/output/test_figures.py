"""Figures: what is cut out of a page, and where Markdown refers to it."""

import io
from dataclasses import replace

import pytest
from PIL import Image, ImageDraw

from app.document import Block, Page, PageResult
from app.output.cutting import PAGE_SIDE_PX, Pictured, in_pixels, take_pictures
from app.output.figures import readdressed
from app.output.markdown import Rendered, of_blocks, to_markdown
from app.output.parts import parts_of

SIZE = (800, 1000)
RED = (100, 300, 499, 600)
LIMIT = 2**21


def drawn() -> Page:
    """White, with a red field where ``RED`` is."""
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).rectangle(in_pixels(RED, SIZE), fill="red")
    return Page(2, image)


def pictured(rendered: Rendered, page: Page | None = None, max_bytes: int = LIMIT, **limits: int) -> Pictured:
    limit = limits.get("max_figures", 64)
    return take_pictures(page or drawn(), rendered, max_figures=limit, max_bytes=max_bytes, keep_page=False)


def grounded(*boxes: tuple[int, int, int, int], text: str = "") -> str:
    return f"<|ref|>image<|/ref|><|det|>{[list(box) for box in boxes]}<|/det|>{text}"


def page_of(done: Pictured) -> PageResult:
    return PageResult(2, *SIZE, done.rendered.markdown, done.rendered.blocks)


def test_a_figure_is_cut_at_the_pages_resolution_and_stands_where_it_was() -> None:
    text = (
        "<|ref|>text<|/ref|><|det|>[[0, 0, 999, 200]]<|/det|>Above\n"
        + grounded(RED)
        + "<|ref|>image_caption<|/ref|><|det|>[[100, 610, 500, 640]]<|/det|>Figure 1. [A *red* field]\n"
        "<|ref|>text<|/ref|><|det|>[[0, 700, 999, 900]]<|/det|>Below"
    )
    done = pictured(to_markdown(text))
    above, figure, caption, below = done.rendered.markdown.split("\n\n")
    assert (above, below) == ("Above", "Below")
    assert figure == "![Figure 1. A red field](images/p3-1.png)"
    assert caption.startswith("Figure 1.")
    [picture] = done.pictures
    cut = Image.open(io.BytesIO(picture.data))
    left, top, right, bottom = in_pixels(RED, SIZE)
    assert cut.size == (picture.width, picture.height) == (right - left, bottom - top)
    assert cut.getcolors() is not None
    assert cut.getpixel((0, 0)) == (255, 0, 0)
    assert [part.number for part in parts_of(page_of(done))] == [0, 1, 2, 3]


def test_boxes_twice_over_the_edge_and_empty() -> None:
    boxes = [RED, RED, (900, 900, 999, 999), (5, 5, 5, 900), (0, 0, 999, 2)]
    done = pictured(to_markdown(grounded(*boxes, text="inside\n") + "<|ref|>text<|/ref|>after"))
    assert [picture.name for picture in done.pictures] == ["p3-1.png", "p3-2.png"]
    assert done.rendered.markdown.count("](images/") == 2
    assert done.rendered.markdown.index("p3-1") < done.rendered.markdown.index("inside")
    assert in_pixels((-5, 0, 2000, 999), SIZE) == (0, 0, *SIZE)
    assert not done.warnings


def test_pages_without_pictures_are_as_they_were() -> None:
    rendered = to_markdown("# Title\n\ntext <|ref|>text<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>more")
    assert pictured(rendered).rendered is rendered
    nothing = pictured(to_markdown(grounded(RED)), max_figures=0)
    assert (nothing.rendered.markdown, nothing.warnings) == ("", ())


def test_limits_scale_figures_down_or_leave_them_out_and_say_so() -> None:
    noise = Image.effect_noise(SIZE, 90).convert("RGB")
    rendered = to_markdown(grounded((0, 0, 999, 999), RED, (1, 1, 200, 200)))
    done = pictured(rendered, Page(0, noise), max_bytes=100_000, max_figures=2)
    assert [warning.code for warning in done.warnings] == ["figure_scaled", "figures_left_out"]
    assert [len(picture.data) <= 100_000 for picture in done.pictures] == [True, True]
    assert done.pictures[0].width < SIZE[0]
    assert not pictured(rendered, Page(0, noise), max_bytes=60).pictures


def test_the_picture_of_a_page_is_bounded() -> None:
    page = Page(0, Image.new("RGB", (400, 4000), "white"))
    done = take_pictures(page, Rendered("", ()), max_figures=1, max_bytes=LIMIT, keep_page=True)
    [picture] = done.pictures
    assert (picture.name, picture.bbox, picture.height) == ("p1.jpg", None, PAGE_SIDE_PX)


def test_references_get_other_addresses_or_go() -> None:
    blocks = [
        Block("text", (0, 0, 999, 100), "`![x](images/p3-1.png)` as text\n\n\nand more"),
        Block("image", RED, ""),
        Block("image", (0, 700, 500, 999), "says"),
    ]
    page = page_of(pictured(of_blocks(blocks)))
    assert page.markdown.count("images/p3-1.png") == 2
    elsewhere = readdressed(page, lambda name: f"/v1/{name}")
    assert elsewhere.markdown == page.markdown.replace("](images/p3-1.png)\n", "](/v1/p3-1.png)\n").replace(
        "images/p3-2", "/v1/p3-2"
    )
    assert len(parts_of(elsewhere)) == 3
    without = readdressed(page, None)
    assert without.markdown == "`![x](images/p3-1.png)` as text\n\n\nand more\n\nsays"
    assert [block.markdown for block in without.blocks] == [None, None, "says"]


def test_a_page_that_imitates_references_has_its_figure_once() -> None:
    fake = "![](images/p3-1.png)"
    boxes = "".join(grounded(RED, text=f"{fake}\n") for _ in range(50))
    page = page_of(pictured(to_markdown(fake + "\n\n" + boxes)))
    assert readdressed(page, lambda _: "HERE").markdown.count("HERE") == 1


@pytest.mark.parametrize("kind", ["Figure", "CHART"])
def test_types_of_pictures(kind: str) -> None:
    rendered = of_blocks([Block(kind, RED, ""), replace(Block("table", RED, "x"))])
    assert len(pictured(rendered).pictures) == 1
