"""The workflows of DBOS that a worker runs. A process has one DBOS; ``launch`` says what it works with."""

import asyncio
import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, Queue
from dbos._queue import queue_worker_thread

from app.jobs.queues import (
    APPLICATION,
    BATCH_QUEUE,
    DELIVER_WEBHOOK,
    READ_BATCH,
    SERIALIZER,
    SINGLE_QUEUE,
    VERSION,
    WEBHOOK_QUEUE,
    batch_options,
    queue_for,
)
from app.jobs.reading import BatchReader
from app.jobs.store import Store
from app.jobs.wakeups import Wakeups
from app.jobs.webhooks import Webhooks
from app.settings import Settings

logger = logging.getLogger("rtprune.workflows")

WEBHOOKS_PER_WORKER = 4
WEBHOOK_POLL_S = 1.0
LOOK_GAP_S = 0.005
FIRST_WEBHOOK_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Hands:
    """What the workflows of this process work with."""

    settings: Settings
    store: Store
    client: DBOSClient
    batches: BatchReader
    webhooks: Webhooks
    wakeups: Wakeups


class Claiming(threading.Event):
    """The claiming of work from one queue, in a thread of its own.

    DBOS looks for work at fixed times and can be told nothing in between; but the pause between two looks is
    a wait for the event that ends the loop. This is that event, and its ``wait`` ends with a wake-up, too.
    """

    def __init__(self, queue: Queue, wakeups: Wakeups) -> None:
        super().__init__()
        self._queue = queue
        self._wakeups = wakeups
        self._woken = threading.Event()
        self._looked_at = 0.0
        wakeups.on("work", self.wake)

    def start(self, dbos: DBOS) -> None:
        name = f"claiming {self._queue.name}"
        threading.Thread(target=self._claim, args=(dbos,), name=name, daemon=True).start()

    def _claim(self, dbos: DBOS) -> None:
        while not self.is_set():
            try:
                queue_worker_thread(self, dbos, self._queue)
            except Exception:  # a worker that takes no work any more would be of no use, and not be noticed
                logger.exception("claiming begins anew", extra={"queue": self._queue.name})

    def wake(self, queues: Collection[str] = ()) -> None:
        if not queues or self._queue.name in queues:
            self._woken.set()

    def wait(self, timeout: float | None = None) -> bool:
        self._woken.wait(self._wakeups.pause_s(timeout or 0.0))
        # what arrives in quick succession is claimed together
        time.sleep(max(0.0, self._looked_at + LOOK_GAP_S - time.monotonic()))
        self._woken.clear()
        self._looked_at = time.monotonic()
        return self.is_set()


_claiming: dict[str, Claiming] = {}
_hands: Hands | None = None


def hands() -> Hands:
    if _hands is None:
        raise RuntimeError("workflows run only after launch()")
    return _hands


def launch(engine: sa.Engine, executor_id: str, queues: list[Queue], given: Hands) -> None:
    """Start executing workflows from these queues, on the event loop that calls this."""
    global _hands  # noqa: PLW0603 - DBOS itself is one per process
    _hands = given
    config: DBOSConfig = {
        "name": APPLICATION,
        "system_database_engine": engine,
        "executor_id": executor_id,
        "application_version": VERSION,
        "serializer": SERIALIZER,
        "run_migrations": False,
        "use_listen_notify": False,
        "log_level": "WARNING",
        "enable_otlp": False,
    }
    dbos = DBOS(config=config)
    DBOS.listen_queues([WEBHOOK_QUEUE])
    DBOS.launch()
    for queue in queues:
        _claiming[queue.name] = Claiming(queue, given.wakeups)
        _claiming[queue.name].start(dbos)


def register_queues(client: DBOSClient, settings: Settings) -> list[Queue]:
    """Make the queues known; gives those of pages, with the concurrency of this worker."""
    num_batches = max(1, settings.max_pages_in_flight // settings.batch_pages)
    queues = [
        client.register_queue(
            name,
            worker_concurrency=concurrency,
            polling_interval_sec=poll_s,
            application_name=APPLICATION,
        )
        for name, concurrency, poll_s in (
            (SINGLE_QUEUE, settings.max_pages_in_flight, settings.queue_poll_s),
            (BATCH_QUEUE, num_batches, settings.queue_poll_s),
            (WEBHOOK_QUEUE, WEBHOOKS_PER_WORKER, WEBHOOK_POLL_S),
        )
    ]
    for queue in queues:
        # or it would be read again before each look, and be that of the worker that started last
        queue.database_backed_queue = False
    return [queue for queue in queues if queue.name != WEBHOOK_QUEUE]


@DBOS.workflow(name=READ_BATCH, max_recovery_attempts=None)
async def read_batch(
    job_id: str, number: int, num_batches: int, num_pages: int, priority: int, generation: int
) -> None:
    _look_again_after_this(queue_for(num_pages))
    children = [child for child in (2 * number + 1, 2 * number + 2) if child < num_batches]

    def enqueue_children(connection: sa.Connection) -> None:
        for child in children:
            options = batch_options(job_id, child, num_pages, priority=priority, generation=generation)
            arguments = (job_id, child, num_batches, num_pages, priority, generation)
            hands().client.enqueue_in_transaction(connection, options, *arguments)

    # Without steps, which are transactions: what is done twice is found done. Queued children are known by
    # their ids, pages by our tables.
    await hands().batches.read(job_id, number, enqueue_children if children else None)


def _look_again_after_this(queue: str) -> None:
    """When a workflow has ended there is room for another, which may wait already."""
    if (task := asyncio.current_task()) is not None:
        task.add_done_callback(lambda _: _claiming[queue].wake())


@DBOS.step(name="post_webhook")
async def post_webhook(job_id: str) -> bool:
    """One try. True when it is settled: delivered, or refused for good."""
    return await hands().webhooks.deliver(job_id)


@DBOS.workflow(name=DELIVER_WEBHOOK, max_recovery_attempts=None)
async def deliver_webhook(job_id: str) -> None:
    pause_s = FIRST_WEBHOOK_PAUSE_S
    for attempt in range(hands().settings.webhook_attempts):
        if attempt:
            await DBOS.sleep_async(pause_s)
            pause_s *= 2
        if await post_webhook(job_id):
            return
    await give_up_webhook(job_id)


@DBOS.step(name="give_up_webhook")
async def give_up_webhook(job_id: str) -> None:
    await asyncio.to_thread(hands().store.webhook_ended, job_id, "failed")
