"""Store jobs. Each method is a transaction; it raises ``StorageUnavailable`` or ``StorageFull``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from app.document import Failure, PageResult
from app.errors import Expired, IdempotencyConflict, NotFound, QueueFull, TooManyJobs
from app.jobs.database import for_reading, for_writing, storage_errors
from app.jobs.ending import ENDED, log_end
from app.jobs.job import (
    OPEN,
    Job,
    NewJob,
    PageEvent,
    decode_page,
    encode_failure,
    encode_options,
    encode_ranges,
)
from app.jobs.notifications import Topic
from app.jobs.queues import BATCH_QUEUE, SINGLE_QUEUE, Batch, Enqueues, queue_for
from app.jobs.quota import Quota
from app.jobs.tables import attempts, create_or_upgrade, jobs, now, pages

ADMISSION_LOCK = 0x7274_7072_756E
THROUGHPUT_WINDOW_S = 60.0
DEFAULT_RETRY_S = 30
MAX_RETRY_S = 3600
SWEEP_BATCH = 200
VACUUM_PAGES = 2000  # pages of SQLite's file, 4 KiB each, freed in one turn

# built once, because they run for every document or every look at a queue
_KNOWN = sa.select(jobs).where(jobs.c.id == sa.bindparam("id_"))
_IS_OF_CLIENT = sa.case((jobs.c.client == sa.bindparam("client_"), 1), else_=0)
_WAITING = sa.select(
    sa.func.coalesce(sa.func.sum(_IS_OF_CLIENT), 0),
    sa.func.count(),
    sa.func.coalesce(sa.func.sum(jobs.c.num_pages - jobs.c.num_done), 0),
).where(jobs.c.status.in_(OPEN))
"""Unfinished jobs of a client and of all, and pages that wait."""
_OPEN_JOB = sa.select(jobs.c.id).where(jobs.c.status.in_(OPEN)).limit(1)
_UNFINISHED = {
    SINGLE_QUEUE: _OPEN_JOB.where(jobs.c.num_pages == 1),
    BATCH_QUEUE: _OPEN_JOB.where(jobs.c.num_pages > 1),
}

_AT: sa.BindParameter[float] = sa.bindparam("at_")
_RUN = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("id_"), jobs.c.status == "queued")
    .values(status="running", started_at=sa.func.coalesce(jobs.c.started_at, _AT), touched_at=_AT)
)

Tell = Callable[[Topic, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of waiting work: pages over all clients, unfinished jobs of one client, pages of one key."""

    max_queued_pages: int
    max_jobs_per_client: int
    result_lifetime_s: float
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """The length and speed of the queue.

    ``pages``: accepted and not done. ``pages_per_s``: over the last minute.
    """

    jobs: int
    pages: int
    pages_per_s: float

    def seconds(self, num_pages: int) -> int:
        """Estimate how long that many pages take at the measured speed, for Retry-After."""
        if self.pages_per_s <= 0:
            return DEFAULT_RETRY_S
        return int(min(MAX_RETRY_S, max(1.0, num_pages / self.pages_per_s + 0.999)))


@dataclass(frozen=True, slots=True)
class PageEnd:
    """A finished page: its job and index, its time, and the result as JSON."""

    key: tuple[str, int]
    at: float
    result: str


@dataclass(frozen=True, slots=True)
class JobEnd:
    """An ended job: its id, its time and its status."""

    key: str
    at: float
    status: str


# Turns waiting on where the server has it off. A stricter setting, such as waiting for a replica, stays.
_WAIT_FOR_DISK = sa.text(
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)


