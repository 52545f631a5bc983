"""A job's request, progress and pages, and how they are stored as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from app.document import Failure, PageResult, ParseOptions
from app.documents.formats import Format

JobStatus = Literal["queued", "running", "succeeded", "partial", "failed", "cancelled"]
OPEN = ("queued", "running")

_OPTIONS: TypeAdapter[ParseOptions] = TypeAdapter(ParseOptions)
_PAGE: TypeAdapter[PageResult] = TypeAdapter(PageResult)
_FAILURE: TypeAdapter[Failure] = TypeAdapter(Failure)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that is being accepted: everything a worker needs.

    ``pages``: disjoint 0-based ranges, never expanded.
    """

    id: str
    client: str
    dedupe: str | None
    request_hash: str
    options: ParseOptions
    format: Format
    blob: str
    pages: tuple[range, ...]
    priority: int
    webhook: str | None
    batch_pages: int
    trace: str = ""
    """``traceparent`` of the request, where traces are on."""

    @property
    def num_pages(self) -> int:
        return sum(map(len, self.pages))


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted job as its row describes it. Times are seconds since 1970; ``None``: not yet."""

    id: str
    client: str
    status: JobStatus
    options: ParseOptions
    format: Format
    blob: str
    pages: tuple[range, ...]
    batch_pages: int
    num_pages: int
    num_done: int
    num_failed: int
    num_incomplete: int
    num_retries: int
    num_requeues: int
    priority: int
    webhook: str | None
    webhook_status: str | None
    webhook_attempts: int
    model: str
    failure: Failure | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    trace: str = ""

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Job":
        fields = {name: row[name] for name in cls.__dataclass_fields__}
        fields["options"] = _OPTIONS.validate_json(row["options"])
        fields["pages"] = decode_ranges(row["pages"])
        fields["failure"] = _FAILURE.validate_json(row["failure"]) if row["failure"] else None
        return cls(**fields)

    def batch(self, number: int) -> list[int]:
        """Return the 0-based pages of a batch, the unit of queued work."""
        first = number * self.batch_pages
        chosen: list[int] = []
        for pages in self.pages:
            start = max(0, min(first, len(pages)))
            stop = max(0, min(first + self.batch_pages, len(pages)))
            chosen += pages[start:stop]
            first -= len(pages)
        return chosen


@dataclass(frozen=True, slots=True)
class PageEvent:
    """A finished page. ``seq`` counts the pages of a job as they finish, from 1, without gaps."""

    seq: int
    page: PageResult


def encode_options(options: ParseOptions) -> str:
    fields = _OPTIONS.dump_python(options, mode="json")
    # or requests of before these options would no longer be the same
    if options.read.fixation is None:
        del fields["read"]["fixation"]
    if options.pages_per_prompt == 1:
        del fields["pages_per_prompt"]
    return json.dumps(fields, sort_keys=True)


def encode_ranges(pages: tuple[range, ...]) -> str:
    return json.dumps([[part.start, part.stop] for part in pages])


def decode_ranges(text: str) -> tuple[range, ...]:
    return tuple(range(start, stop) for start, stop in json.loads(text))


def encode_page(page: PageResult) -> str:
    """Encode a page as JSON, without its pictures.

    Raise ``ValueError`` for numbers that JSON does not have.
    """
    # pictures are bytes and stand in their own table
    return json.dumps(_PAGE.dump_python(page, mode="json", exclude={"pictures"}), allow_nan=False)


def decode_page(text: str) -> PageResult:
    return _PAGE.validate_json(text)


def encode_failure(failure: Failure) -> str:
    return _FAILURE.dump_json(failure).decode()
