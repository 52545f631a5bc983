"""Answers that several routes give: a document, and a job that was accepted or is shown."""

import contextlib
import time
from itertools import chain
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.errors import StorageFull, StorageUnavailable
from app.http.negotiation import accepts_gzip
from app.http.openapi import JSON, MARKDOWN, PLAIN, example, text_of
from app.http.receive import MAX_IDEMPOTENCY_KEY_CHARS
from app.http.results import Result, chunks, compressed
from app.http.schemas.examples import document_example
from app.http.schemas.jobs import JobShape
from app.http.service import Service, root_of, service_of
from app.jobs.job import Job

MIN_GZIP_BYTES = 4096
"""Smaller answers are sent as they are."""
OFFERS = (JSON, MARKDOWN, PLAIN)
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


async def answered(request: Request, result: Result, media_type: str) -> Response:
    """Answer with a document, in the negotiated media type: at once if it is small, else in pieces."""
    content_type = JSON if media_type == JSON else f"{media_type}; charset=utf-8"
    headers = {**result.headers, "Vary": "Accept, Accept-Encoding"}
    results = service_of(request).results
    parts = chunks(result.pieces(results.store))
    taken = results.parts(result, parts)
    first, second = await anext(taken, b""), await anext(taken, b"")
    if accepts_gzip(request.headers.get("accept-encoding")) and (second or len(first) > MIN_GZIP_BYTES):
        headers["Content-Encoding"] = "gzip"
        taken = results.parts(result, compressed(chain((first, second), parts)))
        if not second:
            first = b"".join([part async for part in taken])
    elif second:
        taken = results.parts(result, chain((first, second), parts))
    if not second:
        return Response(first, headers=headers, media_type=content_type)
    body = iter(()) if "head" in request.scope else taken  # a body of no bytes would have a length
    return StreamingResponse(body, headers=headers, media_type=content_type)


async def accepted(request: Request, service: Service, job: Job) -> Response:
    """Answer 202: the document and its job are on disk."""
    position = None
    with contextlib.suppress(StorageUnavailable, StorageFull):  # it is accepted all the same
        position = await service.jobs.position(job)
    shape = JobShape.of(job, position, service.settings.result_lifetime_s, time.time(), root_of(request))
    body = shape.model_dump_json(exclude_none=True)
    return Response(body, 202, {"Location": shape.links.self}, media_type=JSON)


async def shown(request: Request, job: Job) -> JobShape:
    """Describe a job as it is now, with links as this client reaches them."""
    service = service_of(request)
    position = await service.jobs.position(job)
    return JobShape.of(job, position, service.settings.result_lifetime_s, time.time(), root_of(request))
