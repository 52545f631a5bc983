"""Bytes in: an upload is spooled to a file while it arrives, within limits."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.documents.formats import Source, sniff_file
from app.errors import (
    BadOption,
    BadRequest,
    ParseError,
    TooLarge,
    UnsupportedMediaType,
    UploadTimeout,
)
from app.settings import MIB, Settings

WRITE_BYTES = MIB
MAX_FIELDS = 32
MAX_JSON_DEPTH = 8
FILE_FIELD = "file"
URL_FIELD = "url"
NO_BASE64 = "file is not base64 of the standard alphabet, padded and without data: before it"
NO_JSON_FILE = "the body must be a JSON object with the file as base64 text at file"


@dataclass(frozen=True, slots=True)
class Upload:
    """A document that arrived, and the other fields of its request: JSON values, or text from a form.

    ``source`` is ``None`` when a request that may name a ``url`` instead had no file.
    """

    source: Source | None
    fields: Mapping[str, Any]
    from_form: bool


class _Body(Protocol):
    """A request body being taken apart. ``feed`` gives the file's bytes as far as they are known."""

    def feed(self, chunk: bytes) -> bytes | bytearray: ...

    @property
    def has_file(self) -> bool: ...

    def finish(self) -> dict[str, Any]:
        """The other fields. Raise ``BadRequest`` when the body ended too early."""


async def receive(
    chunks: AsyncIterator[bytes],
    content_type: str,
    content_length: int | None,
    path: Path,
    settings: Settings,
    *,
    may_name_url: bool = False,
) -> Upload:
    """Spool the file of a request to ``path``. Nothing but the form's few KiB is held in memory.

    Raise ``TooLarge`` as soon as the limit is passed, without reading on; ``UploadTimeout`` when it stalls.
    """
    body, max_body_bytes = _body(content_type, settings)
    if content_length is not None and content_length > max_body_bytes:
        raise TooLarge(f"the body has {content_length} bytes; a file may have {settings.max_upload_mib} MiB")
    num_bytes = body_bytes = 0
    buffer = bytearray()
    # a file object of the event loop's thread, written in others: one write at a time, each awaited
    with path.open("xb", buffering=0) as spooled:
        async for chunk in _timely(chunks, settings):
            body_bytes += len(chunk)
            if body_bytes > max_body_bytes:  # of which little need be file: a form may go on after its end
                raise TooLarge(f"the body is larger than a file of {settings.max_upload_mib} MiB needs")
            buffer += body.feed(chunk)
            if num_bytes + len(buffer) > settings.max_upload_bytes:
                raise TooLarge(f"the file is larger than {settings.max_upload_mib} MiB")
            if len(buffer) >= WRITE_BYTES:
                full, buffer = buffer, bytearray()
                num_bytes += await asyncio.to_thread(_write, spooled.write, full)
        num_bytes += _write(spooled.write, buffer)
    fields = body.finish()
    from_form = isinstance(body, _Multipart)
    if body.has_file:
        return Upload(sniff_file(path), fields, from_form)
    if may_name_url and fields.get(URL_FIELD):
        await asyncio.to_thread(path.unlink)
        return Upload(None, fields, from_form)
    raise BadRequest(_no_document(fields, from_form=from_form, may_name_url=may_name_url))


def _no_document(fields: Mapping[str, Any], *, from_form: bool, may_name_url: bool) -> str:
    """What a request lacks, and what it has instead: the name is what clients get wrong."""
    lacking = "the form has no part called file" if from_form else NO_JSON_FILE
    instead = ", ".join(name[:40] for name in fields) or "nothing"
    return f"{lacking}{', nor an address at url' if may_name_url else ''}; there is {instead}"


def _write(write: Callable[[memoryview], int | None], data: bytearray) -> int:
    view = memoryview(data)
    while view:
        view = view[write(view) or 0 :]
    return len(data)


async def _timely(chunks: AsyncIterator[bytes], settings: Settings) -> AsyncIterator[bytes]:
    deadline = asyncio.get_running_loop().time() + settings.upload_deadline_s
    while True:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(settings.upload_idle_s, deadline - now)):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise UploadTimeout("the upload stalled or took too long") from error
        if chunk is None:
            return
        yield chunk


