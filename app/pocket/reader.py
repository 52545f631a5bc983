"""Read a page in small views: cut it into lines, read every view of them, put the text together.

To the engine, the views of many pages and documents are like pages.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

from PIL import Image

from app.document import FARTHEST, Block, Page, Reading, ReadOptions
from app.ocr.engine.drafts import Acceptance, DraftText
from app.ocr.engine.engine import Engine, EngineStream
from app.ocr.models.model import OcrModel
from app.ocr.risk import Evidence, RiskCurve
from app.output.markdown import block_of, to_markdown
from app.pocket.expected import ExpectedText
from app.pocket.layout.composed import page_blocks, turned_back
from app.pocket.layout.page import CutPage, cut_page
from app.pocket.layout.views import LineView, line_text
from app.pocket.patches import page_patches
from app.pocket.whole import STOPPED, ViewReading, confidence_of_print, evidence_of, whole_reading
from app.reader import ReaderLoad

GROUNDING = "<|grounding|>"
MAX_VIEW_TOKENS = 160
"""Most output tokens for a view, which holds about 50 characters."""
MAX_VIEWS = 500
"""Most views of a page; a dense A4 page has some 200. Further ones are not read: the page ends as
``length``.
"""
MAX_WAITING = 64
"""Most views of one page with the engine at a time, whose queue is for many pages."""
PROBES = 12  # views read first, to tell whether a page is turned
DOUBT = -0.2  # mean log-probability of their tokens below which it may be turned
SURER = 0.1  # mean log-probability by which another way up must be better
TURNED = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
"""Transpose for each number of quarter turns, counter-clockwise."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A view as the engine gets it, its number of rows of print, and what its text layer says of it."""

    image: Image.Image
    num_rows: int
    expected: str = ""

    @classmethod
    def of(cls, view: LineView, expected: ExpectedText | None = None) -> Self:
        return cls(view.image, len(view.cuts), "" if expected is None else expected.of(view))


