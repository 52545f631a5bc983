"""Serve ``/v1/jobs``: accept a document, watch its job, get its result, cancel it."""

import binascii
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from app.documents.safe_http import parse_url
from app.errors import BadOption, ParseError, StorageFull, StorageUnavailable
from app.http.access import caller_of, needs
from app.http.answers import IDEMPOTENCY_KEY, READ, accepted, answered, chosen, shown
from app.http.connected import while_connected
from app.http.openapi import JSON, TEXT, Responses, example, problems, request_body
from app.http.receive import fetched, receive_document, submit
from app.http.schemas.examples import job_example
from app.http.schemas.jobs import (
    FileJobsShape,
    JobFields,
    JobFormBody,
    JobJsonBody,
    JobListShape,
    JobShape,
    ListFields,
    ResultFields,
    WaitFields,
)
from app.http.schemas.parse import DocumentShape, PageShape
from app.http.service import Service, root_of, service_of
from app.http.several import accept_several
from app.jobs.api.jobs import JOB_ID
from app.jobs.api.submission import Submission
from app.jobs.job import Job

router = APIRouter(tags=["jobs"])

PING_S = 15
ENDING_S = 5.0
"""Longest time that an event stream may take to end when the service stops; it needs a moment."""
MAX_EVENT_ID = 2**31
EVENTS = "text/event-stream"
EVENTS_EXAMPLE = 'id: 1\r\nevent: page\r\ndata: {"index": 0, "markdown": "# Annual report"}\r\n\r\n'

ONE_JOB: Responses = {
    200: {"description": "The job as it is now.", "content": example(job_example())},
    **problems(),
}
LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0, "exclusiveMaximum": MAX_EVENT_ID},
    "description": "The last event that was seen; those after it follow.",
}


@router.post(
    "/v1/jobs",
    operation_id="create_job",
    summary="Accept a document, to be parsed later",
    dependencies=[needs("submit")],
    status_code=202,
    response_model=JobShape,
    responses={
        202: {"description": "The document and its job are on disk.", "content": example(job_example())},
        207: {
            "description": "Of several files (files in place of file): a job each, or why there is none.",
            "model": FileJobsShape,
            "content": example({"files": [{"filename": "report.pdf", "job": job_example()}]}),
        },
        **problems(),
    },
    openapi_extra={
        "requestBody": request_body(JobFormBody, JobJsonBody, may_name_url=True),
        "parameters": [IDEMPOTENCY_KEY],
    },
)
async def create(request: Request) -> Response:
    """Accept a document and answer with its job. An accepted document is read even if processes die.

    The document is a part of a form, base64 in JSON, an address, or the body itself, of type application/pdf
    or image/..., with the options in the address. Several parts called files become a job each.
    """
    service = service_of(request)
    with service.admitted(), service.spool.files() as place:
        path = place()
        upload, fields = await receive_document(
            request, service, JobFields, path, may_name_url=True, place_more=place
        )
        if upload.several and fields.url is not None:
            raise BadOption("give files or url, not both")
        if upload.source is not None and fields.url is not None:
            raise BadOption("give file or url, not both")
        if fields.webhook is not None:
            await _check_webhook(service, fields.webhook)
        # without keys, clients behind one address look the same, so they never share a job
        is_known = caller_of(request).key is not None
        submission = Submission("", fields.priority, fields.webhook, repeatable=is_known)
        if upload.several:
            return await accept_several(request, service, upload.several, fields, submission)
        source = upload.source or await fetched(service, str(fields.url), path)
        job, _ = await submit(request, service, source, fields, submission)
    return await accepted(request, service, job)


async def _check_webhook(service: Service, url: str) -> None:
    if not service.settings.webhook_secret:
        raise BadOption("webhook: this service has no secret to sign webhooks with")
    parse_url(url)
    await service.http.check(url)


@router.get(
    "/v1/jobs",
    operation_id="list_jobs",
    summary="Jobs of this client, newest first",
    dependencies=[needs("read")],
    response_model_exclude_none=True,  # as for a single job
    responses={
        200: {"description": "Jobs.", "content": example({"jobs": [job_example()]})},
        **problems(),
    },
)
async def listed(request: Request, asked: Annotated[ListFields, Query()]) -> JobListShape:
    service = service_of(request)
    jobs = await service.jobs.listed(
        caller_of(request).lists, asked.status, _cursor(asked.after), asked.limit + 1
    )
    page, more = jobs[: asked.limit], jobs[asked.limit :]
    query = f"&status={asked.status}" if asked.status else ""
    following = (
        f"{root_of(request)}/v1/jobs?limit={asked.limit}{query}&after={_encoded(page[-1])}" if more else None
    )
    return JobListShape(jobs=[await shown(request, job) for job in page], next=following)


