"""docling-serve, version 1: convert files and sources, at once or as tasks that are watched."""

import asyncio
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import IO, Annotated, Any

from fastapi import Path, Query, WebSocket, WebSocketDisconnect
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.document import ParsedDocument, Picture
from app.documents.nested import Named
from app.errors import BadOption, InvalidRequest, NotFinished, NotFound, ParseError
from app.http.access import needs
from app.http.answers import sent
from app.http.connected import while_connected
from app.http.contents import Shown, docling_json, document_markdown, formatted, stems
from app.http.dialects import (
    MAX_TICKET_CHARS,
    Ticket,
    awaited,
    dialect_router,
    jobs_of,
    opened,
    received_form,
    received_json,
    sent_json,
    submitted,
)
from app.http.openapi import dialect_errors, example, form_schema, json_schema
from app.http.schemas.dialects import DetailShape
from app.http.schemas.docling import (
    NO_TASK,
    TEXT_FORMATS,
    Asked,
    ConvertShape,
    DoclingTask,
    DocumentContents,
    FileBody,
    SourceBody,
    WebsocketMessage,
    check_target,
    error_body,
    status_of,
)
from app.http.service import Service, root_of, service_of
from app.jobs.job import Job
from app.output.answer import pieces_of
from app.output.embedding import Embedding, Pictures
from app.output.figures import FOLDER, Address, figure_names

router = dialect_router("docling", error_body, status_of)

FILES = frozenset({"files"})
MAX_WAIT_S = 60.0
UPDATE_S = 5.0
"""How often a websocket tells of a task that goes on."""
IMAGE_PLACEHOLDER = "<!-- image -->"
ZIP = "application/zip"
ZIP_HEADERS = {"Content-Disposition": 'attachment; filename="converted_docs.zip"'}
MAX_FILENAME_CHARS = 255
GOING_AWAY = 1001
POLICY_VIOLATION = 1008

TaskId = Annotated[str, Path(max_length=MAX_TICKET_CHARS)]
ERRORS = dialect_errors(DetailShape, error_body, status_of)
TASK_EXAMPLE = {
    "task_id": "5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071",
    "task_type": "convert",
    "task_status": "pending",
    "task_position": 1,
    "task_meta": {
        "num_docs": 1,
        "num_processed": 0,
        "num_succeeded": 0,
        "num_partially_succeeded": 0,
        "num_failed": 0,
    },
}
CONVERTED_EXAMPLE = {
    "document": {"filename": "report.pdf", "md_content": "# Annual report"},
    "status": "success",
    "processing_time": 1.2,
    "timings": {},
    "job_id": "5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071",
}
CONVERTED = {
    "description": "At least one page was read.",
    "content": {
        **example(CONVERTED_EXAMPLE),
        ZIP: {"schema": {"type": "string", "format": "binary"}, "example": "..."},
    },
}
ACCEPTED = {"description": "The task, which goes on.", "content": example(TASK_EXAMPLE)}
FILE_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": form_schema(FileBody),
            "example": {"files": ["(the document)"], "to_formats": ["md"]},
        }
    },
}
SOURCE_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": json_schema(SourceBody),
            "example": {
                "sources": [{"kind": "http", "url": "https://example.com/report.pdf"}],
                "options": {"to_formats": ["md"]},
            },
        }
    },
}


# --- at once


@router.post(
    "/v1/convert/file",
    operation_id="convert_file",
    summary="Convert a file",
    dependencies=[needs("submit")],
    response_model=ConvertShape,
    responses={200: CONVERTED, **ERRORS},
    openapi_extra={"requestBody": FILE_BODY},
)
async def convert_file(request: Request) -> Response:
    """Convert an uploaded file, and answer with its contents in the formats that were asked for."""
    return await _convert(request, is_form=True)


@router.post(
    "/v1/convert/source",
    operation_id="convert_source",
    summary="Convert what is at an address, or base64",
    dependencies=[needs("submit")],
    response_model=ConvertShape,
    responses={200: CONVERTED, **ERRORS},
    openapi_extra={"requestBody": SOURCE_BODY},
)
async def convert_source(request: Request) -> Response:
    """Convert a document that JSON contains or names, and answer with its contents."""
    return await _convert(request, is_form=False)


