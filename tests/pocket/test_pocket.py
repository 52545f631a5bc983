"""The checkpoint that ships: its figures are the measured ones, its files are complete."""

import asyncio
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from app.document import Page, Pruning, Reading, ReadOptions
from app.documents.raster.poppler import describe_page, render
from app.open_reader import open_reader
from app.output import markdown
from app.output.checks import Checks, check_page
from app.pocket.opening import load_pocket
from benchmarks.accuracy.card import write_card
from benchmarks.accuracy.plot import risk_plot
from benchmarks.confidence import section
from training.errors_in_text import character_error_rate
from training.sample import PAGES
from training.settings import load_settings
from training.vocabulary import PLAIN_PROMPT, tokens

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "app/pocket/weights"


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
    model = load_pocket()
    config: Any = model.network.config
    assert "sparse" in config.text_config.mlp_layer_types
    assert model.default_mode == "pocket"


@pytest.mark.parametrize("prune", ["none", "rtprune"])
def test_the_sample_comes_back_within_the_stated_error(prune: Pruning, accuracy: dict[str, Any]) -> None:
    pages = [describe_page(str(ROOT / "docs/sample.pdf"), number) for number in (1, 2)]
    images = [render(page, 1754)[0] for page in pages]
    blank = Image.new("RGB", (531, 531), "white")
    options = ReadOptions(prune=prune, prompt=PLAIN_PROMPT)
    *read, nothing = (reading.text for reading in asyncio.run(read_pages([*images, blank], options)))
    # of born-digital pages of others, which it is one of
    (stated,) = (
        row["character_error_rate"]
        for row in accuracy["readings"]
        if (row["kind"], row["prompt"], row["pruning"]) == ("english", "plain", "dynamic")
    )
    assert character_error_rate(read, [page.text for page in PAGES]) <= stated
    assert not nothing.strip(), "a blank page has no text"


async def read_pages(images: list[Image.Image], options: ReadOptions) -> list[Reading]:
    reader = open_reader("pocket", "cpu")
    try:
        streams = [
            reader.submit(Page(index, image), options, document_id="sample")
            for index, image in enumerate(images)
        ]
        return [await stream.result() for stream in streams]
    finally:
        await reader.close()


def test_a_turned_page_is_read_like_an_upright_one() -> None:
    """Boxes are where the text is on the page as it was sent."""
    page, _ = render(describe_page(str(ROOT / "docs/sample.pdf"), 1), 1754)
    page = page.crop((0, 0, page.width, 700))
    ways = [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270]
    upright, *turned = asyncio.run(read_pages([page, *(page.transpose(way) for way in ways)], ReadOptions()))
    blocks = markdown.render(upright).blocks
    assert len(blocks) > 2
    for quarters, reading in enumerate(turned, 1):
        found = markdown.render(reading).blocks
        assert [block.text for block in found] == [block.text for block in blocks]
        for block, original in zip(found, blocks, strict=True):
            left, top, right, bottom = original.bbox
            for _ in range(quarters):
                left, top, right, bottom = top, 999 - right, bottom, 999 - left
            assert all(abs(a - b) <= 2 for a, b in zip(block.bbox, (left, top, right, bottom), strict=True))


def checked(images: list[Image.Image]) -> list[tuple[Reading, Checks]]:
    """As a worker reads pages and checks them."""

    async def run() -> list[tuple[Reading, Checks]]:
        reader = open_reader("pocket", "cpu")
        try:
            pages = [Page(index, image) for index, image in enumerate(images)]
            streams = [reader.submit(page, ReadOptions(), document_id="a") for page in pages]
            answers = []
            for page, stream in zip(pages, streams, strict=True):
                reading = await stream.result()
                rendered = markdown.render(reading)
                answers.append((reading, check_page(page, reading, rendered.markdown, rendered.blocks)))
            return answers
        finally:
            await reader.close()

    return asyncio.run(run())


def scribbles(image: Image.Image, top: int, count: int) -> Image.Image:
    """Loops as of a pen, in lines from ``top`` on: nothing that anybody reads."""
    drawn, rng = image.copy(), random.Random(1)
    draw = ImageDraw.Draw(drawn)
    for number in range(count):
        for left in range(120, 1100, 70):
            points = [(left + rng.randrange(60), top + 60 * number + rng.randrange(40)) for _ in range(7)]
            draw.line(points, fill=0, width=3)
    return drawn


def test_a_page_says_what_it_could_not_read() -> None:
    """Read well, in part, or not at all: how it ends and what it warns of are those of the page."""
    page = render(describe_page(str(ROOT / "docs/sample.pdf"), 1), 1754)[0].crop((0, 0, 1240, 700))
    paper = Image.new("RGB", (1240, 1000), "white")
    paper.paste(page)
    lost = Image.new("RGB", (1240, 500), "white")
    turned = page.rotate(10, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    answers = checked([page, scribbles(paper, 800, 1), scribbles(lost, 60, 6), turned])
    (whole, of_whole), (marked, _), (unread, of_unread), (askew, of_askew) = answers
    assert (whole.finish_reason, of_whole.warnings) == ("stop", ())
    assert whole.risk < 0.1
    assert of_whole.unread_ink is not None
    assert of_whole.unread_ink < 0.03
    assert marked.finish_reason == "stop", "a signature below the text is not the page"
    assert "A page of print is mostly paper" in marked.text
    for reading, checks in ((unread, of_unread), (askew, of_askew)):
        assert reading.finish_reason == "low_confidence"
        assert reading.risk > 0.5
        assert {"low_confidence", "unread_print"} <= {warning.code for warning in checks.warnings}


def test_its_risk_is_the_calibrated_one() -> None:
    figures = json.loads((ROOT / "benchmarks/results/confidence.json").read_text("utf-8"))
    assert asdict(load_pocket().risk_curve) == figures["curve"], (
        "run python -m benchmarks.confidence, docs/checkpoints.md says how"
    )
    docs = (ROOT / "docs/checkpoints.md").read_text("utf-8")
    assert section(figures) in docs
    assert (ROOT / "docs/risk-curve.svg").read_text("utf-8") == risk_plot(figures)
