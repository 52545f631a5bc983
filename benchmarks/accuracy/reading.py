"""Read pages through the engine, several in flight, and compute their row of figures."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from PIL import Image

from app.document import Page, Reading, ReadOptions
from app.errors import ParseError
from app.output.markdown import render
from app.reader import PageReader
from benchmarks.accuracy.pages import Kind
from benchmarks.accuracy.scores import character_scores, structure_scores, without_escapes
from training.vocabulary import PLAIN_PROMPT

IN_FLIGHT = 16
PLAIN, MARKDOWN = "plain", "markdown"
PROMPTS = {PLAIN: PLAIN_PROMPT, MARKDOWN: None}
"""Prompts by name. ``None``: the checkpoint's own prompt, which asks for grounded Markdown."""
PRUNINGS = {
    "none": ReadOptions(prune="none"),
    "dynamic": ReadOptions(prune="rtprune"),
}
"""Prunings by name. ``dynamic`` is the service's default."""
Figures = dict[str, object]


@dataclass(frozen=True, slots=True)
class Readings:
    """Readings of one call, in page order; a page that failed is its error. ``seconds``: for all together."""

    pages: tuple[Reading | ParseError, ...]
    seconds: float

    @property
    def texts(self) -> list[str]:
        """Raw model text of each page; empty for a page that failed."""
        return [page.text if isinstance(page, Reading) else "" for page in self.pages]

    @property
    def markdowns(self) -> list[str]:
        return [render(page).markdown if isinstance(page, Reading) else "" for page in self.pages]

    def figures(self) -> Figures:
        """Return how the pages ended and what they cost, apart from what they say."""
        read = [page for page in self.pages if isinstance(page, Reading)]
        ends = (page.finish_reason if isinstance(page, Reading) else page.code for page in self.pages)
        return {
            "retention": round(fmean(page.tokens.retention for page in read), 4) if read else None,
            "finish_reasons": dict(sorted(Counter(ends).items())),
            "read_again": sum(len(page.attempts) > 1 for page in read),
            "output_tokens": sum(page.tokens.output for page in read),
            "seconds_per_page": round(self.seconds / len(self.pages), 3),
        }


async def read_all(
    reader: PageReader, images: Sequence[Image.Image], options: ReadOptions, in_flight: int = IN_FLIGHT
) -> Readings:
    gate = asyncio.Semaphore(in_flight)

    async def read(index: int, image: Image.Image) -> Reading | ParseError:
        async with gate:
            try:
                stream = reader.submit(Page(index, image), options, document_id="accuracy")
                return await stream.result()
            except ParseError as error:
                return error

    start = time.perf_counter()
    pages = await asyncio.gather(*(read(index, image) for index, image in enumerate(images)))
    return Readings(tuple(pages), time.perf_counter() - start)


def options_of(prompt: str, pruning: str) -> ReadOptions:
    options = PRUNINGS[pruning]
    return ReadOptions(prune=options.prune, keep_ratio=options.keep_ratio, prompt=PROMPTS[prompt])


async def row(reader: PageReader, kind: Kind, prompt: str, pruning: str) -> Figures:
    """Read a kind of pages and score it.

    The plain prompt's text is compared with the page's text. The default prompt's Markdown, without its
    grounding tags, is compared with the page's Markdown.
    """
    readings = await read_all(reader, [sample.image for sample in kind.samples], options_of(prompt, pruning))
    figures: Figures = {"reader": reader.model_name, "kind": kind.name, "prompt": prompt, "pruning": pruning}
    if prompt == PLAIN:
        truth = [sample.text for sample in kind.samples]
        figures |= character_scores(readings.texts, truth, ignores_case=kind.ignores_case)
    else:
        truth = [sample.markdown or "" for sample in kind.samples]
        read, said = map(without_escapes, (readings.markdowns, truth))
        figures |= character_scores(read, said, ignores_case=kind.ignores_case)
        figures["structure"] = structure_scores(readings.markdowns, truth)
    return figures | readings.figures()


async def blank_row(reader: PageReader, papers: Sequence[tuple[str, Image.Image]]) -> Figures:
    """Count the blank pages that give empty Markdown, read with the service's defaults."""
    readings = await read_all(reader, [image for _, image in papers], options_of(MARKDOWN, "dynamic"))
    empty = [not markdown.strip() for markdown in readings.markdowns]
    by_paper = {
        name: sum(is_empty for (paper, _), is_empty in zip(papers, empty, strict=True) if paper == name)
        for name in dict.fromkeys(paper for paper, _ in papers)
    }
    invented = sum(len(markdown.strip()) for markdown in readings.markdowns)
    return {
        "pages": len(papers),
        "empty": sum(empty),
        "empty_by_paper": by_paper,
        "invented_characters": invented,
    } | readings.figures()


async def speed(reader: PageReader, images: Sequence[Image.Image]) -> Figures:
    """Measure seconds a page, one after the other and all at once, with the service's defaults."""
    options = options_of(MARKDOWN, "dynamic")
    await read_all(reader, images[:1], options)  # warms up
    alone = [(await read_all(reader, [image], options)).seconds for image in images]
    together = await read_all(reader, images, options)
    return {
        "pages": len(images),
        "seconds_alone_median": round(median(alone), 3),
        "seconds_alone_most": round(max(alone), 3),
        "seconds_a_page_together": round(together.seconds / len(images), 3),
        "in_flight": min(len(images), IN_FLIGHT),
        "output_tokens_a_page": round(sum(
            page.tokens.output for page in together.pages if isinstance(page, Reading)
        ) / len(images)),
    }  # fmt: skip
