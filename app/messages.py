"""What the API process and the worker say to each other: a frozen dataclass a message, checked on arrival."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from app.document import Failure, PageResult, ParseOptions
from app.formats import Format
from app.frames import FrameError


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a worker. ``settings`` is ``Settings`` as JSON values."""

    settings: dict[str, Any]
    type: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Parse:
    """Read these pages of a document, 0-based; ``None``: those its options select."""

    id: str
    path: str
    format: Format
    options: ParseOptions
    pages: tuple[int, ...] | None = None
    type: Literal["parse"] = "parse"


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str
    type: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class Ping:
    type: Literal["ping"] = "ping"


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    model: str
    type: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Unusable:
    """The model cannot be loaded; the worker ends."""

    detail: str
    type: Literal["unusable"] = "unusable"


@dataclass(frozen=True, slots=True)
class Opened:
    """The pages that will be read, 0-based, in order."""

    id: str
    pages: tuple[int, ...]
    type: Literal["opened"] = "opened"


@dataclass(frozen=True, slots=True)
class Started:
    """A page goes to the model. If the worker dies now, this page may be why."""

    id: str
    index: int
    width: int
    height: int
    type: Literal["started"] = "started"


@dataclass(frozen=True, slots=True)
class PageDone:
    id: str
    page: PageResult
    type: Literal["page"] = "page"


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more comes for this document. ``failure``: it could not be read at all."""

    id: str
    failure: Failure | None = None
    type: Literal["ended"] = "ended"


@dataclass(frozen=True, slots=True)
class Pong:
    type: Literal["pong"] = "pong"


T = TypeVar("T")

ToWorker = Start | Parse | Cancel | Ping
DocumentEvent = Opened | Started | PageDone | Ended
FromWorker = Ready | Unusable | Pong | DocumentEvent

_TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="type")])
_FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="type")])


def encode_to_worker(message: ToWorker) -> dict[str, Any]:
    encoded: dict[str, Any] = _TO_WORKER.dump_python(message, mode="json")
    return encoded


def encode_from_worker(message: FromWorker) -> dict[str, Any]:
    encoded: dict[str, Any] = _FROM_WORKER.dump_python(message, mode="json")
    return encoded


def decode_to_worker(message: dict[str, Any]) -> ToWorker:
    """Raise ``FrameError`` for anything that is no message."""
    return _decode(_TO_WORKER, message)


def decode_from_worker(message: dict[str, Any]) -> FromWorker:
    """Raise ``FrameError`` for anything that is no message."""
    return _decode(_FROM_WORKER, message)


def _decode(adapter: TypeAdapter[T], message: dict[str, Any]) -> T:
    try:
        return adapter.validate_python(message)
    except ValidationError as error:
        raise FrameError(f"no message of ours: {error.error_count()} fields are wrong") from error
