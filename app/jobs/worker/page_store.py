"""Store what happens to pages: started, interrupted, done. Tell what earlier attempts at a page met.

A page is written once: it is inserted under (job, page) if it is missing, and counted in the same
transaction under the lock of the job's row. So several workers may read the same page without harm.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from app.document import Picture, TokenCounts
from app.jobs.ending import ENDED, log_end
from app.jobs.images import image_rows
from app.jobs.job import OPEN
from app.jobs.store import Store
from app.jobs.tables import attempts, images, jobs, now, pages


@dataclass(frozen=True, slots=True)
class Attempt:
    """Earlier attempts at a page. Width and height in pixels."""

    together: int
    """How many pages were in the model when the page's last worker died; 0: none died."""
    strikes: int
    """How many workers died while the page was alone in the model."""
    width: int
    height: int


FIRST_ATTEMPT = Attempt(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Started:
    """A page that goes to the model. If the worker dies now, this page may be the cause."""

    job_id: str
    page: int
    width: int
    height: int
    again: bool = False
    """Whether a worker died while it had the page."""


@dataclass(frozen=True, slots=True)
class Done:
    job_id: str
    page: int
    result: str
    """``PageResult`` as JSON."""
    failed: bool
    model: str
    incomplete: bool = False
    """Whether the page was read, but not to its end."""
    tokens: TokenCounts | None = None
    """``None``: nothing was read."""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A page that was taken from the model on purpose. The attempt does not count against it."""

    job_id: str
    page: int


Entry = Started | Done | Interrupted

# Built once: they run for every page, and building one takes longer than running it.
_JOB: sa.BindParameter[str] = sa.bindparam("id_")
_PAGE: sa.BindParameter[int] = sa.bindparam("page_")
_JOBS: sa.BindParameter[str] = sa.bindparam("ids_", expanding=True)
_PAGES: sa.BindParameter[int] = sa.bindparam("pages_", expanding=True)
_TAKE_BACK = (
    sa.update(attempts)
    .where(attempts.c.job_id == _JOB, attempts.c.page == _PAGE, attempts.c.worker == sa.bindparam("worker_"))
    .values(worker=None)
)
_COUNT_AGAIN = (
    sa.update(jobs)
    .where(jobs.c.id == _JOB)
    .values(num_retries=jobs.c.num_retries + sa.bindparam("again_", type_=sa.Integer))
)
# always in the same order, or two workers could deadlock
_LOCK = (
    sa.select(*ENDED)
    .where(jobs.c.id.in_(_JOBS), jobs.c.status.in_(OPEN))
    .order_by(jobs.c.id)
    .with_for_update()
)
_END_ATTEMPT = sa.delete(attempts).where(attempts.c.job_id == _JOB, attempts.c.page == _PAGE)
_THERE = sa.select(pages.c.page).where(pages.c.job_id == _JOB, pages.c.page.in_(_PAGES))
_TOKENS = ("visual_tokens", "kept_tokens", "output_tokens")
_COUNTED = ("num_done", "num_failed", "num_incomplete", *_TOKENS, "finished_at")
_COUNT = (
    sa.update(jobs)
    .where(jobs.c.id == _JOB)
    .values(
        # NULL keeps the status
        status=sa.func.coalesce(sa.bindparam("status_", type_=sa.Text), jobs.c.status),
        model=sa.bindparam("model_"),
        touched_at=sa.bindparam("touched_at_"),
        **{name: sa.bindparam(f"{name}_") for name in _COUNTED},
    )
)
_FIRST: sa.BindParameter[int] = sa.bindparam("first_")
_LAST: sa.BindParameter[int] = sa.bindparam("last_")
_ATTEMPT = ("together", "strikes", "width", "height")
_KNOWN = sa.union_all(
    sa.select(attempts.c.page, *(attempts.c[name] for name in _ATTEMPT)).where(
        attempts.c.job_id == _JOB, attempts.c.page.between(_FIRST, _LAST)
    ),
    sa.select(pages.c.page, *(sa.null().label(name) for name in _ATTEMPT)).where(
        pages.c.job_id == _JOB, pages.c.page.between(_FIRST, _LAST)
    ),
)
"""Attempts at pages, and pages that are there, without an attempt's fields."""


class _WrittenBefore(Exception):
    """Another worker wrote a page of this group first. The transaction is rolled back."""


class PageStore:
    """Attempts and results.

    Each method is one transaction and raises ``StorageUnavailable`` or ``StorageFull``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        insert = store.insert(attempts)
        changes = {name: insert.excluded[name] for name in ("worker", "width", "height")}
        self._start = insert.on_conflict_do_update(index_elements=["job_id", "page"], set_=changes)
        self._insert = store.insert(pages).on_conflict_do_nothing(index_elements=["job_id", "page"])
        self._insert_image = store.insert(images).on_conflict_do_nothing(index_elements=["job_id", "name"])

    def unread(self, job_id: str, among: Sequence[int]) -> dict[int, Attempt]:
        """Return the unfinished ones of these pages, in the given order, with their earlier attempts."""
        if not among:
            return {}
        before: dict[int, Attempt] = {}
        done: set[int] = set()
        with self._store.reading() as c:
            for row in c.execute(_KNOWN, {"id_": job_id, "first_": min(among), "last_": max(among)}):
                if row.together is None:
                    done.add(row.page)
                else:
                    before[row.page] = Attempt(row.together, row.strikes, row.width, row.height)
        return {page: before.get(page, FIRST_ATTEMPT) for page in among if page not in done}

    def write(self, worker_id: str, entries: Sequence[Entry]) -> None:
        """Write events of pages in one transaction. The number of statements does not grow with the pages."""
        try:
            ended = self._write(worker_id, entries, is_new=True)
        except _WrittenBefore:
            ended = self._write(worker_id, entries, is_new=False)
        for job in ended:
            log_end(job)
        if changed := sorted({entry.job_id for entry in entries if isinstance(entry, Done)}):
            self._store.tell("pages", changed)

    def _write(self, worker_id: str, entries: Sequence[Entry], *, is_new: bool) -> list[dict[str, Any]]:
        """Write events of pages. Return the rows of jobs that have ended by this."""
        ended: list[dict[str, Any]] = []
        done = [entry for entry in entries if isinstance(entry, Done)]
        # attempts in the same order in every worker, or two workers could deadlock
        in_order = sorted(entries, key=lambda entry: (entry.job_id, entry.page))
        back = [entry for entry in in_order if isinstance(entry, Interrupted)]
        with self._store.writing() as c:
            self._write_started(c, worker_id, [entry for entry in in_order if isinstance(entry, Started)])
            if done:
                ended = self._write_done(c, worker_id, done, is_new=is_new)
                over = [entry for entry in in_order if isinstance(entry, Done)]
                c.execute(_END_ATTEMPT, [{"id_": entry.job_id, "page_": entry.page} for entry in over])
            if back:
                rows = [{"id_": entry.job_id, "page_": entry.page, "worker_": worker_id} for entry in back]
                c.execute(_TAKE_BACK, rows)
        return ended

    def _write_started(self, c: sa.Connection, worker_id: str, entries: Sequence[Started]) -> None:
        if not entries:
            return
        rows = [
            {
                "job_id": entry.job_id,
                "page": entry.page,
                "worker": worker_id,
                "together": 0,
                "strikes": 0,
                "width": entry.width,
                "height": entry.height,
            }
            for entry in entries
        ]
        c.execute(self._start, rows)
        again = Counter(entry.job_id for entry in entries if entry.again)
        if again:
            c.execute(_COUNT_AGAIN, [{"id_": job_id, "again_": num} for job_id, num in again.items()])

    def _write_done(
        self, c: sa.Connection, worker_id: str, entries: Sequence[Done], *, is_new: bool
    ) -> list[dict[str, Any]]:
        """Insert missing pages and count them. Return the rows of jobs that have ended by this.

        ``is_new``: assume that all pages are new, which is nearly always so. Raise ``_WrittenBefore`` if
        one is not.
        """
        # Lock the jobs' rows first. The locks make seq grow in the order of commits, so that no reader of
        # events sees n + 1 before n. And nobody else inserts a missing page while we hold them.
        ids = sorted({entry.job_id for entry in entries})
        # jobs that are not in it were cancelled, or ended
        counted = {row["id"]: row for row in c.execute(_LOCK, {"ids_": ids}).mappings()}
        at = now(c)
        rows: list[dict[str, Any]] = []
        pictures: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        for job_id, job in counted.items():
            by_page = {entry.page: entry for entry in entries if entry.job_id == job_id}
            there: set[int] = set()
            if not is_new:
                there.update(c.execute(_THERE, {"id_": job_id, "pages_": list(by_page)}).scalars())
            if new := [entry for page, entry in by_page.items() if page not in there]:
                rows += _page_rows(new, job["num_done"], worker_id, at)
                for entry in new:
                    pictures += image_rows(job_id, entry.page, entry.pictures)
                changed.append(_counted(job, new, at))
        if rows:
            inserted = c.execute(self._insert, rows, execution_options={"preserve_rowcount": True})
            if is_new and inserted.rowcount != len(rows):
                raise _WrittenBefore
            if pictures:
                c.execute(self._insert_image, pictures)
            models = {entry.job_id: entry.model for entry in entries}
            c.execute(
                _COUNT,
                [
                    {f"{name}_": job[name] for name in ("id", "status", *_COUNTED)}
                    | {"model_": models[job["id"]], "touched_at_": at}
                    for job in changed
                ],
            )
        return [job for job in changed if job["status"] is not None]

    def mark_worker_dead(self, worker_id: str) -> None:
        """Record on a dead worker's pages how many were in the model together, before its work is taken over.

        Nobody knows which of several pages killed a worker, so none of them gets a strike. A page that was
        alone gets one.
        """
        with self._store.writing() as c:
            its = attempts.c.worker == worker_id
            num = c.execute(sa.select(sa.func.count()).select_from(attempts).where(its)).scalar_one()
            if num:
                death = {"worker": None, "together": num, "strikes": attempts.c.strikes + int(num == 1)}
                c.execute(sa.update(attempts).where(its).values(**death))


def _page_rows(new: Sequence[Done], num_done: int, worker_id: str, at: float) -> list[dict[str, Any]]:
    return [
        {
            "job_id": entry.job_id,
            "page": entry.page,
            "seq": num_done + number,
            "result": entry.result,
            "worker": worker_id,
            "done_at": at,
        }
        for number, entry in enumerate(new, start=1)
    ]


def _counted(job: sa.RowMapping, new: Sequence[Done], at: float) -> dict[str, Any]:
    """Return a job's row as it is once these pages are written.

    Its status is ``None`` while the job goes on.
    """
    num_done = job["num_done"] + len(new)
    num_failed = job["num_failed"] + sum(entry.failed for entry in new)
    num_incomplete = job["num_incomplete"] + sum(entry.incomplete for entry in new)
    tokens = [entry.tokens for entry in new if entry.tokens is not None]
    ended = num_done == job["num_pages"]
    is_whole = not num_failed and not num_incomplete
    status = "succeeded" if is_whole else "failed" if num_failed == num_done else "partial"
    return {
        **job,
        "status": status if ended else None,
        "num_done": num_done,
        "num_failed": num_failed,
        "num_incomplete": num_incomplete,
        "visual_tokens": job["visual_tokens"] + sum(count.visual for count in tokens),
        "kept_tokens": job["kept_tokens"] + sum(count.kept for count in tokens),
        "output_tokens": job["output_tokens"] + sum(count.output for count in tokens),
        "finished_at": at if ended else None,
    }
