"""What the dialects of other services share: their errors' shape, documents in, jobs waited for, tickets.

A dialect is a file of routes and a file of schemas over the same jobs. Its routes are made by a router of
``dialect_router``, which gives every refusal in the dialect's own shape.
"""

import asyncio
import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from app.documents.formats import Source, sniff_file
from app.documents.forms import Form, receive_form
from app.documents.nested import MAX_DOCUMENTS, Nested, Take, receive_json
from app.documents.sources import Body
from app.errors import (
    BadOption,
    DocumentDeadline,
    InvalidRequest,
    NotFound,
    NotReady,
    ParseError,
    UnsupportedMediaType,
)
from app.http.access import caller_of
from app.http.answers import sent
from app.http.connected import while_connected
from app.http.middleware import error_headers, named_errors
from app.http.openapi import JSON
from app.http.receive import fetched, submit
from app.http.schemas.parse import OptionFields
from app.http.service import ENDING, Service, note_job, service_of
from app.jobs.api.submission import Submission
from app.jobs.blobs import disk_errors
from app.jobs.job import Job

ErrorBody = Callable[[ParseError], Any]
"""Gives the JSON of a refusal, as the dialect's clients expect it."""
ErrorStatus = Callable[[ParseError], int]

TICKET_MARK = "t-"
MAX_TICKET_CHARS = 6000
ID_BYTES = 16


# --- errors


def own_status(error: ParseError) -> int:
    """Return the status that an error has everywhere."""
    return error.status


def dialect_router(name: str, body: ErrorBody, status: ErrorStatus = own_status) -> APIRouter:
    """Make a router whose routes give their errors as ``body`` and ``status`` say."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            answer = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await answer(request)
                except ParseError as error:
                    return refused(request, error, body, status)
                except RequestValidationError as error:
                    return refused(request, InvalidRequest(named_errors(error)), body, status)

            return handle

    return APIRouter(tags=[name], route_class=Route)


def refused(
    request: Request, error: ParseError, body: ErrorBody, status: ErrorStatus = own_status
) -> Response:
    """Answer with an error in a dialect's shape; its headers are as everywhere."""
    retry_after_s = service_of(request).settings.retry_after_s
    return JSONResponse(body(error), status(error), error_headers(error, retry_after_s))


# --- documents in


@dataclass(frozen=True, slots=True)
class Document:
    """A document that arrived. ``filename``: what its client calls it."""

    source: Source
    filename: str


async def received_form(
    request: Request, service: Service, place: Callable[[], Path], file_fields: frozenset[str]
) -> tuple[list[Document], Mapping[str, tuple[str, ...]]]:
    """Spool the documents of a form, and return them with its fields."""
    await _check_body(request, service)
    with disk_errors():
        form: Form = await receive_form(
            aiter(request.stream()),
            request.headers.get("content-type", ""),
            content_length(request),
            place,
            service.settings,
            file_fields=file_fields,
        )
    return [Document(sniff_file(file.path), file.filename) for file in form.files], form.fields


async def received_json(
    request: Request, service: Service, place: Callable[[], Path], take: Take
) -> tuple[list[Nested], dict[str, Any]]:
    """Spool a JSON body and the documents inside it."""
    await _check_body(request, service)
    with disk_errors():
        return await receive_json(
            aiter(request.stream()),
            request.headers.get("content-type", ""),
            content_length(request),
            place,
            service.settings,
            take,
        )


async def received_raw(request: Request, service: Service, path: Path) -> Document:
    """Spool a body that is a document, and nothing else."""
    await _check_body(request, service)
    settings = service.settings
    body = Body(aiter(request.stream()), settings, settings.max_upload_bytes, content_length(request))
    with disk_errors():
        await body.spool(path)
    return Document(await asyncio.to_thread(sniff_file, path), "")


async def opened(service: Service, nested: Nested, place: Callable[[], Path]) -> Document:
    """Fetch a document if JSON gave its address, and recognise its format."""
    if nested.path is not None:
        return Document(await asyncio.to_thread(sniff_file, nested.path), nested.filename)
    source = await fetched(service, nested.address or "", place())
    name = nested.filename or (nested.address or "").partition("?")[0].rpartition("/")[2][:255]
    return Document(source, name)


async def _check_body(request: Request, service: Service) -> None:
    if (coding := request.headers.get("content-encoding", "identity").lower()) not in {"", "identity"}:
        raise UnsupportedMediaType(f"send the body without Content-Encoding; {coding[:40]} is not read")
    await service.jobs.check_room()


