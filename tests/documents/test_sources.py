"""Uploads taken apart piece by piece, whatever the pieces; formats told by content."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_client import image_bytes, pdf_bytes

from app.document import PageSelection
from app.documents.formats import sniff
from app.documents.sources import Upload, receive
from app.errors import (
    BadOption,
    BadRequest,
    EmptyFile,
    NotAcceptable,
    PageNotFound,
    ParseError,
    TooLarge,
    UnsupportedFormat,
)
from app.http.negotiation import negotiate
from app.settings import Settings

SETTINGS = Settings(max_upload_mib=1, max_form_kib=4)
MULTIPART = "multipart/form-data; boundary=xx"


async def _pieces(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        yield body[start:end]


def upload(path: Path, body: bytes, content_type: str, cuts: list[int] | None = None) -> tuple[Upload, bytes]:
    path.unlink(missing_ok=True)
    received = asyncio.run(receive(_pieces(body, cuts or []), content_type, None, path, SETTINGS))
    return received, path.read_bytes()


def form(data: bytes, **fields: str) -> bytes:
    parts = [
        *(
            f'--xx\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ),
        b'--xx\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + data + b"\r\n",
    ]
    return b"".join(parts) + b"--xx--\r\n"


@pytest.mark.parametrize("where", ["before", "after"])
def test_bytes_that_are_no_file_count_as_the_body_does(tmp_path: Path, where: str) -> None:
    rest = b"x" * (2 * 2**20)
    body = form(b"GIF89a") + rest if where == "after" else rest + b"\r\n" + form(b"GIF89a")
    # in pieces, as a body without a length comes
    with pytest.raises((TooLarge, BadRequest)):
        upload(tmp_path / "form", body, MULTIPART, list(range(0, len(body), 65_536)))


def test_a_json_body_is_limited_too(tmp_path: Path) -> None:
    body = b'{"file": "R0lGODlh"}' + b" " * (16 * 2**20)
    with pytest.raises(TooLarge):
        upload(tmp_path / "json", body, "application/json", list(range(0, len(body), 65_536)))


CUTS = st.lists(st.integers(0, 10_000), max_size=40)
FILES = st.binary(max_size=300).map(lambda tail: b"GIF89a" + tail)


@settings(deadline=None)
@given(FILES, CUTS)
def test_a_form_is_the_same_in_any_pieces(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "form"
    received, stored = upload(path, form(data, mode="tiny"), MULTIPART, cuts)
    assert stored == data
    assert received.source is not None
    assert (received.fields, received.from_form, received.source.format) == ({"mode": "tiny"}, True, "GIF")


@settings(deadline=None)
@given(
    FILES,
    CUTS,
    st.sampled_from(["plain", "escaped", "unicode", "lines"]),
    st.dictionaries(
        st.text(max_size=5).filter(lambda key: key != "file"),
        st.integers() | st.text(max_size=9) | st.none(),
        max_size=4,
    ),
)
def test_json_is_the_same_in_any_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    cuts: list[int],
    spelling: str,
    fields: dict[str, Any],
) -> None:
    text = base64.b64encode(data).decode()
    spelled = {
        "plain": text,
        "escaped": text.replace("/", "\\/"),
        "unicode": "".join(f"\\u{ord(char):04x}" for char in text),
        "lines": "\\r\\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
    }[spelling]
    rest = json.dumps(fields)
    body = f'{rest[:-1]}{", " if fields else ""}"file" :\n"{spelled}"}}'.encode()
    path = tmp_path_factory.getbasetemp() / "json"
    received, stored = upload(path, body, "application/json; charset=utf-8", cuts)
    assert stored == data
    assert (received.fields, received.from_form) == (fields, False)


@settings(deadline=None)
@given(
    st.binary(max_size=200) | st.text(st.sampled_from('{}[]",:\\file 1u0041=A'), max_size=60).map(str.encode),
    CUTS,
)
def test_arbitrary_bodies_give_typed_errors(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, cuts: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    for content_type in ("application/json", MULTIPART, "multipart/form-data", "text/plain", ""):
        try:
            upload(path, body, content_type, cuts)
        except ParseError as error:
            assert error.status in {400, 413, 415, 422}  # noqa: PT017


def test_a_file_called_file_elsewhere_is_no_file(tmp_path: Path) -> None:
    body = b'{"x": {"file": "AAAA"}, "y": "file", "file": "R0lGODlh"}'
    received, stored = upload(tmp_path / "x", body, "application/json")
    assert stored == b"GIF89a"
    assert received.fields == {"x": {"file": "AAAA"}, "y": "file"}


@pytest.mark.parametrize(
    ("head", "file_format"),
    [
        (image_bytes("PNG"), "PNG"),
        (image_bytes("JPEG"), "JPEG"),
        (image_bytes("WEBP"), "WEBP"),
        (image_bytes("TIFF"), "TIFF"),
        (image_bytes("TIFF", big_tiff=True), "TIFF"),
        (image_bytes("BMP"), "BMP"),
        (image_bytes("GIF"), "GIF"),
        (pdf_bytes(), "PDF"),
        (b"junk\n" * 200 + pdf_bytes(), "PDF"),
    ],
)
def test_what_is_read(head: bytes, file_format: str) -> None:
    assert sniff(head) == file_format


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"PK\x03\x04" + b"word/ %PDF-1.4", "docx"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'>", "SVG"),
        (b"<!DOCTYPE html>", "HTML"),
        (image_bytes("PPM"), "Netpbm"),
        (b"{\\rtf1", "RTF"),
        ("\ufeffGrüße".encode(), "text"),
        (bytes(50), "no known"),
        (b"junk\n" * 300 + b"%PDF-1.7", "text"),
    ],
)
def test_what_is_not_read_is_named(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=name):
        sniff(head)


def test_an_empty_file_is_one() -> None:
    with pytest.raises(EmptyFile):
        sniff(b"")


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_sniffing_never_fails_otherwise(head: bytes) -> None:
    try:
        sniff(head)
    except (UnsupportedFormat, EmptyFile):
        return


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("1", [0]),
        ("1-3,7", [0, 1, 2, 6]),
        ("7, 1-3", [0, 1, 2, 6]),
        ("2,2,1-2", [0, 1]),
        ("9-", [8, 9]),
        ("1-10", list(range(10))),
        ("3-4,5,6-7", [2, 3, 4, 5, 6]),
    ],
)
def test_page_selection(text: str, pages: list[int]) -> None:
    assert [index for pages in PageSelection.parse(text).within(10) for index in pages] == pages


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), min_size=1, max_size=20))
def test_selected_ranges_are_disjoint_and_ascend(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + length}" for first, length in ranges)
    selected = PageSelection.parse(text).within(100)
    indices = [index for pages in selected for index in pages]
    assert indices == sorted(
        {index for first, length in ranges for index in range(first - 1, first + length)}
    )


@pytest.mark.parametrize(
    "text", ["", "0", "a", "1-2-3", "-3", "3-1", "1,,2", "1.5", "²", "1" * 2000, "9999999999"]
)
def test_bad_page_selections(text: str) -> None:
    with pytest.raises(BadOption, match="pages"):
        PageSelection.parse(text)


@pytest.mark.parametrize("text", ["11", "1-11", "11-", "1-999999999"])
def test_pages_that_do_not_exist(text: str) -> None:
    with pytest.raises(PageNotFound, match="10"):
        PageSelection.parse(text).within(10)


OFFERS = ("application/json", "text/markdown", "text/plain")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/*", "text/markdown"),
        ("text/plain", "text/plain"),
        ("text/html, text/markdown;q=0.3, */*;q=0.1", "text/markdown"),
        ("application/json;q=0.5, text/plain", "text/plain"),
        ("*/*, application/json;q=0", "text/markdown"),
        ("TEXT/Markdown; Q=1.0; charset=utf-8", "text/markdown"),
        ("text/markdown;q=banana", "text/markdown"),
    ],
)
def test_negotiation(accept: str | None, chosen: str) -> None:
    assert negotiate(accept, OFFERS) == chosen


@pytest.mark.parametrize("accept", ["image/png", "text/html;q=1", "*/*;q=0", "application/json;q=0"])
def test_nothing_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        negotiate(accept, OFFERS)
