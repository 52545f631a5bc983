"""One process, one device, one model: takes documents from a socket, gives page results.

``python -m app.worker FD``. It ends by itself when the other end of the socket is gone. Standard output and
error are for logs alone.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.document import Failure, Page, PageResult, Reading
from app.errors import BadOption, InternalError, PageDeadline, PageFailed, ParseError, TooManyPages
from app.frames import MAX_FRAME_BYTES, FrameError, pack, read_frame
from app.markdown import to_markdown
from app.messages import (
    Cancel,
    Ended,
    FromWorker,
    Opened,
    PageDone,
    Parse,
    Ping,
    Pong,
    Ready,
    Start,
    Started,
    Unusable,
    decode_to_worker,
    encode_from_worker,
)
from app.processes import exit_after, when_orphaned
from app.rasterizers import Rasterizers
from app.reader import PageReader
from app.settings import Settings
from app.telemetry import log_to_stderr

logger = logging.getLogger("rtprune.worker")

ORPHAN_GRACE_S = 3.0

Send = Callable[[FromWorker], Awaitable[None]]


class Worker:
    """Reads documents, several at once; of one document, a bounded number of pages at a time."""

    def __init__(self, settings: Settings, reader: PageReader, rasterizers: Rasterizers, send: Send) -> None:
        self._settings = settings
        self._reader = reader
        self._rasterizers = rasterizers
        self._send = send
        self._slots = asyncio.Semaphore(settings.max_pages_in_flight)
        self._jobs: dict[str, asyncio.Task[None]] = {}

    def start(self, job: Parse) -> None:
        task = asyncio.create_task(self._run(job), name=f"document {job.id}")
        self._jobs[job.id] = task
        task.add_done_callback(lambda _: self._jobs.pop(job.id, None))

    def cancel(self, document_id: str) -> None:
        """Stop reading a document, within one decode step. Nothing more is sent about it."""
        if document_id in self._jobs:
            self._jobs[document_id].cancel()

    async def close(self) -> None:
        tasks = list(self._jobs.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: Parse) -> None:
        failure: Failure | None = None
        try:
            await self._read_document(job)
        except ParseError as error:
            failure = Failure.of(error)
        except Exception:  # the boundary of a task: a defect ends one document, and is logged as one
            logger.exception("document failed", extra={"document": job.id})
            failure = Failure.of(InternalError("the worker failed on this document"))
        await self._send(Ended(job.id, failure))

    async def _read_document(self, job: Parse) -> None:
        pages = job.pages
        if pages is None:
            pages = await self._select(job)
            await self._send(Opened(job.id, pages))
        window = asyncio.Semaphore(self._settings.max_pages_in_flight_per_document)
        try:
            async with asyncio.TaskGroup() as group:
                for index in pages:
                    group.create_task(self._page(job, index, window))
        except ExceptionGroup as errors:
            refused, defects = errors.split(ParseError)
            if defects is not None or refused is None:
                raise
            # the first page's refusal of an option is that of the document
            raise next(error for error in refused.exceptions if isinstance(error, ParseError)) from errors

    async def _select(self, job: Parse) -> tuple[int, ...]:
        num_pages = await self._rasterizers.count(Path(job.path), job.format)
        ranges = job.options.pages.within(num_pages)
        num_selected = sum(map(len, ranges))
        if num_selected > self._settings.max_pages:
            raise TooManyPages(
                f"{num_selected} pages are too many, at most {self._settings.max_pages} are read at once"
            )
        return tuple(index for pages in ranges for index in pages)

    async def _page(self, job: Parse, index: int, window: asyncio.Semaphore) -> None:
        """One page from file to result. Raises ``BadOption`` alone: that is no page's fault."""
        # The window comes first: a page that waits for its document must not hold a slot of all documents.
        async with window, self._slots:
            started = time.perf_counter()
            try:
                page = await self._rasterizers.page(Path(job.path), job.format, index, job.options.dpi)
            except ParseError as error:
                result = PageResult(index, 0, 0, "", failure=Failure.of(error))
            else:
                await self._send(Started(job.id, index, page.image.width, page.image.height))
                result = await self._read(job, page, started)
        try:
            await self._send(PageDone(job.id, result))
        except FrameError:
            logger.exception("page result cannot be sent", extra={"document": job.id})
            failure = Failure.of(PageFailed("the page gave a result that cannot be passed on"))
            await self._send(
                PageDone(job.id, PageResult(index, result.width, result.height, "", failure=failure))
            )
        outcome = result.failure.code if result.failure else "read"
        logger.info("page", extra={"document": job.id, "index": index, "outcome": outcome})

    async def _read(self, job: Parse, page: Page, started: float) -> PageResult:
        width, height = page.image.size
        try:
            reading = await self._reading(job, page)
        except BadOption:
            raise
        except ParseError as error:
            return PageResult(page.index, width, height, "", failure=Failure.of(error))
        except Exception:  # a defect of the reader ends one page, and is logged as one
            logger.exception("page failed", extra={"document": job.id, "index": page.index})
            failure = Failure.of(PageFailed("the model failed on this page"))
            return PageResult(page.index, width, height, "", failure=failure)
        rendered = to_markdown(reading.text)
        total_ms = (time.perf_counter() - started) * 1000
        timing_ms = {"rasterize": page.rasterize_ms, **reading.timing_ms, "total": total_ms}
        return PageResult(
            page.index, width, height, rendered.markdown, rendered.blocks, reading, timing_ms=timing_ms
        )

    async def _reading(self, job: Parse, page: Page) -> Reading:
        stream = self._reader.submit(page, job.options.read, document_id=job.id)
        try:
            async with asyncio.timeout(self._settings.page_deadline_s):
                return await stream.result()
        except TimeoutError as error:
            raise PageDeadline(f"not read within {self._settings.page_deadline_s:g} s") from error
        finally:
            stream.cancel()


