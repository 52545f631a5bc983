"""The checkpoint that ships: its figures are the measured ones, its files are complete."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from app.document import Page, Pruning, ReadOptions
from app.ocr.deepseek import load_model
from app.ocr.reader import open_reader
from app.output.markdown import to_markdown
from app.poppler import render_pdf_page
from training.card import write_card
from training.errors_in_text import character_error_rate
from training.sample import PAGES
from training.settings import load_settings
from training.vocabulary import PLAIN_PROMPT, tokens

ROOT = Path(__file__).parent.parent
POCKET = ROOT / "app/ocr/pocket"


@pytest.fixture(scope="module")
def accuracy() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((ROOT / "benchmarks/results/accuracy.json").read_text("utf-8"))
    return figures


def test_the_card_is_what_the_recorded_figures_give(accuracy: dict[str, Any]) -> None:
    settings = load_settings(ROOT / "training/pocket.toml")
    assert (POCKET / "README.md").read_text("utf-8") == write_card(accuracy, POCKET, settings)


def test_the_vocabulary_is_the_one_training_builds() -> None:
    stored = json.loads((POCKET / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert sorted(stored, key=stored.__getitem__) == tokens()


def test_it_is_small_enough_to_ship_and_has_an_expert_layer() -> None:
    assert (POCKET / "model.safetensors").stat().st_size <= 40e6
    model = load_model("pocket", "cpu", torch.float32)
    config: Any = model.network.config
    assert "sparse" in config.text_config.mlp_layer_types
    assert model.default_mode == "pocket"


@pytest.mark.parametrize("prune", ["none", "rtprune"])
def test_the_sample_comes_back_within_the_stated_error(prune: Pruning, accuracy: dict[str, Any]) -> None:
    images = [render_pdf_page(str(ROOT / "docs/sample.pdf"), number, 1754) for number in (1, 2)]
    blank = Image.new("RGB", (531, 531), "white")
    options = ReadOptions(prune=prune, prompt=PLAIN_PROMPT)
    *read, nothing = asyncio.run(read_pages([*images, blank], options))
    # of born-digital pages of others, which it is one of
    (stated,) = (
        row["character_error_rate"]
        for row in accuracy["readings"]
        if (row["kind"], row["prompt"], row["pruning"]) == ("english", "plain", "dynamic")
    )
    assert character_error_rate(read, [page.text for page in PAGES]) <= stated
    assert not nothing.strip(), "a blank page has no text"


async def read_pages(images: list[Image.Image], options: ReadOptions) -> list[str]:
    reader = open_reader("pocket", "cpu")
    try:
        streams = [
            reader.submit(Page(index, image), options, document_id="sample")
            for index, image in enumerate(images)
        ]
        return [(await stream.result()).text for stream in streams]
    finally:
        await reader.close()


def test_a_turned_page_is_read_like_an_upright_one() -> None:
    """Boxes are where the text is on the page as it was sent."""
    page = render_pdf_page(str(ROOT / "docs/sample.pdf"), 1, 1754)
    page = page.crop((0, 0, page.width, 700))
    ways = [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270]
    upright, *turned = asyncio.run(read_pages([page, *(page.transpose(way) for way in ways)], ReadOptions()))
    blocks = to_markdown(upright).blocks
    assert len(blocks) > 2
    for quarters, text in enumerate(turned, 1):
        found = to_markdown(text).blocks
        assert [block.text for block in found] == [block.text for block in blocks]
        for block, original in zip(found, blocks, strict=True):
            left, top, right, bottom = original.bbox
            for _ in range(quarters):
                left, top, right, bottom = top, 999 - right, bottom, 999 - left
            assert all(abs(a - b) <= 2 for a, b in zip(block.bbox, (left, top, right, bottom), strict=True))
