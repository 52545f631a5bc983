"""Run the workflows of a worker with DBOS: reading batches of pages, delivering webhooks."""

import asyncio
import logging

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig

from app.errors import StorageFull, StorageUnavailable
from app.jobs.database import storage_errors
from app.jobs.notifications import Notifications
from app.jobs.queues import (
    APPLICATION,
    BATCH_QUEUE,
    DELIVER_WEBHOOK,
    QUEUES,
    READ_BATCH,
    SERIALIZER,
    SINGLE_QUEUE,
    VERSION,
    WEBHOOK_QUEUE,
    Batch,
    Work,
    WorkQueue,
    queue_for,
)
from app.jobs.store import Store
from app.jobs.worker.claiming import Claiming, Room
from app.jobs.worker.reading import HIGHER_SHARE, OTHERS_SHARE, BatchRunner
from app.jobs.worker.webhooks import Webhooks
from app.settings import Settings

logger = logging.getLogger("rtprune.worker")

WEBHOOKS_PER_WORKER = 1000
"""How many webhook workflows a worker holds. Most of them pause between two attempts.

With few, servers that do not answer would keep other clients from being told.
"""
WEBHOOK_POLL_S = 5.0
"""How often to look for webhooks of other workers. A process that queues a webhook wakes itself."""
FIRST_WEBHOOK_PAUSE_S = 1.0
LAST_OUTCOMES_S = 1.0
"""Time for DBOS to record the last outcomes. Work without a record is found done when it is read again."""


class Workflows:
    """The workflows of this process. Make one per process, because there is only one DBOS per process."""

    def __init__(
        self,
        settings: Settings,
        worker_id: str,
        store: Store,
        queue: WorkQueue,
        batches: BatchRunner,
        webhooks: Webhooks,
        notifications: Notifications,
    ) -> None:
        self._settings = settings
        self._worker_id = worker_id
        self._store = store
        self._queue = queue
        self._batches = batches
        self._webhooks = webhooks
        self._notifications = notifications
        self._claiming: dict[str, Claiming] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    def launch(self, engine: sa.Engine) -> None:
        """Register the workflows with DBOS and start to claim work, on the event loop that calls this."""

        @DBOS.workflow(name=READ_BATCH, max_recovery_attempts=None)
        async def read_batch(
            job_id: str, number: int, num_batches: int, num_pages: int, priority: int, generation: int
        ) -> None:
            batch = Batch(job_id, number, num_batches, num_pages, priority, generation)
            self._count(queue_for(num_pages), batch.work)
            # No DBOS steps, because each is a transaction. Repeating the work does no harm: queued children
            # are recognised by their ids, finished pages by our tables.
            await self._batches.read(job_id, number, batch.children)

        @DBOS.step(name="post_webhook")
        async def post_webhook(job_id: str) -> bool:
            """Try once. Return whether it is settled: delivered, or refused for good."""
            return await self._webhooks.deliver(job_id)

        @DBOS.step(name="give_up_webhook")
        async def give_up_webhook(job_id: str) -> None:
            await asyncio.to_thread(self._store.webhook_ended, job_id, "failed")

        @DBOS.workflow(name=DELIVER_WEBHOOK, max_recovery_attempts=None)
        async def deliver_webhook(job_id: str) -> None:
            self._count(WEBHOOK_QUEUE, Work(job_id, 0))
            pause_s = FIRST_WEBHOOK_PAUSE_S
            for attempt in range(self._settings.webhook_attempts):
                if attempt:
                    await DBOS.sleep_async(pause_s)
                    pause_s *= 2
                if await post_webhook(job_id):
                    return
            await give_up_webhook(job_id)

        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_engine": engine,
            "executor_id": self._worker_id,
            "application_version": VERSION,
            "serializer": SERIALIZER,
            "run_migrations": False,
            "use_listen_notify": False,
            "log_level": "WARNING",
            "enable_otlp": False,
        }
        dbos = DBOS(config=config)
        DBOS.listen_queues([])  # ``Claiming`` polls ours
        DBOS.launch()
        for claiming in self._claiming.values():
            claiming.start(dbos)

    def register_queues(self) -> None:
        """Register the queues with the concurrency of this worker.

        Call this in a thread, before ``launch``.
        """
        num, batch_pages = self._settings.max_pages_in_flight, self._settings.batch_pages
        # One more if a batch has more pages than are read at a time. The document's next batch is then
        # claimed too, and does not block other documents in the queue. More would leave other workers idle.
        num_batches = max(1, num // batch_pages) + (num < batch_pages)
        for_others, for_higher = max(1, num // OTHERS_SHARE), max(1, num // HIGHER_SHARE)
        page_poll_s = self._settings.queue_poll_s
        for name, room, poll_s in (
            (SINGLE_QUEUE, Room(num, for_higher=for_higher), page_poll_s),
            (BATCH_QUEUE, Room(num_batches, for_others, for_higher), page_poll_s),
            (WEBHOOK_QUEUE, Room(WEBHOOKS_PER_WORKER), WEBHOOK_POLL_S),
        ):
            self._claiming[name] = Claiming(name, room, poll_s, self._queue, self._store, self._notifications)

    async def close(self, grace_s: float) -> None:
        """Stop claiming, give pages in the model ``grace_s`` seconds, and put the rest back into the queues.

        Workflows that were put back are cancelled here. DBOS records no outcome for them.
        """
        await asyncio.to_thread(self._stop_claiming)
        await self._batches.close(grace_s)
        # DBOS warns about each workflow cancelled on purpose, which would hide other warnings
        logging.getLogger("dbos").setLevel(logging.ERROR)
        try:
            await asyncio.to_thread(self._put_back)
        except (StorageUnavailable, StorageFull):
            logger.warning("work was not put back; others take it over when the lease expires")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_OUTCOMES_S)
        await asyncio.to_thread(DBOS.destroy)

    def _stop_claiming(self) -> None:
        for claiming in self._claiming.values():
            claiming.stop()

    def _put_back(self) -> None:
        with storage_errors():
            self._queue.put_back_all(self._worker_id)
        self._notifications.tell("work", QUEUES)

    def _count(self, queue: str, work: Work) -> None:
        """Count a workflow against the room of this worker, until its task ends."""
        if (task := asyncio.current_task()) is not None:
            self._claiming[queue].begun(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self._claiming[queue].ended(work))
