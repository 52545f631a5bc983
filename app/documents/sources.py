"""Spool an upload to a file while it arrives, within limits.

Only the files of a form are spooled. A JSON body is spooled whole and then parsed in a thread. A body that
is the document itself is spooled as it is.
"""

import asyncio
import base64
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
DECODED_CHARS = MIB
LARGE_BODY_BYTES = 4 * MIB
JSON_BYTES_A_BYTE = 1.5
"""Most bytes of JSON per byte of the file in it.

Base64 has 4 for 3, and some clients escape ``/`` and ``+``.
"""
STRUCTURE = (b"{", b"[", b",", b'"')
BASE64 = re.compile(r"[A-Za-z0-9+/=]*")
MAX_FIELDS = 32
MAX_JSON_DEPTH = 8
FILE_FIELD = "file"
SEVERAL_FIELDS = frozenset({"files", "files[]", "file[]"})
"""Names of form parts that may be repeated, each with a document."""
URL_FIELD = "url"
MAX_FILENAME_CHARS = 200
RAW_TYPE = re.compile(rb"application/(?:pdf|x-pdf|octet-stream)|image/[a-z0-9.+-]+")
DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
DATA = "data:"
NO_DATA_URI = "an address of data: is read as data:TYPE;base64,DATA alone"
NO_BASE64 = "file is not base64 of the standard alphabet, padded, nor that as data:TYPE;base64,..."
NO_JSON_FILE = "the body must be a JSON object with the file as base64 text at file"

_PARSING = threading.Semaphore(2)
"""Limits how many large bodies are parsed at a time."""


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One of several files of a form. ``filename``: the client's name for it."""

    path: Path
    filename: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A document that arrived, and the request's other fields: JSON values, or text from a form.

    ``source`` is ``None`` with ``several``, and when the request names a ``url`` instead of a file.
    """

    source: Source | None
    fields: Mapping[str, Any]
    from_form: bool
    several: tuple[SpooledFile, ...] = ()


def is_document(content_type: str) -> bool:
    """Tell whether a body of this type is the document itself. Its options are then in the query."""
    kind, _ = parse_options_header(content_type)
    return RAW_TYPE.fullmatch(kind) is not None


async def receive(
    chunks: AsyncIterator[bytes],
    content_type: str,
    content_length: int | None,
    path: Path,
    settings: Settings,
    *,
    may_name_url: bool = False,
    place_more: Callable[[], Path] | None = None,
) -> Upload:
    """Spool the file of a request to ``path``. Only the few KiB of a form's other fields stay in memory.

    ``place_more`` gives a path for each of several files; without it a form may have one.

    Raise ``TooLarge`` as soon as the limit is passed, without reading on; ``UploadTimeout`` when it
    stalls.
    """
    kind, parameters = parse_options_header(content_type)
    max_form_bytes = settings.max_form_kib * 1024
    several: tuple[SpooledFile, ...] = ()
    if kind == b"multipart/form-data":
        body = Body(chunks, settings, settings.max_upload_bytes + max_form_bytes, content_length)
        form = Multipart(parameters.get(b"boundary", b""), max_form_bytes, path, settings, place_more)
        await body.spool(path, form.feed)
        fields, has_file, several = form.finish(), form.has_file, form.several
    elif kind == b"application/json":
        max_bytes = int(settings.max_upload_bytes * JSON_BYTES_A_BYTE) + max_form_bytes
        await Body(chunks, settings, max_bytes, content_length).spool(path)
        fields, has_file = await asyncio.to_thread(_read_json, path, settings)
    elif RAW_TYPE.fullmatch(kind) is not None:
        await Body(chunks, settings, settings.max_upload_bytes, content_length).spool(path)
        fields, has_file = {}, True
    else:
        raise UnsupportedMediaType(
            "send multipart/form-data, application/json, or a document as application/pdf or image/..."
        )
    from_form = kind == b"multipart/form-data"
    if several:
        return Upload(None, fields, from_form, several)
    if not has_file and from_form and str(fields.get(URL_FIELD, "")).startswith(DATA):
        await asyncio.to_thread(path.unlink, missing_ok=True)
        decode_base64(fields.pop(URL_FIELD), path, settings)  # in this thread, because a form field is small
        has_file = True
    if has_file:
        return Upload(sniff_file(path), fields, from_form)
    if may_name_url and fields.get(URL_FIELD):
        await asyncio.to_thread(path.unlink, missing_ok=True)
        return Upload(None, fields, from_form)
    raise BadRequest(_no_document(fields, from_form=from_form, may_name_url=may_name_url))


Feed = Callable[[bytes], list[tuple[Path, bytes | bytearray]]]
"""Returns the bytes of a chunk to write, each with its file. Files follow one after the other."""


class Body:
    """A request's body that is being written to one file or several."""

    def __init__(
        self, chunks: AsyncIterator[bytes], settings: Settings, max_bytes: int, content_length: int | None
    ) -> None:
        if content_length is not None and content_length > max_bytes:
            raise TooLarge(
                f"the body has {content_length} bytes; a file may have {settings.max_upload_mib} MiB"
            )
        self._chunks = chunks
        self._settings = settings
        self._max_bytes = max_bytes

    async def spool(self, path: Path, feed: Feed | None = None) -> None:
        """Write the body to a new file.

        With ``feed``, write what it returns for each chunk: the files in a form.
        """
        limit_mib = self._settings.max_upload_mib
        num_bytes = body_bytes = 0
        # the file is written in other threads, one awaited write at a time
        spooled = path.open("xb", buffering=0)
        buffer = bytearray()
        try:
            async for chunk in _timely(self._chunks, self._settings):
                body_bytes += len(chunk)
                if (
                    body_bytes > self._max_bytes
                ):  # counted as well as the file: a form may go on after its last boundary
                    raise TooLarge(f"the body is larger than a file of {limit_mib} MiB needs")
                for target, data in [(path, chunk)] if feed is None else feed(chunk):
                    if target != path:
                        _write(spooled.write, buffer)
                        spooled.close()
                        path, buffer = target, bytearray()
                        spooled = path.open("xb", buffering=0)
                    buffer += data
                    num_bytes += len(data)
                if feed is not None and num_bytes > self._settings.max_upload_bytes:
                    raise TooLarge(f"the file is larger than {limit_mib} MiB")
                if len(buffer) >= WRITE_BYTES:
                    full, buffer = buffer, bytearray()
                    await asyncio.to_thread(_write, spooled.write, full)
            _write(spooled.write, buffer)
        finally:
            spooled.close()


