"""Handle several files in one request: a job for each, and one answer with all outcomes in order."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from app.documents.sources import SpooledFile
from app.errors import BadOption, ParseError
from app.http.answers import sent, shown
from app.http.connected import while_connected
from app.http.negotiation import negotiate
from app.http.openapi import JSON
from app.http.receive import submit_each
from app.http.results import Made, Result
from app.http.schemas.jobs import FileJobShape, FileJobsShape, JobShape
from app.http.schemas.parse import FailureShape, OptionFields, ParseFields
from app.http.service import Service, root_of
from app.jobs.api.submission import Submission
from app.jobs.job import Job
from app.jobs.store import Store
from app.output.answer import Piece
from app.output.formats import FORMATS

MULTI_STATUS = 207


@dataclass(frozen=True, slots=True)
class Parsed:
    """The outcome of one file: a document, a job, or an error."""

    filename: str
    became: Result | Made | JobShape | ParseError

    def pieces(self, store: Store) -> Iterator[Piece]:
        """Yield the outcome as JSON, in a thread."""
        yield f'{{"filename":{json.dumps(self.filename)},'
        match self.became:
            case JobShape() as job:
                yield f'"job":{job.model_dump_json(exclude_none=True)}'
            case ParseError() as error:
                yield f'"error":{FailureShape.of_error(error).model_dump_json()}'
            case result:
                yield '"document":'
                yield from result.pieces(store)
        yield "}"


async def accept_several(
    request: Request,
    service: Service,
    files: Sequence[SpooledFile],
    fields: OptionFields,
    submission: Submission,
) -> Response:
    """Answer with the job of each file."""
    jobs = await submit_each(request, service, files, fields, submission)
    shapes = [
        FileJobShape(filename=file.filename, error=FailureShape.of_error(job))
        if isinstance(job, ParseError)
        else FileJobShape(filename=file.filename, job=await shown(request, job))
        for file, job in zip(files, jobs, strict=True)
    ]
    body = FileJobsShape(files=shapes).model_dump_json(exclude_none=True)
    return Response(body, MULTI_STATUS, media_type=JSON)


def check_several(request: Request, fields: ParseFields) -> None:
    """Raise ``BadOption`` or ``NotAcceptable`` for a format that several documents cannot have."""
    if fields.format not in {None, "json"}:
        raise BadOption(f"several files are answered in JSON; {fields.format} is had of each job's result")
    negotiate(request.headers.get("accept"), (JSON,))


async def parse_several(
    request: Request,
    service: Service,
    files: Sequence[SpooledFile],
    jobs: Sequence[Job | ParseError],
    wait_s: float,
) -> Response:
    """Answer with the document of each file that is read in time, and with the job of every other file."""
    parsed = await while_connected(request, _parsed(request, service, jobs, wait_s))
    each = [Parsed(file.filename, became) for file, became in zip(files, parsed, strict=True)]

    def pieces() -> Iterator[Piece]:
        yield '{"files":['
        for number, one in enumerate(each):
            yield "," if number else ""
            yield from one.pieces(service.results.store)
        yield "]}"

    return await sent(request, pieces(), {"Vary": "Accept, Accept-Encoding"}, JSON, MULTI_STATUS)


async def _parsed(
    request: Request, service: Service, jobs: Sequence[Job | ParseError], wait_s: float
) -> list[Result | Made | JobShape | ParseError]:
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    found: list[Result | Made | JobShape | ParseError] = []
    for one in jobs:
        if isinstance(one, ParseError):
            found.append(one)
            continue
        try:
            job = await service.jobs.watcher.wait(one.id, max(0.0, until - loop.time()))
            if job.is_open:
                found.append(await shown(request, job))
            else:
                making = service.results.of(job, FORMATS["json"], job.options.answer, root_of(request))
                found.append(await making)
        except ParseError as error:
            found.append(error)
    return found
