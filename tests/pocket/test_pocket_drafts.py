"""The packaged checkpoint reads the same with drafts from a page's text layer as without."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from app.document import Page, PlacedWord, Pruning, Reading, ReadOptions
from app.documents.raster.pdf import pdf_page
from app.ocr.engine.settings import EngineSettings
from app.open_reader import open_reader
from app.pocket.expected import ExpectedText
from app.pocket.layout.page import cut_page

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ("visual", "kept", "patches", "kept_patches", "prompt", "output")


def sample() -> Page:
    """The first page of a born-digital document, its upper part."""
    page = pdf_page(str(ROOT / "docs/sample.pdf"), 0, None, 16_000_000, is_first=True, places_words=True)
    return replace(page, image=page.image.crop((0, 0, page.image.width, 480)))


def read(pages: Sequence[Page], options: Sequence[ReadOptions], most: int) -> list[Reading]:
    async def run() -> list[Reading]:
        settings = EngineSettings(max_running_pages=24, max_draft_tokens=most)
        reader = open_reader("pocket", "cpu", settings)
        try:
            streams = [
                reader.submit(page, options, document_id="a")
                for page, options in zip(pages, options, strict=True)
            ]
            return [await stream.result() for stream in streams]
        finally:
            await reader.close()

    return asyncio.run(run())


def said(page: Page, texts: Sequence[str]) -> Page:
    """The page with other words in the places of its text layer."""
    placed = page.placed_words
    return replace(
        page, placed_words=tuple(replace(word, text=texts[i % len(texts)]) for i, word in enumerate(placed))
    )


def test_pages_read_the_same_whatever_their_text_layer_says() -> None:
    """Side by side: right, none, garbage, another text, repeats, words in wrong places; pruned and not."""
    page = sample()
    words = [word.text for word in page.placed_words]
    assert len(words) > 40
    pages = [
        page,
        replace(page, placed_words=()),
        said(page, ["(c\N{REPLACEMENT CHARACTER}x", "\u4e00\u4e8c<td>", "<image>", "<|end|>"]),
        said(page, words[7:] + words[:7]),
        said(page, ["the the", "aaaa", "the"]),
        replace(page, placed_words=tuple(replace(one, left=one.left + 60) for one in page.placed_words)),
        page,
    ]
    prunings: list[Pruning] = [*["rtprune"] * 6, "none"]  # type: ignore[list-item]
    options = [ReadOptions(prune=prune) for prune in prunings]
    plain = read([page, page], [options[0], options[-1]], most=0)
    drafted = read(pages, options, most=8)
    for pruning, reading in zip(prunings, drafted, strict=True):
        wanted = plain[pruning == "none"]
        assert reading.text == wanted.text
        assert reading.blocks == wanted.blocks
        assert [getattr(reading.tokens, name) for name in COUNTS] == [
            getattr(wanted.tokens, name) for name in COUNTS
        ]
        assert (reading.finish_reason, reading.attempts) == (wanted.finish_reason, wanted.attempts)
        assert reading.confidence == pytest.approx(wanted.confidence, abs=1e-4)
    assert drafted[0].tokens.accepted > 0.6 * drafted[0].tokens.output, "most tokens are proposed"
    assert drafted[0].tokens.accepted > 0.8 * drafted[0].tokens.drafted
    assert drafted[1].tokens.drafted == plain[0].tokens.drafted == 0
    assert all(reading.tokens.accepted < reading.tokens.output / 2 for reading in drafted[2:5])


def test_a_view_expects_the_words_that_it_shows() -> None:
    page = sample()
    cut = cut_page(page.image)
    assert cut.page is not None
    across, down = cut.page.width / page.image.width, cut.page.height / page.image.height
    expected = ExpectedText(page.placed_words, across, down)
    texts = [expected.of(view) for view in cut.views]
    height = page.image.height
    shown = sorted(word.text for word in page.placed_words if (word.top + word.bottom) / 2 < height)
    assert sorted(" ".join(texts).split()) == shown, "each word once"
    assert all(text.count("\n") == len(view.rows) - 1 for text, view in zip(texts, cut.views, strict=True))


LINE = Image.new("L", (300, 100), 255)
ImageDraw.Draw(LINE).text((20, 20), "a line of print", fill=0, font_size=24)
VIEW = cut_page(LINE).views[0]


@given(st.lists(st.tuples(st.text("ab", min_size=1), st.integers(-50, 300), st.integers(-50, 300))))
def test_words_anywhere_harm_nothing(words: list[tuple[str, int, int]]) -> None:
    placed = [PlacedWord(text, left, top, left + 9, top + 9) for text, left, top in words]
    assert set(ExpectedText(placed, 1.0, 1.0).of(VIEW)) <= set("ab \n")
