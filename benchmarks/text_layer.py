"""Measure what the router and the second reading save, mend and cost, beside the same pages without them.

    python -m benchmarks.text_layer --documents FOLDER --out benchmarks/results/text_layer.json

Blank pages: how many are skipped, and the time of test and model. Faint print and real pages: how many are
taken for blank. Small print: error at the base resolution and at the router's, and as DeepSeek-OCR's modes
would show it, read by the pocket checkpoint: its own weights are not needed for how much is legible. Worn
pages, and pages with the text layer of another: error before and after the second reading. Real English
pages: false alarms. With and without take turns on each page. Times are processor seconds of one thread.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.document import Page, ReadOptions
from app.documents.raster.pdf import pdf_page
from app.errors import ParseError
from app.jobs.worker.routing import Checked, Route, Router, better_of, sharper_mode
from app.ocr.models.checkpoint_spec import DEEPSEEK_OCR
from app.ocr.models.preprocess import view_scale
from app.open_reader import open_reader
from app.output.checks import check_page
from app.output.coverage import is_blank
from app.output.cutting import take_pictures
from app.output.markdown import render
from app.reader import PageReader
from app.settings import Settings
from benchmarks.accuracy.pages import blank_pages
from benchmarks.confidence import WEAR
from benchmarks.report import publish
from training.errors_in_text import character_error_rate
from training.settings import load_settings
from training.text import TextSource

MAX_PIXELS = 16_000_000
SIZES_PT = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0)
NUM_LINES, NUM_WORDS = 8, 9
FONTS = ("Times-Roman", "Helvetica")
FAINT = ((0.0, 2), (0.0, 4), (1.0, 4), (1.0, 8), (3.0, 8), (3.0, 16), (6.0, 16))
"""Standard deviations of grain, and contrasts of print on it, in levels of 256."""
ENGLISH, ODD = "english", "odd"
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A page of lines as a PDF with a text layer."""

    pdf: bytes
    text: str

    def page(self, *, follows_print: bool, dpi: int | None = None) -> Page:
        with tempfile.NamedTemporaryFile(suffix=".pdf") as file:
            file.write(self.pdf)
            file.flush()
            return pdf_page(file.name, 0, dpi, MAX_PIXELS, is_first=True, follows_print=follows_print)


def drawn(source: TextSource, size_pt: float, seed: int) -> Drawn:
    """Draw lines of random words in a font that every PDF viewer has."""
    rng = random.Random(seed)  # noqa: S311 - draws pages, not secrets
    lines = [" ".join(source.paragraph(rng, NUM_WORDS)).encode("latin-1", "ignore") for _ in range(NUM_LINES)]
    escaped = (line.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)") for line in lines)
    shown = b" ".join(b"(%s) Tj 0 %.1f Td" % (line, -1.4 * size_pt) for line in escaped)
    font = FONTS[seed % len(FONTS)].encode()
    content = b"BT /F %.1f Tf 50 790 Td %s ET" % (size_pt, shown)
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/%s/Encoding/WinAnsiEncoding>>" % font,
    )
    body = b"%PDF-1.7\n"
    for number, one in enumerate(objects, start=1):
        body += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    # without a table of objects, which poppler makes itself
    return Drawn(body + b"trailer<</Size 6/Root 1 0 R>>\n%%EOF", b"\n".join(lines).decode("latin-1"))


class Bench:
    """A reader with its router."""

    def __init__(self, reader: PageReader) -> None:
        self._reader = reader
        self.router = Router(Settings(recall_retry=True), reader)

    async def read(self, page: Page, options: ReadOptions | None = None) -> Checked:
        """Read a page as a worker does. ``took_s`` is processor time."""
        started = time.process_time()
        stream = self._reader.submit(page, options or ReadOptions(), document_id="benchmark")
        reading = await stream.result()
        took_s = time.process_time() - started
        rendered = render(reading)
        checks = check_page(page, reading, rendered.markdown, rendered.blocks)
        pictured = take_pictures(page, rendered, max_figures=0, max_bytes=2**20, keep_page=False)
        return Checked(reading, checks, pictured, took_s)

    async def read_again(self, page: Page, first: Checked) -> tuple[Checked, float]:
        """Return the better of the first and a second reading, if one is made, and what that took."""
        route = self.router.again(page, ReadOptions(), first.reading, first.checks)
        if route is None:
            return first, 0.0
        second = await self.read(page, route.options)
        return better_of(first, second), second.took_s


def error_of(read: Checked, text: str) -> float:
    return character_error_rate([read.pictured.rendered.markdown], [text])


