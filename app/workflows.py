"""The workflows of DBOS that a worker runs. A process has one DBOS; ``launch`` says what it works with."""

import asyncio
from dataclasses import dataclass

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig

from app.queues import (
    APPLICATION,
    BATCH_QUEUE,
    DELIVER_WEBHOOK,
    READ_BATCH,
    SERIALIZER,
    SINGLE_QUEUE,
    VERSION,
    WEBHOOK_QUEUE,
    batch_options,
)
from app.reading import BatchReader
from app.settings import Settings
from app.store import Store
from app.webhooks import Webhooks

WEBHOOKS_PER_WORKER = 4
WEBHOOK_POLL_S = 1.0
FIRST_WEBHOOK_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Hands:
    """What the workflows of this process work with."""

    settings: Settings
    store: Store
    batches: BatchReader
    webhooks: Webhooks


_hands: Hands | None = None


def hands() -> Hands:
    if _hands is None:
        raise RuntimeError("workflows run only after launch()")
    return _hands


def launch(engine: sa.Engine, executor_id: str, given: Hands) -> None:
    """Start executing workflows, on the event loop that calls this."""
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
    DBOS(config=config)
    DBOS.listen_queues([SINGLE_QUEUE, BATCH_QUEUE, WEBHOOK_QUEUE])
    DBOS.launch()


def register_queues(client: DBOSClient, settings: Settings) -> None:
    """Before ``launch``: DBOS looks for queues once a second."""
    num_batches = max(1, settings.max_pages_in_flight // settings.batch_pages)
    for name, concurrency, poll_s in (
        (SINGLE_QUEUE, settings.max_pages_in_flight, settings.queue_poll_s),
        (BATCH_QUEUE, num_batches, settings.queue_poll_s),
        (WEBHOOK_QUEUE, WEBHOOKS_PER_WORKER, WEBHOOK_POLL_S),
    ):
        client.register_queue(
            name,
            worker_concurrency=concurrency,
            polling_interval_sec=poll_s,
            application_name=APPLICATION,
        )


@DBOS.step(name="is_wanted")
async def is_wanted(job_id: str) -> bool:
    return not await asyncio.to_thread(hands().store.cancelled, [job_id])


@DBOS.step(name="read_pages")
async def read_pages(job_id: str, number: int) -> None:
    await hands().batches.read(job_id, number)


@DBOS.workflow(name=READ_BATCH, max_recovery_attempts=None)
async def read_batch(
    job_id: str, number: int, num_batches: int, num_pages: int, priority: int, generation: int
) -> None:
    children = [child for child in (2 * number + 1, 2 * number + 2) if child < num_batches]
    if children and not await is_wanted(job_id):
        return
    for child in children:
        options = batch_options(job_id, child, num_pages, priority=priority, generation=generation)
        await DBOS.enqueue_workflow_with_options_async(
            options, job_id, child, num_batches, num_pages, priority, generation
        )
    await read_pages(job_id, number)


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
