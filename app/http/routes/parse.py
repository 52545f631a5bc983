"""``POST /v1/parse``: parse a document and answer with its Markdown, in one exchange."""

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.errors import BadOption, ParseError
from app.http.access import needs
from app.http.answers import IDEMPOTENCY_KEY, READ, accepted, answered, chosen
from app.http.connected import while_connected
from app.http.openapi import example, problems, request_body
from app.http.receive import receive_document, submit, submit_each
from app.http.schemas.examples import document_example, job_example
from app.http.schemas.jobs import FileDocumentsShape, JobShape
from app.http.schemas.parse import DocumentShape, ParseFields, ParseFormBody, ParseJsonBody
from app.http.service import Service, root_of, service_of
from app.http.several import check_several, parse_several
from app.jobs.api.submission import Submission
from app.jobs.job import Job

router = APIRouter(tags=["parse"])


@router.post(
    "/v1/parse",
    operation_id="parse_document",
    summary="Parse a document",
    dependencies=[needs("submit")],
    response_model=DocumentShape,
    responses={
        200: READ,
        202: {
            "description": "Not read within wait_seconds, or the service stops: the job, which goes on.",
            "model": JobShape,
            "content": example(job_example()),
        },
        207: {
            "description": "Of several files (files in place of file): a document each, or why not.",
            "model": FileDocumentsShape,
            "content": example({"files": [{"filename": "report.pdf", "document": document_example()}]}),
        },
        **problems(),
    },
    openapi_extra={
        "requestBody": request_body(ParseFormBody, ParseJsonBody, may_name_url=False),
        "parameters": [IDEMPOTENCY_KEY],
    },
)
async def parse(request: Request) -> Response:
    """Parse a PDF or image to Markdown: as JSON with what every page cost, or as text by the Accept header.

    The document becomes a job that this request waits for. After ``wait_seconds`` the answer is 202 with the
    job's address.
    """
    service = service_of(request)
    try:
        chosen(request, None)  # checked before the upload, which would be useless if no format is acceptable
        with service.admitted(), service.spool.files() as place:
            service.check_ready()
            path = place()
            upload, asked = await receive_document(request, service, ParseFields, path, place_more=place)
            wait_s = service.settings.wait_s if asked.wait_seconds is None else asked.wait_seconds
            if upload.several:
                check_several(request, asked)
                jobs = await submit_each(request, service, upload.several, asked, Submission(""))
                return await parse_several(request, service, upload.several, jobs, wait_s)
            if upload.source is None:
                raise BadOption("there is no file")
            job, is_new = await submit(request, service, upload.source, asked, Submission(""))
            path.unlink(missing_ok=True)  # the job has its own copy, so free the disk while waiting
            job = await _ended(request, service, job, asked, wait_s, is_new=is_new)
        if job.is_open:
            return await accepted(request, service, job)
        form = chosen(request, asked.format)
        making = service.results.of(job, form, job.options.answer, root_of(request))
        result = await while_connected(request, making)
    except ParseError as error:
        service.metrics.documents.labels(error.code).inc()
        raise
    service.metrics.documents.labels(result.status).inc()
    return await answered(request, result, form)


async def _ended(
    request: Request, service: Service, job: Job, asked: ParseFields, wait_s: float, *, is_new: bool
) -> Job:
    """Wait for a job.

    Return it when it has ended or the time is over. If the client leaves, cancel a new job of one page, or
    do as ``on_disconnect`` says.
    """
    try:
        return await while_connected(request, service.jobs.watcher.wait(job.id, wait_s))
    except ClientDisconnect:
        # many pages are worth keeping: perhaps only a proxy gave up waiting
        then = asked.on_disconnect or ("cancel" if job.num_pages == 1 else "continue")
        if is_new and then == "cancel" and not service.jobs.watcher.is_waited_for(job.id):
            await service.jobs.cancel(job.id)
        raise