async def blank(bench: Bench, count: int) -> list[Figures]:
    """Measure blank pages by paper."""
    rows: dict[str, list[tuple[bool, float, float]]] = {}
    for paper, image in blank_pages(count):
        page = Page(0, image)
        started = time.process_time()
        route = bench.router.route(page, ReadOptions())
        test_s = time.process_time() - started
        rows.setdefault(paper, []).append((route.blank is not None, test_s, (await bench.read(page)).took_s))
    return [
        {
            "paper": paper,
            "pages": len(found),
            "skipped": sum(one[0] for one in found),
            "seconds_of_the_test": round(fmean(one[1] for one in found), 4),
            "seconds_of_the_model": round(fmean(one[2] for one in found), 4),
        }
        for paper, found in rows.items()
    ]


def faint(source: TextSource) -> list[Figures]:
    """Count pages of faint print that are taken for blank."""
    rows, sizes = [], (6.0, 8.0, 11.0)
    inks = [
        255 - np.asarray(drawn(source, size_pt, seed).page(follows_print=False).image, np.float64)
        for seed, size_pt in enumerate(sizes)
    ]
    for grain, contrast in FAINT:
        rng, taken = np.random.default_rng(0), 0
        for ink in inks:
            levels = 250 - ink * contrast / 255 + rng.normal(0, grain, (*ink.shape[:2], 1))
            taken += is_blank(Image.fromarray(np.clip(levels, 0, 255).round().astype(np.uint8)))
        rows.append({"grain": grain, "contrast": contrast, "pages": len(sizes), "taken_for_blank": taken})
    return rows


def as_shown(page: Page, mode: str) -> Page:
    """Return the page with as many pixels as a mode of DeepSeek-OCR shows of it."""
    scale = view_scale(*page.image.size, DEEPSEEK_OCR.view_modes()[mode])
    width, height = (max(1, round(side * scale)) for side in page.image.size)
    return replace(page, image=page.image.resize((width, height), Image.Resampling.BICUBIC))


async def small_print(bench: Bench, source: TextSource, count: int) -> list[Figures]:
    """Measure pages of one size of print each: without and with the router, and by mode."""
    modes = DEEPSEEK_OCR.view_modes()
    rows = []
    for size_pt in SIZES_PT:
        found: list[Figures] = []
        for seed in range(count):
            one = drawn(source, size_pt, seed)
            base, followed = one.page(follows_print=False), one.page(follows_print=True)
            scales = {name: view_scale(*followed.image.size, mode) for name, mode in modes.items()}
            chosen = sharper_mode(DEEPSEEK_OCR.default_mode, scales, followed.glyph_px)
            before, after = await bench.read(base), await bench.read(followed)
            large = await bench.read(as_shown(followed, DEEPSEEK_OCR.default_mode))
            gundam = await bench.read(as_shown(followed, "gundam"))
            found.append(
                {
                    "glyph_px_base": (followed.glyph_px or 0) * 150 / (followed.dpi or 150),
                    "dpi": followed.dpi,
                    "is_rendered_larger": followed.dpi != base.dpi,
                    "is_routed": chosen is not None,
                    "error_before": error_of(before, one.text),
                    "error_after": error_of(after, one.text),
                    "error_as_large_shows_it": error_of(large, one.text),
                    "error_as_gundam_shows_it": error_of(gundam, one.text),
                    "seconds_before": before.took_s,
                    "seconds_after": after.took_s,
                }
            )
        row = {name: round(fmean(float(one[name]) for one in found), 4) for name in found[0]}
        rows.append({"size_pt": size_pt, "pages": count, **row})
        print(json.dumps(rows[-1]), flush=True)
    return rows


async def second_readings(bench: Bench, source: TextSource, count: int) -> list[Figures]:
    """Measure worn pages with their own words as text layer, and clean ones with those of another page."""
    pages = [drawn(source, 9.0, seed) for seed in range(count)]
    clean = [one.page(follows_print=True) for one in pages]
    kinds = {
        name: [
            (replace(page, image=worn(page.image)), one.text) for page, one in zip(clean, pages, strict=True)
        ]
        for name, worn in WEAR.items()
    }
    kinds["small print at the base resolution"] = [
        (one.page(follows_print=True, dpi=150), one.text)
        for one in (drawn(source, 3.5, seed) for seed in range(count))
    ]
    kinds["the layer of another page"] = [
        (replace(page, words=other.words), one.text)
        for page, other, one in zip(clean, [*clean[1:], clean[0]], pages, strict=True)
    ]
    return [await second_row(bench, name, kind) for name, kind in kinds.items()]


