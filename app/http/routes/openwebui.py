"""Open WebUI's external document loader: the bytes of a file in, its text out."""

from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import BadOption
from app.http.access import needs
from app.http.connected import while_connected
from app.http.contents import document_markdown
from app.http.dialects import awaited, dialect_router, received_raw, submitted
from app.http.openapi import dialect_errors, example
from app.http.schemas.dialects import DetailShape, DialectFields, detail_body
from app.http.schemas.openwebui import LoadedShape, LoaderMetadata
from app.http.service import service_of

router = dialect_router("openwebui", detail_body)

MAX_NAME_CHARS = 255
BYTES = {"schema": {"type": "string", "format": "binary"}, "example": "(the document)"}


@router.put(
    "/process",
    operation_id="process_document",
    summary="Load a document",
    dependencies=[needs("submit")],
    response_model=LoadedShape,
    responses={
        200: {
            "description": "At least one page was read.",
            "content": example(
                {
                    "page_content": "# Annual report",
                    "metadata": {
                        "source": "report.pdf",
                        "num_pages": 1,
                        "job_id": "5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071",
                        "model": "rtprune-pocket",
                        "status": "succeeded",
                    },
                }
            ),
        },
        **dialect_errors(DetailShape, detail_body),
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/octet-stream": BYTES}},
        "parameters": [
            {
                "name": "X-Filename",
                "in": "header",
                "schema": {"type": "string", "maxLength": MAX_NAME_CHARS},
                "description": "The document's name, percent-encoded.",
            }
        ],
    },
)
async def process(request: Request) -> Response:
    """Read the body as a document. Its format is told by content, whatever its content type says."""
    service = service_of(request)
    name = unquote(request.headers.get("x-filename", "")) or "document"
    if len(name) > MAX_NAME_CHARS:
        raise BadOption(f"X-Filename may have {MAX_NAME_CHARS} characters")
    with service.admitted():
        service.check_ready()
        with service.spool.files() as place:
            document = await received_raw(request, service, place())
            jobs = await submitted(request, service, [document], DialectFields.from_json({}))
        [job] = await awaited(request, service, jobs)

    def make() -> LoadedShape:
        found = service.results.document(job)
        metadata = LoaderMetadata(
            source=name, num_pages=len(found.pages), job_id=job.id, model=found.model, status=found.status
        )
        return LoadedShape(page_content=document_markdown(found, None), metadata=metadata)

    shape = await while_connected(request, service.results.made(job, make))
    return JSONResponse(shape.model_dump())
