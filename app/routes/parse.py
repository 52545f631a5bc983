"""``POST /v1/parse``: a document in, its Markdown out, in one exchange."""

import asyncio
import logging
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.document import ParsedDocument
from app.errors import BadOption, ParseError, all_errors
from app.parser import parse_document, raise_if_unread
from app.routes.accept import negotiate
from app.schemas.parse import DocumentShape, FormBody, JsonBody, OptionFields, joined_markdown
from app.schemas.problem import Problem
from app.service import Service, service_of
from app.sources import receive

JSON, MARKDOWN, PLAIN = "application/json", "text/markdown", "text/plain"
OFFERS = (JSON, MARKDOWN, PLAIN)

logger = logging.getLogger("rtprune.http")

T = TypeVar("T")

router = APIRouter()


def _problems() -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses: the codes that come with each error status."""
    codes: dict[int, list[str]] = {}
    for error in all_errors():
        codes.setdefault(error.status, []).append(f"{error.code}: {error.title}")
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": "; ".join(sorted(named)), "content": content}
        for status, named in codes.items()
    }


REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": FormBody.model_json_schema()},
        JSON: {"schema": JsonBody.model_json_schema()},
    },
}
TEXT = {"schema": {"type": "string"}}


@router.post(
    "/v1/parse",
    summary="Parse a document",
    response_model=DocumentShape,
    responses={
        200: {"description": "At least one page was read.", "content": {MARKDOWN: TEXT, PLAIN: TEXT}},
        **_problems(),
    },
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def parse(request: Request) -> Response:
    """A PDF or image in, Markdown out: as JSON with what every page cost, or as text by the Accept header."""
    service = service_of(request)
    try:
        media_type = negotiate(request.headers.get("accept"), OFFERS)
        document = await _parse(request, service)
        raise_if_unread(document)
    except ParseError as error:
        service.metrics.documents.labels(error.code).inc()
        raise
    service.metrics.documents.labels(document.status).inc()
    if media_type == JSON:
        return Response(DocumentShape.of(document).model_dump_json(), media_type=JSON)
    return Response(joined_markdown(document) + "\n", media_type=f"{media_type}; charset=utf-8")


async def _parse(request: Request, service: Service) -> ParsedDocument:
    if request.query_params:
        raise BadOption("options go into the body, not into the address")
    length = request.headers.get("content-length", "")
    with service.admitted(), service.spool.file() as path:
        upload = await receive(
            aiter(request.stream()),
            request.headers.get("content-type", ""),
            int(length) if length.isdecimal() else None,
            path,
            service.settings,
        )
        read_fields = OptionFields.from_form if upload.from_form else OptionFields.from_json
        options = read_fields(upload.fields).options(service.settings)
        work = parse_document(service.parser, upload.source, options, document_id=uuid.uuid4().hex)
        document = await _while_connected(request, work)
    service.metrics.count(document)
    logger.info("document", extra={"document": document.id, "status": document.status})
    return document


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
