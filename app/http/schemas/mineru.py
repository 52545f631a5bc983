"""The wire shapes of MinerU's server, version 3, protocol 2."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.document import Block, PageResult
from app.errors import BadOption, InvalidRequest, ParseError
from app.http.schemas.dialects import DialectFields, detail_body
from app.jobs.job import Job
from app.output.figures import CAPTION, is_picture
from app.output.markdown import MAX_COORDINATE

PROTOCOL_VERSION = 2
VERSION = "3.4.4"
"""What this speaks like."""
END_PAGE = 99_999
TaskStatus = Literal["pending", "processing", "completed", "failed"]
Backend = Literal["pipeline", "vlm-engine", "hybrid-engine", "vlm-http-client", "hybrid-http-client"]
BOX_SIDE = 1000
TITLE_LEVELS = 6


class Asked(BaseModel):
    """What of a request's options changes its result, and what is refused. The rest is ignored."""

    model_config = ConfigDict(extra="ignore")

    backend: str = Field("hybrid-engine", max_length=40, description="Given back; there is one model.")
    parse_method: Literal["auto", "ocr", "txt"] = Field("auto", description="Given back: pages are read.")
    return_md: bool = Field(True, description="Whether Markdown is in the result.")
    return_content_list: bool = Field(False, description="Whether the list of blocks is in the result.")
    return_images: bool = Field(False, description="Whether figures are in the result.")
    return_middle_json: bool = Field(False, description="Ignored: there is none.")
    return_model_output: bool = Field(False, description="Whether what the model wrote is in the result.")
    response_format_zip: bool = Field(False, description="Whether the result is a zip.")
    client_side_output_generation: Literal[False] = Field(False, description="Refused.")
    server_url: Literal[""] = Field("", description="Refused.")
    start_page_id: int = Field(0, ge=0, lt=10**6, description="First page, from 0.")
    end_page_id: int = Field(END_PAGE, ge=0, lt=10**6, description="Last page, from 0.")

    @classmethod
    def of_form(cls, fields: Mapping[str, tuple[str, ...]]) -> "Asked":
        """Raise ``InvalidRequest`` naming the option."""
        given: dict[str, Any] = {
            name: texts[-1] for name, texts in fields.items() if name in cls.model_fields
        }
        flag = given.get("client_side_output_generation")
        if isinstance(flag, str):
            given["client_side_output_generation"] = flag.strip().lower() in {"true", "1", "yes", "on"}
        return cls.checked(given)

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> "Asked":
        """Raise ``InvalidRequest`` naming the option."""
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            item = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InvalidRequest(f"{'.'.join(map(str, item['loc']))[:80]}: {item['msg']}") from error

    def fields(self) -> DialectFields:
        """Translate into our options. Raise ``BadOption``."""
        if self.end_page_id < self.start_page_id:
            raise BadOption("end_page_id must not be before start_page_id")
        last = "" if self.end_page_id >= END_PAGE else str(self.end_page_id + 1)
        return DialectFields.from_json({"pages": f"{self.start_page_id + 1}-{last}"})

    @property
    def folder(self) -> str:
        """Where a document's files are in a zip, below its name."""
        if self.backend.startswith("vlm"):
            return "vlm"
        return f"hybrid_{self.parse_method}" if self.backend.startswith("hybrid") else self.parse_method

    def shown(self) -> dict[str, Any]:
        """Return what a ticket has to remember."""
        left_out = {"client_side_output_generation", "server_url", "start_page_id", "end_page_id"}
        return self.model_dump(exclude=left_out, exclude_defaults=True)


class FormBody(Asked):
    """multipart/form-data."""

    files: list[str] = Field(
        json_schema_extra={"items": {"type": "string", "format": "binary"}}, description="The documents."
    )


def error_body(error: ParseError) -> dict[str, Any]:
    """Say what is wrong as MinerU's server does."""
    return detail_body(error, "Task not found" if error.status in {404, 410} else None)


