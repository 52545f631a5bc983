"""Read JSON bodies with documents inside: base64, data URLs, or addresses.

The body is spooled under the limits of uploads and parsed in a thread. Its documents are written to
separate files before the other fields are checked.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.documents.sources import DATA, JSON_BYTES_A_BYTE, Body, check_rest, decode_base64, json_body
from app.errors import BadOption, UnsupportedMediaType
from app.settings import Settings

MAX_DOCUMENTS = 32
"""Most documents in one request."""


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
    place: Callable[[], Path],
    settings: Settings,
    take: Take,
) -> tuple[list[Nested], dict[str, Any]]:
    """Spool a JSON body. Return its documents and its other fields. Raise the request's own error."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send application/json")
    max_bytes = int(settings.max_upload_bytes * JSON_BYTES_A_BYTE) + settings.max_form_kib * 1024
    path = place()
    await Body(chunks, settings, max_bytes, content_length).spool(path)
    return await asyncio.to_thread(_read, path, place, settings, take)


def _read(
    path: Path, place: Callable[[], Path], settings: Settings, take: Take
) -> tuple[list[Nested], dict[str, Any]]:
    with json_body(path, settings) as fields:
        named = list(take(fields))
        check_rest(fields, settings)
        if len(named) > MAX_DOCUMENTS:
            raise BadOption(f"a request may have {MAX_DOCUMENTS} documents")
        return [_written(one, place, settings) for one in named], fields


def _written(named: Named, place: Callable[[], Path], settings: Settings) -> Nested:
    text, address = named.base64, named.address
    if address is not None and address[: len(DATA)].lower() == DATA:
        text, address = DATA + address[len(DATA) :], None
    if text is None:
        return Nested(None, address, named.filename)
    path = place()
    decode_base64(text, path, settings)
    return Nested(path, None, named.filename)
