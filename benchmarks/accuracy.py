"""Character error rate of a checkpoint on held-out rendered pages, through the engine, pruned and not.

    python -m benchmarks.accuracy --pages 200 --out benchmarks/results/accuracy.json

The pages come from the training renderer with seeds that training never uses: fonts seen, texts unseen; the
needed Debian packages are named in training/README.md. The last line of stdout is one JSON document.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.document import Page, Reading, ReadOptions
from app.ocr.reader import open_reader
from app.reader import PageReader
from benchmarks.report import publish
from training.errors_in_text import character_error_rate
from training.render import PageRenderer, PageStyle, RenderedPage
from training.settings import Settings, load_settings
from training.text import TextSource

FIRST_SEED = 2_000_000_000
IN_FLIGHT = 16
EM_PX, MAX_LINES = (24, 44), 9
"""What the checkpoint is for, whatever its last training stage was."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to read the pages."""

    name: str
    options: ReadOptions


VARIANTS = (
    Variant("none", ReadOptions(prune="none")),
    Variant("dynamic", ReadOptions(prune="rtprune")),
    Variant("fixed 0.75", ReadOptions(prune="rtprune", keep_ratio=0.75)),
)


def held_out_pages(settings: Settings, count: int) -> list[RenderedPage]:
    """``count`` pages with text."""
    style = PageStyle(settings.model.view_px, EM_PX, MAX_LINES)
    fonts = [settings.render.font_folder / font for font in settings.render.fonts]
    renderer = PageRenderer(TextSource(settings.render.words), fonts)
    pages: list[RenderedPage] = []
    seed = FIRST_SEED
    while len(pages) < count:
        page = renderer.page(seed, style)
        seed += 1
        if page.text:
            pages.append(page)
    return pages


async def read_all(reader: PageReader, pages: Sequence[RenderedPage], options: ReadOptions) -> list[Reading]:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def read(index: int, rendered: RenderedPage) -> Reading:
        image = Image.fromarray(rendered.pixels).convert("RGB")
        async with gate:
            stream = reader.submit(Page(index, image), options, document_id="accuracy")
            return await stream.result()

    return list(await asyncio.gather(*(read(index, page) for index, page in enumerate(pages))))


def row(variant: Variant, pages: Sequence[RenderedPage], readings: Sequence[Reading]) -> dict[str, object]:
    read, truth = [reading.text for reading in readings], [page.text for page in pages]
    by_page = [character_error_rate([left], [right]) for left, right in zip(read, truth, strict=True)]
    by_length = {
        "up to 2 lines": _subset_error(read, truth, lambda text: text.count("\n") < 2),
        "3 to 5 lines": _subset_error(read, truth, lambda text: 2 <= text.count("\n") < 5),
        "6 lines and more": _subset_error(read, truth, lambda text: text.count("\n") >= 5),
    }
    return {
        "pruning": variant.name,
        "character_error_rate": round(character_error_rate(read, truth), 4),
        "median_of_pages": round(float(np.median(by_page)), 4),
        "by_length": by_length,
        "retention": round(float(np.mean([reading.tokens.retention for reading in readings])), 4),
        "finish_reasons": {
            reason: sum(reading.finish_reason == reason for reading in readings)
            for reason in sorted({reading.finish_reason for reading in readings})
        },
    }


def _subset_error(read: Sequence[str], truth: Sequence[str], chosen: Callable[[str], bool]) -> float | None:
    pairs = [(left, right) for left, right in zip(read, truth, strict=True) if chosen(right)]
    if not pairs:
        return None
    return round(character_error_rate([left for left, _ in pairs], [right for _, right in pairs]), 4)


async def measure(checkpoint: str, pages: Sequence[RenderedPage]) -> list[dict[str, object]]:
    reader = open_reader(checkpoint)
    try:
        return [row(variant, pages, await read_all(reader, pages, variant.options)) for variant in VARIANTS]
    finally:
        await reader.close()


def show(rows: Sequence[dict[str, object]]) -> None:
    print(f"{'pruning':12}{'error':>9}{'median':>9}{'retention':>11}")
    for figures in rows:
        print(
            f"{figures['pruning']:12}{figures['character_error_rate']:>9}{figures['median_of_pages']:>9}"
            f"{figures['retention']:>11}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", default="pocket")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    pages = held_out_pages(settings, arguments.pages)
    rows = asyncio.run(measure(arguments.checkpoint, pages))
    show(rows)
    characters = sum(len(page.text) for page in pages)
    figures = {
        "checkpoint": arguments.checkpoint,
        "pages": len(pages),
        "characters": characters,
        "rows": rows,
    }
    publish(figures, torch.device("cpu"), arguments.out)


if __name__ == "__main__":
    main()
