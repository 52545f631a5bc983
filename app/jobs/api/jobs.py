"""Accept, show and cancel jobs. ``JobWatcher`` waits for them.

Work and results go through the database. Nothing here imports torch. Every call that reaches the database
raises ``StorageUnavailable`` or ``StorageFull`` while it does not answer, and works again as soon as it does.
"""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Self

from sqlalchemy.exc import DBAPIError

from app import tracing
from app.document import ParsedDocument, ParseOptions, Status
from app.documents.formats import Source
from app.documents.raster.pool import Rasterizers
from app.documents.raster.sandbox import Sandbox, weakest
from app.errors import (
    NO_FIXATION,
    ONE_PAGE_A_PROMPT,
    BadOption,
    Expired,
    JobCancelled,
    NotFinished,
    NotFound,
    ParseError,
    StorageFull,
    StorageUnavailable,
    TooManyPages,
)
from app.jobs.api.outcome import Readiness
from app.jobs.api.submission import Submission
from app.jobs.api.watcher import STORAGE_RETRY_S, JobWatcher
from app.jobs.blobs import Blobs, content_hash
from app.jobs.database import migrate_dbos, open_engine, promptly, storage_errors
from app.jobs.files import Files
from app.jobs.images import Images
from app.jobs.job import Job, NewJob
from app.jobs.keys import Key, Keys
from app.jobs.leases import Leases, WorkerState
from app.jobs.live_text import LiveTexts
from app.jobs.notifications import open_notifications
from app.jobs.queues import WorkQueue
from app.jobs.store import Limits, Queue, Store
from app.settings import Settings

logger = logging.getLogger("rtprune.jobs")

READINESS_EVERY_S = 0.25  # how often to look at the workers while none is ready
READY_EVERY_S = 1.0
JOB_ID = re.compile(r"[0-9a-f]{32}")
MIGRATION_RETRY_S = 1.0
NUM_COUNTERS = 2  # processes that count pages; one client uses one of them at a time
FIRST_CONNECT_S = 5.0
READINESS_TOLERANCE_S = 5.0
"""How long the last known readiness stays valid while the database does not answer."""


