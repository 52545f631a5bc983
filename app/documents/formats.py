"""Recognise a document's format by its first bytes alone: names and content types lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import features

from app.errors import EmptyFile, UnsupportedFormat

Format = Literal["PDF", "PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000"]


@dataclass(frozen=True, slots=True)
class Source:
    """A document stored on our disk."""

    path: Path
    format: Format


SNIFF_BYTES = 4096
PDF_HEADER_WITHIN_BYTES = 1024

MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
OPTIONAL: dict[Format, tuple[str, str]] = {"AVIF": ("avif", "AVIF"), "JPEG2000": ("jpg_2000", "JPEG 2000")}
"""Formats that Pillow reads only if it was built with them: names of the feature and of the format."""
READ = "PDF, PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF and JPEG 2000"
UNSUPPORTED_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive, or a document in one (docx, xlsx, pptx, odt, epub)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (doc, xls, ppt)"),
    (b"{\\rtf", "an RTF document"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"AT&TFORM", "DjVu"),
    (b"%!PS", "PostScript"),
    (b"\x1f\x8b", "gzip data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
MEDIA_BRANDS: dict[bytes, str] = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"heif": "HEIF",
}
AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"mif1", b"msf1"})
"""Brands that do not tell the coding. The compatible brands of the file do."""


def sniff_file(path: Path) -> Source:
    """Tell a file's format from its first bytes. Raise ``EmptyFile`` or ``UnsupportedFormat``."""
    with path.open("rb") as file:
        return Source(path, sniff(file.read(SNIFF_BYTES)))


def sniff(head: bytes) -> Format:
    """Return the format that begins with ``head``, the first ``SNIFF_BYTES`` of a file."""
    if not head:
        raise EmptyFile("the file has no bytes")
    for magic, image_format in MAGIC:
        if head.startswith(magic):
            return _readable(image_format)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if _is_avif(head):
        return _readable("AVIF")
    unsupported = _unsupported(head)
    if unsupported is None and b"%PDF-" in head[:PDF_HEADER_WITHIN_BYTES]:
        return "PDF"
    looks_like = unsupported or _text_or_unknown(head)
    raise UnsupportedFormat(f"the file looks like {looks_like}; {READ} are read")


def _readable(image_format: Format) -> Format:
    """Return the format. Raise ``UnsupportedFormat`` if Pillow was built without it."""
    if image_format in OPTIONAL:
        feature, name = OPTIONAL[image_format]
        if not features.check(feature):
            raise UnsupportedFormat(f"the file looks like {name}, which Pillow was built without here")
    return image_format


def _is_avif(head: bytes) -> bool:
    if head[4:8] != b"ftyp":
        return False
    brand, end = head[8:12], int.from_bytes(head[:4], "big")
    compatible = {head[at : at + 4] for at in range(16, min(end, len(head)), 4)}
    return brand in AVIF_BRANDS or (brand in HEIF_BRANDS and not AVIF_BRANDS.isdisjoint(compatible))


def _unsupported(head: bytes) -> str | None:
    for magic, name in UNSUPPORTED_MAGIC:
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        return MEDIA_BRANDS.get(head[8:12], "a video or audio file")
    if head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3].isspace():
        return "a Netpbm image"
    return None


def _text_or_unknown(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if text.startswith(b"<?xml"):
        return "XML"
    return "text" if b"\0" not in head and _is_utf8(head) else "no known kind of document"


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # the sniffed part may end inside a character
    return True
