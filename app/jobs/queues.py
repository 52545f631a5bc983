"""Queue work with DBOS, and find what is queued. Both the API and the workers use it.

A document is a tree of workflows, one for each batch of its pages: batch n queues the batches 2n + 1 and
2n + 2 and then reads its own pages. So nobody queues a large document alone, a cancelled one stops growing,
and later batches stand behind the first batches of everybody else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions, Queue

SERIALIZER = DBOSPortableJSONSerializer()
"""Store arguments as JSON. The default of DBOS is pickle, which executes what it reads."""
APPLICATION = "rtprune"
VERSION = "jobs-1"
"""Version of the workflows' names and arguments. Workers only take work of their own version."""

SINGLE_QUEUE = "rtprune-single"
"""The queue of one-page documents. It is separate because a worker holds many of them, but few batches."""
BATCH_QUEUE = "rtprune-batches"
WEBHOOK_QUEUE = "rtprune-webhooks"
QUEUES = (SINGLE_QUEUE, BATCH_QUEUE, WEBHOOK_QUEUE)

READ_BATCH = "read_batch"
DELIVER_WEBHOOK = "deliver_webhook"

MAX_PRIORITY = 9
DEFAULT_PRIORITY = 5
BATCHES_PER_PRIORITY = 100_000

RUNNING = "PENDING"
UNFINISHED = ["PENDING", "ENQUEUED", "DELAYED"]


def queue_for(num_pages: int) -> str:
    """Return the queue of documents with so many pages."""
    return SINGLE_QUEUE if num_pages == 1 else BATCH_QUEUE


@dataclass(frozen=True, slots=True)
class Work:
    """What a queue entry tells of a batch of pages."""

    job_id: str
    priority: int

    @classmethod
    def of(cls, workflow_id: str, queue_priority: int) -> "Work":
        """Read the job and its priority back from what ``Batch`` gave the queue."""
        above = (queue_priority - 1) // BATCHES_PER_PRIORITY
        return cls(workflow_id.partition(".")[0], MAX_PRIORITY - above)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of a job's pages, as one workflow reads it. The fields are the workflow's arguments.

    ``generation``: how often lost work of the job was queued again.
    """

    job_id: str
    number: int
    num_batches: int
    num_pages: int
    priority: int
    generation: int = 0

    @classmethod
    def first(
        cls, job_id: str, num_pages: int, batch_pages: int, priority: int, generation: int = 0
    ) -> "Batch":
        return cls(job_id, 0, -(-num_pages // batch_pages), num_pages, priority, generation)

    @property
    def children(self) -> list["Batch"]:
        """The batches that this one queues."""
        numbers = (2 * self.number + 1, 2 * self.number + 2)
        return [replace(self, number=number) for number in numbers if number < self.num_batches]

    @property
    def work(self) -> Work:
        return Work(self.job_id, self.priority)

    @property
    def options(self) -> EnqueueOptions:
        suffix = f".r{self.generation}" if self.generation else ""
        return {
            "workflow_name": READ_BATCH,
            "queue_name": queue_for(self.num_pages),
            "workflow_id": f"{self.job_id}.{self.number}{suffix}",
            "app_version": VERSION,
            "application_name": APPLICATION,
            "priority": (MAX_PRIORITY - self.priority) * BATCHES_PER_PRIORITY + self.number + 1,
        }

    @property
    def arguments(self) -> tuple[str, int, int, int, int, int]:
        return (
            self.job_id,
            self.number,
            self.num_batches,
            self.num_pages,
            self.priority,
            self.generation,
        )


@dataclass(frozen=True, slots=True)
class Queued:
    """An unfinished workflow. ``worker_id``: the worker that runs it, ``None`` while it waits."""

    workflow_id: str
    queue_name: str | None
    worker_id: str | None


class Enqueues(Protocol):
    """The part of ``WorkQueue`` that the store needs."""

    def add(self, connection: sa.Connection, batches: Sequence[Batch]) -> None:
        """Queue batches within the caller's transaction. A batch that is already queued stays as it is."""


class WorkQueue:
    """The queues of DBOS, in an engine's database. Each method except ``add`` is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._client = DBOSClient(
            system_database_engine=engine,
            serializer=SERIALIZER,
            application_name=APPLICATION,
            retry_connection_errors=False,
            lazy=True,
        )

    def close(self) -> None:
        self._client.destroy()

    def register(self, name: str, worker_concurrency: int, poll_s: float) -> Queue:
        """Register a queue with DBOS: how many workflows one worker runs at once, and how often it polls."""
        return self._client.register_queue(
            name,
            worker_concurrency=worker_concurrency,
            polling_interval_sec=poll_s,
            application_name=APPLICATION,
        )

    def add(self, connection: sa.Connection, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._client.enqueue_in_transaction(connection, batch.options, *batch.arguments)

    def add_batch(self, batch: Batch) -> None:
        self._client.enqueue(batch.options, *batch.arguments)

    def add_webhook(self, job_id: str) -> None:
        options: EnqueueOptions = {
            "workflow_name": DELIVER_WEBHOOK,
            "queue_name": WEBHOOK_QUEUE,
            "workflow_id": f"{job_id}.webhook",
            "app_version": VERSION,
            "application_name": APPLICATION,
        }
        self._client.enqueue(options, job_id)

    def batches_of(self, job_id: str) -> list[Queued]:
        """Return a job's unfinished batches that workers of this version can read."""
        found = self._client.list_workflows(
            workflow_id_prefix=f"{job_id}.",
            status=UNFINISHED,
            name=READ_BATCH,
            app_version=VERSION,
            load_input=False,
            load_output=False,
        )
        return [
            Queued(
                one.workflow_id, one.queue_name, (one.executor_id or "") if one.status == RUNNING else None
            )
            for one in found
        ]

    def put_back(self, work: Queued) -> None:
        """Queue a running workflow again.

        The worker that runs it may continue, but its outcome no longer counts.
        """
        self._client.resume_workflow(work.workflow_id, queue_name=work.queue_name)

    def put_back_all(self, worker_id: str) -> int:
        """Queue again everything that a worker runs, or ran when it died. Return the number of workflows."""
        left = self._client.list_workflows(
            status=RUNNING, executor_id=worker_id, load_input=False, load_output=False
        )
        for workflow in left:
            self._client.resume_workflow(workflow.workflow_id, queue_name=workflow.queue_name)
        return len(left)

    def forget(self, job_ids: list[str]) -> None:
        """Remove the records of these jobs' workflows."""
        found = self._client.list_workflows(workflow_id_prefix=job_ids, load_input=False, load_output=False)
        self._client.delete_workflows([workflow.workflow_id for workflow in found])
