"""Read forms with several documents, as clients of other services send them.

All files of a form are spooled into one file while they arrive, and split when the form is complete. A
field may be repeated to give a list.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.documents.sources import MAX_FIELDS, Body
from app.errors import BadOption, BadRequest, TooLarge, UnsupportedMediaType
from app.settings import Settings

MAX_FILES = 16
"""Most documents in one request."""
MAX_FILENAME_CHARS = 255
COPIED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FormFile:
    """A document on our disk. ``filename``: the client's name for it, which does not tell its format."""

    path: Path
    filename: str


@dataclass(frozen=True, slots=True)
class Form:
    """The contents of a form: its files in order, and the texts of each field."""

    files: tuple[FormFile, ...]
    fields: Mapping[str, tuple[str, ...]]


async def receive_form(
    chunks: AsyncIterator[bytes],
    content_type: str,
    content_length: int | None,
    new_path: Callable[[], Path],
    settings: Settings,
    *,
    file_fields: frozenset[str],
) -> Form:
    """Spool the files of a form. ``new_path``: gives a path for each file.

    Together they may be as large as one file. Raise ``TooLarge``, ``UploadTimeout`` or the form's own
    error.
    """
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType("send multipart/form-data")
    max_form_bytes = settings.max_form_kib * 1024
    body = Body(chunks, settings, settings.max_upload_bytes + max_form_bytes, content_length)
    parts = _Parts(parameters.get(b"boundary", b""), max_form_bytes, file_fields)
    spooled = new_path()
    await body.spool(spooled, lambda chunk: [(spooled, parts.feed(chunk))])
    files = parts.finish()
    if len(files) == 1:
        return Form((FormFile(spooled, files[0][0]),), parts.fields)
    paths = [new_path() for _ in files]
    await asyncio.to_thread(_part, spooled, [size for _, size in files], paths)
    named = tuple(FormFile(path, name) for path, (name, _) in zip(paths, files, strict=True))
    return Form(named, parts.fields)


def _part(spooled: Path, sizes: list[int], paths: list[Path]) -> None:
    """Copy the files out of the spooled one, and remove that."""
    with spooled.open("rb") as source:
        for size, path in zip(sizes, paths, strict=True):
            left = size
            with path.open("xb") as target:
                while left:
                    left -= target.write(source.read(min(left, COPIED_BYTES)))
    spooled.unlink()


class _Parts:
    """A parser of a form. Parts named in ``file_fields`` go to disk; the others are small and stay in
    memory."""

    def __init__(self, boundary: bytes, max_form_bytes: int, file_fields: frozenset[str]) -> None:
        if not boundary:
            raise BadRequest("the multipart content type has no boundary")
        self._form_bytes_left = max_form_bytes
        self._file_fields = file_fields
        self._texts: dict[str, list[str]] = {}
        self._num_texts = 0
        self._disposition, self._header = bytearray(), bytearray()
        self._name, self._value = "", bytearray()
        self._is_document = False
        self._data = bytearray()
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header.clear,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise BadRequest("the multipart boundary cannot be used") from error

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(texts) for name, texts in self._texts.items()}

    def feed(self, chunk: bytes) -> bytearray:
        """Take a piece of the body, and return the part of it that belongs to documents."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest("the body is not well-formed multipart/form-data") from error
        data, self._data = self._data, bytearray()
        return data

    def finish(self) -> list[tuple[str, int]]:
        """Return the name and size of each document. Raise ``BadRequest`` if the form is incomplete."""
        if not self._ended:
            raise BadRequest("the multipart body ends before its last boundary")
        return list(zip(self._names, self._sizes, strict=True))

    def _spend(self, num_bytes: int) -> None:
        self._form_bytes_left -= num_bytes
        if self._form_bytes_left < 0:
            raise TooLarge("the form fields besides the files are too large")

    def _begin(self) -> None:
        self._disposition, self._value = bytearray(), bytearray()
        self._header.clear()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._spend(end - start)
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._spend(end - start)
        if self._header.lower() == b"content-disposition":
            self._disposition += data[start:end]

    def _headers_finished(self) -> None:
        _, parameters = parse_options_header(bytes(self._disposition))
        try:
            self._name = parameters[b"name"].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise BadRequest("a form part has no readable name") from error
        self._is_document = self._name in self._file_fields
        if self._is_document:
            if len(self._names) >= MAX_FILES:
                raise BadOption(f"a request may have {MAX_FILES} documents")
            filename = parameters.get(b"filename", b"").decode(errors="replace")
            self._names.append(filename[:MAX_FILENAME_CHARS])
            self._sizes.append(0)
            return
        if not parameters.keys().isdisjoint({b"filename", b"filename*"}):
            documents = " or ".join(sorted(self._file_fields))
            raise BadOption(f"{self._name[:80]} carries a file; documents go into {documents}")
        self._num_texts += 1
        if self._num_texts > 2 * MAX_FIELDS:
            raise BadRequest(f"the form has more than {2 * MAX_FIELDS} fields")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_document:
            self._data += memoryview(data)[start:end]
            self._sizes[-1] += end - start
            return
        self._spend(end - start)
        self._value += data[start:end]

    def _part_end(self) -> None:
        if self._is_document:
            return
        try:
            self._texts.setdefault(self._name, []).append(self._value.decode())
        except UnicodeDecodeError as error:
            raise BadOption(f"{self._name[:80]} is not UTF-8 text") from error

    def _end(self) -> None:
        self._ended = True
