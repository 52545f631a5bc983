"""Compare RTPrune with other pruners, on the same weights and pages.

Every method keeps as many patch tokens of a page as RTPrune does.

    python -m benchmarks.pruners --out benchmarks/results/pruners.json
    python -m benchmarks.pruners.report benchmarks/results/pruners.json     the tables in docs/pruning.md

Needs nothing but the checkout: it draws its pages, and takes the weights of before the stage that trained
with pruning from git's history. Prints a row per method: error, retention, loops per page, prune and prefill
ms, KV bytes. `none` comes first, the ways to merge come last. Then come the methods that prune inside the
decoder, which are read offline. Each page is read once: the service would read a page that loops again, which
would hide the cost. Each row is printed as it is measured, then a table. The last line of stdout is one JSON
document.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch

from app.document import Page, Reading, ReadOptions
from app.ocr.engine import vision
from app.ocr.engine.engine import Engine, EngineStream
from app.ocr.sizing import resolve_device
from app.open_reader import folder_of
from app.pocket.opening import is_pocket, load_pocket
from app.reader import PageReader
from benchmarks.accuracy.curve import open_curve_reader
from benchmarks.accuracy.pages import DOCUMENTS, Kind, documents
from benchmarks.accuracy.reading import Figures, read_all
from benchmarks.accuracy.scores import character_scores, page_errors
from benchmarks.pruners.before import BEFORE, NoHistoryError, export_before
from benchmarks.pruners.evidence import EvidenceBook, rank_correlation
from benchmarks.pruners.inside.offline import BEFORE_THE_DECODER, FITPRUNE, INSIDE, Offline, views_of
from benchmarks.pruners.pages import own_pages, sample_page
from benchmarks.pruners.report import inside_table, table
from benchmarks.pruners.rows import ROWS
from benchmarks.report import publish
from rtprune import PrunedTokens, RTPruneConfig, VisualTokens
from training.vocabulary import PLAIN_PROMPT

PAGES = 8
TIMINGS = 3
"""Passes over the same views that are timed, without decoding; the least time of each view counts."""
TIMED_VIEWS = 64
"""Most views that are timed, evenly spread over the pages; all have one size."""
IN_FLIGHT = 64
"""Views that are with the engine at once while they are timed."""
ENGLISH = "english"
NONE = "none"
TRAINED = "trained"
NOTE = (
    "the pocket checkpoint read a share of its training pages through tokens that RTPrune had pruned and"
    " folded; the weights called before had not"
)


class Measured:
    """Records, for one row, the views that the engine was given and how long pruning took of each."""

    def __init__(self) -> None:
        self.views: list[tuple[Engine, Page, ReadOptions]] = []
        self.streams: list[EngineStream] = []
        self.prunings: list[tuple[int, float]] = []
        """(id of the visual tokens, ms) of every view that was pruned."""

    async def loops(self) -> int:
        """Count the views that ended in a loop. A page that is not cut is one view."""
        results = await asyncio.gather(*(stream.result() for stream in self.streams), return_exceptions=True)
        return sum(isinstance(one, Reading) and one.finish_reason == "loop" for one in results)

    async def timed(self) -> tuple[float, float]:
        """Prune and prefill some of the same views ``TIMINGS`` times, decoding nothing. They were encoded.

        Returns mean ms of a view, of each view the least: other work on the machine only ever adds.
        """
        views, gate = self.views[:: -(-len(self.views) // TIMED_VIEWS)], asyncio.Semaphore(IN_FLIGHT)

        async def prefill_ms(engine: Engine, page: Page, options: ReadOptions) -> float:
            async with gate:
                stream = engine.submit(page, replace(options, max_output_tokens=1), document_id="timing")
                return (await stream.result()).timing_ms["prefill"]

        self.prunings.clear()
        passes = [await asyncio.gather(*(prefill_ms(*view) for view in views)) for _ in range(TIMINGS)]
        by_view: dict[int, list[float]] = defaultdict(list)
        for view, ms in self.prunings:
            by_view[view].append(ms)
        prune_ms = fmean(min(times) for times in by_view.values()) if by_view else 0.0
        return prune_ms, fmean(min(times) for times in zip(*passes, strict=True))


@contextmanager
def measuring(name: str, book: EvidenceBook) -> Iterator[Measured]:
    """Make all engines of this process prune by ``name`` inside the block.

    Do not enter or leave it while pages are being read.
    """
    measured = Measured()
    submit = Engine.submit

    def noted(engine: Engine, page: Page, options: ReadOptions, **more: Any) -> EngineStream:
        stream = submit(engine, page, options, **more)
        measured.views.append((engine, page, options))
        measured.streams.append(stream)
        return stream

    def prune_one(tokens: VisualTokens, density: float, config: RTPruneConfig) -> PrunedTokens:
        evidence = book.of(tokens)
        start = time.perf_counter()
        pruned = ROWS[name](tokens, density, config, evidence)
        measured.prunings.append((id(tokens), (time.perf_counter() - start) * 1e3))
        return pruned

    def prune(
        tokens: Sequence[VisualTokens], densities: Sequence[float], config: RTPruneConfig
    ) -> list[PrunedTokens]:
        return [prune_one(*page, config) for page in zip(tokens, densities, strict=True)]

    with patch.object(Engine, "submit", noted), patch.object(vision, "prune_batch", prune):
        yield measured


async def row(reader: PageReader, kind: Kind, name: str, book: EvidenceBook) -> Figures:
    """Read all pages once, pruned by ``name`` (``none``: not pruned), and return the row's figures."""
    options = ReadOptions(prune="none" if name == NONE else "rtprune", prompt=PLAIN_PROMPT)
    with measuring(name, book) as measured:
        readings = await read_all(reader, [sample.image for sample in kind.samples], options)
        loops = await measured.loops()
        views_a_page = len(measured.views) / len(kind.samples)
        prune_ms, prefill_ms = await measured.timed()
    pages = [page for page in readings.pages if isinstance(page, Reading)]
    truth = [sample.text for sample in kind.samples]
    figures: Figures = {"method": name, **character_scores(readings.texts, truth), **readings.figures()}
    del figures["seconds_per_page"]  # not comparable: the first row's time includes collecting the evidence
    return figures | {
        "page_errors": [round(error, 4) for error in page_errors(readings.texts, truth)],
        "kept_patches": sum(page.tokens.kept_patches for page in pages),
        "patches": sum(page.tokens.patches for page in pages),
        "loops_a_page": round(loops / len(kind.samples), 3),
        "prune_ms": round(prune_ms * views_a_page, 2),
        "prefill_ms": round(prefill_ms * views_a_page, 1),
        "kv_bytes": round(fmean(page.tokens.kept for page in pages) * book.kv_bytes_a_token)
        if pages
        else None,
        "load": round(os.getloadavg()[0], 1),
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
    """Measure the rows of methods before the decoder on one checkpoint, and print each as it is measured."""
    book = EvidenceBook(PLAIN_PROMPT)
    reader = open_curve_reader(checkpoint, device)
    rows = []
    try:
        with book.collecting():
            for name in (NONE, *names):
                if name == TRAINED and book.found[0].trained is None:
                    continue  # the shipped scorer is of an encoder of other sizes
                rows.append(await row(reader, kind, name, book))
                print(json.dumps({"checkpoint": Path(checkpoint).name, **rows[-1]}), flush=True)
    finally:
        await reader.close()
    return {"rows": rows, "rank_correlation": correlations(book)}


def measure_inside(name: str, folder: Path, device: str, kind: Kind, names: Sequence[str]) -> Figures:
    """Measure the rows of methods inside the decoder on one checkpoint that is read in the pocket's views."""
    model = load_pocket(device, folder)
    offline = Offline(model, views_of(model, sample_page()))
    views = views_of(model, kind)
    right = offline.texts(views)
    rows = []
    for method in (NONE, *BEFORE_THE_DECODER, *names):
        rows.append(offline.measure(views, method, right))
        print(json.dumps({"checkpoint": name, **rows[-1]}), flush=True)
    fitted = {"fitprune_table": offline.table()} if FITPRUNE in names else {}
    return {"views": len(views), **fitted, "rows": rows}


def _pages(asked: argparse.Namespace) -> Kind:
    if asked.documents:
        return documents(asked.documents, asked.pages, {ENGLISH: DOCUMENTS[ENGLISH]})[0]
    return own_pages(asked.pages)


def _measured(checkpoint: str, asked: argparse.Namespace, kind: Kind, folder: Path) -> Figures:
    """Measure all that was asked on one checkpoint. ``folder``: where weights may be exported to."""
    start, cpu_start = time.perf_counter(), time.process_time()
    if checkpoint == BEFORE:
        try:
            export_before(folder)
        except NoHistoryError as error:
            print(f"{BEFORE}: {error}", flush=True)
            return {"checkpoint": BEFORE, "not_measured": str(error)}
    where = str(folder) if checkpoint == BEFORE else checkpoint
    device = resolve_device(asked.device)
    before = [name for name in asked.methods if name in ROWS]
    figures: Figures = {"checkpoint": Path(checkpoint).name}
    if before:
        figures |= asyncio.run(measure(where, device, kind, before))
        print(table(figures), flush=True)
    inside = [name for name in asked.methods if name in INSIDE]
    if inside and is_pocket(folder_of(where)):
        offline = measure_inside(Path(checkpoint).name, folder_of(where), device, kind, inside)
        print(inside_table(offline), flush=True)
        figures["inside"] = offline
    return figures | {
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "cpu_minutes": round((time.process_time() - cpu_start) / 60, 1),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure every checkpoint, print its tables, and publish all figures at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruners",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = (*ROWS, *INSIDE)
    add = parser.add_argument
    add("--checkpoint", nargs="+", default=["pocket", BEFORE], help=(
        f"names or folders; {BEFORE}: the pocket checkpoint before it was trained with pruning"
        " (default: %(default)s)"
    ))  # fmt: skip
    add("--device", default="auto")
    add("--documents", type=Path, help="a folder with real pages and their truth in english/, instead")
    add("--pages", type=int, default=PAGES, help="so many (default: %(default)s)")
    add("--methods", nargs="+", choices=every, default=every, metavar="METHOD", help=f"of {', '.join(every)}")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--out", type=Path)
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    kind = _pages(asked)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = [_measured(name, asked, kind, Path(folder) / BEFORE) for name in asked.checkpoint]
    figures = {
        "kind": kind.name,
        "pages": len(kind.samples),
        "threads": asked.threads,
        "timings": TIMINGS,
        "note": NOTE,
        "checkpoints": checkpoints,
    }
    publish(figures, torch.device(resolve_device(asked.device)), asked.out)


if __name__ == "__main__":
    main()
