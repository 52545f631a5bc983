"""Mistral OCR: a document in, its pages out; and the files that a request may name."""

import asyncio
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Path as InPath
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.document import AnswerOptions, Block, PageResult, ParsedDocument
from app.documents.formats import sniff_file
from app.documents.nested import Named, Nested
from app.errors import BadOption, InvalidRequest, NotFound
from app.http.access import caller_of, needs
from app.http.answers import sent
from app.http.connected import while_connected
from app.http.dialects import (
    Document,
    awaited,
    dialect_router,
    opened,
    received_form,
    received_json,
    sent_json,
    submitted,
)
from app.http.openapi import dialect_errors, example, form_schema, json_schema
from app.http.schemas.mistral import (
    FOOTER_TYPES,
    HEADER_TYPES,
    DeletedShape,
    Dimensions,
    FileListShape,
    FileShape,
    ImageShape,
    MistralError,
    OcrBody,
    OcrPageShape,
    OcrShape,
    TableShape,
    UploadBody,
    UrlShape,
    UsageInfo,
    block_shape,
    boxed,
    confidence,
    document_extras,
    error_body,
    extras,
    pipe_table,
)
from app.http.service import Service, root_of, service_of
from app.jobs.files import StoredFile
from app.output.embedding import Embedding
from app.output.figures import is_picture, readdressed
from app.output.math import with_dollars
from app.output.pages import join_pages
from app.output.parts import Part, parts_of
from app.output.spans import closed
from app.output.tables import with_tables

router = dialect_router("mistral", error_body)

FILE = frozenset({"file"})
FILE_ID = re.compile(r"[0-9a-f-]{36}")
OWN_FILE = re.compile(r"/v1/files/([0-9a-f-]{36})/content")
FileId = Annotated[str, InPath(max_length=64)]
ERRORS = dialect_errors(MistralError, error_body)
FILE_EXAMPLE = {
    "id": "0f9d1c2b-3a4e-4f60-8715-f0c6a8e4b1d4",
    "object": "file",
    "bytes": 18231,
    "created_at": 1767225600,
    "filename": "report.pdf",
    "purpose": "ocr",
    "sample_type": "ocr_input",
    "source": "upload",
    "expires_at": 1767312000,
}
OCR_EXAMPLE = {
    "pages": [
        {
            "index": 0,
            "markdown": "# Annual report",
            "images": [],
            "dimensions": {"dpi": 150, "height": 1754, "width": 1241},
            "rtprune": {
                "tokens": None,
                "timing_ms": {"total": 812.5},
                "warnings": [],
                "risk": 0.02,
                "finish_reason": "stop",
            },
        }
    ],
    "model": "mistral-ocr-latest",
    "usage_info": {"pages_processed": 1, "doc_size_bytes": 18231},
    "rtprune": {
        "job_id": "5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071",
        "model": "pocket",
        "status": "succeeded",
        "usage": {"pages": 1, "visual_tokens": 421, "kept_tokens": 358, "output_tokens": 801},
        "timing_ms": {"total": 4213.0},
    },
}
OCR_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": json_schema(OcrBody),
            "example": {
                "model": "mistral-ocr-latest",
                "document": {"type": "document_url", "document_url": "https://example.com/report.pdf"},
            },
        }
    },
}
UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": form_schema(UploadBody),
            "example": {"file": "(the document)", "purpose": "ocr"},
        }
    },
}


@router.post(
    "/v1/ocr",
    operation_id="run_ocr",
    summary="Read a document",
    dependencies=[needs("submit")],
    response_model=OcrShape,
    responses={
        200: {"description": "At least one page was read.", "content": example(OCR_EXAMPLE)},
        **ERRORS,
    },
    openapi_extra={"requestBody": OCR_BODY},
)
async def ocr(request: Request) -> Response:
    """Read a document that the request contains, names by address, or uploaded to this service before."""
    service = service_of(request)
    with service.admitted():
        service.check_ready()
        with service.spool.files() as place:
            [nested], fields = await received_json(request, service, place, _take)
            asked = OcrBody.checked(fields)
            document = await _document(request, service, nested, asked, place)
            num_bytes = document.source.path.stat().st_size
            jobs = await submitted(request, service, [document], asked.fields())
        [job] = await awaited(request, service, jobs)
    embedding = Embedding(lambda name: service.results.picture(job, name))

    def make() -> str:
        document = service.results.document(job)
        return ocr_answer(document, asked, num_bytes, embedding).model_dump_json(exclude_none=True)

    text = await while_connected(request, service.results.made(job, make))
    return await sent_json(request, embedding.filled([text]))


