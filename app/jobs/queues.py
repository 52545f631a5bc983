"""What the API and the workers agree on: names of queues and workflows, ids, priorities.

A document is a tree of workflows, one for each batch of its pages: batch n queues the batches 2n + 1 and
2n + 2 and then reads its own pages. So nobody queues a large document alone, a cancelled one stops growing,
and later batches stand behind the first batches of everybody else.
"""

from dataclasses import dataclass

from dbos import DBOSPortableJSONSerializer, EnqueueOptions

SERIALIZER = DBOSPortableJSONSerializer()
"""JSON. The default of DBOS is pickle, which executes what it reads."""
APPLICATION = "rtprune"
VERSION = "jobs-1"
"""Of what workflows are given and do. Workers take the work of their own version alone."""

SINGLE_QUEUE = "rtprune-single"
"""Documents of one page, apart: a worker holds many of them, but few batches."""
BATCH_QUEUE = "rtprune-batches"
WEBHOOK_QUEUE = "rtprune-webhooks"
QUEUES = (SINGLE_QUEUE, BATCH_QUEUE, WEBHOOK_QUEUE)

READ_BATCH = "read_batch"
DELIVER_WEBHOOK = "deliver_webhook"

MAX_PRIORITY = 9
DEFAULT_PRIORITY = 5
BATCHES_PER_PRIORITY = 100_000


@dataclass(frozen=True, slots=True)
class Work:
    """A batch of pages, queued or running."""

    job_id: str
    priority: int

    @classmethod
    def of(cls, workflow_id: str, queue_priority: int) -> "Work":
        """From what ``batch_options`` gave the queue."""
        above = (queue_priority - 1) // BATCHES_PER_PRIORITY
        return cls(workflow_id.partition(".")[0], MAX_PRIORITY - above)


def queue_for(num_pages: int) -> str:
    """The queue of documents with so many pages."""
    return SINGLE_QUEUE if num_pages == 1 else BATCH_QUEUE


def batch_options(
    job_id: str, number: int, num_pages: int, *, priority: int, generation: int = 0
) -> EnqueueOptions:
    """``generation`` counts the times that lost work of a job was queued anew."""
    suffix = f".r{generation}" if generation else ""
    return {
        "workflow_name": READ_BATCH,
        "queue_name": queue_for(num_pages),
        "workflow_id": f"{job_id}.{number}{suffix}",
        "app_version": VERSION,
        "application_name": APPLICATION,
        "priority": (MAX_PRIORITY - priority) * BATCHES_PER_PRIORITY + number + 1,
    }


def webhook_options(job_id: str) -> EnqueueOptions:
    return {
        "workflow_name": DELIVER_WEBHOOK,
        "queue_name": WEBHOOK_QUEUE,
        "workflow_id": f"{job_id}.webhook",
        "app_version": VERSION,
        "application_name": APPLICATION,
    }


def batch_arguments(
    job_id: str, num_pages: int, batch_pages: int, *, priority: int, generation: int = 0
) -> tuple[str, int, int, int, int, int]:
    """Arguments of a job's first batch."""
    num_batches = -(-num_pages // batch_pages)
    return (job_id, 0, num_batches, num_pages, priority, generation)