async def second_row(bench: Bench, name: str, pages: Sequence[tuple[Page, str]]) -> Figures:
    found = []
    for page, text in pages:
        first = await bench.read(page)
        kept, again_s = await bench.read_again(page, first)
        found.append((first, kept, again_s, text))
    row = {
        "kind": name,
        "pages": len(found),
        "low_recall": sum(first.checks.has_missed_the_layer for first, *_ in found),
        "read_twice": sum(again_s > 0 for _, _, again_s, _ in found),
        "second_kept": sum(kept.checks is not first.checks for first, kept, *_ in found),
        "error_before": round(fmean(error_of(first, text) for first, _, _, text in found), 4),
        "error_after": round(fmean(error_of(kept, text) for _, kept, _, text in found), 4),
        "seconds_of_first": round(fmean(first.took_s for first, *_ in found), 4),
        "seconds_of_second": round(fmean(again_s for _, _, again_s, _ in found), 4),
    }
    print(json.dumps(row), flush=True)
    return row


async def real_pages(bench: Bench, paths: Sequence[Path]) -> Figures:
    """Read born-digital English pages with and without the router, and count what it does to them."""
    found = []
    modes = DEEPSEEK_OCR.view_modes()
    for path in paths:
        text = path.with_suffix(".txt").read_text(encoding="utf-8")
        base = pdf_page(str(path), 0, None, MAX_PIXELS, is_first=True)
        followed = pdf_page(str(path), 0, None, MAX_PIXELS, is_first=True, follows_print=True)
        scales = {name: view_scale(*followed.image.size, mode) for name, mode in modes.items()}
        route: Route = bench.router.route(followed, ReadOptions())
        before = await bench.read(base)
        after = await bench.read(followed) if followed.dpi != base.dpi else before
        kept, again_s = await bench.read_again(followed, after)
        one: Figures = {
            "page": path.name,
            "is_blank": route.blank is not None,
            "dpi": followed.dpi,
            "is_rendered_larger": followed.dpi != base.dpi,
            "glyph_px_in_large": round((followed.glyph_px or 0) * scales["large"], 1),
            "mode": sharper_mode(DEEPSEEK_OCR.default_mode, scales, followed.glyph_px),
            "recall": kept.checks.text_layer_recall,
            "is_read_twice": again_s > 0,
            "error_before": round(error_of(before, text), 4),
            "error_after": round(error_of(kept, text), 4),
        }
        found.append(one)
        print(json.dumps(one), flush=True)
    counts = {
        "taken_for_blank": sum(one["is_blank"] for one in found),
        "rendered_larger": sum(one["is_rendered_larger"] for one in found),
        "to_gundam": sum(one["mode"] is not None for one in found),
        "read_twice": sum(one["is_read_twice"] for one in found),
    }
    errors = {name: round(fmean(one[name] for one in found), 4) for name in ("error_before", "error_after")}
    return {"pages": len(found), **counts, **errors, "by_page": found}


def odd_pages(folder: Path, router: Router) -> Figures:
    """Route odd PDFs' first pages, and name those that are taken for blank."""
    num_pages, skipped = 0, []
    for path in sorted(folder.rglob("*.pdf")):
        try:
            page = pdf_page(str(path), 0, None, MAX_PIXELS, is_first=True, follows_print=True)
        except ParseError:
            continue
        num_pages += 1
        if router.route(page, ReadOptions()).blank is not None:
            skipped.append(path.name)
    return {"pages": num_pages, "taken_for_blank": skipped}


async def measure(asked: argparse.Namespace, english: Sequence[Path]) -> Figures:
    source = TextSource(load_settings(asked.settings).render.words)
    reader = open_reader(asked.checkpoint, "cpu")
    bench = Bench(reader)
    try:
        await bench.read(drawn(source, 10.0, 0).page(follows_print=False))  # warm up
        figures: Figures = {
            "checkpoint": asked.checkpoint,
            "pages": asked.pages,
            "blank": await blank(bench, 4 * asked.pages),
            "faint": faint(source),
            "small_print": await small_print(bench, source, asked.pages),
            "second_readings": await second_readings(bench, source, asked.pages),
        }
        if asked.documents:
            figures["english"] = await real_pages(bench, english)
            figures["odd"] = odd_pages(asked.documents / ODD, bench.router)
        return figures
    finally:
        await reader.close()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.text_layer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", default="pocket", help="name or folder (default: pocket)")
    add("--settings", type=Path, default=Path("training/pocket.toml"), help="words of the pages")
    add("--documents", type=Path, help="a folder with accuracy/english and odd, to measure real pages too")
    add("--most-documents", type=int, help="so many real English pages (default: all)")
    add("--pages", type=int, default=6, help="so many of each kind (default: %(default)s)")
    add("--out", type=Path)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    english = sorted((asked.documents / "accuracy" / ENGLISH).glob("*.pdf")) if asked.documents else []
    figures = asyncio.run(measure(asked, english[: asked.most_documents]))
    figures |= {"seconds": "of a processor, one thread", "load": round(os.getloadavg()[0], 1)}
    publish(figures, torch.device("cpu"), asked.out)


if __name__ == "__main__":
    main()
