"""Read forms as clients of other services send them: several named documents, and fields that are lists."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from python_multipart.multipart import parse_options_header

from app.documents.sources import Body, Multipart, SpooledFile
from app.errors import BadOption, UnsupportedMediaType
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Form:
    """The contents of a form: its files in order, and the texts of each field."""

    files: tuple[SpooledFile, ...]
    fields: Mapping[str, tuple[str, ...]]


async def receive_form(
    chunks: AsyncIterator[bytes],
    content_type: str,
    content_length: int | None,
    place: Callable[[], Path],
    settings: Settings,
    *,
    file_fields: frozenset[str],
) -> Form:
    """Spool the files of a form. ``place``: gives a path for each; ``file_fields``: names of their parts.

    Together they may be as large as one file. Raise ``TooLarge``, ``UploadTimeout`` or the form's own
    error.
    """
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType("send multipart/form-data")
    max_form_bytes = settings.max_form_kib * 1024
    body = Body(chunks, settings, settings.max_upload_bytes + max_form_bytes, content_length)
    boundary, first = parameters.get(b"boundary", b""), place()
    form = Multipart(boundary, max_form_bytes, first, settings, place, file_fields, has_lists=True)
    await body.spool(first, form.feed)
    form.finish()
    if form.has_file:
        raise BadOption(f"documents go into {' or '.join(sorted(file_fields))}, not into file")
    return Form(form.several, form.lists)