async def _convert(request: Request, *, is_form: bool) -> Response:
    service = service_of(request)
    with service.admitted():
        service.check_ready()
        jobs, ticket = await _accept(request, service, is_form=is_form)
        ended = await awaited(request, service, jobs)
    return await _result(request, service, ended, ticket)


# --- as tasks


@router.post(
    "/v1/convert/file/async",
    operation_id="queue_file",
    summary="Accept a file, to be converted later",
    dependencies=[needs("submit")],
    response_model=DoclingTask,
    responses={200: ACCEPTED, **ERRORS},
    openapi_extra={"requestBody": FILE_BODY},
)
async def queue_file(request: Request) -> Response:
    """Accept an uploaded file as a task."""
    return await _accept_task(request, is_form=True)


@router.post(
    "/v1/convert/source/async",
    operation_id="queue_source",
    summary="Accept what is at an address, to be converted later",
    dependencies=[needs("submit")],
    response_model=DoclingTask,
    responses={200: ACCEPTED, **ERRORS},
    openapi_extra={"requestBody": SOURCE_BODY},
)
async def queue_source(request: Request) -> Response:
    """Accept a document that JSON contains or names as a task."""
    return await _accept_task(request, is_form=False)


async def _accept_task(request: Request, *, is_form: bool) -> Response:
    service = service_of(request)
    with service.admitted():
        jobs, ticket = await _accept(request, service, is_form=is_form)
    return _answer(await _shown(service, ticket, jobs))


@router.get(
    "/v1/status/poll/{task_id}",
    operation_id="poll_task",
    summary="How far a task is",
    dependencies=[needs("read")],
    response_model=DoclingTask,
    responses={200: ACCEPTED, **ERRORS},
)
async def poll(
    request: Request, task_id: TaskId, wait: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0
) -> Response:
    """Show the task. With ``wait``, wait for its end, a minute at most."""
    service = service_of(request)
    ticket = Ticket.read(task_id)
    jobs = await jobs_of(request, service, ticket, min(wait, MAX_WAIT_S))
    return _answer(await _shown(service, ticket, jobs))


@router.get(
    "/v1/result/{task_id}",
    operation_id="get_converted",
    summary="What came of a task",
    dependencies=[needs("read")],
    response_model=ConvertShape,
    responses={200: CONVERTED, **ERRORS},
)
async def result(request: Request, task_id: TaskId) -> Response:
    """Answer with a task's contents, as the synchronous routes do."""
    service = service_of(request)
    ticket = Ticket.read(task_id)
    jobs = await jobs_of(request, service, ticket)
    return await _result(request, service, jobs, ticket)


@router.websocket("/v1/status/ws/{task_id}")
async def watch(websocket: WebSocket, task_id: str, api_key: str | None = None) -> None:
    """Tell of a task until it has ended: at once, every few seconds, and when it ends.

    The key may be in the address, because browsers cannot send headers with a websocket.
    """
    service: Service = websocket.app.state.service
    scope = dict(websocket.scope)
    headers = MutableHeaders(raw=list(websocket.scope["headers"]))
    if api_key is not None and "x-api-key" not in headers:
        headers["x-api-key"] = api_key
        scope["headers"] = headers.raw
    try:
        caller = await service.access.caller(scope, "read")
    except ParseError:
        await websocket.close(POLICY_VIOLATION)  # before it is accepted: a handshake that is refused
        return
    await websocket.accept()
    try:
        await _tell(websocket, service, Ticket.read(task_id), caller.sees)
    except NotFound:
        await websocket.send_text(_message("error", error=NO_TASK))
    except ParseError as error:
        await websocket.send_text(_message("error", error=str(error) or error.title))
    except WebSocketDisconnect:
        return
    await websocket.close(GOING_AWAY if service.is_ending else 1000)


