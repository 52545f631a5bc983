"""Measure what it brings, and costs, to read a risky pruned page once more unpruned.

    python -m benchmarks.restoring --out benchmarks/results/restoring.json [--write] [--documents FOLDER]

Reads pages of several kinds at the checkpoint's own keep ratio and at a harder one: always pruned, never, and
restored above several thresholds of risk. Each page is drawn here, in the typeface that Pillow brings.
``calibrated`` is the highest threshold that brings back ``WANTED`` of what pruning at the harder ratio lost,
on pages that are not measured. ``--write`` puts the table into docs/pruning.md. The checkpoint's
``restore_risk`` stays as it is: whether a service should pay for this is for a person to decide.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from app.document import Reading, ReadOptions
from app.ocr.engine.settings import EngineSettings
from app.open_reader import open_reader
from benchmarks.accuracy.pages import DPI, Kind, Sample, damaged, documents
from benchmarks.accuracy.reading import read_all
from benchmarks.accuracy.report import DOCS, measured, replace_section
from benchmarks.accuracy.scores import character_scores, page_errors
from benchmarks.report import publish
from benchmarks.signs import Sentences
from training.vocabulary import PLAIN_PROMPT

TEXT, TABLES, SMALL, DEGRADED = "text", "dense tables", "small", "degraded"
KINDS = (TEXT, TABLES, SMALL, DEGRADED)
PAGE_PX = (1240, 700)
"""The upper part of an A4 page at 150 dpi: more pages in the same time."""
SMALL_SCALE = 0.55
"""Scale of a page of small print: 82 dpi."""
SIZES_PX = (22, 24, 26, 23)
MARGIN_PX = 100
LEADING, GAP = 1.4, 0.6  # sizes of print
ROW, PAD_PX = 1.5, 8
COLUMNS = (0.34, 0.12, 0.12, 0.30, 0.12)
"""Widths of a table's columns, in widths of the table."""
SENTENCES = 4

HARD_RATIO = 0.6
RATIOS = (None, HARD_RATIO)
"""Keep ratios; ``None``: RTPrune chooses one for each page."""
THRESHOLDS = (0.2, 0.5, 0.8)
ALWAYS = 1.0
"""Threshold of risk above which no page is."""
WANTED = 0.9
CALIBRATION = 1000
"""Number of the first page for calibration; those that are measured count from 0."""
RUNNING = 24
IN_FLIGHT = 4
Figures = dict[str, Any]


def drawn(kind: str, count: int, first: int = 0) -> Kind:
    """Draw ``count`` pages of a kind, the same ones in every run."""
    return Kind(kind, tuple(_page(kind, number) for number in range(first, first + count)))


def _page(kind: str, number: int) -> Sample:
    rng = random.Random(f"{kind} {number}")  # noqa: S311 - draws pages, not secrets
    image = Image.new("L", PAGE_PX, 255)
    draw = _draw_table if kind == TABLES else _draw_text
    text = "\n".join(draw(rng, ImageDraw.Draw(image), SIZES_PX[number % len(SIZES_PX)]))
    if kind == SMALL:
        size = (round(PAGE_PX[0] * SMALL_SCALE), round(PAGE_PX[1] * SMALL_SCALE))
        image = image.resize(size, Image.Resampling.LANCZOS)
    elif kind == DEGRADED:
        image, _ = damaged(rng, image)
    upload = image.convert("RGB")
    upload.info["dpi"] = (DPI, DPI)
    return Sample(f"{kind} {number}", upload, text)


def _words(rng: random.Random) -> Iterator[str]:
    """Yield words of sentences without end. The typeface has ASCII alone."""
    sentences = Sentences(rng)
    while True:
        for word in sentences.paragraph(SENTENCES):
            if fitted := word.encode("ascii", "ignore").decode():
                yield fitted