class PocketReader:
    """The pocket's ``PageReader``, around an engine. Pages in other modes go to the engine whole."""

    def __init__(self, engine: Engine, model: OcrModel) -> None:
        self._engine, self._model = engine, model
        self.cutting = ThreadPoolExecutor(2, thread_name_prefix="cutting")

    @property
    def model_name(self) -> str:
        return self._engine.model_name

    @property
    def modes(self) -> Collection[str]:
        return self._engine.modes

    @property
    def default_mode(self) -> str:
        return self._model.default_mode

    def scales(self, width: int, height: int) -> dict[str, float]:  # noqa: ARG002
        """Return nothing: the mode that cuts lines shows each at its own size, and no other is better."""
        return {}

    @property
    def failure(self) -> str | None:
        return self._engine.failure

    @property
    def load(self) -> ReaderLoad:
        """Load of the engine, counted in views, of which a page has several."""
        return self._engine.load

    def submit(
        self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> "EngineStream | PocketStream":
        """Queue a page; see ``PageReader``. For a page that is cut, call it on a running event loop."""
        if options.mode not in {None, self._model.default_mode}:
            return self._engine.submit(page, options, document_id=document_id, priority=priority)
        prompt = self._model.default_prompt if options.prompt is None else options.prompt
        self._model.prompt_ids(prompt)
        as_markdown = GROUNDING in prompt
        return PocketStream(self, page, options, document_id, priority=priority, as_markdown=as_markdown)

    def submit_view(
        self,
        view: Image.Image,
        page: Page,
        options: ReadOptions,
        document_id: str,
        priority: int,
        draft_text: DraftText | None = None,
    ) -> EngineStream:
        page = Page(page.index, view.convert("RGB"))
        return self._engine.submit(
            page, options, document_id=document_id, priority=priority, draft_text=draft_text
        )

    def draft_text(self, text: str, acceptance: Acceptance) -> DraftText | None:
        """Return the text of a view for ``submit_view``; ``None`` where no drafts are made."""
        return self._engine.draft_text(text, acceptance, is_exact=True)

    @property
    def risk_curve(self) -> RiskCurve:
        return self._model.risk_curve

    async def cut(self, image: Image.Image, is_wanted: Callable[[], bool]) -> CutPage:
        """Cut a page in a thread. Cut nothing if the page is no longer wanted when its turn comes."""

        def cut() -> CutPage:
            return cut_page(image) if is_wanted() else CutPage(None, (), ())

        return await asyncio.get_running_loop().run_in_executor(self.cutting, cut)

    async def close(self) -> None:
        await self._engine.close()
        self.cutting.shutdown(wait=True, cancel_futures=True)


class PocketStream:
    """One page being read in views."""

    def __init__(
        self,
        reader: PocketReader,
        page: Page,
        options: ReadOptions,
        document_id: str,
        *,
        priority: int,
        as_markdown: bool,
    ) -> None:
        self._reader, self._page, self._document_id, self._priority = reader, page, document_id, priority
        self._options, self._as_markdown = options, as_markdown
        self._acceptance = Acceptance()
        self._streams: list[EngineStream] = []
        self._is_cancelled = False
        self.evidence = Evidence()
        """Data from which the result's risk was estimated; complete once the result is there."""
        self._reading = asyncio.ensure_future(self._read())
        # a page that nobody waits for must fail without a warning
        self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the page's text in one piece, because its order is known only when all views are read."""
        try:
            reading = await asyncio.shield(self._reading)
        except Exception:  # noqa: BLE001 - pieces end without raising; ``result`` says what happened
            return
        if reading.text:
            yield reading.text

    async def result(self) -> Reading:
        return await asyncio.shield(self._reading)

    def cancel(self) -> None:
        self._is_cancelled = True  # what is submitted later is cancelled, too
        _cancel(self._streams)

    def _is_wanted(self) -> bool:
        return not self._is_cancelled

    async def _read(self) -> Reading:
        began = time.monotonic()
        cut = await self._reader.cut(self._page.image, self._is_wanted)
        cut_ms = (time.monotonic() - began) * 1e3
        most = self._options.max_output_tokens
        options = replace(
            self._options,
            prompt=None,
            max_output_tokens=MAX_VIEW_TOKENS if most is None else min(most, MAX_VIEW_TOKENS),
        )
        turns = 0
        readings = await self._readings(_shown(cut, self._page), options, doubts=bool(cut.views))
        if readings is None:
            began = time.monotonic()
            turns, cut = await self._upright(cut, options)
            cut_ms += (time.monotonic() - began) * 1e3
            # the text layer is that of the page as it came
            page = replace(self._page, placed_words=()) if turns else self._page
            readings = await self._readings(_shown(cut, page), options) or []
        read = [view.reading.text for view in readings]
        read += [""] * (len(cut.views) - len(read))
        blocks = _composed(cut, read, as_markdown=self._as_markdown, turns=turns)
        self.evidence = evidence_of(readings)
        is_over_budget = (
            most is not None and sum(reading.reading.tokens.output for reading in readings) > most
        )
        if most is not None and is_over_budget:
            blocks = _cut_off(blocks, most)
        risk = self._reader.risk_curve.risk(self.evidence)
        whole = whole_reading(readings, "\n\n".join(block.text for block in blocks), risk, cut_ms)
        whole = replace(
            whole,
            blocks=blocks,
            left_out=_left_out(cut, readings, turns),
            views=page_patches(cut, [view.reading.views for view in readings], turns),
        )
        if (is_over_budget or len(cut.views) > MAX_VIEWS) and whole.finish_reason not in STOPPED:
            return replace(whole, finish_reason="length")
        return whole

    async def _upright(self, cut: CutPage, options: ReadOptions) -> tuple[int, CutPage]:
        """Return the number of quarter turns, counter-clockwise, at which print is read best, and that page.

        The page stays as it is unless another way is clearly better.
        """
        ways = [(await self._confidence(cut, options) + SURER, 0, cut)]
        for turns, way in TURNED.items():
            if self._is_cancelled:
                break
            image = self._page.image.transpose(way)
            turned = await self._reader.cut(image, self._is_wanted)
            ways.append((await self._confidence(turned, options), turns, turned))
        _, turns, cut = max(ways, key=lambda way: way[0])
        return turns, cut

    async def _confidence(self, cut: CutPage, options: ReadOptions) -> float:
        """Read views from all over the page and return their mean confidence."""
        count = min(PROBES, len(cut.views))
        views = [_Shown.of(cut.views[number * len(cut.views) // count]) for number in range(count)]
        readings = await self._readings(views, options) or []
        return confidence_of_print(readings) if readings else -math.inf

    async def _readings(
        self, views: Sequence[_Shown], options: ReadOptions, *, doubts: bool = False
    ) -> list[ViewReading] | None:
        """Read views, in order.

        With ``doubts``, return ``None`` as soon as the first views suggest that the page is turned.
        """
        readings: list[ViewReading] = []
        streams: list[EngineStream] = []
        self._streams, probes = streams, min(PROBES, len(views))
        try:
            for number in range(len(views) + MAX_WAITING):
                if number < len(views):
                    streams.append(self._submit(views[number], options))
                if MAX_WAITING <= number < len(streams) + MAX_WAITING:
                    at = number - MAX_WAITING
                    reading = await streams[at].result()
                    readings.append(ViewReading(reading, streams[at].evidence.logprobs, views[at].num_rows))
                    if doubts and len(readings) == probes and confidence_of_print(readings) < DOUBT:
                        _cancel(streams)
                        return None
            return readings
        except BaseException:
            _cancel(streams)
            raise

    def _submit(self, view: _Shown, options: ReadOptions) -> EngineStream:
        draft_text = self._reader.draft_text(view.expected, self._acceptance) if view.expected else None
        stream = self._reader.submit_view(
            view.image, self._page, options, self._document_id, self._priority, draft_text
        )
        if self._is_cancelled:
            stream.cancel()
        return stream


def _cancel(streams: Sequence[EngineStream]) -> None:
    for stream in streams:
        stream.cancel()


def _shown(cut: CutPage, page: Page) -> list[_Shown]:
    """List the views to read. A blank page gets one for its figures; its text is empty."""
    expected = None
    if page.placed_words and cut.page is not None:
        width, height = page.image.size
        expected = ExpectedText(page.placed_words, cut.page.width / width, cut.page.height / height)
    views = [_Shown.of(view, expected) for view in cut.views[:MAX_VIEWS]]
    return views or [_Shown(page.image.resize((64, 64)), 0)]


def _left_out(
    cut: CutPage, readings: Sequence[ViewReading], turns: int
) -> tuple[tuple[int, int, int, int], ...]:
    """Return the boxes of views that gave no text or not all of it, in 0..999 of the page as it came."""
    if cut.page is None:
        return ()
    across, down = FARTHEST / cut.page.width, FARTHEST / cut.page.height
    boxes = []
    for number, view in enumerate(cut.views):
        reading = readings[number].reading if number < len(readings) else None
        if reading is None or reading.finish_reason != "stop" or not reading.text.strip():
            left, top, right, bottom = view.box
            box = (int(left * across), int(top * down), int(right * across), int(bottom * down))
            boxes.append(turned_back(box, turns))
    return tuple(boxes)


def _composed(cut: CutPage, read: Sequence[str], *, as_markdown: bool, turns: int) -> tuple[Block, ...]:
    if cut.page is None:
        return ()
    texts = _line_texts(cut, read)
    return page_blocks(cut.page, texts, as_markdown=as_markdown, turns=turns)


def _cut_off(blocks: Sequence[Block], most: int) -> tuple[Block, ...]:
    """Cut blocks after the first ``most`` characters; a token of the pocket is one character."""
    kept: list[Block] = []
    for block in blocks:
        markdown = block.text if block.markdown is None else block.markdown
        if len(markdown) > most:
            return (*kept, block_of(block.type, block.bbox, to_markdown(markdown[:most]).markdown))
        kept.append(block)
        most -= len(markdown)
    return tuple(kept)


def _line_texts(cut: CutPage, read: Sequence[str]) -> list[str]:
    """Join the texts of every line's views."""
    lines: list[str] = []
    at = 0
    for count in cut.counts:
        lines.append(line_text(cut.views[at : at + count], read[at : at + count]))
        at += count
    return lines