async def _tell(websocket: WebSocket, service: Service, ticket: Ticket, sees: str | None) -> None:
    jobs = [await service.jobs.job(job_id, sees) for job_id in ticket.job_ids]
    await websocket.send_text(_message("connection", await _shown(service, ticket, jobs)))
    while True:
        shape = await _shown(service, ticket, jobs)
        await websocket.send_text(_message("update", shape))
        if not any(job.is_open for job in jobs) or service.is_ending:
            return
        jobs = await _until_changed(websocket, service, ticket)


async def _until_changed(websocket: WebSocket, service: Service, ticket: Ticket) -> list[Job]:
    """Wait for the end of the jobs, a while at most. That a client says "next" changes nothing."""
    waits = (service.jobs.watcher.wait(job_id, UPDATE_S) for job_id in ticket.job_ids)
    ending: asyncio.Future[Any] = asyncio.gather(*waits)
    hearing: asyncio.Future[Any] = asyncio.ensure_future(_heard(websocket))
    try:
        await asyncio.wait({ending, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if hearing.done():
            hearing.result()
        ended: list[Job] = await ending
        return ended
    finally:
        for task in (ending, hearing):
            task.cancel()
        await asyncio.gather(ending, hearing, return_exceptions=True)


async def _heard(websocket: WebSocket) -> None:
    while True:
        await websocket.receive_text()


def _message(kind: Any, task: DoclingTask | None = None, error: str | None = None) -> str:
    return WebsocketMessage(message=kind, task=task, error=error).model_dump_json()


# --- documents in, contents out


async def _accept(request: Request, service: Service, *, is_form: bool) -> tuple[list[Job], Ticket]:
    with service.spool.files() as place:
        if is_form:
            documents, fields = await received_form(request, service, place, FILES)
            if not documents:
                raise InvalidRequest("files: Field required")
            asked = Asked.of_form(fields)
            is_zip = check_target(fields.get("target_type", ("inbody",))[-1])
        else:
            nested, body = await received_json(request, service, place, _take)
            asked = Asked.checked(body.get("options") or {})
            is_zip = check_target(_kind(body.get("target")))
            documents = [await opened(service, one, place) for one in nested]
        if len(documents) > 1 and not is_zip:
            raise BadOption("several documents make a zip: send one, or ask for the target zip")
        jobs = await submitted(request, service, documents, asked.fields())
    answer = asked.shown()
    if any(names := [document.filename for document in documents]):
        answer["names"] = names
    if is_zip:
        answer["zip"] = True
    return jobs, Ticket(tuple(job.id for job in jobs), answer)


def _kind(target: object) -> object:
    return (
        target.get("kind", "inbody") if isinstance(target, dict) else ("inbody" if target is None else target)
    )


def _take(body: dict[str, Any]) -> list[Named]:
    """Take the documents out of a body's sources. Raise ``InvalidRequest``."""
    sources = body.pop("sources", None)
    if not isinstance(sources, list) or not sources:
        raise InvalidRequest("sources: a list of sources is needed")
    return [_named(source) for source in sources]


def _named(source: object) -> Named:
    if not isinstance(source, dict):
        raise InvalidRequest("sources: each is an object")
    kind = source.get("kind", "http" if "url" in source else "file")
    text = source.get("url" if kind == "http" else "base64_string")
    name = source.get("filename", "")
    if kind not in {"http", "file"} or not isinstance(text, str) or not isinstance(name, str):
        raise InvalidRequest(
            "sources: a source is {kind: http, url} or {kind: file, base64_string, filename}"
        )
    if source.get("headers"):
        raise InvalidRequest("sources: headers are not sent to addresses")
    return Named(address=text) if kind == "http" else Named(base64=text, filename=name[:255])


async def _shown(service: Service, ticket: Ticket, jobs: Sequence[Job]) -> DoclingTask:
    position = await service.jobs.position(jobs[0])
    return DoclingTask.of(str(ticket), list(jobs), position)


def _answer(shape: DoclingTask) -> Response:
    return JSONResponse(shape.model_dump(mode="json"))


async def _result(request: Request, service: Service, jobs: Sequence[Job], ticket: Ticket) -> Response:
    if any(job.is_open or job.status == "cancelled" for job in jobs):
        raise NotFinished("the task has no result")
    answer = dict(ticket.answer)
    is_zip = bool(answer.pop("zip", False))
    names = answer.pop("names", ["document"] * len(jobs))
    try:
        asked = Asked.checked(answer)
    except InvalidRequest as error:
        raise NotFound("there is no such task") from error
    if not isinstance(names, list) or len(names) != len(jobs):
        raise NotFound("there is no such task")
    if is_zip or len(jobs) > 1:
        file = await while_connected(request, _zipped(service, jobs, [str(name) for name in names], asked))
        return await sent(request, pieces_of(file), dict(ZIP_HEADERS), ZIP, may_pack=False)
    [job], filename = jobs, str(names[0])[:MAX_FILENAME_CHARS]
    link = f"{root_of(request)}/v1/jobs/{job.id}/images/"

    def picture(name: str) -> Picture:
        return service.results.picture(job, name)

    embedding = Embedding(picture)
    address = _address(asked, link, embedding)

    def make() -> str:
        document = service.results.document(job)
        contents = _contents(document, asked, filename, address, picture)
        return ConvertShape.of(document, contents).model_dump_json(exclude_none=True)

    text = await while_connected(request, service.results.made(job, make, is_heavy=_is_heavy(asked)))
    return await sent_json(request, embedding.filled([text]))


def _is_heavy(asked: Asked) -> bool:
    return not {"json", "doctags"}.isdisjoint(asked.to_formats)


async def _zipped(service: Service, jobs: Sequence[Job], names: Sequence[str], asked: Asked) -> IO[bytes]:
    """Write a zip to a file: a document's contents under its name, and the figures that they refer to."""
    file: IO[bytes] = tempfile.TemporaryFile(dir=service.spool.tmp_dir)  # noqa: SIM115 - closed when sent
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for job, name, stem in zip(jobs, names, stems(names), strict=True):
                making = _packed(service, archive, job, name, stem, asked)
                await service.results.made(job, making, is_heavy=_is_heavy(asked))
    except BaseException:
        file.close()
        raise
    return file


def _packed(
    service: Service, archive: zipfile.ZipFile, job: Job, name: str, stem: str, asked: Asked
) -> Callable[[], None]:
    def picture(figure: str) -> Picture:
        return service.results.picture(job, figure)

    def pack() -> None:
        document = service.results.document(job)
        embedding = Embedding(picture)
        address = _address(asked, FOLDER, embedding)
        contents = _contents(document, asked, name, address, picture)
        for suffix, text in contents.texts().items():
            with archive.open(f"{stem}/{stem}.{suffix}", "w") as entry:
                for piece in embedding.filled([text]):
                    entry.write(piece.encode() if isinstance(piece, str) else piece)
        for figure in figure_names(document.pages) if asked.is_referenced else ():
            packed = zipfile.ZipInfo(f"{stem}/{FOLDER}{figure}")  # which deflates nothing: PNG is compressed
            archive.writestr(packed, picture(figure).data)

    return pack


def _contents(
    document: ParsedDocument, asked: Asked, filename: str, address: Address | None, pictures: Pictures
) -> DocumentContents:
    contents = DocumentContents(filename=PurePath(filename).name or "document")
    if "md" in asked.to_formats:
        figures = _shown_figures(asked, address)
        contents.md_content = document_markdown(document, figures, asked.md_page_break_placeholder)
    for name, format_name in TEXT_FORMATS.items():
        if name in asked.to_formats:
            setattr(contents, f"{name}_content", formatted(document, format_name, address, pictures))
    if "json" in asked.to_formats:
        contents.json_content = docling_json(document, PurePath(contents.filename).stem, address, pictures)
    return contents


def _address(asked: Asked, link: str, embedding: Embedding) -> Address | None:
    """Return where figures are; ``None`` where a placeholder stands for them, or nothing."""
    if not asked.include_images or asked.image_export_mode == "placeholder":
        return None
    return embedding.address if asked.image_export_mode == "embedded" else lambda name: link + name


def _shown_figures(asked: Asked, address: Address | None) -> Shown | None:
    if not asked.include_images:
        return None
    if address is None:
        return lambda _name, _alt: IMAGE_PLACEHOLDER
    return lambda name, alt: f"![{alt}]({address(name)})"