def open_reader(settings: Settings) -> PageReader:
    """The reader that the settings name. The model's code, and torch, are imported here, not before."""
    if settings.reader == "fake":
        from app.fake import FakeReader  # noqa: PLC0415

        return FakeReader()
    from app.ocr.reader import engine_settings  # noqa: PLC0415
    from app.ocr.reader import open_reader as open_model_reader  # noqa: PLC0415

    # an engine that died reads nothing more: end, and leave the pages to the next worker
    reader: PageReader = open_model_reader(
        settings.model, settings.device, engine_settings(settings), on_death=exit_after(0)
    )
    return reader


async def _serve(link: socket.socket) -> None:
    incoming, outgoing = await asyncio.open_connection(sock=link, limit=MAX_FRAME_BYTES)
    sending = asyncio.Lock()

    async def send(message: FromWorker) -> None:
        frame = pack(encode_from_worker(message))
        async with sending:
            outgoing.write(frame)
            await outgoing.drain()

    first = await read_frame(incoming)
    start = decode_to_worker(first) if first is not None else None
    if not isinstance(start, Start):
        return
    settings = Settings.model_validate(start.settings)
    log_to_stderr(settings)
    rasterizers = Rasterizers(settings, Path(os.environ["TMPDIR"]))
    try:
        await rasterizers.start()
        reader = open_reader(settings)
    except Exception as error:  # whatever stops a model from loading: readiness has to say so
        logger.exception("the worker cannot start")
        detail = str(error) if isinstance(error, ParseError) else "the model cannot be loaded; see the log"
        await send(Unusable(detail))
        await rasterizers.close()
        return
    await send(Ready(reader.model_name))
    worker = Worker(settings, reader, rasterizers, send)
    try:
        await _listen(incoming, worker, send)
    finally:
        await worker.close()
        await reader.close()
        await rasterizers.close()


async def _listen(incoming: asyncio.StreamReader, worker: Worker, send: Send) -> None:
    while (frame := await read_frame(incoming)) is not None:
        match decode_to_worker(frame):
            case Parse() as job:
                worker.start(job)
            case Cancel(id=document_id):
                worker.cancel(document_id)
            case Ping():
                await send(Pong())


def main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    when_orphaned(link.fileno(), exit_after(ORPHAN_GRACE_S))
    asyncio.run(_serve(link))


if __name__ == "__main__":
    main()