def _take(body: dict[str, Any]) -> list[Named]:
    """Take the document out of the body, and leave its kind and name there. Raise ``InvalidRequest``."""
    chunk = body.get("document")
    if not isinstance(chunk, dict):
        raise InvalidRequest("document: Field required")
    address = chunk.get("document_url")
    if address is None:
        address = chunk.get("image_url")
        address = address.get("url") if isinstance(address, dict) else address
    if isinstance(address, str):
        body["document"] = {
            name: value for name, value in chunk.items() if name not in {"document_url", "image_url"}
        }
    elif address is not None or not isinstance(chunk.get("file_id"), str):
        raise InvalidRequest("document: document_url, image_url or file_id is needed, as text")
    return [Named(address=address)]


async def _document(
    request: Request, service: Service, nested: Nested, asked: OcrBody, place: Callable[[], Path]
) -> Document:
    file_id = asked.document.file_id
    if nested.address is not None and (own := _own_file(request, nested.address)) is not None:
        file_id = own
    if nested.path is None and file_id is not None:
        file = await _file(request, service, file_id)
        path = place()
        await asyncio.to_thread(_copy, service, file, path)
        return Document(await asyncio.to_thread(sniff_file, path), file.filename)
    return await opened(service, nested, place)


def _copy(service: Service, file: StoredFile, path: Path) -> None:
    with service.jobs.files.local(file, service.spool.tmp_dir) as kept:
        shutil.copyfile(kept, path)


def _own_file(request: Request, address: str) -> str | None:
    """Return the file that an address of this service names: it is not asked over the network."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    path = parts.path.removeprefix(root_of(request))
    match = OWN_FILE.fullmatch(path)
    is_own = parts.scheme in {"http", "https"} and parts.netloc == request.headers.get("host")
    return match[1] if match is not None and is_own else None


# --- the answer


def ocr_answer(document: ParsedDocument, asked: OcrBody, num_bytes: int, embedding: Embedding) -> OcrShape:
    """Show a document as Mistral OCR does. Figures are signs of ``embedding``, where they were asked for."""
    joined = join_pages(document.pages, AnswerOptions(headers="keep", join_pages=False, page_marks="none"))
    left = asked.image_limit
    pages: list[OcrPageShape] = []
    for page in joined.pages:
        shape = _page(page, asked, left, embedding)
        left = None if left is None else left - len(shape.images)
        pages.append(shape)
    return OcrShape(
        pages=pages,
        model=asked.model or document.model,
        usage_info=UsageInfo(
            pages_processed=sum(page.failure is None for page in document.pages), doc_size_bytes=num_bytes
        ),
        rtprune=document_extras(document),
    )


def _page(page: PageResult, asked: OcrBody, most: int | None, embedding: Embedding) -> OcrPageShape:
    figures = [block for block in page.blocks if _is_wanted(block, asked.image_min_size or 0)]
    figures = figures if most is None else figures[:most]
    names = {block.figure.name for block in figures if block.figure is not None}
    shown = readdressed(page, lambda name: name)
    parts = [] if page.failure else parts_of(shown)
    header = _apart(parts, HEADER_TYPES) if asked.extract_header else None
    footer = _apart(parts, FOOTER_TYPES) if asked.extract_footer else None
    gone = (HEADER_TYPES if asked.extract_header else frozenset()) | (
        FOOTER_TYPES if asked.extract_footer else frozenset()
    )
    tables: list[TableShape] = []
    texts = [
        _part_markdown(part, shown, names, asked, tables)
        for part in parts
        if (part.type or "").casefold() not in gone
    ]
    return OcrPageShape(
        index=page.index,
        markdown="\n\n".join(text for text in texts if text),
        images=[_image(block, page, asked, embedding) for block in figures],
        tables=tables,
        header=header,
        footer=footer,
        dimensions=Dimensions(dpi=round(page.dpi or 72), height=page.height, width=page.width),
        confidence_scores=confidence(page) if asked.confidence_scores_granularity else None,
        blocks=_blocks(shown) if asked.include_blocks else None,
        rtprune=extras(page),
    )


def _is_wanted(block: Block, min_size: int) -> bool:
    return block.figure is not None and min(block.figure.width, block.figure.height) >= min_size


def _image(block: Block, page: PageResult, asked: OcrBody, embedding: Embedding) -> ImageShape:
    name = block.figure.name if block.figure is not None else ""
    data = embedding.address(name) if asked.include_image_base64 else None
    return ImageShape(id=name, **boxed(block.bbox, page), image_base64=data)


def _part_markdown(
    part: Part, page: PageResult, names: set[str], asked: OcrBody, tables: list[TableShape]
) -> str:
    """Return a block's Markdown, with figures and tables by their ids, as clients look for them."""
    block = None if part.number is None else page.blocks[part.number]
    text = part.markdown
    if block is not None and block.figure is not None and text.startswith("!["):
        name = block.figure.name
        _, _, rest = text.partition("\n")
        own = f"![{name}]({name})" if name in names else ""
        text = "\n\n".join(piece for piece in (own, rest.strip("\n")) if piece)
    if asked.table_format is not None:
        text = with_tables(text, lambda html: _table(html, page, asked, tables))
    return closed(with_dollars(text))


