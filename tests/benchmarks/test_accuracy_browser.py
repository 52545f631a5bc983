"""Pages that a browser's like prints: their truth, and that they have room on one page."""

import random
import stat
from pathlib import Path

import pytest
from PIL import Image
from region_pages import FAMILY

from benchmarks.accuracy.browser import Block, BrowserPages, WeasyPrintMissing
from benchmarks.accuracy.scores import structure_of
from training.text import TextSource


@pytest.fixture
def text(tmp_path: Path) -> TextSource:
    words = tmp_path / "words"
    words.write_text("page letter fold dustbin margin quartz sphinx river", encoding="utf-8")
    return TextSource(words)


def command(folder: Path, num_pages: list[int]) -> str:
    """Prints PDFs of so many empty pages each, the last again and again, and keeps the HTML."""
    page = Image.new("L", (124, 175), 255)
    for number, count in enumerate(num_pages):
        page.save(folder / f"{number}.pdf", save_all=True, append_images=[page] * (count - 1))
    script = folder / "weasyprint"
    last = len(num_pages) - 1
    script.write_text(
        f"#!/bin/sh\ncd {folder}\nn=$(ls *.html 2>/dev/null | wc -l)\ncp $2 $n.html\n"
        f"[ $n -gt {last} ] && n={last}\ncp $n.pdf $3\n",
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


@pytest.mark.parametrize(
    ("block", "structure"),
    [
        (Block("h2", (("Of rivers",),)), {"headings": ((2, "Of rivers"),)}),
        (Block("ol", (("One",), ("Two",))), {"lists": ((True, 2),)}),
        (Block("ul", (("One",), ("Two",), ("Three",))), {"lists": ((False, 3),)}),
        (Block("table", (("a", "b"), ("c", "d & e"))), {"tables": ((2, 2),)}),
        (Block("p", (("Quartz < sphinx",),)), {}),
    ],
)
def test_truth_says_what_is_printed(block: Block, structure: dict[str, object]) -> None:
    found = structure_of(block.markdown)
    assert {part: getattr(found, part) for part in ("headings", "lists", "tables")} == {
        "headings": (), "lists": (), "tables": (), **structure
    }  # fmt: skip
    for *_, last in block.parts:
        assert last in block.text("•")
        assert last.replace("&", "&amp;").replace("<", "&lt;") in block.html


def test_blocks_are_left_out_until_they_fit(text: TextSource, tmp_path: Path) -> None:
    pages = BrowserPages(command(tmp_path, [2, 2, 1]), text, [FAMILY])
    (sample,) = pages.kind(1).samples
    printed = [(tmp_path / f"{number}.html").read_text() for number in range(3)]
    assert printed[0].count("</p>") >= printed[1].count("</p>") >= printed[2].count("</p>")
    assert len(printed[0]) > len(printed[1]) > len(printed[2])
    assert sample.markdown is not None
    headings = [heading for _, heading in structure_of(sample.markdown).headings]
    assert headings
    assert all(f">{heading}</h" in printed[-1] for heading in headings)
    assert printed[-1].count("<h1>") + printed[-1].count("<h2>") == len(headings)
    assert sample.image.info["dpi"] == (150, 150)


def test_the_same_pages_come_again(text: TextSource, tmp_path: Path) -> None:
    pages = BrowserPages(command(tmp_path, [1]), text, [FAMILY])
    assert [one.markdown for one in pages.kind(3).samples] == [one.markdown for one in pages.kind(3).samples]


def test_a_missing_command_is_named(text: TextSource) -> None:
    with pytest.raises(WeasyPrintMissing, match=r"no-such-command.*pip install weasyprint"):
        BrowserPages("no-such-command", text, [FAMILY]).kind(1)


def test_no_paragraph_begins_as_an_item_does(text: TextSource) -> None:
    pages = BrowserPages("weasyprint", text, [FAMILY])
    rng = random.Random(1)
    blocks = [block for _ in range(30) for block in pages.blocks(rng, max_columns=4)]
    assert not any(structure_of(block.markdown).lists for block in blocks if block.tag == "p")
