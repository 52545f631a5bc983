"""Measure what drafts from text layers save and cost: the same pages with and without, in turns.

    python -m benchmarks.drafts --documents FOLDER --out benchmarks/results/drafts.json

``drawn``: pages of lines as PDFs with a text layer. ``english``: born-digital PDFs of others.
``another page's layer``: these, each with the words of the next one in the places of its own. ``no layer``:
scanned pages. Steps are decode steps of the engine, in which the views of a page are read together.
``times_fewer_steps_of_a_view`` counts those of every view for itself. Times are processor seconds of one
thread for a whole page, from cutting to decoding; the median of the rounds counts. One reader reads a page
with its layer and without, each first in as many rounds, after a round that is not counted, as whoever meets
a shape first compiles its kernels. (Two readers alike, drafting or not, differed by 2 to 8 %: seen by hand,
2026-11-29.) ``no layer`` is the control: the page is read twice in the same way.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from app.document import Page, Reading, ReadOptions
from app.documents.raster.pdf import pdf_page
from app.ocr.engine.settings import MAX_DRAFT_TOKENS, EngineSettings
from app.ocr.sizing import CPU_RUNNING_PAGES
from app.open_reader import open_reader
from benchmarks.report import publish
from benchmarks.text_layer import MAX_PIXELS, drawn
from training.settings import load_settings
from training.text import TextSource

DRAWN, ENGLISH, ANOTHER, NONE = "drawn", "english", "another page's layer", "no layer"
SIZE_PT = 10.0
Figures = dict[str, Any]


@dataclass
class Measured:
    """One page, read with drafts and without in every round."""

    kind: str
    name: str
    with_s: list[float] = field(default_factory=list)
    without_s: list[float] = field(default_factory=list)
    with_steps: list[int] = field(default_factory=list)
    without_steps: list[int] = field(default_factory=list)
    is_same: bool = True
    output: int = 0
    drafted: int = 0
    accepted: int = 0

    def row(self) -> Figures:
        return {
            "page": self.name,
            "output_tokens": self.output,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "steps": median(self.with_steps),
            "steps_without": median(self.without_steps),
            "seconds": round(median(self.with_s), 3),
            "seconds_without": round(median(self.without_s), 3),
            "is_same_text": self.is_same,
        }


class Bench:
    """A reader that drafts, and pages with their text layers or without."""

    def __init__(self, checkpoint: str) -> None:
        settings = EngineSettings(max_running_pages=CPU_RUNNING_PAGES, max_draft_tokens=MAX_DRAFT_TOKENS)
        self._reader = open_reader(checkpoint, "cpu", settings)

    async def measure(self, page: Page, into: Measured, *, first: bool) -> None:
        """Read a page once with drafts and once without. ``first``: with drafts first."""
        readings: dict[bool, Reading] = {}
        for is_drafted in (first, not first):
            shown = page if is_drafted else replace(page, words=None, placed_words=())
            steps, started = self._reader.load.steps, time.process_time()
            readings[is_drafted] = await self._reader.submit(shown, ReadOptions(), document_id="a").result()
            took_s, steps = time.process_time() - started, self._reader.load.steps - steps
            (into.with_s if is_drafted else into.without_s).append(took_s)
            (into.with_steps if is_drafted else into.without_steps).append(steps)
        drafted, plain = readings[True], readings[False]
        tokens = drafted.tokens
        into.output, into.drafted, into.accepted = tokens.output, tokens.drafted, tokens.accepted
        into.is_same = into.is_same and (drafted.text, drafted.blocks, drafted.attempts, tokens.output) == (
            plain.text,
            plain.blocks,
            plain.attempts,
            plain.tokens.output,
        )

    async def close(self) -> None:
        await self._reader.close()


def page_of(path: Path) -> Page:
    return pdf_page(str(path), 0, None, MAX_PIXELS, is_first=True, places_words=True)


def drawn_pages(source: TextSource, count: int) -> Iterator[tuple[str, str, Page]]:
    for seed in range(count):
        with tempfile.NamedTemporaryFile(suffix=".pdf") as file:
            file.write(drawn(source, SIZE_PT, seed).pdf)
            file.flush()
            yield DRAWN, str(seed), page_of(Path(file.name))


def english_pages(folder: Path, count: int) -> Iterator[tuple[str, str, Page]]:
    """Every page as it is, and half of them with the words of the next."""
    paths = sorted(folder.glob("accuracy/english/*.pdf"))[:count]
    pages = [page_of(path) for path in paths]
    for path, page in zip(paths, pages, strict=True):
        yield ENGLISH, path.name, page
    for at, path in enumerate(paths[: len(paths) // 2]):
        words = [word.text for word in pages[(at + 1) % len(pages)].placed_words]
        placed = tuple(
            replace(word, text=words[i % len(words)]) for i, word in enumerate(pages[at].placed_words)
        )
        yield ANOTHER, path.name, replace(pages[at], placed_words=placed)


def scanned_pages(folder: Path, count: int) -> Iterator[tuple[str, str, Page]]:
    for path in sorted(folder.glob("accuracy/old_books/*.png"))[:count]:
        with Image.open(path) as image:
            yield NONE, path.name, Page(0, image.convert("RGB"))


def summary(measured: Sequence[Measured]) -> Figures:
    num_output, num_accepted = (
        sum(getattr(one, name) for one in measured) for name in ("output", "accepted")
    )
    steps, steps_without = (
        sum(float(median(getattr(one, name))) for one in measured) for name in ("with_steps", "without_steps")
    )
    seconds, seconds_without = (
        sum(float(median(getattr(one, name))) for one in measured) for name in ("with_s", "without_s")
    )
    return {
        "pages": len(measured),
        "same_text": sum(one.is_same for one in measured),
        "acceptance": round(num_accepted / max(1, sum(one.drafted for one in measured)), 3),
        "times_fewer_steps": round(steps_without / max(1.0, steps), 3),
        "times_fewer_steps_of_a_view": round(num_output / max(1, num_output - num_accepted), 3),
        "times_seconds": round(seconds / max(1e-9, seconds_without), 3),
        "by_page": [one.row() for one in measured],
    }


async def measure(asked: argparse.Namespace) -> Figures:
    source = TextSource(load_settings(asked.settings).render.words)
    todo = list(drawn_pages(source, asked.pages))
    if asked.documents:
        todo += [
            *english_pages(asked.documents, asked.pages),
            *scanned_pages(asked.documents, asked.pages // 2),
        ]
    measured = [Measured(kind, name) for kind, name, _ in todo]
    bench = Bench(asked.checkpoint)
    try:
        for kind, name, page in todo:
            await bench.measure(page, Measured(kind, name), first=True)
        for number in range(asked.rounds):
            for (_, _, page), into in zip(todo, measured, strict=True):
                await bench.measure(page, into, first=number % 2 == 0)
                print(json.dumps({"kind": into.kind, **into.row()}), flush=True)
    finally:
        await bench.close()
    kinds = dict.fromkeys(one.kind for one in measured)
    return {kind: summary([one for one in measured if one.kind == kind]) for kind in kinds}


def _even(text: str) -> int:
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"rounds must be an even number from 2, got {number}")
    return number


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drafts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default="pocket")
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    parser.add_argument("--documents", type=Path, help="folder with accuracy/english and accuracy/old_books")
    parser.add_argument(
        "--pages", type=int, default=8, help="pages of a kind; half as many scans, and with another layer"
    )
    parser.add_argument("--rounds", type=_even, default=4, help="an even number (default: 4)")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    figures = asyncio.run(measure(asked))
    publish(
        {
            "benchmark": "drafts",
            "checkpoint": asked.checkpoint,
            "rounds": asked.rounds,
            "load_at_start": round(load, 1),
            **figures,
        },
        torch.device("cpu"),
        asked.out,
    )


if __name__ == "__main__":
    main()
