"""Decide when a worker polls for work, and how much it may claim.

DBOS then chooses and claims it in one transaction. This file has the only private uses of DBOS: its loop over
one queue, the concurrency of a queue object, and its table of workflows, which is read. Public queues cannot
hold two promises. They poll at fixed intervals, and a poll takes 3 ms of a core: every 50 ms is 7 % of an
idle one, every 200 ms delays each document by 100 ms. And their concurrency is one number for all workers, so
a worker that is full with one document could not claim the next one of another.
"""

import functools
import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from dbos import DBOS
from dbos._queue import queue_worker_thread

from app.errors import StorageFull, StorageUnavailable
from app.jobs.notifications import Notifications
from app.jobs.queues import VERSION, Work, WorkQueue
from app.jobs.store import Store

logger = logging.getLogger("rtprune.claiming")

IDLE_LOOK_GAP_S = 0.005
LOOK_GAP_S = 0.02
"""Pause between two looks while anything runs. What ends or arrives meanwhile is claimed together."""
BUSY_LOOK_GAP_S = 0.5
"""The same pause while at most a quarter of the room is free."""
STOP_S = 2.0
"""How long to wait for a poll that is under way when the worker ends."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much a worker may claim of a queue: ``num`` workflows, and a few more for the first in the queue.

    ``for_others``: more, for documents of which the worker has nothing. ``for_higher``: more, for a higher
    priority than something that it has. So a worker that is full with one document has the pages of another
    at hand, while other workers find the rest of the first in the queue.
    """

    num: int
    for_others: int = 0
    for_higher: int = 0

    def is_for(self, work: Work | None, held: Collection[Work]) -> bool:
        """Tell whether a worker that has ``held`` may claim ``work``, which is first in the queue."""
        if len(held) < self.num:
            return True
        if work is None or len(held) >= self.num + self.for_others + self.for_higher:
            return False
        if any(work.priority > one.priority for one in held):
            return True
        is_another = all(work.job_id != one.job_id for one in held)
        return is_another and len(held) < self.num + self.for_others


class Claiming(threading.Event):
    """Claims work from one queue, in a thread of its own.

    DBOS only polls. Its loop sleeps in ``stop_event.wait(interval)``, so this Event's ``wait`` also returns
    when work is announced. It keeps sleeping while the worker is full or no job is open: a poll costs about a
    hundred times as much as that check.
    """

    def __init__(
        self,
        name: str,
        room: Room,
        poll_s: float,
        queue: WorkQueue,
        store: Store,
        notifications: Notifications,
    ) -> None:
        super().__init__()
        self.queue_name = name
        self._queue = queue.register(name, room.num, poll_s)
        # otherwise DBOS reads the queue's settings again before each poll, and the last started worker's win
        self._queue.database_backed_queue = False
        self._room = room
        self._held: list[Work] = []
        self._notifications = notifications
        self._store = store
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._looked_at = 0.0
        notifications.on("work", self._wake)

    def start(self, dbos: DBOS) -> None:
        name = f"claiming {self.queue_name}"
        self._thread = threading.Thread(target=self._claim, args=(dbos,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop claiming. Nothing more is claimed once this returns, unless the database hangs."""
        self.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def begun(self, work: Work) -> None:
        """Count a workflow of this queue as running. Call this and ``ended`` on the event loop."""
        self._held.append(work)

    def ended(self, work: Work) -> None:
        """Count a workflow as ended, and look whether another one waits for its room."""
        self._held.remove(work)
        self._woken.set()

    def wait(self, timeout: float | None = None) -> bool:
        while not self.is_set():
            self._woken.wait(self._notifications.pause_s(timeout or 0.0))
            self._woken.clear()
            while (left_s := self._looked_at + self._gap_s - time.monotonic()) > 0:
                self._woken.wait(left_s)
                self._woken.clear()
            self._looked_at = time.monotonic()
            if self._may_claim():
                break
        return self.is_set()

    @property
    def _gap_s(self) -> float:
        num_held, num = len(self._held), self._room.num
        if num_held == 0:
            return IDLE_LOOK_GAP_S
        return BUSY_LOOK_GAP_S if (num - num_held) * 4 <= num else LOOK_GAP_S

    def _may_claim(self) -> bool:
        """Tell whether to poll: there is room, and there can be work for it. Set how much DBOS may claim."""
        held = list(self._held)  # a copy, because the event loop changes it meanwhile
        most = max(self._room.num, len(held) + 1)
        try:
            if not held:
                may = self._store.has_work(self.queue_name)
            else:
                is_full = len(held) >= self._room.num
                may = self._room.is_for(next_up(self._store, self.queue_name) if is_full else None, held)
        except (StorageUnavailable, StorageFull):
            may, most = True, self._room.num  # poll: DBOS then logs what is wrong, and slows down
        # the object's value, not the database's: only the thread that calls this reads it
        self._queue._worker_concurrency = most
        return may

    def _claim(self, dbos: DBOS) -> None:
        while not self.is_set():
            try:
                queue_worker_thread(self, dbos, self._queue)
            except Exception:  # a worker that stops claiming would be useless, and nobody would notice
                logger.exception("claiming begins anew", extra={"queue": self.queue_name})

    def _wake(self, queues: Collection[str] = ()) -> None:
        if not queues or self.queue_name in queues:
            self._woken.set()


def next_up(store: Store, queue_name: str) -> Work | None:
    """Return the first work in a queue. Raise ``StorageUnavailable`` or ``StorageFull``."""
    with store.reading() as c:
        row = c.execute(_next_up(store.dialect), {"queue_": queue_name}).first()
    return None if row is None else Work.of(row.workflow_uuid, row.priority)


@functools.cache
def _next_up(dialect: str) -> sa.Select[tuple[str, int]]:
    """Build a query of DBOS's table of workflows, because DBOS has no function for it."""
    names = ("workflow_uuid", "queue_name", "status", "priority", "created_at", "application_version")
    schema = None if dialect == "sqlite" else "dbos"
    workflows = sa.table("workflow_status", *map(sa.column, names), schema=schema)
    return (
        sa.select(workflows.c.workflow_uuid, workflows.c.priority)
        .where(
            workflows.c.queue_name == sa.bindparam("queue_"),
            workflows.c.status == "ENQUEUED",
            workflows.c.application_version == VERSION,
        )
        .order_by(workflows.c.priority, workflows.c.created_at)
        .limit(1)
    )