def _body(content_type: str, settings: Settings) -> tuple[_Body, int]:
    """A fresh body of this content type, and the most bytes it may have."""
    kind, parameters = parse_options_header(content_type)
    max_form_bytes = settings.max_form_kib * 1024
    if kind == b"multipart/form-data":
        return _Multipart(parameters.get(b"boundary", b""), max_form_bytes), (
            settings.max_upload_bytes + max_form_bytes
        )
    if kind == b"application/json":
        # base64 has four bytes for three; JSON may spell a character of it in six
        return _Json(max_form_bytes), settings.max_upload_bytes * 8 + max_form_bytes
    raise UnsupportedMediaType("send multipart/form-data or application/json")


class _Multipart:
    """A form: the part called ``file`` goes to disk, the others are small and kept."""

    def __init__(self, boundary: bytes, max_form_bytes: int) -> None:
        if not boundary:
            raise BadRequest("the multipart content type has no boundary")
        self._form_bytes_left = max_form_bytes
        self._fields: dict[str, str] = {}
        self._disposition = bytearray()
        self._header = bytearray()
        self._name = ""
        self._is_file = False
        """Whether the client calls this part a file, by giving it a name as such."""
        self._value = bytearray()
        self._file = bytearray()
        self.has_file = self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise BadRequest("the multipart boundary cannot be used") from error

    def feed(self, chunk: bytes) -> bytearray:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest("the body is not well-formed multipart/form-data") from error
        data, self._file = self._file, bytearray()
        return data

    def finish(self) -> dict[str, Any]:
        if not self._ended:
            raise BadRequest("the multipart body ends before its last boundary")
        return dict(self._fields)

    def _spend(self, num_bytes: int) -> None:
        self._form_bytes_left -= num_bytes
        if self._form_bytes_left < 0:
            raise self._refusal(TooLarge("the form fields besides the file are too large"))

    def _part_begin(self) -> None:
        self._disposition, self._header, self._value = bytearray(), bytearray(), bytearray()
        self._is_file = False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._spend(end - start)
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._spend(end - start)
        if self._header.lower() == b"content-disposition":
            self._disposition += data[start:end]

    def _header_end(self) -> None:
        self._header.clear()

    def _headers_finished(self) -> None:
        _, parameters = parse_options_header(bytes(self._disposition))
        try:
            self._name = parameters[b"name"].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise BadRequest("a form part has no readable name") from error
        self._is_file = not parameters.keys().isdisjoint({b"filename", b"filename*"})
        if self._name in self._fields or (self._name == FILE_FIELD and self.has_file):
            raise BadOption(f"{self._name[:80]} is given twice")
        if len(self._fields) >= MAX_FIELDS:
            raise BadRequest(f"the form has more than {MAX_FIELDS} fields")
        self.has_file = self.has_file or self._name == FILE_FIELD

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self._file += memoryview(data)[start:end]
            return
        self._spend(end - start)
        self._value += data[start:end]

    def _part_end(self) -> None:
        if self._name == FILE_FIELD:
            return
        try:
            self._fields[self._name] = self._value.decode()
        except UnicodeDecodeError as error:
            raise self._refusal(BadOption(f"{self._name[:80]} is not UTF-8 text")) from error

    def _refusal(self, error: ParseError) -> ParseError:
        """Of a part's content: the document under a name that is not its own is the likeliest reason."""
        misnamed = f"{self._name[:80]} carries a file; the document goes into the part called {FILE_FIELD}"
        return BadOption(misnamed) if self._is_file else error

    def _end(self) -> None:
        self._ended = True


