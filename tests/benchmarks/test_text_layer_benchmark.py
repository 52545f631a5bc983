"""``benchmarks.text_layer``: pages with a text layer, and what is counted of second readings."""

import asyncio
from pathlib import Path

import pytest
from modes_reader import HALF, WORDS, ModesReader
from PIL import Image

from app.document import Page
from benchmarks import text_layer
from benchmarks.text_layer import Bench, drawn, faint, second_row
from training.text import TextSource


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    path = tmp_path / "words"
    path.write_text("forty sheets white stock northern store twelve gray", "utf-8")
    return TextSource(path)


def test_a_drawn_page_has_its_text_as_text_layer_in_its_size(source: TextSource) -> None:
    small, large = (drawn(source, size_pt, 1) for size_pt in (4.0, 8.0))
    base, followed = (small.page(follows_print=follows_print) for follows_print in (False, True))
    assert base.words == followed.words == tuple(small.text.split())
    assert (base.dpi, base.glyph_px) == (150, None)
    assert followed.dpi is not None
    assert followed.dpi > 150
    of_small, of_large = (one.page(follows_print=True, dpi=150).glyph_px for one in (small, large))
    assert of_small is not None
    assert of_large == pytest.approx(2 * of_small)


def test_no_faint_page_is_taken_for_blank(source: TextSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_layer, "FAINT", text_layer.FAINT[1:5:2])
    assert [row["taken_for_blank"] for row in faint(source)] == [0, 0]


def test_second_readings_are_counted_with_what_they_changed() -> None:
    text = " ".join(WORDS)
    page = Page(0, Image.new("RGB", (60, 60)), words=WORDS, has_text=True)
    bench = Bench(ModesReader(text, HALF, text, HALF, HALF))
    row = asyncio.run(second_row(bench, "kind", [(page, text)] * 3))
    assert (row["pages"], row["low_recall"], row["read_twice"], row["second_kept"]) == (3, 2, 2, 1)
    assert row["error_after"] < row["error_before"]
