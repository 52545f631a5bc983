"""MinerU's server under ``/mineru``: parse files, at once or as tasks, with results as JSON or as a zip."""

import asyncio
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Annotated

from fastapi import Path
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.document import ParsedDocument
from app.errors import InvalidRequest, NotFound, ParseError
from app.http.access import needs
from app.http.answers import sent
from app.http.connected import while_connected
from app.http.contents import document_markdown, stems
from app.http.dialects import (
    MAX_TICKET_CHARS,
    Ticket,
    awaited,
    dialect_router,
    jobs_of,
    received_form,
    sent_json,
    submitted,
)
from app.http.openapi import dialect_errors, example, form_schema
from app.http.routes.health import health
from app.http.schemas.dialects import DetailShape
from app.http.schemas.mineru import (
    VERSION,
    Asked,
    DocumentResult,
    FormBody,
    MineruTask,
    ParsedShape,
    ResultShape,
    content_list,
    error_body,
    model_output,
)
from app.http.service import Service, root_of, service_of
from app.jobs.job import Job
from app.output.answer import pieces_of
from app.output.embedding import Embedding
from app.output.figures import figure_names

router = dialect_router("mineru", error_body)
router.add_api_route(
    "/mineru/health",
    health,
    operation_id="check_mineru",
    summary="The same as /health",
)

FILES = frozenset({"files"})
TaskId = Annotated[str, Path(max_length=MAX_TICKET_CHARS)]
ERRORS = dialect_errors(DetailShape, error_body)
ZIP = {"application/zip": {"schema": {"type": "string", "format": "binary"}, "example": "..."}}
TASK_EXAMPLE = {
    "task_id": "5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071",
    "status": "pending",
    "backend": "hybrid-engine",
    "file_names": ["report"],
    "created_at": "2026-01-01T00:00:00+00:00",
    "status_url": "http://127.0.0.1:8000/mineru/tasks/5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071",
    "result_url": "http://127.0.0.1:8000/mineru/tasks/5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071/result",
}
RESULT_EXAMPLE = {
    "backend": "hybrid-engine",
    "version": VERSION,
    "results": {"report": {"md_content": "# Annual report"}},
}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": form_schema(FormBody),
            "example": {"files": ["(the document)"], "return_md": True},
        }
    },
}


@router.post(
    "/mineru/file_parse",
    operation_id="parse_files",
    summary="Parse files",
    dependencies=[needs("submit")],
    response_model=ParsedShape,
    responses={
        200: {
            "description": "At least one page of one file was read.",
            "content": {**example({**TASK_EXAMPLE, **RESULT_EXAMPLE, "status": "completed"}), **ZIP},
        },
        **ERRORS,
    },
    openapi_extra={"requestBody": BODY},
)
async def file_parse(request: Request) -> Response:
    """Parse files, and answer with the result of each."""
    service = service_of(request)
    with service.admitted():
        service.check_ready()
        jobs, ticket = await _accept(request, service)
        ended = await awaited(request, service, jobs)
    return await _result(request, service, ended, ticket, with_task=True)


@router.post(
    "/mineru/tasks",
    operation_id="create_task",
    summary="Accept files, to be parsed later",
    dependencies=[needs("submit")],
    status_code=202,
    response_model=MineruTask,
    responses={202: {"description": "The task.", "content": example(TASK_EXAMPLE)}, **ERRORS},
    openapi_extra={"requestBody": BODY},
)
async def create(request: Request) -> Response:
    """Accept files as a task."""
    service = service_of(request)
    with service.admitted():
        jobs, ticket = await _accept(request, service)
    shape = await _shown(request, service, ticket, jobs)
    shape.message = "Task submitted successfully"
    return JSONResponse(shape.model_dump(), 202)


@router.get(
    "/mineru/tasks/{task_id}",
    operation_id="get_task",
    summary="How far a task is",
    dependencies=[needs("read")],
    response_model=MineruTask,
    responses={200: {"description": "The task.", "content": example(TASK_EXAMPLE)}, **ERRORS},
)
async def status(request: Request, task_id: TaskId) -> Response:
    """Show the task."""
    service = service_of(request)
    ticket = Ticket.read(task_id)
    jobs = await jobs_of(request, service, ticket)
    return JSONResponse((await _shown(request, service, ticket, jobs)).model_dump())


@router.get(
    "/mineru/tasks/{task_id}/result",
    operation_id="get_parsed",
    summary="What came of a task",
    dependencies=[needs("read")],
    response_model=ResultShape,
    responses={
        200: {
            "description": "At least one page of one file was read.",
            "content": {**example(RESULT_EXAMPLE), **ZIP},
        },
        202: {"description": "The task goes on.", "model": MineruTask, "content": example(TASK_EXAMPLE)},
        **ERRORS,
    },
)
async def result(request: Request, task_id: TaskId) -> Response:
    """Answer with the result of each file, as JSON or zip, whichever the task asked for."""
    service = service_of(request)
    ticket = Ticket.read(task_id)
    jobs = await jobs_of(request, service, ticket)
    if any(job.is_open for job in jobs):
        shape = await _shown(request, service, ticket, jobs)
        shape.message = "Task result is not ready yet"
        return JSONResponse(shape.model_dump(), 202)
    return await _result(request, service, jobs, ticket, with_task=False)