def _no_document(fields: Mapping[str, Any], *, from_form: bool, may_name_url: bool) -> str:
    """Return a message that the request has no document, with the fields it has: clients mistake the name."""
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


class Multipart:
    """A parser of a form. Its files go to disk; the other parts are small and stay in memory."""

    def __init__(
        self,
        boundary: bytes,
        max_form_bytes: int,
        path: Path,
        settings: Settings,
        place_more: Callable[[], Path] | None,
        several_fields: frozenset[str] = SEVERAL_FIELDS,
        *,
        has_lists: bool = False,
    ) -> None:
        if not boundary:
            raise BadRequest("the multipart content type has no boundary")
        self._form_bytes_left = max_form_bytes
        self._path = path
        self._max_files = settings.max_files
        self._place_more = place_more
        self._several_fields = several_fields
        self._has_lists = has_lists
        """Whether a field may come more than once."""
        self._fields: dict[str, list[str]] = {}
        self._num_fields = 0
        self._disposition = bytearray()
        self._header = bytearray()
        self._name = ""
        self._target: Path | None = None
        """Where the part goes; ``None`` for one that is no document."""
        self._is_file = False
        """Whether the client calls this part a file, by giving it a name as such."""
        self._value = bytearray()
        self._written: list[tuple[Path, bytes | bytearray]] = []
        self._several: list[SpooledFile] = []
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

    def feed(self, chunk: bytes) -> list[tuple[Path, bytes | bytearray]]:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest("the body is not well-formed multipart/form-data") from error
        written, self._written = self._written, []
        return written

    def finish(self) -> dict[str, Any]:
        if not self._ended:
            raise BadRequest("the multipart body ends before its last boundary")
        if self.has_file and self._several:
            raise BadOption("give one document in file, or several in files, not both")
        return {name: texts[-1] for name, texts in self._fields.items()}

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The texts of each field, of which there may be several."""
        return {name: tuple(texts) for name, texts in self._fields.items()}

    @property
    def several(self) -> tuple[SpooledFile, ...]:
        return tuple(self._several)

    def _spend(self, num_bytes: int) -> None:
        self._form_bytes_left -= num_bytes
        if self._form_bytes_left < 0:
            raise self._refusal(TooLarge("the form fields besides the file are too large"))

    def _part_begin(self) -> None:
        self._disposition, self._header, self._value = bytearray(), bytearray(), bytearray()
        self._is_file = False
        self._target = None

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
        if not self._has_lists and (
            self._name in self._fields or (self._name == FILE_FIELD and self.has_file)
        ):
            raise BadOption(f"{self._name[:80]} is given twice")
        if self._num_fields >= MAX_FIELDS * (2 if self._has_lists else 1):
            raise BadRequest(f"the form has more than {self._num_fields} fields")
        is_one_of_several = self._name in self._several_fields and self._place_more is not None
        if self._name == FILE_FIELD and not is_one_of_several:
            self.has_file = True
            self._target = self._path
        elif is_one_of_several and self._place_more is not None:
            if len(self._several) >= self._max_files:
                raise BadOption(f"the form has more than {self._max_files} files")
            self._target = self._place_more()
            filename = parameters.get(b"filename", b"").decode(errors="replace")[:MAX_FILENAME_CHARS]
            self._several.append(SpooledFile(self._target, filename))
        if self._target is not None:
            self._written.append((self._target, b""))  # creates the file even if no data comes
        elif self._is_file and self._has_lists:  # such forms may have unknown fields, which are ignored
            raise self._refusal(BadRequest(""))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._target is not None:
            self._written.append((self._target, data[start:end]))
            return
        self._spend(end - start)
        self._value += data[start:end]

    def _part_end(self) -> None:
        if self._target is not None:
            return
        try:
            self._fields.setdefault(self._name, []).append(self._value.decode())
            self._num_fields += 1
        except UnicodeDecodeError as error:
            raise self._refusal(BadOption(f"{self._name[:80]} is not UTF-8 text")) from error

    def _refusal(self, error: ParseError) -> ParseError:
        """Return the error for a refused part. The likeliest reason is a document under a wrong name."""
        parts = " or ".join(sorted(self._several_fields)) if self._has_lists else FILE_FIELD
        misnamed = f"{self._name[:80]} carries a file; the document goes into the part called {parts}"
        return BadOption(misnamed) if self._is_file else error

    def _end(self) -> None:
        self._ended = True


@contextlib.contextmanager
def json_body(path: Path, settings: Settings) -> Iterator[dict[str, Any]]:
    """Parse the JSON object at ``path``, in a thread, and remove the file.

    Parsing takes several times the body's size in memory, so at most two large bodies are parsed at a
    time.
    """
    with _PARSING if path.stat().st_size > LARGE_BODY_BYTES else contextlib.nullcontext():
        body = path.read_bytes()
        path.unlink()
        # Base64 has none of these signs. Each may become an object of 60 bytes, so limit them before parsing.
        if sum(map(body.count, STRUCTURE)) > settings.max_form_kib * 1024:
            raise TooLarge("the JSON besides the file is too large")
        try:
            fields = json.loads(body, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise BadRequest("the body is not well-formed JSON") from error
        del body
        if not isinstance(fields, dict):
            raise BadRequest(NO_JSON_FILE)
        yield fields


def _read_json(path: Path, settings: Settings) -> tuple[dict[str, Any], bool]:
    """Write the file of a JSON body to ``path``. Return the other fields, and whether there is a file."""
    with json_body(path, settings) as fields:
        in_address = FILE_FIELD not in fields and str(fields.get(URL_FIELD)).startswith(DATA)
        has_file = FILE_FIELD in fields or in_address
        text = fields.pop(URL_FIELD if in_address else FILE_FIELD, None)
        check_rest(fields, settings)
        if has_file:
            if not isinstance(text, str):
                raise BadRequest(NO_JSON_FILE)
            decode_base64(text, path, settings)
        return fields, has_file


def check_rest(fields: dict[str, Any], settings: Settings) -> None:
    try:
        depth = _depth(fields)
    except RecursionError:
        depth = MAX_JSON_DEPTH + 1
    if depth > MAX_JSON_DEPTH:
        raise BadRequest("the JSON is nested too deeply")
    if len(json.dumps(fields)) > settings.max_form_kib * 1024:
        raise TooLarge("the JSON besides the file is too large")


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested."""
    match value:
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
        case list():
            return 1 + max(map(_depth, value), default=0)
    return 0


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadOption("a key of the JSON body is given twice")
    return fields


