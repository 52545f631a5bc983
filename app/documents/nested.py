"""Read JSON bodies with documents inside: base64, data URLs, or addresses.

The body is spooled under the limits of uploads and parsed in a thread. Its documents are written to
separate files before the other fields are checked.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.documents.forms import MAX_FILES
from app.documents.sources import JSON_BYTES_A_BYTE, Body, check_rest, decode_base64, json_body
from app.errors import BadOption, BadRequest, UnsupportedMediaType
from app.settings import Settings

DATA_SCHEME = "data:"
BASE64_MARK = ";base64"
MAX_DATA_HEAD_CHARS = 256


@dataclass(frozen=True, slots=True)
class Named:
    """A document as JSON gives it: ``base64``, or an ``address``, which may be a data URL."""

    base64: str | None = None
    address: str | None = None
    filename: str = ""


@dataclass(frozen=True, slots=True)
class Nested:
    """A document from the body, stored at ``path``, or still to be fetched from ``address``."""

    path: Path | None
    address: str | None
    filename: str


Take = Callable[[dict[str, Any]], Iterable[Named]]
"""Takes the documents out of a body. Afterwards the body must be without them."""


async def receive_json(
    chunks: AsyncIterator[bytes],
    content_type: str,
    content_length: int | None,
    new_path: Callable[[], Path],
    settings: Settings,
    take: Take,
) -> tuple[list[Nested], dict[str, Any]]:
    """Spool a JSON body. Return its documents and its other fields. Raise the request's own error."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send application/json")
    max_bytes = int(settings.max_upload_bytes * JSON_BYTES_A_BYTE) + settings.max_form_kib * 1024
    path = new_path()
    await Body(chunks, settings, max_bytes, content_length).spool(path)
    return await asyncio.to_thread(_read, path, new_path, settings, take)


def _read(
    path: Path, new_path: Callable[[], Path], settings: Settings, take: Take
) -> tuple[list[Nested], dict[str, Any]]:
    with json_body(path, settings) as fields:
        named = list(take(fields))
        check_rest(fields, settings)
        if len(named) > MAX_FILES:
            raise BadOption(f"a request may have {MAX_FILES} documents")
        return [_written(one, new_path, settings) for one in named], fields


def _written(named: Named, new_path: Callable[[], Path], settings: Settings) -> Nested:
    address = named.address
    text = named.base64
    if address is not None and address[: len(DATA_SCHEME)].lower() == DATA_SCHEME:
        text, address = _data_of(address), None
    if text is None:
        return Nested(None, address, named.filename)
    path = new_path()
    decode_base64(text, path, settings)
    return Nested(path, None, named.filename)


def _data_of(url: str) -> str:
    """Return the base64 of a data URL. Ignore the type that it names."""
    comma = url.find(",", 0, MAX_DATA_HEAD_CHARS)
    if comma < 0 or not url[:comma].lower().endswith(BASE64_MARK):
        raise BadRequest("a data URL must have the form data:TYPE;base64,DATA")
    return url[comma + 1 :]
