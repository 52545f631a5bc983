"""What a PDF says of itself is not believed for what poppler says of it."""

from pathlib import Path

import pytest
from service_client import A4, pdf_bytes
from test_rasterize import image_of, read

from app.errors import EncryptedPdf, UnreadableFile


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
