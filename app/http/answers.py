"""Make the answers that several routes give: a document, or a job that was accepted or is shown."""

import contextlib
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.document import FormatName
from app.errors import StorageFull, StorageUnavailable
from app.http.negotiation import accepts_gzip, negotiate
from app.http.openapi import JSON, MARKDOWN, PLAIN, example, text_of
from app.http.receive import MAX_IDEMPOTENCY_KEY_CHARS
from app.http.results import FEW_PAGES, Made, Result, chunks, compressed
from app.http.schemas.examples import document_example
from app.http.schemas.jobs import JobShape
from app.http.service import Service, root_of, service_of
from app.jobs.job import Job
from app.output.answer import Piece
from app.output.formats import BY_MEDIA_TYPE, FORMATS, Format

MIN_GZIP_BYTES = 4096
"""Answers up to this size are sent uncompressed."""
FILE_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; sandbox"
"""Content-Security-Policy of an answer shown in a browser: nothing that a document contains may run or
load."""
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
        **{
            one.media_type: {"schema": {"type": "string"}, "example": f"(the document as {one.name})"}
            for one in FORMATS.values()
            if one.media_type not in {JSON, MARKDOWN, PLAIN}
        },
    },
}


def chosen(request: Request, asked: FormatName | None, stored: FormatName | None = None) -> Format:
    """Choose the format of an answer: as requested, by ``Accept``, or as stored with the job.

    Raise ``NotAcceptable``. ``Accept`` overrides the stored format only if it says more than "anything".
    """
    accept = request.headers.get("accept", "")
    by_accept = BY_MEDIA_TYPE[negotiate(accept, tuple(BY_MEDIA_TYPE))]
    if asked is not None:
        return FORMATS[asked]
    return FORMATS[stored] if stored is not None and accept.strip() in {"", "*/*"} else by_accept


async def answered(request: Request, result: Result | Made, form: Format) -> Response:
    """Answer with a document in the chosen format: at once if it is small, else in pieces."""
    content_type = f"{form.media_type}; charset=utf-8" if form.is_text else form.media_type
    headers = {
        **result.headers,
        "Vary": "Accept, Accept-Encoding",
        # the base of the figures' relative addresses, whatever URL this answer comes from
        "Content-Location": f"{root_of(request)}/v1/jobs/{result.job.id}/result",
    }
    if form.name != "json":
        headers["Content-Security-Policy"] = FILE_POLICY
    if form.is_file:
        headers["Content-Disposition"] = f'attachment; filename="{result.job.id}.{form.suffix}"'
    pieces = result.pieces(service_of(request).results.store)
    is_large = result.job.num_pages > FEW_PAGES
    return await sent(request, pieces, headers, content_type, may_pack=not form.is_file, is_large=is_large)


async def sent(
    request: Request,
    pieces: Iterator[Piece],
    headers: dict[str, str],
    content_type: str,
    status: int = 200,
    *,
    may_pack: bool = True,
    is_large: bool = True,
) -> Response:
    """Answer with pieces that are made in threads. ``may_pack``: whether gzip would make them smaller."""
    results = service_of(request).results
    parts = chunks(pieces)
    taken = results.parts(parts, is_large=is_large)
    first, second = await anext(taken, b""), await anext(taken, b"")
    is_packed = may_pack and accepts_gzip(request.headers.get("accept-encoding"))
    if is_packed and (second or len(first) > MIN_GZIP_BYTES):
        headers["Content-Encoding"] = "gzip"
        taken = results.parts(compressed(chain((first, second), parts)), is_large=is_large)
        if not second:
            first = b"".join([part async for part in taken])
    elif second:
        taken = results.parts(chain((first, second), parts), is_large=is_large)
    if not second:
        return Response(first, status, headers, content_type)
    body = iter(()) if "head" in request.scope else taken  # an empty bytes body would set a Content-Length
    return StreamingResponse(body, status, headers, content_type)


async def accepted(request: Request, service: Service, job: Job) -> Response:
    """Answer 202: the document and its job are on disk."""
    position = None
    with contextlib.suppress(StorageUnavailable, StorageFull):  # the job is accepted even without a position
        position = await service.jobs.position(job)
    shape = JobShape.of(job, position, service.settings.result_lifetime_s, time.time(), root_of(request))
    body = shape.model_dump_json(exclude_none=True)
    return Response(body, 202, {"Location": shape.links.self}, media_type=JSON)


async def shown(request: Request, job: Job) -> JobShape:
    """Describe a job as it is now, with links as this client reaches them."""
    service = service_of(request)
    position = await service.jobs.position(job)
    return JobShape.of(job, position, service.settings.result_lifetime_s, time.time(), root_of(request))