def content_length(request: Request) -> int | None:
    """Return how long the body says it is."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


# --- jobs


async def submitted(
    request: Request, service: Service, documents: Sequence[Document], fields: OptionFields
) -> list[Job]:
    """Accept every document as a job of its own, or none of them."""
    if len(documents) > MAX_DOCUMENTS:
        raise BadOption(f"a request may have {MAX_DOCUMENTS} documents here")
    jobs: list[Job] = []
    new: list[Job] = []
    is_one = len(documents) == 1
    try:
        for number, document in enumerate(documents):
            submission = Submission("", repeatable=False)
            own = None if is_one else number
            job, is_new = await submit(request, service, document.source, fields, submission, own)
            jobs.append(job)
            if is_new:
                new.append(job)
    except BaseException:
        for job in new:
            await service.jobs.cancel(job.id)
        raise
    return jobs


async def awaited(request: Request, service: Service, jobs: Sequence[Job]) -> list[Job]:
    """Wait for jobs whose client can be answered only once, and leaves if it does not want them any more.

    Raise ``DocumentDeadline`` after ``sync_wait_s``, and ``NotReady`` when the service stops. The jobs are
    cancelled where nobody could ask for them again.
    """
    try:
        waiting = asyncio.gather(
            *(service.jobs.watcher.wait(job.id, service.settings.sync_wait_s) for job in jobs)
        )
        ended = await while_connected(request, _result(waiting))
    except ClientDisconnect:
        await cancel_all(request, service, jobs)
        raise
    if not any(job.is_open for job in ended):
        return list(ended)
    if service.is_ending:
        raise NotReady(ENDING)
    await cancel_all(request, service, jobs)
    raise DocumentDeadline(f"the document was not read within {service.settings.sync_wait_s:g} s")


async def _result(waiting: "asyncio.Future[list[Job]]") -> list[Job]:
    return await waiting


async def cancel_all(request: Request, service: Service, jobs: Sequence[Job]) -> None:
    """Stop jobs that nobody waits for. One with an idempotency key may be asked for again, and goes on."""
    if "idempotency-key" in request.headers:
        return
    for job in jobs:
        if job.is_open and not service.jobs.watcher.is_waited_for(job.id):
            await service.jobs.cancel(job.id)


# --- tickets


@dataclass(frozen=True, slots=True)
class Ticket:
    """The id of a task in a dialect: its jobs, and how their result is to be shown.

    It is the client's to keep, so nothing is stored, and any process can answer. What it says is checked as
    any request is; it gives no access to a job.
    """

    job_ids: tuple[str, ...]
    answer: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if len(self.job_ids) == 1 and not self.answer:
            return self.job_ids[0]
        ids = b"".join(bytes.fromhex(job_id) for job_id in self.job_ids)
        text = json.dumps(self.answer, separators=(",", ":"), ensure_ascii=False).encode()
        return TICKET_MARK + urlsafe_b64encode(bytes([len(self.job_ids)]) + ids + text).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> "Ticket":
        """Raise ``NotFound`` for what is no ticket. The id of a job is one, too."""
        if not text.startswith(TICKET_MARK):
            return cls((text,))
        encoded = text.removeprefix(TICKET_MARK)
        try:
            if len(text) > MAX_TICKET_CHARS:
                raise ValueError("it is too long")
            data = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
            num_jobs = data[0]
            if not 0 < num_jobs <= MAX_DOCUMENTS:
                raise ValueError("it has no jobs")
            ends = range(1, 1 + ID_BYTES * num_jobs, ID_BYTES)
            ids = tuple(data[at : at + ID_BYTES].hex() for at in ends)
            answer = json.loads(data[1 + ID_BYTES * num_jobs :])
        except (ValueError, IndexError, binascii.Error, RecursionError) as error:
            raise NotFound("there is no such task") from error
        if not isinstance(answer, dict):
            raise NotFound("there is no such task")
        return cls(ids, answer)


async def jobs_of(request: Request, service: Service, ticket: Ticket, wait_s: float = 0.0) -> list[Job]:
    """Return the jobs of a ticket as they are, or when they have ended, after ``wait_s`` at the latest."""
    sees = caller_of(request).sees
    jobs = [await service.jobs.job(job_id, sees) for job_id in ticket.job_ids]
    note_job(request, jobs[0].id)
    if wait_s > 0 and any(job.is_open for job in jobs) and "head" not in request.scope:
        waiting = asyncio.gather(*(service.jobs.watcher.wait(job.id, wait_s) for job in jobs))
        return await while_connected(request, _result(waiting))
    return jobs


async def sent_json(request: Request, pieces: Iterable[str | bytes]) -> Response:
    """Answer with JSON whose pieces are made in threads, while they are sent."""
    return await sent(request, iter(pieces), {"Vary": "Accept-Encoding"}, JSON)
