"""Do a worker's duties beside reading: lease, takeover, cancellations, sweeping.

Any number of workers may do them at once. Each step is one transaction or can be repeated without harm.
"""

import asyncio
import logging
import time
from collections.abc import Collection

from dbos import error as dbos_error

from app.document import Failure
from app.errors import ParseError, StorageFull, StorageUnavailable, WorkerLost
from app.jobs.blobs import Blobs
from app.jobs.database import storage_errors
from app.jobs.files import Files
from app.jobs.job import Job
from app.jobs.leases import HEARTBEAT_S, LEASE_S, Leases, WorkerState
from app.jobs.notifications import Notifications
from app.jobs.queues import QUEUES, WEBHOOK_QUEUE, Batch, WorkQueue
from app.jobs.store import Store
from app.jobs.worker.page_store import PageStore
from app.jobs.worker.reading import BatchRunner
from app.processes import give_back_freed_memory
from app.settings import Settings

logger = logging.getLogger("rtprune.maintenance")

STRANDED_S = 30.0
"""An unfinished job that is silent this long is checked for queued work."""
MAX_REQUEUES = 3
EXPIRY_EVERY_S = 60.0


class Maintenance:
    """The duties of one worker, run until cancelled.

    When the database does not answer, the next turn tries again.
    """

    def __init__(
        self,
        settings: Settings,
        worker: WorkerState,
        store: Store,
        blobs: Blobs,
        batches: BatchRunner,
        queue: WorkQueue,
        notifications: Notifications,
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._store = store
        self._leases = Leases(store)
        self._page_store = PageStore(store)
        self._blobs = blobs
        self._files = Files(store, blobs)
        self._batches = batches
        self._queue = queue
        self._notifications = notifications
        self._look = asyncio.Event()
        self._expired_at = -EXPIRY_EVERY_S
        self._adopting_from = 0.0
        notifications.on("cancel", self._cancelled)

    def _cancelled(self, job_ids: Collection[str]) -> None:
        if not job_ids or not self._batches.job_ids.isdisjoint(job_ids):
            self._look.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._notifications.run())
            group.create_task(self._watch_cancellations())
            group.create_task(self._beat())
            group.create_task(self._take_care())
            group.create_task(self._tidy())

    async def _watch_cancellations(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._notifications.pause_s(self._settings.queue_poll_s)):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            if not (running := self._batches.job_ids):
                continue
            try:
                unwanted = await asyncio.to_thread(self._store.cancelled, list(running))
            except (StorageUnavailable, StorageFull):
                await asyncio.sleep(HEARTBEAT_S)
                continue
            for job_id in unwanted:
                self._batches.cancel(job_id)

    async def _beat(self) -> None:
        while True:
            self._notifications.beat()
            try:
                await asyncio.to_thread(self._leases.renew, self._worker)
            except (StorageUnavailable, StorageFull):
                logger.warning("the lease cannot be renewed")
            self._notifications.beat()
            await asyncio.sleep(HEARTBEAT_S)

    async def _take_care(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.take_care)
            except (StorageUnavailable, StorageFull):
                logger.warning("the database is away")
                self._wait_for_the_others()
            except dbos_error.DBOSException:  # for example, a workflow was removed meanwhile
                logger.exception("work was left for the next turn")
            await asyncio.sleep(HEARTBEAT_S)

    async def _tidy(self) -> None:
        """Give memory back to the system when reading has stopped."""
        was_reading = False
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            is_reading = bool(self._batches.job_ids)
            if was_reading and not is_reading:
                await asyncio.to_thread(give_back_freed_memory)
            was_reading = is_reading

    def take_care(self) -> None:
        """Do one turn of takeover, webhooks and sweeping, in a thread.

        Raise ``StorageUnavailable`` or ``StorageFull``.
        """
        with storage_errors():
            self._care()

    def _wait_for_the_others(self) -> None:
        """Pause takeovers for one lease time, because other workers could not renew their leases either."""
        self._adopting_from = time.monotonic() + LEASE_S

    def _care(self) -> None:
        asked_at = time.monotonic()
        self._leases.alive()
        if time.monotonic() - asked_at > HEARTBEAT_S:
            logger.warning("the database hung")
            self._wait_for_the_others()
        if time.monotonic() >= self._adopting_from:
            while (worker_id := self._leases.claim_expired(self._worker.id)) is not None:
                self._adopt(worker_id)
            for job in self._leases.stranded(STRANDED_S):
                self._rescue(job)
        for job in self._store.unannounced():
            self._queue.add_webhook(job.id)
            self._store.announced(job.id)
            self._notifications.tell("work", [WEBHOOK_QUEUE])
        sweep(self._store, self._blobs)
        now = time.monotonic()
        if now - self._expired_at > EXPIRY_EVERY_S:
            self._expired_at = now
            self._leases.expire_results(self._settings.result_lifetime_s, self._queue)
            self._files.expire(self._settings.result_lifetime_s)

    def resume_own(self) -> None:
        """Queue again what a worker of the same name left when it died. Call this before the first work."""
        with storage_errors():
            self._queue.put_back_all(self._worker.id)

    def _adopt(self, worker_id: str) -> None:
        self._page_store.mark_worker_dead(worker_id)
        num_batches = self._queue.put_back_all(worker_id)
        self._notifications.tell("work", QUEUES)
        self._leases.forget(worker_id)
        logger.warning("took over from a worker", extra={"worker": worker_id, "num_batches": num_batches})

    def _rescue(self, job: Job) -> None:
        """Take over a job's batches that no lease covers. Queue the job again if it has no batches left."""
        batches = self._queue.batches_of(job.id)
        leased = {worker.id for worker in self._leases.alive()}
        for batch in batches:
            if batch.worker_id is not None and batch.worker_id not in leased:
                self._page_store.mark_worker_dead(batch.worker_id)
                self._queue.put_back(batch)
        if batches:
            self._notifications.tell("work", QUEUES)
            self._leases.touched([job.id])
            return
        if job.num_requeues >= MAX_REQUEUES:
            error = WorkerLost("the work for this document was lost repeatedly")
            self._store.fail(job.id, Failure.of(error))
            return
        generation = job.num_requeues + 1
        self._queue.add_batch(Batch.first(job.id, job.num_pages, job.batch_pages, job.priority, generation))
        self._notifications.tell("work", QUEUES)
        self._leases.requeued(job.id)
        logger.warning("queued a job anew", extra={"job": job.id, "generation": generation})


def sweep(store: Store, blobs: Blobs) -> None:
    """Remove documents of ended jobs. Stop at a store that does not answer; the next turn tries again."""
    ended = store.unswept()
    if ended:
        # otherwise a power cut could undo the end of a job, which then lacks its document
        store.settle([job.id for job in ended])
    for job in ended:
        try:
            blobs.remove(job.blob)
        except StorageUnavailable:
            return
        except ParseError as error:
            logger.warning("a document cannot be removed", extra={"job": job.id, "reason": str(error)})
        else:
            store.swept(job.id)