def decode_base64(text: str, path: Path, settings: Settings) -> None:
    """Decode base64, or a data URI of it, into a new file, in a thread.

    Raise ``BadOption`` or ``TooLarge``. Decode piece by piece, so that other threads run in between. Line
    breaks, which some encoders insert, are accepted.
    """
    num_bytes = 0
    left = ""
    prefix = DATA_URI.match(text)
    if prefix is None and text.startswith(DATA):
        raise BadOption(NO_DATA_URI)
    with path.open("xb") as file:
        for at in range(prefix.end() if prefix else 0, len(text), DECODED_CHARS):
            left += text[at : at + DECODED_CHARS].replace("\n", "").replace("\r", "")
            whole = len(left) // 4 * 4
            piece, left = left[:whole], left[whole:]
            if piece.endswith("=") and (left or text[at + DECODED_CHARS :].strip("\r\n")):
                raise BadOption("file is not base64: there is more after its padding")
            try:
                data = base64.b64decode(piece, validate=True)
            except ValueError as error:
                raise BadOption(NO_BASE64) from error
            num_bytes += len(data)
            if num_bytes > settings.max_upload_bytes:
                raise TooLarge(f"the file is larger than {settings.max_upload_mib} MiB")
            file.write(data)
    if left:
        raise BadOption(
            NO_BASE64
            if BASE64.fullmatch(left) is None
            else "file is not base64: its length is no multiple of 4"
        )
