"""The workflows of DBOS that a worker runs. A process has one DBOS; ``launch`` says what it works with."""

import asyncio
from dataclasses import dataclass

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig

from app.jobs.notifications import Notifications
from app.jobs.queues import (
    APPLICATION,
    BATCH_QUEUE,
    DELIVER_WEBHOOK,
    READ_BATCH,
    SERIALIZER,
    SINGLE_QUEUE,
    VERSION,
    WEBHOOK_QUEUE,
    Work,
    batch_options,
    queue_for,
)
from app.jobs.store import Store
from app.jobs.worker.claiming import Claiming, Room
from app.jobs.worker.reading import HIGHER_SHARE, OTHERS_SHARE, BatchRunner
from app.jobs.worker.webhooks import Webhooks
from app.settings import Settings

WEBHOOKS_PER_WORKER = 1000
"""Most of them pause between two tries: with few, servers that do not answer keep others from being told."""
WEBHOOK_POLL_S = 5.0
"""Who queues a webhook wakes its own process, so this is for what other workers leave."""
FIRST_WEBHOOK_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Hands:
    """The objects that the workflows of this process work with."""

    settings: Settings
    store: Store
    client: DBOSClient
    batches: BatchRunner
    webhooks: Webhooks
    notifications: Notifications


_claiming: dict[str, Claiming] = {}
_hands: Hands | None = None


def hands() -> Hands:
    if _hands is None:
        raise RuntimeError("workflows run only after launch()")
    return _hands


def launch(engine: sa.Engine, executor_id: str, queues: list[Claiming], given: Hands) -> None:
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
    DBOS.listen_queues([])
    DBOS.launch()
    _end_pollers(dbos)
    for claiming in queues:
        _claiming[claiming.queue_name] = claiming
        claiming.start(dbos)


def _end_pollers(dbos: DBOS) -> None:
    """DBOS looks every second for schedules, delays, timeouts and queues of its own, none of which are used
    here, in transactions that took more processor time than all else that an idle worker does.
    """
    dbos._background_jobs_stop_event.set()
    for event in dbos.background_thread_stop_events:
        event.set()


def register_queues(given: Hands) -> list[Claiming]:
    """Make the queues known, with the concurrency of this worker."""
    settings = given.settings
    num = settings.max_pages_in_flight
    # One more where a batch has more pages than are read at a time: the next one of a document is then
    # claimed beside it, and does not stand in the queue before others'. More would keep other workers idle.
    num_batches = max(1, num // settings.batch_pages) + (num < settings.batch_pages)
    for_others, for_higher = max(1, num // OTHERS_SHARE), max(1, num // HIGHER_SHARE)
    claiming = []
    for name, room, poll_s in (
        (SINGLE_QUEUE, Room(num, for_higher=for_higher), settings.queue_poll_s),
        (BATCH_QUEUE, Room(num_batches, for_others, for_higher), settings.queue_poll_s),
        (WEBHOOK_QUEUE, Room(WEBHOOKS_PER_WORKER), WEBHOOK_POLL_S),
    ):
        queue = given.client.register_queue(
            name, worker_concurrency=room.num, polling_interval_sec=poll_s, application_name=APPLICATION
        )
        # or it would be read again before each look, and be that of the worker that started last
        queue.database_backed_queue = False
        claiming.append(Claiming(queue, room, given.notifications, given.store.has_work, given.store.next_up))
    return claiming


@DBOS.workflow(name=READ_BATCH, max_recovery_attempts=None)
async def read_batch(
    job_id: str, number: int, num_batches: int, num_pages: int, priority: int, generation: int
) -> None:
    _counted(queue_for(num_pages), Work(job_id, priority))
    children = [child for child in (2 * number + 1, 2 * number + 2) if child < num_batches]

    def enqueue_children(connection: sa.Connection) -> None:
        for child in children:
            options = batch_options(job_id, child, num_pages, priority=priority, generation=generation)
            arguments = (job_id, child, num_batches, num_pages, priority, generation)
            hands().client.enqueue_in_transaction(connection, options, *arguments)

    # Without steps, which are transactions: what is done twice is found done. Queued children are known by
    # their ids, pages by our tables.
    await hands().batches.read(job_id, number, enqueue_children if children else None)


def _counted(queue: str, work: Work) -> None:
    """This workflow runs until its task ends: until then it takes room of this worker."""
    if (task := asyncio.current_task()) is not None:
        _claiming[queue].begun(work)
        task.add_done_callback(lambda _: _claiming[queue].ended(work))


@DBOS.step(name="post_webhook")
async def post_webhook(job_id: str) -> bool:
    """One try. True when it is settled: delivered, or refused for good."""
    return await hands().webhooks.deliver(job_id)


@DBOS.workflow(name=DELIVER_WEBHOOK, max_recovery_attempts=None)
async def deliver_webhook(job_id: str) -> None:
    _counted(WEBHOOK_QUEUE, Work(job_id, 0))
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
