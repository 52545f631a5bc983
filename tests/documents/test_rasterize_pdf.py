"""What a PDF says of itself is not believed for what poppler says of it."""

import io
from pathlib import Path

import pytest
from PIL import Image
from service_client import A4, pdf_bytes
from test_rasterize import image_of, read

from app.errors import EncryptedPdf, UnreadableFile, UnreadablePage


@pytest.mark.parametrize(
    "title",
    [
        "Contents\nPages: xxiv, 300",
        "Pages: 7\nPages: 9",
        "x\nPage    1 size: 9 x 9 pts",
        "x\nPage    1 size: a x b",
    ],
)
def test_titles_are_no_facts(tmp_path: Path, title: str) -> None:
    text = title.encode("utf-16-be").hex()
    assert image_of(tmp_path, pdf_bytes(A4, trailer=f"/Info<</Title<feff{text}>>>")).size == (595, 842)


def test_a_pdf_for_owners_of_a_certificate_is_not_called_damaged(tmp_path: Path) -> None:
    encrypted = "/Encrypt<</Filter/Adobe.PubSec/SubFilter/adbe.pkcs7.s4/V 2>>"
    [result] = read(tmp_path, pdf_bytes(A4, trailer=encrypted))
    assert isinstance(result, EncryptedPdf)


def test_a_pdf_without_pages_is_told_so(tmp_path: Path) -> None:
    empty = pdf_bytes(A4, count=0).replace(b"3 0 R", b"     ")
    [result] = read(tmp_path, empty)
    assert isinstance(result, UnreadableFile)
    assert "no pages" in str(result)


def scanned(shade: int, *, is_damaged: bool) -> bytes:
    """A PDF of one picture, whose coded data is noise if damaged."""
    made = io.BytesIO()
    Image.new("L", (300, 400), shade).save(made, "PDF")
    data = made.getvalue()
    begin = data.index(b"\xff\xd8", data.index(b"/DCTDecode"))
    end = data.index(b"endstream", begin)
    return data[:begin] + b"\x55" * (end - begin) + data[end:] if is_damaged else data


def test_a_picture_that_cannot_be_decoded_is_no_blank_page(tmp_path: Path) -> None:
    [damaged] = read(tmp_path, scanned(0, is_damaged=True))
    assert isinstance(damaged, UnreadablePage)
    assert image_of(tmp_path, scanned(0, is_damaged=False)).getpixel((150, 200)) == (0, 0, 0)


def test_a_blank_page_is_one_in_a_damaged_file_too(tmp_path: Path) -> None:
    blank = scanned(255, is_damaged=False)
    for data in (blank, blank[: blank.rindex(b"xref") - len("start")]):
        assert image_of(tmp_path, data).getpixel((150, 200)) == (255, 255, 255)


def test_a_page_that_shows_something_is_read_whatever_else_is_damaged(tmp_path: Path) -> None:
    data = scanned(0, is_damaged=True)
    begin = data.index(b"q ", data.index(b"endstream"))
    end = data.index(b"endstream", begin)
    drawn = b"/image Do 0 0 50 50 re f".ljust(end - begin - 1) + b"\n"
    image = image_of(tmp_path, data[:begin] + drawn + data[end:])
    assert image.getpixel((10, image.height - 10)) == (0, 0, 0)
