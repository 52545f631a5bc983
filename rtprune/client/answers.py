"""Types of the service's answers. Unknown fields, which a newer service may send, are ignored.

A test compares these types with the service's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

from rtprune.client.errors import UnexpectedAnswer

T = TypeVar("T")


class Options(TypedDict, total=False):
    """How a document is to be read; ``docs/api.md`` explains each option."""

    mode: str
    prune: Literal["rtprune", "none"]
    keep_ratio: float
    pages: str
    dpi: int
    prompt: str
    max_output_tokens: int
    fixation: float
    pages_per_prompt: int
    math: Literal["latex", "dollar"]
    headers: Literal["drop", "keep"]
    join_pages: bool
    page_marks: Literal["none", "comment", "rule"]
    images: Literal["relative", "link", "embed", "none"]
    tokens: Literal["counts", "detail"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a page or a document could not be read."""

    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Warning:  # noqa: A001 - the wire's word
    """Why the text may be incomplete."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at reading a page."""

    mode: str
    prune: str
    ngram_window: int
    finish_reason: str
    output_tokens: int
    reason: str = "asked"
    text_layer_recall: float | None = None
    ms: float | None = None
    pages: int = 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts of a page.

    ``visual`` and ``kept`` count the whole sequence, ``patches`` and ``kept_patches`` only patch tokens.
    """

    visual: int
    kept: int
    retention: float
    patches: int
    kept_patches: int
    keep_ratio: float
    text_density: float
    prompt: int
    output: int
    diversity: float | None = None
    attended_patches: float | None = None
    """With ``fixation``: patch tokens attended to, mean over decode steps and layers."""
    attended_share: float | None = None
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture cut from the page; its address is the job's address followed by ``images/`` and ``name``."""

    name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Block:
    """A region of a page. ``bbox``: x1, y1, x2, y2 in 0..999 of the page."""

    type: str
    bbox: tuple[int, ...]
    text: str
    figure: Figure | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A grid of patch tokens, numbered row by row. What is neither kept nor folded was dropped.

    ``bbox``: the part of the page under the grid; ``shown``: the same without padding. ``folded``: a token's
    number, and the view and number of the one that took most of it.
    """

    columns: int
    rows: int
    kept: tuple[int, ...]
    folded: tuple[tuple[int, ...], ...]
    bbox: tuple[int, ...] | None = None
    shown: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page. ``index`` is 0-based. If ``error`` is set, nothing was read."""

    index: int
    width: int
    height: int
    markdown: str
    error: Failure | None = None
    mode: str | None = None
    finish_reason: str | None = None
    confidence: float | None = None
    risk: float | None = None
    warnings: tuple[Warning, ...] = ()
    dpi: float | None = None
    unread_ink: float | None = None
    text_layer_recall: float | None = None
    attempts: tuple[Attempt, ...] = ()
    tokens: Tokens | None = None
    views: tuple[View, ...] | None = None
    """With ``tokens="detail"`` alone."""
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over the pages of a document."""

    pages: int
    visual_tokens: int
    kept_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document of which at least one page was read. ``markdown``: all pages as one text."""

    id: str
    model: str
    status: Literal["succeeded", "partial", "failed", "running"]
    markdown: str
    pages: tuple[Page, ...]
    usage: Usage
    timing_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Progress:
    """Page counts of a job."""

    total: int
    done: int
    failed: int
    incomplete: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of a job in seconds; ``None`` while not known."""

    queued_s: float | None = None
    running_s: float | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    """How many pages were read again and how often the job was requeued, because a worker died."""

    pages: int
    requeues: int


@dataclass(frozen=True, slots=True)
class Webhook:
    """State of the delivery of a job's webhook."""

    url: str
    status: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of a job."""

    self: str
    events: str
    result: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when the service answered."""

    id: str
    status: Literal["queued", "running", "succeeded", "partial", "failed", "cancelled"]
    pages: Progress
    priority: int
    created_at: datetime
    timings: Timings
    retries: Retries
    links: Links
    queue_position: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    error: Failure | None = None
    webhook: Webhook | None = None

    @property
    def is_open(self) -> bool:
        """Whether the job has pages left to read."""
        return self.status in {"queued", "running"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """The model and the modes that the service reads pages with."""

    status: str
    phase: str
    model: str
    modes: tuple[str, ...]


def decode(kind: type[T], value: object) -> T:
    """Convert parsed JSON to ``kind``. Raise ``UnexpectedAnswer`` when it does not fit."""
    try:
        decoded: T = _decode(kind, value)
    except (TypeError, ValueError, KeyError) as error:
        raise UnexpectedAnswer(f"the answer is no {kind.__name__} of this service: {error}") from error
    return decoded


def _decode(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [one.name for one in fields(kind) if one.name in value]
        return kind(**{name: _decode(hints[name], value[name]) for name in known})  # type: ignore[operator]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        [inner] = [one for one in arguments if one is not NoneType]
        return None if value is None else _decode(inner, value)
    if origin is tuple:
        return tuple(_decode(arguments[0], one) for one in value)
    if origin is Literal:
        return _checked(str, value)
    if kind is datetime:
        return datetime.fromisoformat(value)
    return dict(value) if origin is not None else _checked(kind, value)


def _checked(kind: type[Any], value: Any) -> Any:
    if isinstance(value, (float, int) if kind is float else kind):
        return value
    raise TypeError(f"{value!r:.40} is no {kind.__name__}")
