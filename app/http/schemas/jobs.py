"""The wire shapes of ``/v1/jobs``."""

from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.documents.safe_http import MAX_URL_CHARS
from app.http.schemas.parse import AnswerFields, DocumentShape, FailureShape, OptionFields
from app.jobs.job import Job, JobStatus
from app.jobs.queues import DEFAULT_PRIORITY, MAX_PRIORITY

MAX_LISTED = 100
MAX_DONE = 2**31 - 1


class JobFields(OptionFields):
    """The options of ``POST /v1/jobs``."""

    url: str | None = Field(
        None,
        max_length=MAX_URL_CHARS,
        description="Address to fetch the document from, in place of file. Public networks alone.",
    )
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=MAX_PRIORITY, description="0 to 9; higher goes first.")
    webhook: str | None = Field(
        None,
        max_length=MAX_URL_CHARS,
        description="Address that is told, signed, when the job has ended. Public networks alone.",
    )


class JobFormBody(JobFields):
    """The body as multipart/form-data: ``file`` or ``url``."""

    file: str | None = Field(None, json_schema_extra={"format": "binary"}, description="The document.")


class JobJsonBody(JobFields):
    """The body as application/json: ``file`` or ``url``."""

    file: str | None = Field(
        None, json_schema_extra={"contentEncoding": "base64"}, description="The document, as base64."
    )


class ListFields(BaseModel):
    """The query of ``GET /v1/jobs``."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = Field(None, description="Jobs in this state alone.")
    limit: int = Field(20, ge=1, le=MAX_LISTED, description="Most jobs in one answer.")
    after: str | None = Field(None, max_length=200, description="Where to go on, from ``next``.")


class WaitFields(BaseModel):
    """The query of ``GET /v1/jobs/{id}``. Other parameters are ignored, as proxies and caches add some."""

    model_config = ConfigDict(extra="ignore")

    wait: float | None = Field(
        None,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="How many seconds to wait for the job's end, or for more pages. Not given: none.",
    )
    done: int | None = Field(
        None,
        ge=0,
        le=MAX_DONE,
        description="With wait: how many done pages are known; more of them end it. "
        "Not given: those that are done now.",
    )


class ResultFields(AnswerFields):
    """The query of ``GET /v1/jobs/{id}/result``."""

    partial: bool = Field(
        False, description="Whether the pages so far of a job that has not ended are wanted."
    )


class PagesShape(BaseModel):
    total: int
    done: int
    failed: int = Field(description="Pages of which nothing was read.")
    incomplete: int = Field(description="Pages that were not read to their end.")


class LinksShape(BaseModel):
    self: str
    events: str
    result: str


class TimingsShape(BaseModel):
    """Seconds; absent while not known."""

    queued_s: float | None = None
    running_s: float | None = None


class RetriesShape(BaseModel):
    """What was repeated: pages begun again after a worker died, and lost work that was queued again."""

    pages: int
    requeues: int


class WebhookShape(BaseModel):
    url: str
    status: Literal["pending", "queued", "retrying", "delivered", "refused", "failed"]
    attempts: int


class JobShape(BaseModel):
    """A job as it is now."""

    id: str
    status: JobStatus
    pages: PagesShape
    queue_position: int | None = Field(None, description="Queued jobs that go before this one.")
    priority: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = Field(None, description="Until when the result is kept.")
    timings: TimingsShape
    retries: RetriesShape
    error: FailureShape | None = Field(None, description="Why the document as a whole failed.")
    webhook: WebhookShape | None = None
    links: LinksShape

    @classmethod
    def of(cls, job: Job, position: int | None, lifetime_s: float, now: float, root_path: str = "") -> Self:
        address = f"{root_path}/v1/jobs/{job.id}"
        return cls(
            id=job.id,
            status=job.status,
            pages=PagesShape(
                total=job.num_pages,
                done=job.num_done,
                failed=job.num_failed,
                incomplete=job.num_incomplete,
            ),
            queue_position=position,
            priority=job.priority,
            created_at=_time(job.created_at),
            started_at=_maybe_time(job.started_at),
            finished_at=_maybe_time(job.finished_at),
            expires_at=_maybe_time(job.finished_at and job.finished_at + lifetime_s),
            timings=_timings(job, now),
            retries=RetriesShape(pages=job.num_retries, requeues=job.num_requeues),
            error=FailureShape.model_validate(job.failure) if job.failure else None,
            webhook=_webhook(job),
            links=LinksShape(self=address, events=f"{address}/events", result=f"{address}/result"),
        )


class JobListShape(BaseModel):
    jobs: list[JobShape]
    next: str | None = Field(None, description="Address of the next page; absent on the last.")


class FileJobShape(BaseModel):
    """One of several files: its job, or the reason why it has none."""

    filename: str = Field(description="As the client calls it.")
    job: JobShape | None = None
    error: FailureShape | None = None


class FileJobsShape(BaseModel):
    """The jobs of several files, in their order."""

    files: list[FileJobShape]


class FileDocumentShape(BaseModel):
    """One of several files: its document, or its job if that continues, or the reason why it has neither."""

    filename: str = Field(description="As the client calls it.")
    document: DocumentShape | None = None
    job: JobShape | None = None
    error: FailureShape | None = None


class FileDocumentsShape(BaseModel):
    """The documents of several files, in their order."""

    files: list[FileDocumentShape]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _maybe_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else _time(seconds)


def _timings(job: Job, now: float) -> TimingsShape:
    end = job.finished_at or now
    return TimingsShape(
        queued_s=round(max(0.0, (job.started_at or end) - job.created_at), 3),
        running_s=None if job.started_at is None else round(max(0.0, end - job.started_at), 3),
    )


def _webhook(job: Job) -> WebhookShape | None:
    if job.webhook is None:
        return None
    fields: dict[str, Any] = {"status": job.webhook_status, "attempts": job.webhook_attempts}
    return WebhookShape(url=job.webhook, **fields)
