"""Measure how well pages are cut into lines and put together again, when every line is read without error.

    python -m benchmarks.layout --documents FOLDER --out benchmarks/results/layout.json

Uses rendered A4 pages with known truth, and real born-digital PDFs (FOLDER/*.pdf with images of 150 dpi and
texts beside them). For PDFs the truth is the words and the order of poppler's pdftotext, which must be
installed. The last line of stdout is one JSON document.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, median

import torch
from PIL import Image

from app.output.markdown import of_blocks
from app.pocket.layout.composed import page_blocks
from app.pocket.layout.ink import find_ink
from app.pocket.layout.page import cut_page, find_print
from benchmarks.accuracy.pages import CLEAN, DEGRADED, DrawnPage, RenderedPages
from benchmarks.accuracy.scores import (
    PARTS,
    character_scores,
    page_errors,
    structure_of,
    structure_scores,
    without_escapes,
)
from benchmarks.layout.oracle import Faults, Glyph, Oracle, glyphs_of, words_of
from benchmarks.report import publish
from training.settings import load_settings

KINDS = (CLEAN, DEGRADED)
PAGES, TIMED_PAGES = 150, 10
Figures = dict[str, object]


@dataclass(frozen=True, slots=True)
class Layout:
    """The text of one page as it would be read without an error in any line."""

    plain: str
    markdown: str
    faults: Faults


def read_page(image: Image.Image, glyphs: Sequence[Glyph]) -> Layout:
    ink = find_ink(image)
    page = None if ink is None else find_print(ink)
    if ink is None or page is None:
        return Layout("", "", Faults())
    oracle, lines = Oracle(glyphs, ink), page.lines
    texts = [oracle.read(line) for line in lines]
    plain = "\n\n".join(block.text for block in page_blocks(page, texts, as_markdown=False))
    markdown = of_blocks(page_blocks(page, texts, as_markdown=True)).markdown
    return Layout(plain, markdown, oracle.faults(lines))


def rendered_row(kind: str, pages: Sequence[DrawnPage]) -> tuple[Figures, list[str]]:
    """Return figures of one kind of pages, and the names of those whose structure is wrong."""
    read = [read_page(page.sample.image, glyphs_of(page)) for page in pages]
    markdown, true_markdown = [one.markdown for one in read], [page.sample.markdown or "" for page in pages]
    faults = {field.name: sum(getattr(one.faults, field.name) for one in read) for field in fields(Faults)}
    figures: Figures = {
        "kind": kind,
        "plain": character_scores([one.plain for one in read], [page.sample.text for page in pages]),
        "markdown": character_scores(*map(without_escapes, (markdown, true_markdown))),
        "structure": structure_scores(markdown, true_markdown),
        "faults": faults,
    }
    wrong = [
        f"{page.sample.name}: {', '.join(parts)}"
        for page, text, truth in zip(pages, markdown, true_markdown, strict=True)
        if (parts := wrong_parts(text, truth))
    ]
    return figures, wrong


def wrong_parts(markdown: str, truth: str) -> list[str]:
    read, true = structure_of(markdown), structure_of(truth)
    return [name for name, is_right in PARTS.items() if not is_right(read, true)]


def documents_row(folder: Path) -> Figures:
    """Return figures of real pages."""
    pdfs = [pdf for pdf in sorted(folder.glob("*.pdf")) if pdf.with_suffix(".txt").is_file()]
    if not pdfs:
        raise FileNotFoundError(f"{folder} has no PDFs with texts beside them")
    truth = [pdf.with_suffix(".txt").read_text(encoding="utf-8") for pdf in pdfs]
    read = []
    for pdf in pdfs:
        with Image.open(pdf.with_suffix(".150.png")) as image:
            read.append(read_page(image.convert("RGB"), words_of(pdf)).plain)
    errors = zip(pdfs, page_errors(read, truth), strict=True)
    return {
        "kind": "documents",
        "plain": character_scores(read, truth),
        "by_page": {pdf.stem: round(error, 3) for pdf, error in errors},
    }


def cutting_seconds(images: Sequence[Image.Image]) -> Figures:
    times = []
    for image in images:
        start = time.process_time()
        cut_page(image)
        times.append(time.process_time() - start)
    return {
        "pages": len(times),
        "cpu_seconds_mean": round(fmean(times), 3),
        "cpu_seconds_median": round(median(times), 3),
        "cpu_seconds_most": round(max(times), 3),
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--settings", type=Path, default=Path("training/pocket.toml"), help="fonts and words of the pages")
    add("--pages", type=int, default=PAGES, help="rendered ones of each kind (default: %(default)s)")
    add("--skip", type=int, default=0, help="so many seeds: pages to develop on (default: %(default)s)")
    add("--documents", type=Path, help="folder of PDFs with images and texts")
    add("--wrong", action="store_true", help="name the pages whose structure is not right")
    add("--out", type=Path)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    rendered = RenderedPages(load_settings(arguments.settings))
    figures: Figures = {"skip": arguments.skip}
    timed: list[Image.Image] = []
    for kind in KINDS if arguments.pages else ():
        pages = rendered.drawn_pages(kind, arguments.pages, arguments.skip)
        figures[kind], wrong = rendered_row(kind, pages)
        print("\n".join(wrong) if arguments.wrong else json.dumps(figures[kind]), flush=True)
        timed += [page.sample.image for page in pages[: TIMED_PAGES // len(KINDS)]]
    if timed:
        figures["cutting"] = cutting_seconds(timed)
    if arguments.documents:
        figures["documents"] = documents_row(arguments.documents)
    publish(figures, torch.device("cpu"), arguments.out)


if __name__ == "__main__":
    main()