class Store:
    """Jobs, and transactions for the writers of pages and leases. ``tell`` notifies followers."""

    def __init__(self, engine: sa.Engine, tell: Tell = lambda *_: None) -> None:
        self._engine = engine
        self.tell = tell
        self._writes = for_writing(engine)
        self._reads = for_reading(engine)
        self.insert: Any = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def migrate(self) -> None:
        with self.writing() as c:
            self._lock(c)
            create_or_upgrade(c)

    def close(self) -> None:
        self._engine.dispose()

    @property
    def dialect(self) -> str:
        """Return ``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    @contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[sa.Connection]:
        """Open a transaction. ``durable``: a power cut undoes neither it nor any committed before it."""
        with storage_errors(), self._writes.connect() as c:
            if durable and c.dialect.name == "sqlite":
                c.connection.driver_connection.execute("PRAGMA synchronous=FULL")  # type: ignore[union-attr]
            try:
                with c.begin():
                    if durable and c.dialect.name == "postgresql":
                        c.execute(_WAIT_FOR_DISK)
                    yield c
            finally:
                if durable and c.dialect.name == "sqlite" and not c.invalidated:
                    c.connection.driver_connection.execute("PRAGMA synchronous=NORMAL")  # type: ignore[union-attr]

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a connection for queries.

        Each query sees what is committed when it begins; later ones may see more.
        """
        with storage_errors(), self._reads.connect() as c:
            yield c

    def give_space_back(self) -> None:
        """Return unused space of SQLite's file to the disk, a few MiB at a time."""
        if self._engine.dialect.name == "sqlite":
            with self.reading() as c:
                # as a script: SQLite frees one page a step, Python steps a rowless statement only once
                c.connection.driver_connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")  # type: ignore[union-attr]

    def _lock(self, c: sa.Connection) -> None:
        """Let one acceptance run at a time. On SQLite the write lock already does so."""
        if c.dialect.name != "sqlite":
            c.execute(sa.select(sa.func.pg_advisory_xact_lock(ADMISSION_LOCK)))

    # --- acceptance

    def accept(self, job: NewJob, limits: Limits, queue: Enqueues) -> str | None:
        """Write a job and queue its work. Return ``None``, or the id of the job that it repeats.

        The job is on disk when this returns. Raise ``QueueFull``, ``TooManyJobs``, ``RateLimited`` or
        ``IdempotencyConflict``.
        """
        with self.writing(durable=True) as c:
            self._lock(c)
            at = now(c)
            if job.dedupe is not None and (known := self._repeated(c, job, at, limits)) is not None:
                return known
            self._admit(c, job, limits)
            c.execute(
                sa.insert(jobs).values(
                    id=job.id,
                    client=job.client,
                    dedupe=job.dedupe,
                    request_hash=job.request_hash,
                    status="queued",
                    options=encode_options(job.options),
                    format=job.format,
                    blob=job.blob,
                    pages=encode_ranges(job.pages),
                    batch_pages=job.batch_pages,
                    num_pages=job.num_pages,
                    priority=job.priority,
                    webhook=job.webhook,
                    webhook_status="pending" if job.webhook else None,
                    created_at=at,
                    touched_at=at,
                    trace=job.trace,
                )
            )
            if limits.quota is not None:
                limits.quota.spend(c, job.num_pages)
            queue.add(c, [Batch.first(job.id, job.num_pages, job.batch_pages, job.priority)])
        self.tell("work", [queue_for(job.num_pages)])
        return None

    def _repeated(self, c: sa.Connection, job: NewJob, at: float, limits: Limits) -> str | None:
        known = c.execute(sa.select(jobs).where(jobs.c.dedupe == job.dedupe)).mappings().first()
        if known is None:
            return None
        if known["finished_at"] is not None and known["finished_at"] + limits.result_lifetime_s < at:
            c.execute(sa.update(jobs).where(jobs.c.id == known["id"]).values(dedupe=None))
            return None
        if known["request_hash"] != job.request_hash:
            raise IdempotencyConflict("this Idempotency-Key was used for another request")
        return str(known["id"])

    def _admit(self, c: sa.Connection, job: NewJob, limits: Limits) -> None:
        of_client, num_jobs, num_pages = c.execute(_WAITING, {"client_": job.client}).one()
        if of_client >= limits.max_jobs_per_client:
            wait_s = self._queue(c).seconds(max(1, num_pages // max(1, num_jobs)))
            raise TooManyJobs(f"{limits.max_jobs_per_client} jobs of this client are unfinished", wait_s)
        over = num_pages + job.num_pages - limits.max_queued_pages
        # a document larger than the whole limit is accepted when nothing waits, else it never would be
        if over > 0 and num_pages > 0:
            raise QueueFull(
                f"{num_pages} pages are waiting, which is the limit", self._queue(c).seconds(over)
            )

    def check_room(self, limits: Limits) -> None:
        """Raise ``QueueFull`` before the upload begins, where ``accept`` would raise it after the upload."""
        with self.reading() as c:
            _, _, num_pages = c.execute(_WAITING, {"client_": ""}).one()
            if num_pages >= limits.max_queued_pages:
                wait_s = self._queue(c).seconds(num_pages + 1 - limits.max_queued_pages)
                raise QueueFull(f"{num_pages} pages are waiting, which is the limit", wait_s)

    def queue(self) -> Queue:
        with self.reading() as c:
            return self._queue(c)

    def _queue(self, c: sa.Connection) -> Queue:
        """Return the queue with its speed. The query counts the pages of the last minute, row by row."""
        _, num_jobs, num_pages = c.execute(_WAITING, {"client_": ""}).one()
        since = now(c) - THROUGHPUT_WINDOW_S
        done, first = c.execute(
            sa.select(sa.func.count(), sa.func.min(pages.c.done_at)).where(pages.c.done_at > since)
        ).one()
        span_s = max(1.0, now(c) - float(first)) if first is not None else THROUGHPUT_WINDOW_S
        return Queue(int(num_jobs), int(num_pages), int(done) / span_s)

    # --- what clients ask

    def job(self, job_id: str, client: str | None = None) -> Job:
        """Return a job. Raise ``NotFound``, or ``Expired`` when only its id is left.

        ``client``: with it, another client's job raises ``NotFound``.
        """
        with self.reading() as c:
            row = c.execute(_KNOWN, {"id_": job_id}).mappings().first()
        if row is None or client not in {None, row["client"]}:
            raise NotFound("there is no such job")
        if not row["options"]:
            raise Expired("the job ended longer ago than results are kept")
        return Job.of(dict(row))

    def position(self, job: Job) -> int | None:
        """Count the queued jobs before this one; ``None`` if it is not queued."""
        if job.status != "queued":
            return None
        before = sa.or_(
            jobs.c.priority > job.priority,
            sa.and_(jobs.c.priority == job.priority, jobs.c.created_at < job.created_at),
        )
        with self.reading() as c:
            query = sa.select(sa.func.count()).where(jobs.c.status == "queued", before)
            return int(c.execute(query).scalar_one())

    def listed(
        self, client: str | None, status: str | None, before: tuple[float, str] | None, limit: int
    ) -> list[Job]:
        """List jobs of a client, newest first, after a cursor of (created_at, id).

        ``None``: of all clients.
        """
        query = sa.select(jobs).where(jobs.c.options != "")
        if client is not None:
            query = query.where(jobs.c.client == client)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if before is not None:
            at, job_id = before
            older = sa.and_(jobs.c.created_at == at, jobs.c.id < job_id)
            query = query.where(sa.or_(jobs.c.created_at < at, older))
        query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        with self.reading() as c:
            return [Job.of(dict(row)) for row in c.execute(query).mappings()]

    def progress(self, job_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Return the status and number of finished pages of each of these jobs."""
        query = sa.select(jobs.c.id, jobs.c.status, jobs.c.num_done).where(jobs.c.id.in_(job_ids))
        with self.reading() as c:
            return {row.id: (row.status, row.num_done) for row in c.execute(query)}

    def events(self, job_id: str, after: int, limit: int = 100) -> list[PageEvent]:
        """Return finished pages with ``seq`` above ``after``, in that order."""
        query = (
            sa.select(pages.c.seq, pages.c.result)
            .where(pages.c.job_id == job_id, pages.c.seq > after)
            .order_by(pages.c.seq)
            .limit(limit)
        )
        with self.reading() as c:
            return [PageEvent(row.seq, decode_page(row.result)) for row in c.execute(query)]

    def results(self, job_id: str, after: int = -1, limit: int | None = None) -> tuple[PageResult, ...]:
        """Return finished pages in document order, those after a page's index and at most ``limit``."""
        query = sa.select(pages.c.result).where(pages.c.job_id == job_id, pages.c.page > after)
        with self.reading() as c:
            found = c.execute(query.order_by(pages.c.page).limit(limit)).scalars()
            return tuple(decode_page(text) for text in found)

    def pages_done(self, since: float, limit: int) -> list[PageEnd]:
        """Return pages of all jobs that were finished from ``since`` on, oldest first."""
        columns = (pages.c.job_id, pages.c.page, pages.c.done_at, pages.c.result)
        query = sa.select(*columns).where(pages.c.done_at >= since).order_by(pages.c.done_at).limit(limit)
        with self.reading() as c:
            return [PageEnd((row.job_id, row.page), row.done_at, row.result) for row in c.execute(query)]

    def jobs_ended(self, since: float, limit: int) -> list[JobEnd]:
        """Return jobs that ended from ``since`` on, oldest first."""
        columns = (jobs.c.id, jobs.c.finished_at, jobs.c.status)
        query = sa.select(*columns).where(jobs.c.finished_at >= since)
        with self.reading() as c:
            found = c.execute(query.order_by(jobs.c.finished_at).limit(limit))
            return [JobEnd(row.id, row.finished_at, row.status) for row in found]

    def backlog(self) -> tuple[float, int]:
        """Return the age of the oldest unfinished job in seconds, 0 without one, and the number of running
        pages."""
        oldest = sa.select(sa.func.min(jobs.c.created_at)).where(jobs.c.status.in_(OPEN))
        running = sa.select(sa.func.count()).select_from(attempts).where(attempts.c.worker.is_not(None))
        with self.reading() as c:
            created_at = c.execute(oldest).scalar_one_or_none()
            age_s = 0.0 if created_at is None else max(0.0, now(c) - created_at)
            return age_s, c.execute(running).scalar_one()

    def cancel(self, job_id: str) -> bool:
        """Cancel a job. Return True if it was unfinished. The same request then makes a new job."""
        with self.writing(durable=True) as c:
            cancelled = c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status.in_(OPEN))
                .values(status="cancelled", dedupe=None, finished_at=now(c))
                .returning(*ENDED)
            )
            job = cancelled.mappings().first()
        if job is not None:
            self.tell("cancel", [job_id])
            self.tell("pages", [job_id])
            log_end(job)
        return job is not None

    # --- what workers say

    def begin(self, job_id: str, children: Sequence[Batch] = (), queue: Enqueues | None = None) -> Job | None:
        """Record that a worker has the job, and return it. Return ``None`` when nothing is left to do.

        Queue ``children``, more batches of the job, in the same transaction.
        """
        if not children:  # most batches: only the first of a job writes anything
            with self.reading() as c:
                row = c.execute(_KNOWN, {"id_": job_id}).mappings().first()
            if row is None or row["status"] != "queued":
                return _if_open(row)
        with self.writing() as c:
            row = c.execute(_KNOWN, {"id_": job_id}).mappings().first()
            if row is not None and row["status"] == "queued":
                c.execute(_RUN, {"id_": job_id, "at_": now(c)})
                row = c.execute(_KNOWN, {"id_": job_id}).mappings().first()
            job = _if_open(row)
            if job is not None and queue is not None and children:
                queue.add(c, children)
        if job is not None and children:
            self.tell("work", [queue_for(job.num_pages)])
        return job

    def has_work(self, queue: str) -> bool:
        """Tell whether a queue may have work. Queues of pages have none while no job is unfinished."""
        if queue not in _UNFINISHED:
            return True
        with self.reading() as c:
            return c.execute(_UNFINISHED[queue]).first() is not None

    def fail(self, job_id: str, failure: Failure) -> bool:
        """End an unfinished job as failed as a whole. Return True if it was unfinished.

        The same request then makes a new job.
        """
        with self.writing() as c:
            failed = c.execute(
                sa.update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status.in_(OPEN))
                .values(
                    status="failed",
                    failure=encode_failure(failure),
                    dedupe=sa.case((jobs.c.dedupe.like("content:%"), None), else_=jobs.c.dedupe),
                    finished_at=now(c),
                )
                .returning(*ENDED)
            )
            job = failed.mappings().first()
        self.tell("pages", [job_id])
        if job is not None:
            log_end(job, failure.code)
        return job is not None

    def unannounced(self) -> list[Job]:
        """Return ended jobs whose webhook is not queued yet."""
        return self._ended(jobs.c.webhook_status == "pending")

    def announced(self, job_id: str) -> None:
        pending = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.webhook_status == "pending")
        with self.writing() as c:
            c.execute(pending.values(webhook_status="queued"))

    def unswept(self) -> list[Job]:
        """Return ended jobs whose document is still stored, though nobody needs it any more."""
        return self._ended(jobs.c.blob != "")

    def settle(self, job_ids: Sequence[str]) -> None:
        """Force the ends of these jobs to disk. A power cut undoes nothing that was committed before."""
        with self.writing(durable=True) as c:
            c.execute(sa.update(jobs).where(jobs.c.id.in_(job_ids)).values(touched_at=now(c)))

    def swept(self, job_id: str) -> None:
        with self.writing() as c:
            c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(blob=""))

    def _ended(self, condition: sa.ColumnElement[bool]) -> list[Job]:
        """Return the first ``SWEEP_BATCH`` ended jobs that meet a condition, in the order of their ends."""
        query = sa.select(jobs).where(jobs.c.finished_at.is_not(None), jobs.c.options != "", condition)
        with self.reading() as c:
            rows = c.execute(query.order_by(jobs.c.finished_at).limit(SWEEP_BATCH)).mappings()
            return [Job.of(dict(row)) for row in rows]

    def cancelled(self, among: Sequence[str]) -> set[str]:
        """Return which of these jobs are no longer open, or gone."""
        query = sa.select(jobs.c.id).where(jobs.c.id.in_(among), jobs.c.status.in_(OPEN))
        with self.reading() as c:
            return set(among) - set(c.execute(query).scalars())

    def webhook_tried(self, job_id: str, status: str) -> None:
        with self.writing() as c:
            tried = {"webhook_status": status, "webhook_attempts": jobs.c.webhook_attempts + 1}
            c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**tried))

    def webhook_ended(self, job_id: str, status: str) -> None:
        with self.writing() as c:
            c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(webhook_status=status))


def _if_open(row: sa.RowMapping | None) -> Job | None:
    return None if row is None or row["status"] not in OPEN else Job.of(dict(row))
