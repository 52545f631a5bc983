"""What workers write of pages: begun, taken back, done; and what that says of a page that is begun again.

Pages are written once: a page is inserted under (job, page) if it is not there, and counted by the same
transaction, under the lock of the job's row. It does not matter how many workers think a page is theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from app.jobs.job import OPEN
from app.jobs.store import Store
from app.jobs.tables import attempts, jobs, now, pages


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known of a page that was begun before. Width and height in pixels."""

    together: int
    """How many pages were with the model when the page's last worker died; 0: none died."""
    strikes: int
    """How many workers died while the page was alone with the model."""
    width: int
    height: int


FIRST_ATTEMPT = Attempt(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Started:
    """A page goes to the model. If the worker dies now, this page may be why."""

    job_id: str
    page: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Done:
    job_id: str
    page: int
    result: str
    """``PageResult`` as JSON."""
    failed: bool
    model: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A page was taken from the model on purpose: that attempt says nothing against it."""

    job_id: str
    page: int


Entry = Started | Done | Interrupted

# Made once: they run for every page, and making one takes longer than running it.
_JOB: sa.BindParameter[str] = sa.bindparam("id_")
_PAGE: sa.BindParameter[int] = sa.bindparam("page_")
_PAGES: sa.BindParameter[int] = sa.bindparam("pages_", expanding=True)
_TAKE_BACK = (
    sa.update(attempts)
    .where(attempts.c.job_id == _JOB, attempts.c.page == _PAGE, attempts.c.worker == sa.bindparam("worker_"))
    .values(worker=None)
)
_NUM_AGAIN = (
    sa.select(sa.func.count())
    .select_from(attempts)
    .where(attempts.c.job_id == _JOB, attempts.c.page.in_(_PAGES), attempts.c.together > 0)
)
_TOUCH = (
    sa.update(jobs)
    .where(jobs.c.id == _JOB, jobs.c.status.in_(OPEN))
    .values(touched_at=sa.bindparam("at_"), model=sa.bindparam("model_"))
    .returning(jobs.c.num_done, jobs.c.num_failed, jobs.c.num_pages)
)
_END_ATTEMPTS = sa.delete(attempts).where(attempts.c.job_id == _JOB, attempts.c.page.in_(_PAGES))
_THERE = sa.select(pages.c.page).where(pages.c.job_id == _JOB, pages.c.page.in_(_PAGES))
_INSERT = sa.insert(pages)


class PageLog:
    """Attempts and results. A method is a transaction; raises ``StorageUnavailable`` or ``StorageFull``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        insert = store.insert(attempts)
        changes = {name: insert.excluded[name] for name in ("worker", "width", "height")}
        self._start = insert.on_conflict_do_update(index_elements=["job_id", "page"], set_=changes)

    def unread(self, job_id: str, among: Sequence[int]) -> dict[int, Attempt]:
        """Which of these pages are not finished, in that order, and what became of them so far."""
        finished = sa.select(pages.c.page).where(pages.c.job_id == job_id, pages.c.page.in_(among))
        begun = sa.select(attempts).where(attempts.c.job_id == job_id, attempts.c.page.in_(among))
        with self._store.reading() as c:
            done = set(c.execute(finished).scalars())
            before = {
                row.page: Attempt(row.together, row.strikes, row.width, row.height)
                for row in c.execute(begun)
            }
        return {page: before.get(page, FIRST_ATTEMPT) for page in among if page not in done}

    def write(self, worker_id: str, entries: Sequence[Entry]) -> None:
        """Write what happened to pages, all in one transaction, in few statements for each job."""
        with self._store.writing() as c:
            at = now(c)
            # jobs are always taken in the same order, or two workers could wait for each other
            for job_id in sorted({entry.job_id for entry in entries}):
                of_job = [entry for entry in entries if entry.job_id == job_id]
                self._write_started(c, worker_id, [entry for entry in of_job if isinstance(entry, Started)])
                self._write_done(c, [entry for entry in of_job if isinstance(entry, Done)], worker_id, at)
                for entry in of_job:
                    if isinstance(entry, Interrupted):
                        c.execute(_TAKE_BACK, {"id_": job_id, "page_": entry.page, "worker_": worker_id})
        if changed := sorted({entry.job_id for entry in entries if isinstance(entry, Done)}):
            self._store.tell("pages", changed)

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
            for entry in sorted(entries, key=lambda entry: entry.page)
        ]
        c.execute(self._start, rows)
        begun = {"id_": entries[0].job_id, "pages_": [entry.page for entry in entries]}
        if num_again := c.execute(_NUM_AGAIN, begun).scalar_one():
            more = {"num_retries": jobs.c.num_retries + num_again}
            c.execute(sa.update(jobs).where(jobs.c.id == entries[0].job_id).values(**more))

    def _write_done(self, c: sa.Connection, entries: Sequence[Done], worker_id: str, at: float) -> None:
        """Insert the pages of one job that are not there yet, and count them."""
        if not entries:
            return
        job_id = entries[0].job_id
        over = {"id_": job_id, "pages_": [entry.page for entry in entries]}
        # The job's row first. Its lock makes the order of seq the order of commits, so that no reader of
        # events sees n + 1 before n; and what is not there under it, nobody else inserts.
        row = {"id_": job_id, "at_": at, "model_": entries[0].model}
        counted = c.execute(_TOUCH, row).first()
        c.execute(_END_ATTEMPTS, over)
        if counted is None:
            return  # cancelled meanwhile, or ended
        new = self._not_there(c, entries)
        rows = [
            {
                "job_id": entry.job_id,
                "page": entry.page,
                "seq": counted.num_done + number,
                "result": entry.result,
                "worker": worker_id,
                "done_at": at,
            }
            for number, entry in enumerate(new, start=1)
        ]
        if not rows:
            return  # another worker was faster
        c.execute(_INSERT, rows)
        num_done = counted.num_done + len(new)
        num_failed = counted.num_failed + sum(entry.failed for entry in new)
        changes: dict[str, Any] = {"num_done": num_done, "num_failed": num_failed}
        if num_done == counted.num_pages:
            status = "succeeded" if not num_failed else "failed" if num_failed == num_done else "partial"
            changes |= {"status": status, "finished_at": at}
        c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**changes))

    def _not_there(self, c: sa.Connection, entries: Sequence[Done]) -> list[Done]:
        by_page = {entry.page: entry for entry in reversed(entries)}
        there = set(c.execute(_THERE, {"id_": entries[0].job_id, "pages_": list(by_page)}).scalars())
        return [entry for page, entry in reversed(by_page.items()) if page not in there]

    def bury(self, worker_id: str) -> None:
        """Before the work of a worker that died is taken over: say of its pages with whom they were.

        Nobody knows which of many pages killed a worker, so none gets a strike; a page that was alone does.
        """
        with self._store.writing() as c:
            its = attempts.c.worker == worker_id
            num = c.execute(sa.select(sa.func.count()).select_from(attempts).where(its)).scalar_one()
            if num:
                death = {"worker": None, "together": num, "strikes": attempts.c.strikes + int(num == 1)}
                c.execute(sa.update(attempts).where(its).values(**death))
