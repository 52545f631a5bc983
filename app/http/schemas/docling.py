"""The wire shapes of docling-serve, version 1 of its API.

Options that change nothing here are accepted and ignored, as docling-serve ignores what it does not know.
Those that ask for work that is not done are refused. ``docs/dialects.md`` lists both.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from app.document import PageResult, ParsedDocument
from app.errors import BadOption, Expired, InvalidRequest, JobCancelled, NotFinished, NotFound, ParseError
from app.http.schemas.dialects import DialectFields, detail_body
from app.jobs.job import Job

OutputFormat = Literal["md", "json", "html", "text", "doctags"]
ImageMode = Literal["embedded", "placeholder", "referenced"]
TaskStatus = Literal["pending", "started", "success", "failure"]
Outcome = Literal["success", "partial_success", "failure"]

NO_TASK = "Task not found."
NO_RESULT = "Task result not found. Please wait for a completion status."
NO_STORAGE = (
    "target presigned_url needs artifact storage to be configured, and this service has none; use inbody"
)
"""The texts of these three are compared literally by clients."""
END_OF_DOCUMENT = 2**31
"""A last page from here on is none: clients send the largest integer they have."""
MAX_PLACEHOLDER_CHARS = 200
TEXT_FORMATS: Mapping[OutputFormat, str] = {"html": "html", "text": "text", "doctags": "doctags"}
"""Formats whose content is one of our formats' text, as it is."""

NOT_DONE = frozenset(
    ("include_page_images", "do_picture_classification", "do_picture_description", "do_chart_extraction")
)
"""Flags of work that is not done here."""
FAILURE_CATEGORIES = {
    "url_failed": "source_unavailable",
    "url_refused": "policy",
    "queue_full": "capacity",
    "document_deadline": "timeout",
    "page_deadline": "timeout",
    "page_failed": "inference_failure",
    "unreadable_page": "backend_failure",
    "rasterize_timeout": "timeout",
}


def _split(value: Any) -> Any:
    """Take ``"md,json"``, ``["md,json"]`` and ``["md", "json"]`` for the same list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    return [part.strip() if isinstance(part, str) else part for text in texts for part in _parts(text)]


def _parts(text: Any) -> list[Any]:
    return text.split(",") if isinstance(text, str) else [text]


class Asked(BaseModel):
    """What of a conversion's options changes its result; the rest is ignored."""

    model_config = ConfigDict(extra="ignore")

    to_formats: Annotated[list[OutputFormat], BeforeValidator(_split)] = Field(
        ["md"], min_length=1, max_length=20, description="Contents of the answer."
    )
    image_export_mode: ImageMode = Field("placeholder", description="How figures stand in the contents.")
    include_images: bool = Field(True, description="Whether figures are in the contents at all.")
    md_page_break_placeholder: str = Field(
        "", max_length=MAX_PLACEHOLDER_CHARS, description="What stands between pages in Markdown."
    )
    page_range: Annotated[tuple[int, int], BeforeValidator(_split)] | None = Field(
        None, description="First and last page, from 1; a last page beyond the document is its end."
    )
    document_timeout: float | None = Field(None, gt=0, description="Ignored.")
    include_page_images: Literal[False] = Field(False, description="Page images are not in answers.")
    do_picture_classification: Literal[False] = Field(False, description="Not done.")
    do_picture_description: Literal[False] = Field(False, description="Not done.")
    do_chart_extraction: Literal[False] = Field(False, description="Not done.")

    @classmethod
    def of_form(cls, fields: Mapping[str, tuple[str, ...]]) -> "Asked":
        """Raise ``InvalidRequest`` naming the option. Of a field that is no list, the last one counts."""
        lists = {"to_formats", "page_range"}
        given: dict[str, Any] = {}
        for name, texts in fields.items():
            if name in cls.model_fields and texts[-1] != "":
                given[name] = list(texts) if name in lists else texts[-1]
                if name in NOT_DONE:
                    given[name] = texts[-1].strip().lower() in {"true", "1", "yes", "on"}
        return cls.checked(given)

    @classmethod
    def checked(cls, given: Any) -> "Asked":
        """Raise ``InvalidRequest`` naming the option."""
        if isinstance(given, dict):
            given = {name: value for name, value in given.items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InvalidRequest(_first(error)) from error

    @property
    def is_referenced(self) -> bool:
        """Whether contents refer to figures that are elsewhere."""
        return self.include_images and self.image_export_mode == "referenced"

    def fields(self) -> DialectFields:
        """Translate into our options."""
        if self.page_range is None:
            return DialectFields.from_json({})
        first, last = self.page_range
        if first < 1 or last < first or first >= END_OF_DOCUMENT:
            raise BadOption("page_range must be two pages, counted from 1")
        return DialectFields.from_json({"pages": f"{first}-{'' if last >= END_OF_DOCUMENT else last}"})

    def shown(self) -> dict[str, Any]:
        """Return what a ticket has to remember."""
        names = {"to_formats", "image_export_mode", "include_images", "md_page_break_placeholder"}
        return self.model_dump(include=names, exclude_defaults=True)


def _first(error: ValidationError) -> str:
    item = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, item['loc']))[:80]}: {item['msg']}"


def check_target(kind: object) -> bool:
    """Tell whether a target is a zip. Raise for what is neither that nor the answer's body."""
    if kind == "presigned_url":
        raise BadOption(NO_STORAGE)
    if kind not in {"inbody", "zip"}:
        raise InvalidRequest(f"target: Input should be 'inbody' or 'zip', got {str(kind)[:40]!r}")
    return kind == "zip"


