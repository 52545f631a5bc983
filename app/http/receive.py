"""Turn a request into an accepted job, for ``POST /v1/parse`` and ``POST /v1/jobs``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from starlette.requests import Request

from app.documents.formats import Source, sniff_file
from app.documents.sources import SpooledFile, Upload, is_document, receive
from app.errors import BadOption, IdempotencyConflict, ParseError, UnsupportedMediaType
from app.http.access import caller_of
from app.http.schemas.parse import OptionFields
from app.http.service import Service, note_job
from app.jobs.api.submission import Submission
from app.jobs.blobs import disk_errors
from app.jobs.job import Job

MAX_IDEMPOTENCY_KEY_CHARS = 255

F = TypeVar("F", bound=OptionFields)


async def receive_document(
    request: Request,
    service: Service,
    shape: type[F],
    path: Path,
    *,
    may_name_url: bool = False,
    place_more: Callable[[], Path] | None = None,
) -> tuple[Upload, F]:
    """Spool the body's document to ``path``. Return it with its checked options.

    ``place_more`` gives a path for each of several files, where several are allowed.
    """
    is_raw = is_document(request.headers.get("content-type", ""))
    if request.query_params and not is_raw:
        raise BadOption("options go into the body, not into the address")
    if (coding := request.headers.get("content-encoding", "identity").lower()) not in {"", "identity"}:
        raise UnsupportedMediaType(f"send the body without Content-Encoding; {coding[:40]} is not read")
    await service.jobs.check_room()
    length = request.headers.get("content-length", "")
    with disk_errors():
        upload = await receive(
            aiter(request.stream()),
            request.headers.get("content-type", ""),
            int(length) if length.isdecimal() else None,
            path,
            service.settings,
            may_name_url=may_name_url,
            place_more=place_more,
        )
    if is_raw:
        return upload, shape.from_form(_once(request.query_params.multi_items()))
    fields = shape.from_form(upload.fields) if upload.from_form else shape.from_json(upload.fields)
    return upload, fields


def _once(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in items:
        if name in fields:
            raise BadOption(f"{name[:80]} is given twice")
        fields[name] = value
    return fields


async def fetched(service: Service, url: str, path: Path) -> Source:
    """Download the document at an address that a client named, and tell its format."""
    with disk_errors():
        await service.http.download(url, path)
    return sniff_file(path)


async def submit(
    request: Request,
    service: Service,
    source: Source,
    fields: OptionFields,
    submission: Submission,
    number: int | None = None,
) -> tuple[Job, bool]:
    """Return the job of a document, and whether it is new.

    ``number``: index among several documents of a request.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        raise BadOption(f"Idempotency-Key must have 1 to {MAX_IDEMPOTENCY_KEY_CHARS} characters")
    if key is not None and number is not None:
        key = f"{key}\n{number}"  # no header has a line break
    caller = caller_of(request)
    submission = replace(submission, client=caller.client, key=caller.key, idempotency_key=key)
    job, is_new = await service.jobs.submit(source, fields.options(service.settings), submission)
    note_job(request, job.id)
    return job, is_new


async def submit_each(
    request: Request,
    service: Service,
    files: Sequence[SpooledFile],
    fields: OptionFields,
    submission: Submission,
) -> list[Job | ParseError]:
    """Return the job of each file, or its error. Raise ``BadOption``, which concerns all files."""
    found: list[Job | ParseError] = []
    for number, file in enumerate(files):
        try:
            source = sniff_file(file.path)
            job, _ = await submit(request, service, source, fields, submission, number)
        except (BadOption, IdempotencyConflict):
            raise
        except ParseError as error:
            found.append(error)
        else:
            found.append(job)
        finally:
            file.path.unlink(missing_ok=True)  # the job has its own copy
    return found
