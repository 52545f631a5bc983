"""When a worker looks for work. What it then claims is decided by DBOS, in one transaction with the claim."""

import logging
import threading
import time
from collections.abc import Callable, Collection

from dbos import DBOS, Queue
from dbos._queue import queue_worker_thread

from app.errors import StorageFull, StorageUnavailable
from app.jobs.wakeups import Wakeups

logger = logging.getLogger("rtprune.claiming")

IDLE_LOOK_GAP_S = 0.005
LOOK_GAP_S = 0.02
"""While anything runs. What ends or arrives meanwhile is claimed together."""
BUSY_LOOK_GAP_S = 0.5
"""The same while no more than a quarter of the room is free."""
HasWork = Callable[[str], bool]
"""Whether there can be any in this queue; raises ``StorageUnavailable`` or ``StorageFull``."""


class Claiming(threading.Event):
    """The claiming of work from one queue, in a thread of its own.

    DBOS looks for work at fixed times and can be told nothing in between; but the pause between two looks is
    a wait for the event that ends the loop. This is that event, and its ``wait`` ends with a wake-up, too. It
    does not end while this worker has no room, or while no work can be there: a look is several statements
    under SQLite's write lock, and takes a hundred times as long as to know that it is in vain.
    """

    def __init__(self, queue: Queue, max_running: int, wakeups: Wakeups, has_work: HasWork) -> None:
        super().__init__()
        self._queue = queue
        self._max_running = max_running
        self._num_running = 0
        self._wakeups = wakeups
        self._has_work = has_work
        self._woken = threading.Event()
        self._looked_at = 0.0
        wakeups.on("work", self._wake)

    @property
    def queue_name(self) -> str:
        return self._queue.name

    def start(self, dbos: DBOS) -> None:
        name = f"claiming {self._queue.name}"
        threading.Thread(target=self._claim, args=(dbos,), name=name, daemon=True).start()

    def begun(self) -> None:
        """A workflow of this queue runs. On the event loop, as ``ended``."""
        self._num_running += 1

    def ended(self) -> None:
        """There is room for another one, which may wait already."""
        self._num_running -= 1
        self._woken.set()

    def wait(self, timeout: float | None = None) -> bool:
        while not self.is_set():
            self._woken.wait(self._wakeups.pause_s(timeout or 0.0))
            self._woken.clear()
            while (left_s := self._looked_at + self._gap_s - time.monotonic()) > 0:
                self._woken.wait(left_s)
                self._woken.clear()
            self._looked_at = time.monotonic()
            if self._num_running < self._max_running and self._may_find():
                break
        return self.is_set()

    @property
    def _gap_s(self) -> float:
        if self._num_running == 0:
            return IDLE_LOOK_GAP_S
        num_free = self._max_running - self._num_running
        return BUSY_LOOK_GAP_S if num_free * 4 <= self._max_running else LOOK_GAP_S

    def _may_find(self) -> bool:
        try:
            return self._num_running > 0 or self._has_work(self._queue.name)
        except (StorageUnavailable, StorageFull):
            return True  # DBOS says what is wrong, and slows down

    def _claim(self, dbos: DBOS) -> None:
        while not self.is_set():
            try:
                queue_worker_thread(self, dbos, self._queue)
            except Exception:  # a worker that takes no work any more would be of no use, and not be noticed
                logger.exception("claiming begins anew", extra={"queue": self._queue.name})

    def _wake(self, queues: Collection[str] = ()) -> None:
        if not queues or self._queue.name in queues:
            self._woken.set()