# --- files in


async def _accept(request: Request, service: Service) -> tuple[list[Job], Ticket]:
    with service.spool.files() as place:
        documents, fields = await received_form(request, service, place, FILES)
        if not documents:
            raise InvalidRequest("files: Field required")
        asked = Asked.of_form(fields)
        jobs = await submitted(request, service, documents, asked.fields())
    names = stems([document.filename for document in documents])
    return jobs, Ticket(tuple(job.id for job in jobs), {**asked.shown(), "names": names})


def _asked(ticket: Ticket) -> tuple[Asked, list[str]]:
    """Return what a ticket remembers. Raise ``NotFound`` for what nobody would have written."""
    answer = dict(ticket.answer)
    names = answer.pop("names", ["document"] * len(ticket.job_ids))
    try:
        asked = Asked.checked(answer)
    except InvalidRequest as error:
        raise NotFound("there is no such task") from error
    if not isinstance(names, list) or len(names) != len(ticket.job_ids):
        raise NotFound("there is no such task")
    return asked, stems([str(name) for name in names])


async def _shown(request: Request, service: Service, ticket: Ticket, jobs: Sequence[Job]) -> MineruTask:
    asked, names = _asked(ticket)
    ahead = await service.jobs.position(jobs[0])
    host = request.headers.get("host", "")
    address = f"{request.url.scheme}://{host}{root_of(request)}/mineru/tasks/{ticket}"
    return MineruTask.of(str(ticket), jobs, names, asked.backend, address, ahead)


# --- results out


async def _result(
    request: Request, service: Service, jobs: Sequence[Job], ticket: Ticket, *, with_task: bool
) -> Response:
    asked, names = _asked(ticket)
    task = await _shown(request, service, ticket, jobs)
    if task.status == "failed":
        task.message = "Task execution failed"
        return JSONResponse(task.model_dump(), 409)
    if asked.response_format_zip:
        file = await while_connected(request, _zipped(service, jobs, names, asked))
        return await sent(request, pieces_of(file), {}, "application/zip", may_pack=False)
    results: dict[str, DocumentResult] = {}
    embeddings: list[Embedding] = []
    for job, name in zip(jobs, names, strict=True):
        embedding = Embedding(lambda image, job=job: service.results.picture(job, image))  # type: ignore[misc]
        embeddings.append(embedding)
        results[name] = await while_connected(request, _made(service, job, asked, embedding))
    shape: ResultShape
    if with_task:
        own = task.model_dump()
        shape = ParsedShape(**own, version=VERSION, results=results)
    else:
        shape = ResultShape(backend=asked.backend, version=VERSION, results=results)
    pieces: Iterator[str | bytes] = iter([shape.model_dump_json(exclude_none=True)])
    for embedding in embeddings:
        pieces = embedding.filled(pieces)
    return await sent_json(request, pieces)


async def _made(service: Service, job: Job, asked: Asked, embedding: Embedding) -> DocumentResult:
    try:
        return await service.results.made(
            job, lambda: _contents(service.results.document(job), asked, embedding)
        )
    except ParseError as error:
        if error.status >= 500 and error.retryable:
            raise
        return DocumentResult(error=str(error) or error.title)


def _contents(document: ParsedDocument, asked: Asked, embedding: Embedding) -> DocumentResult:
    return DocumentResult(
        md_content=_markdown(document) if asked.return_md else None,
        content_list=content_list(document.pages) if asked.return_content_list else None,
        model_output=model_output(document.pages) if asked.return_model_output else None,
        images={name: embedding.address(name) for name in figure_names(document.pages)}
        if asked.return_images
        else None,
    )


def _markdown(document: ParsedDocument) -> str:
    return document_markdown(document, lambda name, alt: f"![{alt}](images/{name})")


async def _zipped(service: Service, jobs: Sequence[Job], names: Sequence[str], asked: Asked) -> IO[bytes]:
    """Write the zip to a file, a document at a time."""
    file: IO[bytes] = tempfile.TemporaryFile(dir=service.spool.tmp_dir)  # noqa: SIM115 - closed when sent
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for job, name in zip(jobs, names, strict=True):
                await _pack(service, archive, job, name, asked)
    except BaseException:
        file.close()
        raise
    return file


async def _pack(service: Service, archive: zipfile.ZipFile, job: Job, name: str, asked: Asked) -> None:
    folder = f"{name}/{asked.folder}"

    def pack() -> None:
        document = service.results.document(job)
        texts = {
            f"{name}.md": _markdown(document) if asked.return_md else None,
            f"{name}_content_list.json": content_list(document.pages) if asked.return_content_list else None,
            f"{name}_model.json": model_output(document.pages) if asked.return_model_output else None,
        }
        for path, text in texts.items():
            if text is not None:
                archive.writestr(f"{folder}/{path}", text)
        for image in figure_names(document.pages) if asked.return_images else ():
            packed = zipfile.ZipInfo(f"{folder}/images/{image}")  # which deflates nothing: PNG is compressed
            archive.writestr(packed, service.results.picture(job, image).data)

    try:
        await service.results.made(job, pack)
    except ParseError as error:
        if error.status >= 500 and error.retryable:
            raise
        detail = str(error) or error.title
        await asyncio.to_thread(archive.writestr, f"{folder}/error.txt", detail)
