"""What the worker does with pages: order, bounds, failures. No processes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

from PIL import Image

from app.document import Page, PageSelection, ParseOptions, Reading, ReadOptions
from app.errors import BadOption, UnreadablePage
from app.fake import FakeReader
from app.messages import Ended, FromWorker, Opened, PageDone, Parse, Started
from app.rasterizers import Rasterizers
from app.settings import Settings
from app.worker import Worker


class FakeRasterizers:
    """Twelve pages, the last unreadable."""

    async def count(self, path: Path, file_format: str) -> int:
        return 12

    async def page(self, path: Path, file_format: str, index: int, dpi: int) -> Page:
        await asyncio.sleep(0)
        if index == 11:
            raise UnreadablePage("damaged")
        return Page(index, Image.new("RGB", (dpi, 10)), 1.0)


class GatedStream:
    """One page that ends when its reader's gate opens."""

    def __init__(self, reader: "GatedReader", page: Page, options: ReadOptions) -> None:
        self._reader = reader
        self._page = page
        self._options = options

    async def pieces(self) -> AsyncIterator[str]:
        yield ""

    async def result(self) -> Reading:
        self._reader.running.add(self._page.index)
        self._reader.max_running = max(self._reader.max_running, len(self._reader.running))
        try:
            await self._reader.gate.wait()
        finally:
            self._reader.running.discard(self._page.index)
        if self._page.index == 2:
            raise ZeroDivisionError("a defect")
        return await FakeReader().submit(self._page, self._options, document_id="x").result()

    def cancel(self) -> None:
        self._reader.num_cancels += 1


class GatedReader:
    """Keeps the contract of ``PageReader``."""

    model_name = "gated"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running: set[int] = set()
        self.max_running = 0
        self.num_cancels = 0

    def submit(self, page: Page, options: ReadOptions, *, document_id: str) -> GatedStream:
        if options.mode == "none such":
            raise BadOption("mode none such")
        return GatedStream(self, page, options)

    async def close(self) -> None:
        self.gate.set()


class Bench:
    """A worker and what it said."""

    def __init__(self, **settings: int) -> None:
        self.said: list[FromWorker] = []
        self.reader = GatedReader()
        rasterizers = cast("Rasterizers", FakeRasterizers())
        self.worker = Worker(Settings.model_validate(settings), self.reader, rasterizers, self._send)

    async def _send(self, message: FromWorker) -> None:
        self.said.append(message)

    def start(self, document_id: str = "a", options: ParseOptions | None = None) -> None:
        self.worker.start(Parse(document_id, "/x", "PDF", options or ParseOptions(dpi=72)))

    async def ended(self) -> Ended:
        for _ in range(10_000):
            ends = [message for message in self.said if isinstance(message, Ended)]
            if ends:
                return ends[0]
            await asyncio.sleep(0)
        raise AssertionError("it did not end")

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0)


def test_pages_of_a_document_are_bounded_and_rendered_ahead() -> None:
    async def run() -> None:
        bench = Bench(max_pages_in_flight_per_document=3, max_pages_in_flight=100)
        bench.start()
        await bench.settle()
        started = [message.index for message in bench.said if isinstance(message, Started)]
        assert started == [0, 1, 2], "two are rendered while the first is read, and no more"
        bench.reader.gate.set()
        assert (await bench.ended()).failure is None
        done = {message.page.index: message.page for message in bench.said if isinstance(message, PageDone)}
        assert sorted(done) == list(range(12))
        assert bench.reader.max_running == 3
        failed = {index: page.failure.code for index, page in done.items() if page.failure}
        assert failed == {2: "page_failed", 11: "unreadable_page"}

    asyncio.run(run())


def test_pages_of_all_documents_are_bounded() -> None:
    async def run() -> None:
        bench = Bench(max_pages_in_flight_per_document=4, max_pages_in_flight=6)
        for name in "abc":
            bench.start(name)
        await bench.settle()
        assert len(bench.reader.running) <= 6
        assert sum(isinstance(message, Started) for message in bench.said) == 6
        await bench.worker.close()

    asyncio.run(run())


def test_a_cancelled_document_is_silent_and_frees_the_reader() -> None:
    async def run() -> None:
        bench = Bench(max_pages_in_flight_per_document=2, max_pages_in_flight=2)
        bench.start("a")
        await bench.settle()
        bench.worker.cancel("a")
        await bench.settle()
        assert bench.reader.running == set()
        assert bench.reader.num_cancels == 2
        bench.said.clear()
        bench.reader.gate.set()
        bench.start("b")
        assert (await bench.ended()).id == "b"
        spoken = [message for message in bench.said if isinstance(message, Opened | Started | Ended)]
        assert {message.id for message in spoken} == {"b"}

    asyncio.run(run())


def test_a_refused_option_ends_the_document() -> None:
    async def run() -> None:
        bench = Bench()
        bench.start(options=ParseOptions(ReadOptions(mode="none such")))
        ended = await bench.ended()
        assert ended.failure is not None
        assert ended.failure.code == "bad_option"

    asyncio.run(run())


def test_only_selected_pages_are_read() -> None:
    async def run() -> None:
        bench = Bench(max_pages=3)
        bench.reader.gate.set()
        bench.start(options=ParseOptions(pages=PageSelection.parse("9,4-5")))
        assert (await bench.ended()).failure is None
        assert [message.pages for message in bench.said if isinstance(message, Opened)] == [(3, 4, 8)]
        bench.said.clear()
        bench.start("b")
        ended = await bench.ended()
        assert ended.failure is not None
        assert ended.failure.code == "too_many_pages"

    asyncio.run(run())