def error_body(error: ParseError) -> dict[str, Any]:
    """Say what is wrong as docling-serve does."""
    if isinstance(error, NotFound):
        return detail_body(error, NO_TASK)
    is_gone = isinstance(error, NotFinished | Expired | JobCancelled)
    return detail_body(error, NO_RESULT if is_gone else None)


def status_of(error: ParseError) -> int:
    """Return the status of an error: a result that is not there is not found, whatever the reason."""
    return 404 if isinstance(error, NotFinished | Expired | JobCancelled) else error.status


class TaskMeta(BaseModel):
    num_docs: int
    num_processed: int
    num_succeeded: int
    num_partially_succeeded: int
    num_failed: int


class Failure(BaseModel):
    category: str
    message: str
    retryable: bool
    phase: str = "execution"
    details: dict[str, str] = {}


class DoclingTask(BaseModel):
    """A task as it is now."""

    task_id: str
    task_type: Literal["convert"] = "convert"
    task_status: TaskStatus
    task_position: int | None = None
    task_meta: TaskMeta | None = None
    error_message: str | None = None
    failure: Failure | None = None

    @classmethod
    def of(cls, task_id: str, jobs: list[Job], position: int | None) -> "DoclingTask":
        statuses = [job.status for job in jobs]
        is_open = any(job.is_open for job in jobs)
        status: TaskStatus
        if is_open:
            status = "pending" if all(one == "queued" for one in statuses) else "started"
        else:
            status = "success" if any(one in {"succeeded", "partial"} for one in statuses) else "failure"
        message = failure = None
        if status == "failure":
            failure = _failure(jobs[0])
            message = failure.message
        ended = [one for one in statuses if one not in {"queued", "running"}]
        return cls(
            task_id=task_id,
            task_status=status,
            task_position=None if position is None else position + 1,
            task_meta=TaskMeta(
                num_docs=len(jobs),
                num_processed=len(ended),
                num_succeeded=ended.count("succeeded"),
                num_partially_succeeded=ended.count("partial"),
                num_failed=ended.count("failed") + ended.count("cancelled"),
            ),
            error_message=message,
            failure=failure,
        )


def _failure(job: Job) -> Failure:
    if job.status == "cancelled":
        return Failure(category="policy", message="the job was cancelled", retryable=True)
    if job.failure is None:
        return Failure(category="inference_failure", message="no page could be read", retryable=False)
    category = FAILURE_CATEGORIES.get(job.failure.code, "unknown")
    return Failure(category=category, message=job.failure.detail, retryable=job.failure.retryable)


class WebsocketMessage(BaseModel):
    message: Literal["connection", "update", "error"]
    task: DoclingTask | None = None
    error: str | None = None


class ErrorItem(BaseModel):
    component_type: Literal["document_backend", "model"]
    module_name: str = "rtprune"
    error_message: str
    category: str = "unknown"
    page_no: int | None = None


class DocumentContents(BaseModel):
    filename: str
    md_content: str | None = None
    json_content: dict[str, Any] | None = Field(None, description="A DoclingDocument.")
    html_content: str | None = None
    text_content: str | None = None
    doctags_content: str | None = None

    def texts(self) -> dict[str, str]:
        """Return the contents that there are, by the suffix of their file."""
        whole = None if self.json_content is None else json.dumps(self.json_content, ensure_ascii=False)
        found = {
            "md": self.md_content,
            "json": whole,
            "html": self.html_content,
            "txt": self.text_content,
            "doctags": self.doctags_content,
        }
        return {suffix: text for suffix, text in found.items() if text is not None}


class ConvertShape(BaseModel):
    """A converted document."""

    document: DocumentContents
    status: Outcome
    errors: list[ErrorItem] = []
    processing_time: float = Field(description="Seconds.")
    timings: dict[str, Any] = Field(default={}, description="Empty: pages' times are in the job's result.")
    job_id: str = Field(description="Ours: the job, whose result has tokens, times and warnings.")

    @classmethod
    def of(cls, document: ParsedDocument, contents: DocumentContents) -> "ConvertShape":
        outcomes: dict[str, Outcome] = {"succeeded": "success", "partial": "partial_success"}
        return cls(
            document=contents,
            status=outcomes.get(document.status, "failure"),
            errors=[_error_item(page) for page in document.pages if page.shortfall is not None],
            processing_time=round(document.timing_ms.get("total", 0.0) / 1000, 3),
            job_id=document.id,
        )


def _error_item(page: PageResult) -> ErrorItem:
    if page.failure is not None:
        return ErrorItem(
            component_type="document_backend",
            error_message=page.failure.detail,
            category=FAILURE_CATEGORIES.get(page.failure.code, "unknown"),
            page_no=page.index + 1,
        )
    return ErrorItem(
        component_type="model",
        error_message=f"the page was not read to its end: {page.shortfall}",
        category="inference_failure",
        page_no=page.index + 1,
    )


class FileSource(BaseModel):
    kind: Literal["file"]
    base64_string: str = Field(json_schema_extra={"contentEncoding": "base64"})
    filename: str = Field("document", max_length=255)


class HttpSource(BaseModel):
    kind: Literal["http"] = "http"
    url: str = Field(max_length=2048)
    headers: dict[str, Any] = Field(default={}, max_length=0, description="None may be sent.")


class Target(BaseModel):
    model_config = ConfigDict(extra="ignore")

    kind: str = "inbody"


class SourceBody(BaseModel):
    """application/json."""

    sources: list[FileSource | HttpSource] = Field(min_length=1, max_length=16)
    options: Asked = Asked()
    target: Target = Target()


class FileBody(Asked):
    """multipart/form-data."""

    files: list[str] = Field(
        json_schema_extra={"items": {"type": "string", "format": "binary"}}, description="The documents."
    )
    target_type: Literal["inbody", "zip"] = Field("inbody", description="A body of JSON, or a zip.")
