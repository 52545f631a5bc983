"""``POST /v1/parse``: a document in, its Markdown out, in one exchange."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.document import AnswerOptions, ParsedDocument
from app.errors import BadOption, ParseError, StorageFull, StorageUnavailable
from app.http.negotiation import negotiate
from app.http.openapi import JSON, MARKDOWN, PLAIN, example, problems, request_body, text_of
from app.http.receive import MAX_IDEMPOTENCY_KEY_CHARS, receive_document, submit
from app.http.schemas.examples import document_example, job_example
from app.http.schemas.jobs import JobShape
from app.http.schemas.parse import DocumentShape, ParseFields, ParseFormBody, ParseJsonBody
from app.http.service import Service, service_of
from app.http.status_headers import status_headers
from app.jobs.api.outcome import raise_if_unread
from app.jobs.api.submission import Submission
from app.jobs.job import Job
from app.output.pages import join_pages

OFFERS = (JSON, MARKDOWN, PLAIN)

T = TypeVar("T")

router = APIRouter(tags=["parse"])


IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY_CHARS},
    "description": "The same key with the same request is the same job; with another request, 409.",
}
READ: dict[str, Any] = {
    "description": "At least one page was read.",
    "content": {
        **example(DOCUMENT_EXAMPLE := document_example()),
        **dict.fromkeys((MARKDOWN, PLAIN), text_of(DOCUMENT_EXAMPLE)),
    },
}


@router.post(
    "/v1/parse",
    operation_id="parse_document",
    summary="Parse a document",
    response_model=DocumentShape,
    responses={
        200: READ,
        202: {
            "description": "Not read within wait_seconds, or the service stops: the job, which goes on.",
            "model": JobShape,
            "content": example(job_example()),
        },
        **problems(),
    },
    openapi_extra={
        "requestBody": request_body(ParseFormBody, ParseJsonBody, may_name_url=False),
        "parameters": [IDEMPOTENCY_KEY],
    },
)
async def parse(request: Request) -> Response:
    """A PDF or image in, Markdown out: as JSON with what every page cost, or as text by the Accept header.

    It is a job with somebody waiting: who has waited long enough gets 202 and the job's address.
    """
    service = service_of(request)
    try:
        media_type = negotiate(request.headers.get("accept"), OFFERS)
        job = await _parse(request, service)
        if job.is_open:
            return await accepted(service, job)
        document = await service.jobs.document(job)
        raise_if_unread(document)
    except ParseError as error:
        service.metrics.documents.labels(error.code).inc()
        raise
    service.metrics.documents.labels(document.status).inc()
    return answered(document, media_type, job.options.answer)


def answered(document: ParsedDocument, media_type: str, options: AnswerOptions) -> Response:
    headers = status_headers(document)
    if media_type == JSON:
        body = DocumentShape.of(document, options).model_dump_json()
        return Response(body, headers=headers, media_type=JSON)
    joined = join_pages(document.pages, options)
    text = joined.plain() if media_type == PLAIN else joined.markdown(dollars=options.math != "latex")
    return Response(text + "\n", headers=headers, media_type=f"{media_type}; charset=utf-8")


async def accepted(service: Service, job: Job) -> Response:
    """202: the document and its job are on disk."""
    position = None
    with contextlib.suppress(StorageUnavailable, StorageFull):  # it is accepted all the same
        position = await service.jobs.position(job)
    shape = JobShape.of(job, position, service.settings.result_lifetime_s, time.time())
    body = shape.model_dump_json(exclude_none=True)
    return Response(body, 202, {"Location": shape.links.self}, media_type=JSON)


async def _parse(request: Request, service: Service) -> Job:
    """The job, ended or waited for long enough."""
    with service.admitted():
        service.check_ready()
        with service.spool.file() as path:
            upload, fields = await receive_document(request, service, ParseFields, path)
            if upload.source is None:
                raise BadOption("there is no file")
            submitting = submit(request, service, upload.source, fields, Submission(""))
            job, is_new = await submitting
        try:
            wait_s = service.settings.wait_s if fields.wait_seconds is None else fields.wait_seconds
            return await _while_connected(request, service.jobs.watcher.wait(job.id, wait_s))
        except ClientDisconnect:
            # many pages are worth keeping: whoever left may be a proxy that waits no longer
            then = fields.on_disconnect or ("cancel" if job.num_pages == 1 else "continue")
            if is_new and then == "cancel" and not service.jobs.watcher.is_waited_for(job.id):
                await service.jobs.cancel(job.id)
            raise


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. When the client leaves, cancel it at once and raise ``ClientDisconnect``."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
