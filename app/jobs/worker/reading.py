"""Read batches of pages: from the blob store to results that are written once.

Pages that were in the model when their worker died are suspects. They are read again apart from all others,
in groups of an eighth of those that were together, then an eighth of that, then alone. A page that was alone
when two workers died fails as ``worker_lost``; one that was only near is read. The database records a page
before the page goes to the model (``PageStore.mark_worker_dead`` says how the strikes are counted).

Where a document asks for several pages in one prompt, they share a turn and what the model makes of them,
nothing else: each is rasterized, checked and stored like any page (``SharedPrompt``). Suspects are alone.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from app import tracing
from app.document import Failure, Page, PageResult, Reading, ReadOptions
from app.errors import (
    ONE_PAGE_A_PROMPT,
    BadOption,
    DocumentDeadline,
    PageDeadline,
    PageFailed,
    ParseError,
    StorageFull,
    StorageUnavailable,
    WorkerLost,
)
from app.jobs.blobs import Blobs
from app.jobs.job import Job, encode_page
from app.jobs.live_text import tell_text
from app.jobs.queues import Batch, Enqueues
from app.jobs.store import Store
from app.jobs.worker.page_store import Attempt, Done, Interrupted, PageStore, Started
from app.jobs.worker.result_writer import ResultWriter
from app.jobs.worker.routing import BLANK, Checked, Route, Router, better_of
from app.jobs.worker.together import SharedPrompt, prompts_of
from app.metrics import WORKER_PAGES
from app.output.checks import check_page
from app.output.cutting import take_pictures
from app.output.markdown import render
from app.places import Claim, Places, Turnstile
from app.reader import NotTogether, PageReader, reads_together
from app.settings import Settings

logger = logging.getLogger("rtprune.worker")

MAX_STRIKES = 2
SUSPECTS_SHARE = 8
OTHERS_SHARE = 4
"""One place in this many is kept for documents other than the one that would take all."""
HIGHER_SHARE = 8
"""One place in this many is kept for pages of higher priority than those being read."""
FIRST_RETRY_S = 0.2
MAX_RETRY_S = 5.0
INTERRUPT_S = 2.0


class PageSource(Protocol):
    """What turns files into pages. ``Rasterizers`` implements it."""

    async def page(
        self,
        path: Path,
        file_format: str,
        index: int,
        dpi: int | None = None,
        *,
        is_first: bool = False,
        claim: Claim | None = None,
    ) -> Page: ...


class BatchRunner:
    """Reads batches of many documents at once.

    At most ``max_pages_in_flight`` pages are read, in a fair order. ``Places`` keeps some places for
    others.
    """

    def __init__(
        self,
        settings: Settings,
        reader: PageReader,
        rasterizers: PageSource,
        store: Store,
        queue: Enqueues,
        blobs: Blobs,
        writer: ResultWriter,
        tmp_dir: Path,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._router = Router(settings, reader)
        self._rasterizers = rasterizers
        self._store = store
        self._queue = queue
        self._page_store = PageStore(store)
        self._blobs = blobs
        self._writer = writer
        self._tmp_dir = tmp_dir
        num = settings.max_pages_in_flight
        places: Places[asyncio.Future[None]] = Places(
            num, for_others=num // OTHERS_SHARE, for_higher=num // HIGHER_SHARE
        )
        self._turnstile = Turnstile(places)
        self._batches: dict[str, set[asyncio.Task[None]]] = {}
        self._reading_now: set[asyncio.Task[None]] = set()
        self._closing = False
        self._began_at = time.time()

    @property
    def job_ids(self) -> set[str]:
        """The jobs whose pages are being read."""
        return set(self._batches)

    def cancel(self, job_id: str) -> None:
        """Stop reading a job, within one decode step of the model."""
        for task in self._batches.get(job_id, ()):
            task.cancel()

    async def close(self, grace_s: float) -> None:
        """Begin no more pages, give those in the model ``grace_s`` seconds, then take them from the model.

        Batches that have not ended by then are cancelled, for another worker to read.
        """
        self._closing = True
        running = set(self._reading_now)
        if running:
            await asyncio.wait(running, timeout=grace_s)
        for job_id in self.job_ids:
            self.cancel(job_id)
        if self._reading_now:
            await asyncio.wait(set(self._reading_now), timeout=INTERRUPT_S)

    async def read(self, job_id: str, number: int, children: Sequence[Batch] = ()) -> None:
        """Queue the batch's children, then read what is left of it. Return early when the job is cancelled.

        Raise ``CancelledError`` when it was interrupted by ``close``.
        """
        reading = self._read_batch(job_id, number, children)
        task = asyncio.create_task(reading, name=f"batch {job_id}.{number}")
        self._batches.setdefault(job_id, set()).add(task)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            self._batches[job_id].discard(task)
            if not self._batches[job_id]:
                del self._batches[job_id]
        if self._closing:
            raise asyncio.CancelledError  # a return would mean that the batch is done
        if not task.cancelled():
            task.result()

    async def _read_batch(self, job_id: str, number: int, children: Sequence[Batch]) -> None:
        """Read a batch. Wait for a missing database or blob store, which is no fault of the document."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                await self._try_batch(job_id, number, children)
            except (StorageUnavailable, StorageFull) as error:
                logger.warning("a batch waits", extra={"document": job_id, "reason": str(error)})
            else:
                return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_RETRY_S)

    async def _try_batch(self, job_id: str, number: int, children: Sequence[Batch]) -> None:
        job, left = await asyncio.to_thread(self._begin, job_id, number, children)
        if job is None or not left:
            return
        try:
            await self._read_pages(job, left)
        except (StorageUnavailable, StorageFull):
            raise
        except ParseError as error:
            await self._fail(job, Failure.of(error))

    def _begin(
        self, job_id: str, number: int, children: Sequence[Batch]
    ) -> tuple[Job | None, dict[int, Attempt]]:
        """Return the job (``None`` if no longer wanted) and the unread pages of the batch.

        Call this in a thread.
        """
        job = self._store.begin(job_id, children, self._queue)
        return job, self._page_store.unread(job.id, job.batch(number)) if job else {}

    async def _read_pages(self, job: Job, left: dict[int, Attempt]) -> None:
        # entered and left by hand, in a thread, because the blob store may block
        with contextlib.ExitStack() as stack:
            path = await asyncio.to_thread(stack.enter_context, self._blobs.local(job.blob, self._tmp_dir))
            try:
                async with asyncio.TaskGroup() as group:
                    for prompt in self._prompts(job, left):
                        group.create_task(self._prompt(job, path, prompt))
            except ExceptionGroup as errors:
                refused, defects = errors.split(ParseError)
                if defects is not None or refused is None:
                    raise
                # an option that one page refuses fails the whole document
                raise _first_of(refused) from errors

    def _prompts(self, job: Job, left: dict[int, Attempt]) -> list[dict[int, Attempt]]:
        """Divide unread pages into those that share a prompt. Raise ``BadOption`` if none can here."""
        most = job.options.pages_per_prompt
        alone = [index for index, before in left.items() if most == 1 or before.together or before.strikes]
        prompts: list[Sequence[int]] = [[index] for index in alone]
        if most > 1:
            if not reads_together(self._reader):
                raise BadOption(ONE_PAGE_A_PROMPT)
            prompts += prompts_of([index for index in left if index not in alone], most)
        return [{index: left[index] for index in prompt} for prompt in prompts]

    async def _prompt(self, job: Job, path: Path, pages: dict[int, Attempt]) -> None:
        """Read the pages of one prompt, beside each other. Raise ``BadOption``, alone or in a group."""
        [(index, before), *more] = pages.items()
        # keep the turn until the results are written: only then are the pages closed in the database
        async with self._turn(job, before, len(pages)):
            if not more or not reads_together(self._reader):
                await self._page(job, path, index, before)
                return
            shared = SharedPrompt(self._reader, job, pages)
            async with asyncio.TaskGroup() as group:
                for one, its in pages.items():
                    group.create_task(self._page(job, path, one, its, shared))

    async def _fail(self, job: Job, failure: Failure) -> None:
        self.cancel_others(job.id)
        await asyncio.to_thread(self._store.fail, job.id, failure)

    def cancel_others(self, job_id: str) -> None:
        current = asyncio.current_task()
        for task in self._batches.get(job_id, ()):
            if task is not current:
                task.cancel()

    async def _page(
        self, job: Job, path: Path, index: int, before: Attempt, shared: SharedPrompt | None = None
    ) -> None:
        """Read one page: rasterize, read, render, check, read once more if the text layer says so, store.

        ``shared``: a prompt with other pages. An error of the page becomes its result. Raise ``BadOption``,
        which concerns all pages of the document.
        """
        with self._begun(job, index, shared):
            started = time.perf_counter()
            width, height = before.width, before.height
            try:
                if before.strikes >= MAX_STRIKES:
                    raise WorkerLost("the process that read the page died, twice")
                async with self._document_deadline(job):
                    page = await self._rasterized(job, path, index)
                    width, height = page.image.size
                    read = await self._read_by_route(job, page, before, shared)
                # the first reading is there, so the deadlines can only end the second
                read = await self._read_again(job, page, before, read)
                reading, checks, pictured = read.reading, read.checks, read.pictured
                total_ms = (time.perf_counter() - started) * 1000
                result = PageResult(
                    index,
                    width,
                    height,
                    pictured.rendered.markdown,
                    pictured.rendered.blocks,
                    reading,
                    timing_ms={"rasterize": page.rasterize_ms, **reading.timing_ms, "total": total_ms},
                    warnings=(*checks.warnings, *pictured.warnings),
                    dpi=page.dpi,
                    unread_ink=checks.unread_ink,
                    text_layer_recall=checks.text_layer_recall,
                    pictures=pictured.pictures,
                )
            except BadOption:
                raise
            except ParseError as error:
                result = _failed(index, error, width, height)
            await self._store_result(job, result)

    @contextlib.asynccontextmanager
    async def _turn(self, job: Job, before: Attempt, num_pages: int) -> AsyncIterator[None]:
        """Wait for places among the pages that are read. A suspect shares its turn with few others."""
        suspects = max(1, before.together // SUSPECTS_SHARE) if before.together else None
        claim = Claim(job.id, job.priority, suspects, job.client, num_pages)
        async with self._turnstile.place(claim):
            if self._closing:
                raise asyncio.CancelledError
            yield

    @contextlib.contextmanager
    def _begun(self, job: Job, index: int, shared: SharedPrompt | None) -> Iterator[None]:
        """Count a page among those that ``close`` waits for."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("pages are read in tasks")
        self._reading_now.add(task)
        try:
            with tracing.span("page", parent=job.trace, rtprune__job=job.id, rtprune__page=index):
                yield
        finally:
            self._reading_now.discard(task)
            if shared is not None:
                shared.leave(index)

    @contextlib.asynccontextmanager
    async def _document_deadline(self, job: Job) -> AsyncIterator[None]:
        """Raise ``DocumentDeadline`` when the document's time is over."""
        late = DocumentDeadline(f"not read within {self._settings.document_deadline_s:g} s")
        async with _within(self._document_left_s(job), late):
            yield

    def _document_left_s(self, job: Job) -> float:
        # time before this worker started does not count against the document
        begun_at = max(job.started_at or 0.0, self._began_at)
        return self._settings.document_deadline_s - (time.time() - begun_at)

    @contextlib.asynccontextmanager
    async def _with_model(self, job: Job, page: Page, before: Attempt) -> AsyncIterator[None]:
        """Record that the model has this page; undo the record if no result follows.

        Rendering and checks belong to it: a page that is cancelled during these has no result either. A
        defect of the reader is logged, and becomes ``PageFailed``.
        """
        try:
            again = before.together > 0
            await self._writer.write(Started(job.id, page.index, *page.image.size, again=again))
            yield
        except (asyncio.CancelledError, BadOption):
            # Also when cancelled before the record was written, since the writer will still write it.
            # Otherwise the page would stay a suspect and share the blame for every death of its worker.
            await self._writer.write(Interrupted(job.id, page.index))
            raise
        except ParseError:
            raise
        except Exception as error:
            logger.exception("page failed", extra={"document": job.id, "index": page.index})
            raise PageFailed("reading this page failed") from error

    async def _rasterized(self, job: Job, path: Path, index: int) -> Page:
        with tracing.span("rasterize"):
            return await self._rasterizers.page(
                path,
                job.format,
                index,
                job.options.dpi,
                is_first=index == job.pages[0].start,
                claim=Claim(job.id, job.priority, client=job.client),
            )

    async def _read_by_route(
        self, job: Job, page: Page, before: Attempt, shared: SharedPrompt | None
    ) -> Checked:
        """Read a page as its router says. A blank one does not go to the model."""
        route = Route(job.options.read)
        if self._router.chooses:
            route = await asyncio.to_thread(self._router.route, page, job.options.read)
        if route.blank is not None:
            page = replace(page, warnings=(*page.warnings, BLANK))
            return await self._checked(page, route.blank, 0.0)
        started = time.perf_counter()
        async with self._with_model(job, page, before):
            reading = None
            if shared is not None:
                reading, route = await self._read_together(page, route, shared)
            if reading is None:
                limit_s = self._settings.page_deadline_s
                reading = await self._read_page(
                    job, page, route.options, limit_s, is_live=job.options.is_live
                )
                reading = route.of(reading)
            return await self._checked(page, reading, time.perf_counter() - started)

    async def _read_together(
        self, page: Page, route: Route, shared: SharedPrompt
    ) -> tuple[Reading | None, Route]:
        """Read a page in a prompt with others. Return no reading, and the route, if it is to be read alone.

        The route tells what was tried. The prompt has as many times the page deadline as it has pages.
        """
        limit_s = self._settings.page_deadline_s * shared.num_pages
        try:
            async with _within(limit_s, PageDeadline(f"pages were not read together within {limit_s:g} s")):
                return await shared.read(page), route
        except (NotTogether, PageDeadline) as error:
            logger.info("not together", extra={"index": page.index, "reason": str(error)})
            return None, route.apart(error.reading if isinstance(error, NotTogether) else None)
        finally:
            shared.leave(page.index)  # a prompt that nobody waits for is taken from the model

    async def _read_again(self, job: Job, page: Page, before: Attempt, first: Checked) -> Checked:
        """Read a page once more if its text layer says that much is missing. Return the better reading.

        Whatever becomes of the second reading, the first stays. There is none of a page that was with a
        worker that died, as it may be the second reading that the worker died of; and none for which less
        time is left than the first took. Its text is not told live.
        """
        route = self._router.again(page, job.options.read, first.reading, first.checks)
        left_s = min(self._settings.page_deadline_s - first.took_s, self._document_left_s(job))
        if route is None or before.together or self._closing or left_s < first.took_s:
            return first
        started = time.perf_counter()
        try:
            async with self._with_model(job, page, before):
                reading = await self._read_page(job, page, route.options, left_s, is_live=False)
                second = await self._checked(page, route.of(reading), time.perf_counter() - started)
        except ParseError as error:
            logger.info(
                "no second reading", extra={"document": job.id, "index": page.index, "reason": str(error)}
            )
            return first
        return better_of(first, second)

    async def _read_page(
        self, job: Job, page: Page, options: ReadOptions, limit_s: float, *, is_live: bool
    ) -> Reading:
        stream = self._reader.submit(page, options, document_id=job.id, priority=job.priority)
        telling = None
        if is_live:
            telling = asyncio.create_task(tell_text(stream, job.id, page.index, self._store.tell))
        with tracing.span("read") as span:
            try:
                async with _within(limit_s, PageDeadline(f"not read within {limit_s:g} s")):
                    reading = await stream.result()
            finally:
                stream.cancel()
                if telling is not None:
                    telling.cancel()  # what it has not told yet is in the result
            span.set(
                **{f"rtprune__{stage}_ms": milliseconds for stage, milliseconds in reading.timing_ms.items()}
            )
        return reading

    async def _checked(self, page: Page, reading: Reading, took_s: float) -> Checked:
        with tracing.span("render"):
            return await asyncio.to_thread(self._render, page, reading, took_s)

    def _render(self, page: Page, reading: Reading, took_s: float) -> Checked:
        """Render a page's text, check it against the page, and cut the figures out. In a thread."""
        rendered = render(reading)
        checks = check_page(page, reading, rendered.markdown, rendered.blocks)
        pictured = take_pictures(
            page,
            rendered,
            max_figures=self._settings.max_figures,
            max_bytes=self._settings.max_figure_kib * 1024,
            keep_page=self._settings.keep_page_images,
        )
        return Checked(reading, checks, pictured, took_s)

    async def _store_result(self, job: Job, page: PageResult) -> None:
        try:
            text = encode_page(page)
        except ValueError:
            logger.exception("page result cannot be written", extra={"document": job.id})
            error = PageFailed("the page gave a result that cannot be passed on")
            page = _failed(page.index, error, page.width, page.height)
            text = encode_page(page)
        done = Done(
            job.id,
            page.index,
            text,
            page.failure is not None,
            self._reader.model_name,
            incomplete=page.failure is None and page.shortfall is not None,
            tokens=page.reading.tokens if page.reading else None,
            pictures=page.pictures,
        )
        outcome = page.shortfall or "read"
        with tracing.span("store", rtprune__outcome=outcome):
            await self._writer.write(done)
        WORKER_PAGES.labels(outcome).inc()
        logger.info("page", extra={"document": job.id, "index": page.index, "outcome": outcome})


@contextlib.asynccontextmanager
async def _within(limit_s: float, late: ParseError) -> AsyncIterator[None]:
    """Raise ``late`` if the body is not done within ``limit_s`` seconds."""
    if limit_s <= 0:
        raise late
    try:
        async with asyncio.timeout(limit_s) as timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise late from error


def _first_of(errors: ExceptionGroup[ParseError]) -> ParseError:
    first = errors.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


def _failed(index: int, error: ParseError, width: int = 0, height: int = 0) -> PageResult:
    return PageResult(index, width, height, "", failure=Failure.of(error))
