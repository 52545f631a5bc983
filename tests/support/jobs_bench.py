"""Jobs in a database of their own, without processes: what stores, readers and maintenance are tried on."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from PIL import Image

from app.document import Page, PageResult, ParseOptions, Reading, ReadOptions
from app.errors import BadOption, UnreadablePage
from app.fake import FakeReader
from app.jobs.blobs import Blobs
from app.jobs.database import migrate_dbos, open_engine
from app.jobs.job import NewJob, encode_page
from app.jobs.queues import Batch
from app.jobs.store import Limits, Store
from app.jobs.worker.page_store import Done, PageStore, Started
from app.jobs.worker.reading import BatchRunner
from app.jobs.worker.result_writer import ResultWriter
from app.places import Claim
from app.reader import PageReader
from app.settings import Settings

LIMITS = Limits(max_queued_pages=1000, max_jobs_per_client=10, result_lifetime_s=3600)


class FakeRasterizers:
    """Twelve pages, the last unreadable; or these. ``None``: unreadable."""

    def __init__(self, pages: Sequence[Page | None] = ()) -> None:
        self._pages = pages

    async def page(
        self,
        path: Path,
        file_format: str,
        index: int,
        dpi: int | None = None,
        *,
        is_first: bool = False,
        claim: Claim | None = None,
    ) -> Page:
        await asyncio.sleep(0)
        usual = None if index == 11 else Page(index, Image.new("RGB", (dpi or 1, 10)), 1.0)
        page = self._pages[index] if self._pages else usual
        if page is None:
            raise UnreadablePage("damaged")
        return page


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
        self._reader.num_begun += 1
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
    modes = ("tiny",)
    fixates = False

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running: set[int] = set()
        self.max_running = 0
        self.num_begun = 0
        self.num_cancels = 0

    def submit(self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0) -> GatedStream:
        if options.mode == "none such":
            raise BadOption("mode none such")
        return GatedStream(self, page, options)

    async def close(self) -> None:
        self.gate.set()


def open_store(settings: Settings) -> Store:
    migrate_dbos(settings)
    store = Store(open_engine(settings))
    store.migrate()
    return store


class NoQueue:
    """Queues nothing."""

    def add(self, connection: sa.Connection, batches: Sequence[Batch]) -> None:
        pass


def new_job(num_pages: int = 1, **changes: Any) -> NewJob:
    fields: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "client": "c",
        "dedupe": None,
        "request_hash": "h",
        "options": ParseOptions(dpi=72),
        "format": "PDF",
        "blob": "",
        "pages": (range(num_pages),),
        "priority": 5,
        "webhook": None,
        "batch_pages": 100,
    }
    return NewJob(**fields | changes)


def accept(store: Store, job: NewJob, limits: Limits = LIMITS) -> str:
    """The job's id, or that of the job it repeats. No work is queued for it."""
    return store.accept(job, limits, NoQueue()) or job.id


def done(job_id: str, page: int, text: str = "text") -> Done:
    return Done(job_id, page, encode_page(PageResult(page, 1, 1, text)), failed=False, model="m")


def started(job_id: str, page: int, *, again: bool = False) -> Started:
    return Started(job_id, page, 10, 20, again)


class Bench:
    """A worker's reader over a real store; jobs that it was given."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = Settings.model_validate({"data_dir": folder, "max_pages_in_flight": 64, **settings})
        self.store = open_store(self.settings)
        self.log = PageStore(self.store)
        self.blobs = Blobs(self.settings)
        self.folder = folder
        self.reader = GatedReader()
        self.worker = self.new_worker("w")

    def new_worker(
        self,
        name: str,
        reader: PageReader | None = None,
        writer: ResultWriter | None = None,
        pages: Sequence[Page | None] = (),
    ) -> BatchRunner:
        return BatchRunner(
            self.settings,
            reader or self.reader,
            FakeRasterizers(pages),
            self.store,
            NoQueue(),
            self.blobs,
            writer or ResultWriter(self.log, name),
            self.folder,
        )

    def job(self, num_pages: int = 12, **changes: Any) -> str:
        document = self.folder / uuid.uuid4().hex
        document.write_bytes(b"%PDF-")
        return accept(self.store, new_job(num_pages, blob=self.blobs.put(document), **changes))

    async def running(self, num_pages: int) -> None:
        """Wait until so many pages are with the model."""
        async with asyncio.timeout(20):
            while len(self.reader.running) != num_pages:  # noqa: ASYNC110 - it is watched from outside
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(self.reader.running) == num_pages, "and it stays at that"