def _line(words: Iterator[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return as many words as fit the width, at least one; the word after them is lost."""
    line = next(words)
    for word in words:
        if font.getlength(f"{line} {word}") > width:
            break
        line = f"{line} {word}"
    return line


def _draw_text(rng: random.Random, draw: ImageDraw.ImageDraw, size: int) -> Iterator[str]:
    font, words = ImageFont.load_default(size), _words(rng)
    top = float(MARGIN_PX)
    while top < PAGE_PX[1] - 2 * MARGIN_PX:
        for _ in range(rng.randint(2, 7)):
            line = _line(words, font, PAGE_PX[0] - 2 * MARGIN_PX)
            draw.text((MARGIN_PX, top), line, 0, font)
            yield line
            top += LEADING * size
        top += GAP * size


def _draw_table(rng: random.Random, draw: ImageDraw.ImageDraw, size: int) -> Iterator[str]:
    """Fill the page with one ruled table whose cells are full: of words, or of figures."""
    font, words = ImageFont.load_default(size), _words(rng)
    left, right, bottom = MARGIN_PX, PAGE_PX[0] - MARGIN_PX, PAGE_PX[1] - 2 * MARGIN_PX
    edges = [left + (right - left) * sum(COLUMNS[:count]) for count in range(len(COLUMNS) + 1)]
    top = float(MARGIN_PX)
    while top < bottom:
        draw.line((left, top, right, top), 0, 2)
        cells = []
        for at, width in zip(edges, COLUMNS, strict=False):
            room = (right - left) * width - 2 * PAD_PX
            figures = f"{rng.randrange(10**6):,}", f"{rng.uniform(0, 10**4):.2f}", f"{rng.randrange(100)} %"
            cell = _line(words, font, room) if width > COLUMNS[1] else rng.choice(figures)
            while font.getlength(cell) > room:
                cell = cell[:-1]
            draw.text((at + PAD_PX, top + ROW * size / 2), cell, 0, font, anchor="lm")
            cells.append(cell)
        yield " ".join(cells)
        top += ROW * size
    draw.line((left, top, right, top), 0, 2)
    for edge in edges:
        draw.line((edge, MARGIN_PX, edge, top), 0, 2)


class Policies:
    """Measures policies, each with a reader of its own."""

    def __init__(self, checkpoint: str, device: str) -> None:
        self._checkpoint, self._device = checkpoint, device

    async def rows(
        self, kinds: Sequence[Kind], ratio: float | None, thresholds: Sequence[float]
    ) -> list[Figures]:
        """Read pages pruned at a ratio and restored above each threshold. A row for each kind."""
        return [
            row
            for threshold in thresholds
            for row in await self._read(kinds, ReadOptions(keep_ratio=ratio, prompt=PLAIN_PROMPT), threshold)
        ]

    async def never(self, kinds: Sequence[Kind]) -> list[Figures]:
        """Read pages without pruning. A row for each kind."""
        return await self._read(kinds, ReadOptions(prune="none", prompt=PLAIN_PROMPT), ALWAYS)

    async def _read(self, kinds: Sequence[Kind], options: ReadOptions, threshold: float) -> list[Figures]:
        settings = EngineSettings(max_running_pages=RUNNING, restore_risk=threshold)
        reader = open_reader(self._checkpoint, self._device, settings)
        rows = []
        try:
            for kind in kinds:
                before, began_s = reader.load, time.process_time()
                readings = await read_all(reader, [page.image for page in kind.samples], options, IN_FLIGHT)
                cpu_s, after = time.process_time() - began_s, reader.load
                truth = [page.text for page in kind.samples]
                scores = character_scores(readings.texts, truth, ignores_case=kind.ignores_case)
                read = [page for page in readings.pages if isinstance(page, Reading)]
                row: Figures = {
                    "kind": kind.name,
                    "ratio": "none" if options.prune == "none" else options.keep_ratio or "dynamic",
                    "policy": _policy(options, threshold),
                    "pages": len(truth),
                    "characters": scores["characters"],
                    "error": scores["character_error_rate"],
                    "page_errors": [round(error, 4) for error in page_errors(readings.texts, truth)],
                    "finish_reasons": dict(Counter(page.finish_reason for page in read)),
                    "retention": round(
                        sum(page.tokens.kept for page in read) / sum(page.tokens.visual for page in read), 4
                    ),
                    "restored": round(_restored(read), 4),
                    "decoded_tokens": after.tokens - before.tokens,
                    "steps": after.steps - before.steps,
                    "cpu_s": round(cpu_s, 2),
                    "seconds": round(readings.seconds, 2),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
        finally:
            await reader.close()
        return rows


def _policy(options: ReadOptions, threshold: float) -> str:
    if options.prune == "none":
        return "never"
    return "always" if threshold == ALWAYS else f"{threshold:g}"


def _restored(readings: Sequence[Reading]) -> float:
    """Return the tokens of attempts for risk, as a share of those of first attempts."""
    tokens = Counter[str]()
    for reading in readings:
        for attempt in reading.attempts:
            tokens[attempt.reason] += attempt.output_tokens
    return tokens["risk"] / max(1, tokens["asked"])


def errors(rows: Sequence[Mapping[str, Any]], ratio: float | str, policy: str) -> float:
    """Return the error of a policy over all pages, by characters."""
    some = [row for row in rows if (row["ratio"], row["policy"]) == (ratio, policy)]
    wrong = sum(float(row["error"]) * int(row["characters"]) for row in some)
    return wrong / sum(int(row["characters"]) for row in some)


def brought_back(rows: Sequence[Mapping[str, Any]], ratio: float | str, policy: str) -> float | None:
    """Return the share of the error by pruning that a policy takes back; ``None`` where there is none."""
    lost = errors(rows, ratio, "always") - errors(rows, "none", "never")
    return None if lost <= 0 else (errors(rows, ratio, "always") - errors(rows, ratio, policy)) / lost


def calibrated(rows: Sequence[Mapping[str, Any]], thresholds: Sequence[float] = THRESHOLDS) -> float | None:
    """Return the highest threshold that brings back ``WANTED`` of what the harder ratio lost, or ``None``."""
    for threshold in sorted(thresholds, reverse=True):
        back = brought_back(rows, HARD_RATIO, f"{threshold:g}")
        if back is not None and back >= WANTED:
            return threshold
    return None


async def measure(asked: argparse.Namespace) -> Figures:
    policies = Policies(asked.checkpoint, asked.device)
    apart = [drawn(kind, asked.calibration_pages, first=CALIBRATION) for kind in KINDS]
    calibration = await policies.never(apart)
    calibration += await policies.rows(apart, HARD_RATIO, (ALWAYS, *asked.thresholds))
    kinds = [drawn(kind, asked.pages) for kind in KINDS]
    kinds += documents(asked.documents, asked.limit) if asked.documents else []
    rows = await policies.never(kinds)
    for ratio in RATIOS:
        rows += await policies.rows(kinds, ratio, (ALWAYS, *asked.thresholds))
    return {
        "checkpoint": asked.checkpoint,
        "hard_ratio": HARD_RATIO,
        "calibrated": calibrated(calibration, asked.thresholds),
        "calibration": calibration,
        "rows": rows,
    }


def section(figures: Mapping[str, Any]) -> str:
    """Format the figures as the section of docs/pruning.md: a row for each policy, over all kinds."""
    rows = figures["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    names = " | ".join(f"error, {kind}" for kind in kinds)
    lines = [
        f"| keep ratio | restored above | {names} | brought back | read again | tokens decoded | steps"
        " | CPU s a page |",
        "| --- | --- |" + " ---: |" * (len(kinds) + 5),
    ]
    for ratio, policy in dict.fromkeys((row["ratio"], row["policy"]) for row in rows):
        some = {row["kind"]: row for row in rows if (row["ratio"], row["policy"]) == (ratio, policy)}
        back = None if policy in ("never", "always") else brought_back(rows, ratio, policy)
        tokens = sum(row["decoded_tokens"] for row in some.values())
        again = sum(row["restored"] * row["decoded_tokens"] for row in some.values()) / tokens
        cells = [
            {"none": "1, not pruned"}.get(ratio, str(ratio)),
            {"never": "", "always": "never"}.get(policy, policy),
            *(f"{some[kind]['error']:.4f}" for kind in kinds),
            "" if back is None else f"{back:.0%}",
            f"{again:.0%}" if back is not None else "",
            f"{tokens:,}",
            f"{sum(row['steps'] for row in some.values()):,}",
            f"{sum(row['cpu_s'] for row in some.values()) / sum(row['pages'] for row in some.values()):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    counts = ", ".join(f"{row['pages']} {row['kind']}" for row in rows if row["policy"] == "never")
    found = figures["calibrated"]
    told = "No threshold brings" if found is None else f"{found:g} is the highest threshold that brings"
    lines += [
        "",
        f"Pages: {counts}. {told} back {WANTED:.0%} of what ratio {figures['hard_ratio']:g} lost on"
        f" {sum(row['pages'] for row in figures['calibration'] if row['policy'] == 'never')} other pages.",
        "",
        measured(figures),
    ]
    return "\n".join(lines)


def write_docs(figures: Mapping[str, Any], docs: Path = DOCS) -> None:
    replace_section(docs / "pruning.md", "restoring", section(figures))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", default="pocket", help="name or folder (default: %(default)s)")
    add("--device", default="cpu")
    add("--pages", type=int, default=6, help="of each kind (default: %(default)s)")
    add("--calibration-pages", type=int, default=1, help="of each kind, other ones (default: %(default)s)")
    add("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    add("--documents", type=Path, help="folder of real pages with their truth, measured too")
    add("--limit", type=int, help="of each kind of documents (default: all)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--out", type=Path)
    add("--write", action="store_true", help="the table into docs/pruning.md")
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    publish(asyncio.run(measure(asked)), torch.device(asked.device), asked.out)
    if asked.write and asked.out:
        write_docs(json.loads(asked.out.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