class Jobs:
    """The API's access to jobs: accept, show, list and cancel them.

    It is open from ``start`` to ``close``.
    """

    def __init__(self, settings: Settings, tmp_dir: Path) -> None:
        self._settings = settings
        self.notifications = open_notifications(settings)
        self._engine = open_engine(settings)
        self.store = Store(self._engine, self.notifications.tell)
        self.leases = Leases(self.store)
        self.images = Images(self.store)
        self._blobs = Blobs(settings)
        self.files = Files(self.store, self._blobs)
        counting = settings.model_copy(update={"num_rasterizers": NUM_COUNTERS})
        self._rasterizers = Rasterizers(counting, tmp_dir)
        self._queue: WorkQueue | None = None
        self._limits = Limits(
            settings.max_queued_pages, settings.max_jobs_per_client, settings.result_lifetime_s
        )
        self._readiness = Readiness("starting", "the worker is being started")
        self._decided = asyncio.Condition()
        self._heard_at = time.monotonic()
        self._is_stale = True
        self._changed = asyncio.Event()
        self.watcher = JobWatcher(
            self.store, self.notifications, settings.queue_poll_s, self.job, self._changed.set
        )
        self.live_texts = LiveTexts(self.notifications)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Self:
        with contextlib.suppress(ParseError):  # images are read even without poppler
            await self._rasterizers.start()
        connecting = asyncio.create_task(self._connect(), name="jobs connection")
        watching = asyncio.create_task(self._watch(), name="jobs watch")
        self._tasks = [
            connecting,
            watching,
            asyncio.create_task(self.notifications.run(), name="jobs notifications"),
        ]
        for task in self._tasks:
            task.add_done_callback(_log_if_failed)
        # Wait a little, so that the first request is not refused while tables are made. Do not wait for a
        # database that is down: the process starts and reports what it lacks.
        await asyncio.wait({connecting}, timeout=FIRST_CONNECT_S)
        return self

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._rasterizers.close()
        if self._queue is not None:
            self._queue.close()
        self.store.close()

    @property
    def sandbox(self) -> Sandbox | None:
        """Return how the decoders of this process are confined, as far as it is known."""
        return self._rasterizers.sandbox

    @property
    def readiness(self) -> Readiness:
        return self._readiness

    def look_again(self) -> None:
        """Look at the workers again soon, because something that readiness depends on may have changed."""
        self._is_stale = True
        self._changed.set()

    async def wait_ready(self) -> Readiness:
        """Wait until readiness is decided and return it: pages can be read, or a worker says why they
        cannot."""
        async with self._decided:
            await self._decided.wait_for(lambda: self._readiness.decided)
        return self._readiness

    # --- acceptance

    async def check_room(self) -> None:
        """Refuse early. Raise ``QueueFull`` or ``StorageUnavailable``."""
        await promptly(self.store.check_room, self._limits)

    async def submit(self, source: Source, options: ParseOptions, submission: Submission) -> tuple[Job, bool]:
        """Accept a document. Return its job, and False if the job existed before.

        The document and the job are on disk when this returns. Raise the document's own error, ``QueueFull``,
        ``TooManyJobs``, ``TooManyPages``, ``BadOption``, ``IdempotencyConflict``.
        """
        self._check(options)
        pages = options.pages.within(await self._num_pages(source, submission.client))
        num_pages = sum(map(len, pages))
        if num_pages > self._settings.max_pages:
            raise TooManyPages(
                f"{num_pages} pages are too many, at most {self._settings.max_pages} are read at once"
            )
        return await asyncio.to_thread(self._accept, source, options, pages, submission)

    def _check(self, options: ParseOptions) -> None:
        """Raise ``BadOption`` for a mode that no loaded model has, or an option that not all of them have.

        Accept anything while no model is known: the page then fails with the same error.
        """
        mode, modes = options.read.mode, self._readiness.modes
        if options.read.fixation is not None and modes and not self._readiness.fixates:
            raise BadOption(NO_FIXATION)
        if options.pages_per_prompt > 1 and modes and not self._readiness.reads_together:
            raise BadOption(ONE_PAGE_A_PROMPT)
        if mode is not None and modes and mode not in modes:
            raise BadOption(f"mode {mode[:40]!r} is unknown; there are {', '.join(sorted(modes))}")

    async def _num_pages(self, source: Source, client: str) -> int:
        if source.format not in {"PDF", "TIFF"}:
            return 1
        return await self._rasterizers.count(source.path, source.format, client=client)

    def _accept(
        self, source: Source, options: ParseOptions, pages: tuple[range, ...], submission: Submission
    ) -> tuple[Job, bool]:
        queue = self._connected()
        request_hash = submission.request_hash(content_hash(source.path), options)
        blob = self._blobs.put(source.path)
        job = NewJob(
            id=uuid.uuid4().hex,
            client=submission.client,
            dedupe=submission.dedupe(request_hash),
            request_hash=request_hash,
            options=options,
            format=source.format,
            blob=blob,
            pages=pages,
            priority=submission.priority,
            webhook=submission.webhook,
            batch_pages=_whole_prompts(self._settings.batch_pages, options.pages_per_prompt),
            trace=tracing.traceparent(),
        )

        limits = self._limits
        if submission.key is not None and submission.key.max_jobs is not None:
            limits = replace(limits, max_jobs_per_client=submission.key.max_jobs)
        if submission.key is not None:
            limits = replace(limits, quota=submission.key.quota)

        known: str | None = None
        try:
            known = self.store.accept(job, limits, queue)
        except BaseException:
            self._discard(blob)
            raise
        if known is not None:
            self._discard(blob)
        return self.store.job(known or job.id), known is None

    def _discard(self, blob: str) -> None:
        try:
            self._blobs.remove(blob)
        except ParseError:
            logger.warning("a document that is not needed cannot be removed", extra={"blob": blob})

    def _connected(self) -> WorkQueue:
        if self._queue is None:
            raise StorageUnavailable("the database of jobs does not answer")
        return self._queue

    # --- what clients ask

    def keys(self) -> list[Key]:
        """Read all API keys, in a thread. Raise ``StorageUnavailable`` or ``StorageFull``."""
        self._connected()
        return Keys(self.store).all()

    async def job(self, job_id: str, client: str | None = None) -> Job:
        """Return a job. Raise ``NotFound``, or ``Expired`` when its result is older than its lifetime.

        ``client``: with it, another client's job raises ``NotFound``.
        """
        if JOB_ID.fullmatch(job_id) is None:  # also keeps out text that a database refuses
            raise NotFound("there is no such job")
        job = await promptly(self.store.job, job_id, client)
        if job.finished_at is not None and job.finished_at + self._settings.result_lifetime_s < time.time():
            raise Expired("the job ended longer ago than results are kept")
        return job

    async def listed(
        self, client: str | None, status: str | None, before: tuple[float, str] | None, limit: int
    ) -> list[Job]:
        """List jobs of a client whose results are kept, newest first, after a cursor.

        ``None``: of all clients.
        """
        return await promptly(self.store.listed, client, status, before, limit)

    async def queue(self) -> Queue:
        return await promptly(self.store.queue)

    async def position(self, job: Job) -> int | None:
        return await promptly(self.store.position, job) if job.status == "queued" else None

    async def cancel(self, job_id: str, client: str | None = None) -> Job:
        """Stop a job within one decode step.

        A job that has ended stays as it is. ``client``: as for ``job``.
        """
        await self.job(job_id, client)
        await promptly(self.store.cancel, job_id)
        return await self.job(job_id)

    async def document(self, job: Job) -> ParsedDocument:
        """Return the result of an ended job. Raise its own error, ``NotFinished`` or ``JobCancelled``."""
        await self.raise_if_no_document(job)
        return await asyncio.to_thread(self.read_document, job)

    async def raise_if_no_document(self, job: Job) -> None:
        """Raise the job's own error, ``NotFinished`` or ``JobCancelled``."""
        if job.is_open:
            queue = await self.queue()
            raise NotFinished("the job has not ended yet", queue.seconds(job.num_pages - job.num_done))
        if job.status == "cancelled":
            raise JobCancelled("the job was cancelled")
        if job.failure is not None:
            raise job.failure.error()

    def read_document(self, job: Job) -> ParsedDocument:
        """Read all finished pages of a job. Call it in a thread.

        Raise ``StorageUnavailable`` or ``StorageFull``.
        """
        pages = self.store.results(job.id)
        total_ms = ((job.finished_at or time.time()) - job.created_at) * 1000
        return ParsedDocument(job.id, job.model, _status(job), pages, {"total": total_ms})

    # --- readiness

    async def _watch(self) -> None:
        """Look at workers and followed jobs, each at its own interval, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.watcher.within_s(self._every_s)):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self._look()
            except (StorageUnavailable, StorageFull, DBAPIError):
                # DBAPIError: tables may be missing for a moment, while a database is restored
                if time.monotonic() - self._heard_at > READINESS_TOLERANCE_S:
                    detail = "the database of jobs does not answer"
                    self._readiness = Readiness("starting", detail, self._readiness.model)
                await asyncio.sleep(STORAGE_RETRY_S)

    async def _look(self) -> None:
        self._connected()
        await self.watcher.look()
        if self._is_stale or time.monotonic() - self._heard_at >= self._every_s:
            await self._look_at_workers()

    @property
    def _every_s(self) -> float:
        return READY_EVERY_S if self._readiness.ready else READINESS_EVERY_S

    async def _look_at_workers(self) -> None:
        self._is_stale = False  # before the query: a change during it causes another look
        workers = await promptly(self.leases.alive)
        self._heard_at = time.monotonic()
        self._readiness = self._readiness_of(workers)
        async with self._decided:
            self._decided.notify_all()

    def _readiness_of(self, workers: list[WorkerState]) -> Readiness:
        """Return the readiness of the worker that is furthest along.

        A failed worker counts before a loading one.
        """
        ready = [worker for worker in workers if worker.ready]
        if ready:
            modes = frozenset(mode for worker in ready for mode in worker.modes)
            sandbox = weakest(worker.sandbox for worker in ready)
            return Readiness(
                *("ready", "ready", ready[0].model, modes, sandbox),
                fixates=all(worker.fixates for worker in ready),
                reads_together=all(worker.reads_together for worker in ready),
            )
        before = self._readiness
        for phase in ("failed", "loading", "downloading"):
            for worker in workers:
                if worker.phase == phase:
                    again = " again" if before.model and phase == "loading" else ""
                    return replace(before, phase=worker.phase, detail=worker.detail + again, sandbox=None)
        return replace(before, phase="starting", detail="the worker is being started", sandbox=None)

    async def _connect(self) -> None:
        """Open tables and queue as soon as the database answers. The API starts without it."""
        while True:
            try:
                self._queue = await asyncio.to_thread(self._open_queue)
            except (StorageUnavailable, StorageFull) as error:
                logger.warning("waiting for the database", extra={"reason": str(error)})
                await asyncio.sleep(MIGRATION_RETRY_S)
            else:
                self._changed.set()
                return

    def _open_queue(self) -> WorkQueue:
        with storage_errors():
            migrate_dbos(self._settings)
            self.store.migrate()
            return WorkQueue(self._engine)


def _log_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("jobs are not watched any more", exc_info=error)


def _status(job: Job) -> Status:
    if job.is_open:
        return "running"
    if job.status == "succeeded":
        return "succeeded"
    return "partial" if job.status == "partial" else "failed"


def _whole_prompts(batch_pages: int, pages_per_prompt: int) -> int:
    """Return the pages of a batch, rounded up to whole prompts."""
    return -(-batch_pages // pages_per_prompt) * pages_per_prompt