def _table(html: str, page: PageResult, asked: OcrBody, tables: list[TableShape]) -> str:
    is_html = asked.table_format == "html"
    name = f"tbl-p{page.index + 1}-{len(tables) + 1}.{'html' if is_html else 'md'}"
    content = html if is_html else pipe_table(html)
    tables.append(TableShape(id=name, content=content, format="html" if is_html else "markdown"))
    return f"[{name}]({name})"


def _apart(parts: list[Part], types: frozenset[str]) -> str | None:
    texts = [part.markdown for part in parts if (part.type or "").casefold() in types]
    return "\n".join(texts) or None


def _blocks(page: PageResult) -> list[Any]:
    shapes = []
    for block in page.blocks:
        text = block.text if block.markdown is None else block.markdown
        if is_picture(block) and block.figure is not None:
            text = f"![{block.figure.name}]({block.figure.name})"
        shapes.append(block_shape(block, page, text))
    return shapes


# --- files


@router.post(
    "/v1/files",
    operation_id="upload_file",
    summary="Keep a file, to be named later",
    dependencies=[needs("submit")],
    response_model=FileShape,
    responses={200: {"description": "The file.", "content": example(FILE_EXAMPLE)}, **ERRORS},
    openapi_extra={"requestBody": UPLOAD_BODY},
)
async def upload(request: Request) -> Response:
    """Keep a file and answer with its id. It belongs to its key, and is kept as long as results are."""
    service = service_of(request)
    with service.admitted(), service.spool.files() as place:
        documents, fields = await received_form(request, service, place, FILE)
        if len(documents) != 1:
            raise InvalidRequest("file: one file is needed")
        if (purpose := fields.get("purpose", ("ocr",))[-1]) != "ocr":
            raise BadOption(f"purpose must be ocr, got {purpose[:40]!r}")
        [document] = documents
        name = (document.filename or "document")[:255].replace("\0", "")
        kind = document.source.format
        kept = await asyncio.to_thread(
            service.jobs.files.add,
            caller_of(request).client,
            document.source.path,
            name,
            purpose,
            "application/pdf" if kind == "PDF" else f"image/{kind.lower()}",
            most=service.settings.max_files_per_client,
        )
    return _shown(service, kept)