def _encoded(job: Job) -> str:
    return urlsafe_b64encode(f"{job.created_at!r} {job.id}".encode()).decode()


def _cursor(text: str | None) -> tuple[float, str] | None:
    if text is None:
        return None
    try:
        at, _, job_id = urlsafe_b64decode(text).decode().partition(" ")
        cursor = float(at), job_id
    except (binascii.Error, ValueError) as error:
        raise BadOption("after must be taken from next") from error
    if JOB_ID.fullmatch(job_id) is None or not math.isfinite(cursor[0]):
        raise BadOption("after must be taken from next")
    return cursor


@router.get(
    "/v1/jobs/{job_id}",
    operation_id="get_job",
    summary="How far a job is",
    dependencies=[needs("read")],
    response_model=JobShape,
    responses=ONE_JOB,
)
async def status(request: Request, job_id: str, asked: Annotated[WaitFields, Query()]) -> Response:
    """Return the job: at once, or with ``wait`` as soon as it has ended or more of its pages are done."""
    jobs = service_of(request).jobs
    job = await jobs.job(job_id, caller_of(request).sees)
    if asked.wait and job.is_open and "head" not in request.scope:
        known = job.num_done if asked.done is None else asked.done
        job = await while_connected(request, jobs.watcher.wait(job.id, asked.wait, known))
    return await _one(request, job)


@router.delete(
    "/v1/jobs/{job_id}",
    operation_id="cancel_job",
    summary="Cancel a job",
    dependencies=[needs("submit")],
    response_model=JobShape,
    responses=ONE_JOB,
)
async def cancel(request: Request, job_id: str) -> Response:
    """Stop the job within one decode step. A job that has ended stays as it is."""
    return await _one(request, await service_of(request).jobs.cancel(job_id, caller_of(request).sees))


async def _one(request: Request, job: Job) -> Response:
    shape = await shown(request, job)
    return Response(shape.model_dump_json(exclude_none=True), media_type=JSON)


@router.get(
    "/v1/jobs/{job_id}/result",
    operation_id="get_result",
    summary="What came of a job",
    dependencies=[needs("read")],
    response_model=DocumentShape,
    responses={200: READ, **problems()},
)
async def result(request: Request, job_id: str, asked: Annotated[ResultFields, Query()]) -> Response:
    """Return the same answer as ``POST /v1/parse``, in the format of the job or of this request.

    With ``partial=true``, return the pages so far of a job that has not ended; its status is then
    ``running``.
    """
    service = service_of(request)
    job = await service.jobs.job(job_id, caller_of(request).sees)
    options = asked.over(job.options.answer)
    form = chosen(request, asked.format, job.options.answer.format)
    root = root_of(request)
    making = service.results.of(job, form, options, root, pages_so_far=asked.partial)
    made = await while_connected(request, making)
    return await answered(request, made, form)


@router.get(
    "/v1/jobs/{job_id}/events",
    operation_id="follow_job",
    summary="Pages as they are finished, as server-sent events",
    dependencies=[needs("read")],
    response_class=EventSourceResponse,
    responses={
        200: {"description": "Events.", "content": {EVENTS: {**TEXT, "example": EVENTS_EXAMPLE}}},
        **problems(),
    },
    openapi_extra={"parameters": [LAST_EVENT_ID]},
)
async def events(request: Request, job_id: str) -> Response:
    """Stream a ``page`` event for every finished page, then ``end`` with the ended job.

    The id of a ``page`` event counts the pages in the order in which they were finished.
    """
    service = service_of(request)
    after = _last_event_id(request.headers.get("last-event-id") or "0")
    await service.jobs.job(job_id, caller_of(request).sees)
    if "head" in request.scope:  # HEAD has no events to wait for
        return Response(media_type=EVENTS)
    # without a grace period it would cut the stream off, perhaps in the middle of an event
    return EventSourceResponse(
        _events(request, job_id, after),
        ping=PING_S,
        shutdown_grace_period=ENDING_S,
    )


def _last_event_id(text: str) -> int:
    # the length first: Python refuses numbers with thousands of digits
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) >= MAX_EVENT_ID:
        raise BadOption("Last-Event-ID must be the id of an event")
    return int(text)


async def _events(request: Request, job_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    service = service_of(request)
    try:
        async for event in service.jobs.watcher.events(job_id, after):
            if isinstance(event, Job):
                shape = await shown(request, event)
                body = shape.model_dump_json(exclude_none=True)
                yield ServerSentEvent(body, event="end", id=str(event.num_done + 1))
                return
            body = PageShape.of(event.page).model_dump_json()
            yield ServerSentEvent(body, event="page", id=str(event.seq))
    except (StorageUnavailable, StorageFull):
        return  # the client reconnects with the id of its last event
    except ParseError:
        return  # the job expired meanwhile
