"""Forms and JSON bodies with several documents: whatever pieces they arrive in."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.documents.forms import Form, receive_form
from app.documents.nested import Named, Nested, receive_json
from app.errors import BadOption, BadRequest, ParseError, TooLarge, UnsupportedMediaType
from app.settings import Settings

BOUNDARY = "x-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    body = b""
    for name, filename, data in parts:
        own = "" if filename is None else f'; filename="{filename}"'
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{own}\r\n\r\n'.encode()
        body += data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


def paths_in(folder: Path) -> Callable[[], Path]:
    numbers = count()
    return lambda: folder / str(next(numbers))


def received(body: bytes, folder: Path, size: int = 10**6, content_type: str = FORM, **limits: int) -> Form:
    settings_ = Settings.model_validate(limits)
    chunks = pieces(body, size)
    fields = frozenset({"files"})
    return asyncio.run(
        receive_form(chunks, content_type, None, paths_in(folder), settings_, file_fields=fields)
    )


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.binary(max_size=200), max_size=4),
    texts=st.lists(st.text("abc,é", max_size=10), max_size=4),
    size=st.integers(1, 300),
)
def test_a_form_is_the_same_in_whatever_pieces_it_arrives(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], texts: list[str], size: int
) -> None:
    body = form(
        [("files", f"{number}.pdf", data) for number, data in enumerate(documents)]
        + [("to_formats", None, text.encode()) for text in texts]
    )
    found = received(body, tmp_path_factory.mktemp("form"), size)
    assert [file.path.read_bytes() for file in found.files] == documents
    assert [file.filename for file in found.files] == [f"{n}.pdf" for n in range(len(documents))]
    assert found.fields.get("to_formats", ()) == tuple(texts)


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (form([("files", "a", b"x")])[:-10], FORM, BadRequest),
        (form([("document", "a.pdf", b"x")]), FORM, BadOption),
        (form([("files", "a", b"x")] * 33), FORM, BadOption),
        (form([("files", "a", b"x" * 2**20), ("files", "b", b"x")]), FORM, TooLarge),
        (form([("option", None, b"x" * 20_000)]), FORM, TooLarge),
        (form([("option", None, b"\xff")]), FORM, BadOption),
        (b"{}", "application/json", UnsupportedMediaType),
    ],
)
def test_what_is_wrong_with_a_form_is_said(
    tmp_path: Path, body: bytes, content_type: str, error: type[ParseError]
) -> None:
    with pytest.raises(error):
        received(body, tmp_path, content_type=content_type, max_upload_mib=1, max_form_kib=16)


def nested(folder: Path, documents: list[Any], **limits: int) -> tuple[list[Nested], dict[str, Any]]:
    def take(body: dict[str, Any]) -> list[Named]:
        return [Named(**one) for one in body.pop("documents")]

    body = json.dumps({"documents": documents, "rest": 1}).encode()
    settings_ = Settings.model_validate(limits)
    receiving = receive_json(
        pieces(body, 5000), "application/json", len(body), paths_in(folder), settings_, take
    )
    return asyncio.run(receiving)


def test_documents_inside_json_are_written_to_files(tmp_path: Path) -> None:
    data = b"%PDF-1.7 \x00\xff" * 100
    text = base64.b64encode(data).decode()
    found, rest = nested(
        tmp_path,
        [
            {"base64": text, "filename": "a.pdf"},
            {"address": f"DATA:application/pdf;charset=x;base64,{text}"},
            {"address": "https://example.com/a.pdf"},
        ],
    )
    assert rest == {"rest": 1}
    assert [one.path and one.path.read_bytes() for one in found] == [data, data, None]
    assert [one.address for one in found] == [None, None, "https://example.com/a.pdf"]
    assert found[0].filename == "a.pdf"


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"address": "data:image/png,abc"}, BadOption),
        ({"address": "data:" + "x" * 300 + ";base64,AAAA"}, BadOption),
        ({"base64": "no base64!"}, BadOption),
        ({"base64": base64.b64encode(bytes(2**20 + 1)).decode()}, TooLarge),
    ],
)
def test_what_is_wrong_with_a_document_in_json_is_said(
    tmp_path: Path, document: dict[str, str], error: type[ParseError]
) -> None:
    with pytest.raises(error):
        nested(tmp_path, [document], max_upload_mib=1)
