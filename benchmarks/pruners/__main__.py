"""Compare RTPrune with other pruners in the engine, on the same weights.

Every method keeps as many patch tokens of a page as RTPrune does.

    python -m benchmarks.pruners --out benchmarks/results/pruners.json
    python -m benchmarks.pruners.report benchmarks/results/pruners.json     the tables in docs/pruning.md
    python -m benchmarks.pruners --checkpoint BEFORE pocket     weights before and after training with pruning

Prints a row per method: error, retention, loops per page, prune and prefill ms, KV bytes. `none` comes first,
the ways to merge come last. Each page is read once: the service would read a page that loops again, which
would hide the cost. Each row is printed as it is measured, then a table. The last line of stdout is one JSON
document.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch

from app.document import Page, Reading, ReadOptions
from app.ocr.engine import vision
from app.ocr.engine.engine import Engine, EngineStream
from app.ocr.sizing import resolve_device
from app.reader import PageReader
from benchmarks.accuracy.curve import open_curve_reader
from benchmarks.accuracy.pages import CLEAN, DOCUMENTS, Kind, RenderedPages, documents
from benchmarks.accuracy.reading import Figures, read_all
from benchmarks.accuracy.scores import character_scores, page_errors
from benchmarks.pruners.evidence import EvidenceBook, rank_correlation
from benchmarks.pruners.report import table
from benchmarks.report import publish
from rtprune import MERGES, METHODS, Evidence, PrunedTokens, RTPruneConfig, VisualTokens, merge_pruned
from training.settings import load_settings
from training.vocabulary import PLAIN_PROMPT

PAGES = 16
ENGLISH = "english"
NONE = "none"
MERGED = tuple(f"norm + {name}" for name in MERGES if name not in {"none", "transport"})
"""Selection by norm with each way to merge. ``none`` and ``transport`` are left out: with them it is ``norm``
and ``rtprune`` itself.
"""
ROWS = (*METHODS, *MERGED)
NOTE = (
    "the pocket checkpoint read a share of its training pages through tokens that RTPrune had pruned and"
    " folded; weights of before that stage are measured with --checkpoint"
)


class Measured:
    """Records, for one row, the seconds spent pruning and the engine's streams."""

    def __init__(self) -> None:
        self.prune_s = 0.0
        self.streams: list[EngineStream] = []

    async def loops(self) -> int:
        """Count the views that ended in a loop. A page that is not cut is one view."""
        results = await asyncio.gather(*(stream.result() for stream in self.streams), return_exceptions=True)
        return sum(isinstance(one, Reading) and one.finish_reason == "loop" for one in results)


@contextmanager
def measuring(name: str, book: EvidenceBook) -> Iterator[Measured]:
    """Make all engines of this process prune by ``name`` inside the block.

    Do not enter or leave it while pages are being read.
    """
    measured = Measured()
    submit = Engine.submit

    def noted(engine: Engine, page: Page, options: ReadOptions, **more: Any) -> EngineStream:
        stream = submit(engine, page, options, **more)
        measured.streams.append(stream)
        return stream

    def prune(
        tokens: Sequence[VisualTokens], densities: Sequence[float], config: RTPruneConfig
    ) -> list[PrunedTokens]:
        pages = [(page, density, book.of(page)) for page, density in zip(tokens, densities, strict=True)]
        start = time.perf_counter()
        pruned = [prune_by(name, page, density, config, evidence) for page, density, evidence in pages]
        measured.prune_s += time.perf_counter() - start
        return pruned

    with patch.object(Engine, "submit", noted), patch.object(vision, "prune_batch", prune):
        yield measured


def prune_by(
    name: str, tokens: VisualTokens, density: float, config: RTPruneConfig, evidence: Evidence
) -> PrunedTokens:
    """Prune one page by the method ``name``, one of ``ROWS``."""
    method, _, merge = name.partition(" + ")
    pruned = METHODS[method](tokens, density, config, evidence)
    return merge_pruned(tokens, pruned, MERGES[merge]) if merge else pruned