@router.get(
    "/v1/files",
    operation_id="list_files",
    summary="Files of this client, newest first",
    dependencies=[needs("read")],
    response_model=FileListShape,
    responses={
        200: {
            "description": "Files.",
            "content": example({"object": "list", "data": [FILE_EXAMPLE], "total": 1}),
        },
        **ERRORS,
    },
)
async def listed(request: Request) -> Response:
    """List this client's files. There are few, so all come at once."""
    service = service_of(request)
    lifetime_s = service.settings.result_lifetime_s
    files = await asyncio.to_thread(service.jobs.files.listed, caller_of(request).client, lifetime_s)
    shape = FileListShape(data=[FileShape.of(file, lifetime_s) for file in files], total=len(files))
    return JSONResponse(shape.model_dump())


@router.get(
    "/v1/files/{file_id}",
    operation_id="get_file",
    summary="What is known of a file",
    dependencies=[needs("read")],
    response_model=FileShape,
    responses={200: {"description": "The file.", "content": example(FILE_EXAMPLE)}, **ERRORS},
)
async def found(request: Request, file_id: FileId) -> Response:
    """Name, size and lifetime."""
    service = service_of(request)
    return _shown(service, await _file(request, service, file_id))


@router.get(
    "/v1/files/{file_id}/url",
    operation_id="get_url",
    summary="The address of a file",
    dependencies=[needs("read")],
    response_model=UrlShape,
    responses={
        200: {
            "description": "The address.",
            "content": example({"url": f"http://127.0.0.1:8000/v1/files/{FILE_EXAMPLE['id']}/content"}),
        },
        **ERRORS,
    },
)
async def url(request: Request, file_id: FileId) -> Response:
    """Give an address that a request may name as ``document_url``. It opens nothing without the key."""
    file = await _file(request, service_of(request), file_id)
    address = f"{request.url.scheme}://{request.headers.get('host', '')}{root_of(request)}"
    return JSONResponse({"url": f"{address}/v1/files/{file.id}/content"})


@router.get(
    "/v1/files/{file_id}/content",
    operation_id="get_content",
    summary="The bytes of a file",
    dependencies=[needs("read")],
    response_class=Response,
    responses={
        200: {
            "description": "The file.",
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "example": "...",
                }
            },
        },
        **ERRORS,
    },
)
async def content(request: Request, file_id: FileId) -> Response:
    """Answer with the file as it was uploaded."""
    service = service_of(request)
    file = await _file(request, service, file_id)

    def pieces() -> Any:
        with service.jobs.files.local(file, service.spool.tmp_dir) as path, path.open("rb") as opened_file:
            while piece := opened_file.read(2**18):
                yield piece

    headers = {"Content-Disposition": "attachment", "Content-Security-Policy": "default-src 'none'; sandbox"}
    return await sent(request, pieces(), headers, "application/octet-stream", may_pack=False)


@router.delete(
    "/v1/files/{file_id}",
    operation_id="delete_file",
    summary="Remove a file",
    dependencies=[needs("submit")],
    response_model=DeletedShape,
    responses={
        200: {
            "description": "It is gone.",
            "content": example({"id": FILE_EXAMPLE["id"], "object": "file", "deleted": True}),
        },
        **ERRORS,
    },
)
async def delete(request: Request, file_id: FileId) -> Response:
    """Delete a file. Jobs that were made of it go on."""
    service = service_of(request)
    file = await _file(request, service, file_id)
    await asyncio.to_thread(service.jobs.files.remove, file)
    return JSONResponse(DeletedShape(id=file.id).model_dump())


async def _file(request: Request, service: Service, file_id: str) -> StoredFile:
    if FILE_ID.fullmatch(file_id) is None:
        raise NotFound("there is no such file")
    lifetime_s = service.settings.result_lifetime_s
    return await asyncio.to_thread(service.jobs.files.file, file_id, caller_of(request).client, lifetime_s)


def _shown(service: Service, file: StoredFile) -> Response:
    return JSONResponse(FileShape.of(file, service.settings.result_lifetime_s).model_dump())