class _Json:
    """A JSON object: the base64 string at ``file`` goes to disk while it arrives, the rest is small and kept.

    The rest, with an empty string in the file's place, is parsed by ``json`` at the end: so this scanner
    decides nothing but where the file's string begins and ends.
    """

    def __init__(self, max_form_bytes: int) -> None:
        self._max_form_bytes = max_form_bytes
        self._rest = bytearray()
        self._depth = 0
        self._string_start = -1
        """Where the string that is open begins in ``_rest``; -1 outside strings."""
        self._escaped = False
        self._key: bytes | None = None
        """The last string at depth 1; a ``:`` after it makes it the key."""
        self._at_file = self._in_file = self.has_file = False
        self._file = _Base64()

    def feed(self, chunk: bytes) -> bytes:
        data = bytearray()
        at = 0
        while at < len(chunk):
            if self._in_file:
                at, decoded = self._feed_file(chunk, at)
                data += decoded
            else:
                self._feed_rest(chunk[at])
                at += 1
        return bytes(data)

    def finish(self) -> dict[str, Any]:
        if self._in_file:
            raise BadRequest("the JSON body ends inside the file")
        try:
            fields = json.loads(self._rest, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise BadRequest("the body is not well-formed JSON") from error
        if not isinstance(fields, dict) or (FILE_FIELD in fields and not self.has_file):
            raise BadRequest(NO_JSON_FILE)
        fields.pop(FILE_FIELD, None)
        return fields

    def _feed_file(self, chunk: bytes, at: int) -> tuple[int, bytes]:
        # a quote ends the string: base64 has no \" and _Base64 refuses it
        end = chunk.find(b'"', at)
        if end < 0:
            return len(chunk), self._file.feed(chunk[at:])
        data = self._file.feed(chunk[at:end]) + self._file.finish()
        self._rest += b'"'
        self._in_file = self._at_file = False
        return end + 1, data

    def _feed_rest(self, byte: int) -> None:
        if len(self._rest) >= self._max_form_bytes:
            raise TooLarge("the JSON besides the file is too large")
        self._rest.append(byte)
        if self._string_start >= 0:
            self._feed_string(byte)
        elif byte == ord('"'):
            self._string_start = len(self._rest) - 1
            if self._at_file and self._depth == 1:
                self._begin_file()
        elif byte in b"{[":
            self._depth += 1
            self._at_file = False
            if self._depth > MAX_JSON_DEPTH:
                raise BadRequest("the JSON is nested too deeply")
        elif byte in b"}]":
            self._depth -= 1
        elif byte == ord(":"):
            self._at_file = self._depth == 1 and self._key == FILE_FIELD.encode()
        elif byte == ord(","):
            self._at_file = False

    def _feed_string(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == ord("\\"):
            self._escaped = True
        elif byte == ord('"'):
            self._key = bytes(self._rest[self._string_start + 1 : -1]) if self._depth == 1 else None
            self._string_start = -1

    def _begin_file(self) -> None:
        if self.has_file:
            raise BadOption("file is given twice")
        self.has_file = self._in_file = True
        self._string_start = -1


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadOption("a key of the JSON body is given twice")
    return fields


JSON_ESCAPE_CHARS = 6
INCOMPLETE_ESCAPE = re.compile(rb"\\(u[0-9A-Fa-f]{0,3})?\Z")


class _Base64:
    """Base64 inside a JSON string, decoded while it arrives.

    JSON may escape ``/`` and ``+``, and some encoders do; others break lines. Both are read.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._ended = False

    def feed(self, text: bytes) -> bytes:
        text = self._tail + text
        cut = INCOMPLETE_ESCAPE.search(text, max(0, len(text) - JSON_ESCAPE_CHARS))
        escaped, self._tail = (text[: cut.start()], text[cut.start() :]) if cut else (text, b"")
        plain = self._unescape(escaped).translate(None, b"\r\n")
        whole = len(plain) // 4 * 4
        self._tail = plain[whole:] + self._tail
        return self._decode(plain[:whole])

    def finish(self) -> bytes:
        if self._tail:
            raise BadOption("file is not base64: its length is no multiple of 4")
        return b""

    def _unescape(self, text: bytes) -> bytes:
        if b"\\" not in text:
            return text
        try:
            plain: str = json.loads(b'"' + text + b'"')
            return plain.encode("ascii")
        except ValueError as error:
            raise BadOption(NO_BASE64) from error

    def _decode(self, text: bytes) -> bytes:
        if not text:
            return b""
        if self._ended:
            raise BadOption("file is not base64: there is more after its padding")
        self._ended = text.endswith(b"=")
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise BadOption(NO_BASE64) from error