async def row(reader: PageReader, kind: Kind, name: str, book: EvidenceBook) -> Figures:
    """Read all pages once, pruned by ``name`` (``none``: not pruned), and return the row's figures."""
    options = ReadOptions(prune="none" if name == NONE else "rtprune", prompt=PLAIN_PROMPT)
    with measuring(name, book) as measured:
        readings = await read_all(reader, [sample.image for sample in kind.samples], options)
        loops = await measured.loops()
    pages = [page for page in readings.pages if isinstance(page, Reading)]
    truth = [sample.text for sample in kind.samples]
    figures: Figures = {"method": name, **character_scores(readings.texts, truth), **readings.figures()}
    del figures["seconds_per_page"]  # not comparable: the first row's time includes collecting the evidence
    return figures | {
        "page_errors": [round(error, 4) for error in page_errors(readings.texts, truth)],
        "kept_patches": sum(page.tokens.kept_patches for page in pages),
        "patches": sum(page.tokens.patches for page in pages),
        "loops_a_page": round(loops / len(kind.samples), 3),
        "prune_ms": round(measured.prune_s * 1e3 / len(kind.samples), 2),
        "prefill_ms": round(fmean(page.timing_ms["prefill"] for page in pages), 1) if pages else None,
        "kv_bytes": round(fmean(page.tokens.kept for page in pages) * book.kv_bytes_a_token)
        if pages
        else None,
    }


def correlations(book: EvidenceBook) -> dict[str, float | None]:
    """Compute the mean Spearman correlation, over views, of cheap scores with the decoder's attention.

    The correlation of the norm tells how good reading twice is on this checkpoint. 1 would be the oracle's
    order.
    """
    pairs: dict[str, list[float]] = {"norm": [], "class_attention": [], "ink": []}
    for norms, found in zip(book.norms, book.found, strict=True):
        scores = {"norm": norms, "class_attention": found.class_attention, "ink": found.ink}
        for name, values in scores.items():
            if values is None or found.decode_attention is None:
                continue
            value = rank_correlation(values.double(), found.decode_attention)
            if value is not None:
                pairs[name].append(value)
    return {name: round(fmean(values), 4) if values else None for name, values in pairs.items()}


async def measure(checkpoint: str, device: str, kind: Kind, names: Sequence[str]) -> Figures:
    """Measure all rows on one checkpoint, and print each as it is measured."""
    book = EvidenceBook(PLAIN_PROMPT)
    reader = open_curve_reader(checkpoint, device)
    rows = []
    try:
        with book.collecting():
            for name in (NONE, *names):
                rows.append(await row(reader, kind, name, book))
                print(json.dumps({"checkpoint": checkpoint, **rows[-1]}), flush=True)
    finally:
        await reader.close()
    return {"checkpoint": checkpoint, "rows": rows, "rank_correlation": correlations(book)}


def _pages(asked: argparse.Namespace) -> Kind:
    if asked.documents:
        return documents(asked.documents, asked.pages, {ENGLISH: DOCUMENTS[ENGLISH]})[0]
    return RenderedPages(load_settings(asked.settings)).kind(CLEAN, asked.pages)


def main(words: Sequence[str] | None = None) -> None:
    """Measure every checkpoint, print its table, and publish all figures at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruners",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", nargs="+", default=["pocket"], help="names or folders (default: pocket)")
    add("--device", default="auto")
    add("--settings", type=Path, default=Path("training/pocket.toml"), help="fonts and words of the pages")
    add("--documents", type=Path, help="a folder with real pages and their truth in english/, instead")
    add("--pages", type=int, default=PAGES, help="so many (default: %(default)s)")
    add("--methods", nargs="+", choices=ROWS, default=ROWS, metavar="METHOD", help=f"of {', '.join(ROWS)}")
    add("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    add("--out", type=Path)
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    kind = _pages(asked)
    checkpoints: list[Figures] = []
    for checkpoint in asked.checkpoint:
        checkpoints.append(asyncio.run(measure(checkpoint, asked.device, kind, asked.methods)))
        print(table(checkpoints[-1]), flush=True)
    figures = {
        "kind": kind.name,
        "pages": len(kind.samples),
        "threads": asked.threads,
        "note": NOTE,
        "checkpoints": checkpoints,
    }
    publish(figures, torch.device(resolve_device(asked.device)), asked.out)


if __name__ == "__main__":
    main()