class MineruTask(BaseModel):
    """A task as it is now."""

    task_id: str
    status: TaskStatus
    backend: str
    file_names: list[str]
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None
    error: str | None = None
    status_url: str
    result_url: str
    queued_ahead: int | None = Field(None, exclude_if=lambda ahead: ahead is None)
    message: str | None = Field(None, exclude_if=lambda message: message is None)

    @classmethod
    def of(
        cls,
        task_id: str,
        jobs: Sequence[Job],
        names: list[str],
        backend: str,
        address: str,
        ahead: int | None,
    ) -> "MineruTask":
        is_open = any(job.is_open for job in jobs)
        status: TaskStatus
        if is_open:
            status = "pending" if all(job.status == "queued" for job in jobs) else "processing"
        else:
            status = "completed" if any(job.status in {"succeeded", "partial"} for job in jobs) else "failed"
        starts = [job.started_at for job in jobs if job.started_at is not None]
        return cls(
            task_id=task_id,
            status=status,
            backend=backend,
            file_names=names,
            created_at=_time(jobs[0].created_at),
            started_at=_time(min(starts)) if starts else None,
            completed_at=None if is_open else _time(max(job.finished_at or 0.0 for job in jobs)),
            error=_error(jobs[0]) if status == "failed" else None,
            status_url=address,
            result_url=f"{address}/result",
            queued_ahead=ahead if status == "pending" else None,
        )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _error(job: Job) -> str:
    if job.failure is not None:
        return job.failure.detail
    return "the task was cancelled" if job.status == "cancelled" else "no page could be read"


class DocumentResult(BaseModel):
    """What came of one document."""

    md_content: str | None = None
    model_output: str | None = Field(None, description="JSON, as text: what the model wrote of each page.")
    content_list: str | None = Field(None, description="JSON, as text: the blocks in reading order.")
    images: dict[str, str] | None = Field(None, description="Figures by name, as data URLs.")
    error: str | None = Field(None, description="Ours: why nothing of it was read.")


class ResultShape(BaseModel):
    """The results by the documents' names, without their suffix."""

    backend: str
    version: str
    results: dict[str, DocumentResult]


class ParsedShape(MineruTask, ResultShape):
    """The task and its results."""


def content_list(pages: Sequence[PageResult]) -> str:
    """Write the blocks of pages as MinerU's content list. Boxes are in thousandths of the page."""
    entries = [
        entry
        for page in pages
        for number in range(len(page.blocks))
        if (entry := _entry(page, number)) is not None
    ]
    return json.dumps(entries, ensure_ascii=False)


def _entry(page: PageResult, number: int) -> dict[str, Any] | None:
    block = page.blocks[number]
    text = block.text if block.markdown is None else block.markdown
    place = {
        "bbox": [round(value * BOX_SIDE / MAX_COORDINATE) for value in block.bbox],
        "page_idx": page.index,
    }
    if is_picture(block):
        path = "" if block.figure is None else f"images/{block.figure.name}"
        caption = _captions(page.blocks, number)
        return {"type": "image", "img_path": path, "image_caption": caption, "image_footnote": [], **place}
    if CAPTION.search(block.type) or not text:
        return None  # a caption is with its picture or table
    if text.startswith("<table>"):
        caption = _captions(page.blocks, number)
        own = {"img_path": "", "table_caption": caption, "table_footnote": [], "table_body": text}
        return {"type": "table", **own, **place}
    if block.type.casefold() in {"equation", "formula", "isolate_formula"}:
        return {"type": "equation", "text": text, "text_format": "latex", **place}
    marks = len(text) - len(text.lstrip("#"))
    if 0 < marks <= TITLE_LEVELS and text[marks : marks + 1] == " ":
        return {"type": "text", "text": text[marks + 1 :], "text_level": marks, **place}
    return {"type": "text", "text": text, **place}


def _captions(blocks: Sequence[Block], number: int) -> list[str]:
    near = (blocks[at] for at in (number - 1, number + 1) if 0 <= at < len(blocks))
    return [block.text for block in near if CAPTION.search(block.type)][:1]


def model_output(pages: Sequence[PageResult]) -> str:
    """Write what the model wrote of each page."""
    texts = [
        {"page_idx": page.index, "text": "" if page.reading is None else page.reading.text} for page in pages
    ]
    return json.dumps(texts, ensure_ascii=False)
