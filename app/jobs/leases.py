"""Leases of workers, takeover of expired ones, and the end of results' lifetimes.

A worker's id is that of its DBOS executor. It renews its lease while its event loop runs. Another worker
that finds the lease expired takes over the work claimed under it. A worker that was only slow does no harm:
it renews its lease, and its late results are ignored where another worker was faster.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from app.documents.raster.sandbox import Sandbox
from app.jobs.api.outcome import Phase
from app.jobs.job import OPEN, Job
from app.jobs.queues import WorkQueue
from app.jobs.store import Store
from app.jobs.tables import attempts, images, jobs, now, pages, workers

LEASE_S = 6.0
HEARTBEAT_S = 2.0
ADOPTION_S = 5.0
"""Time to take over from one worker. If the adopter dies meanwhile, another worker may try."""
TOMBSTONES = 7
"""A job is remembered for this many result lifetimes, so that requests for it get 410."""
EXPIRY_BATCH = 200


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker's report of itself. ``modes``: view layouts of its model, once it is loaded.

    ``sandbox``: what confines its decoders, as far as it is known. ``fixates``: whether it reads with
    ``fixation``. ``reads_together``: whether it reads several pages in one prompt.
    """

    id: str
    host: str
    phase: Phase
    detail: str
    model: str = ""
    modes: tuple[str, ...] = ()
    sandbox: Sandbox | None = None
    fixates: bool = False
    reads_together: bool = False

    @property
    def ready(self) -> bool:
        return self.phase == "ready"


class Leases:
    """The table of workers: which are alive, and which have left work to take over."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def renew(self, worker: WorkerState, lease_s: float = LEASE_S) -> None:
        """Take or prolong a lease.

        An expired lease can be taken again; work that others adopted stays theirs.
        """
        with self._store.writing() as c:
            row = {
                "host": worker.host,
                "ready": worker.ready,
                "phase": worker.phase,
                "detail": worker.detail,
                "model": worker.model,
                "modes": json.dumps(worker.modes),
                "sandbox": json.dumps(worker.sandbox and asdict(worker.sandbox)),
                "fixates": worker.fixates,
                "reads_together": worker.reads_together,
                "expires_at": now(c) + lease_s,
            }
            insert = self._store.insert(workers).values(id=worker.id, **row)
            c.execute(insert.on_conflict_do_update(index_elements=["id"], set_=row))

    def expire(self, worker_id: str) -> None:
        """Give up the lease at once, so that others need not wait to take over this worker's work."""
        with self._store.writing() as c:
            gone = {"ready": False, "phase": "starting", "expires_at": 0.0}
            c.execute(sa.update(workers).where(workers.c.id == worker_id).values(**gone))

    def alive(self) -> list[WorkerState]:
        with self._store.reading() as c:
            rows = c.execute(sa.select(workers).where(workers.c.expires_at > now(c))).all()
        return [
            WorkerState(
                row.id,
                row.host,
                row.phase,
                row.detail,
                row.model,
                tuple(json.loads(row.modes)),
                Sandbox(**told) if (told := json.loads(row.sandbox)) else None,
                row.fixates,
                row.reads_together,
            )
            for row in rows
        ]

    def state(self, worker_id: str) -> WorkerState | None:
        """Return a worker's report; ``None`` while it holds no lease."""
        return next((worker for worker in self.alive() if worker.id == worker_id), None)

    def claim_expired(self, own_id: str) -> str | None:
        """Claim one worker whose lease expired, and return its id. The caller then takes over its work."""
        with self._store.reading() as c:
            over = sa.select(workers.c.id).where(workers.c.expires_at <= now(c), workers.c.id != own_id)
            expired = list(c.execute(over).scalars())
        if not expired:
            return None
        with self._store.writing() as c:
            at = now(c)
            for worker_id in expired:
                mine = sa.update(workers).where(workers.c.id == worker_id, workers.c.expires_at <= at)
                if c.execute(mine.values(ready=False, expires_at=at + ADOPTION_S)).rowcount:
                    return str(worker_id)
        return None

    def forget(self, worker_id: str) -> None:
        """Remove a worker whose work has been taken over."""
        with self._store.writing() as c:
            c.execute(sa.delete(workers).where(workers.c.id == worker_id))

    def stranded(self, idle_s: float) -> list[Job]:
        """Return unfinished jobs without activity for ``idle_s``.

        Only DBOS knows whether work for them is queued.
        """
        with self._store.reading() as c:
            query = sa.select(jobs).where(jobs.c.status.in_(OPEN), jobs.c.touched_at < now(c) - idle_s)
            rows = c.execute(query.order_by(jobs.c.touched_at).limit(EXPIRY_BATCH)).mappings()
            return [Job.of(dict(row)) for row in rows]

    def requeued(self, job_id: str) -> None:
        with self._store.writing() as c:
            again = {"num_requeues": jobs.c.num_requeues + 1, "touched_at": now(c)}
            c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**again))

    def touched(self, job_ids: Sequence[str]) -> None:
        with self._store.writing() as c:
            c.execute(sa.update(jobs).where(jobs.c.id.in_(job_ids)).values(touched_at=now(c)))

    def expire_results(self, lifetime_s: float, queue: WorkQueue) -> None:
        """Remove pages, images and workflows of jobs whose results are older than their lifetime."""
        with self._store.writing() as c:
            at = now(c)
            over = sa.select(jobs.c.id).where(jobs.c.finished_at < at - lifetime_s, jobs.c.options != "")
            ids = list(c.execute(over.limit(EXPIRY_BATCH)).scalars())
            if ids:
                c.execute(sa.delete(images).where(images.c.job_id.in_(ids)))
                c.execute(sa.delete(pages).where(pages.c.job_id.in_(ids)))
                c.execute(sa.delete(attempts).where(attempts.c.job_id.in_(ids)))
                gone = {"options": "", "dedupe": None, "webhook": None}
                c.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(**gone))
            c.execute(sa.delete(jobs).where(jobs.c.finished_at < at - lifetime_s * TOMBSTONES))
        self._store.give_space_back()
        if ids:
            queue.forget(ids)
