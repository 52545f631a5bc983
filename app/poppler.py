"""PDF pages by poppler's programs, which run in the rasterizer's process group and under its limits.

What ``pdfinfo`` says of a PDF is told from what the PDF says of itself: title and author come first in its
output, as they are, and with line breaks in them look like any other line. So the last that fits is believed.
"""

import io
import math
import re
import subprocess

from pdf2image import convert_from_path
from pdf2image.exceptions import PDFPageCountError
from PIL import Image

from app.errors import EncryptedPdf, NotReady, UnreadableFile, UnreadablePage

SAME_SHADE = 16
"""Shades of 256 that differ no more show nothing: JPEG's noise on white paper is less."""
SMALL_PX = 64
"""A page is decoded whole however small it is rendered."""


def count_pdf_pages(path: str) -> int:
    """Pages the file says it has, at least one. Raise ``EncryptedPdf`` or ``UnreadableFile``."""
    said, complaints = _run("pdfinfo", path)
    counts = re.findall(rb"^Pages: +([0-9]+)$", said, re.MULTILINE)
    if counts and int(counts[-1]) > 0:
        return int(counts[-1])
    if b"Incorrect password" in complaints:
        raise EncryptedPdf("the PDF cannot be opened without its password")
    if b"security handler" in complaints:
        raise EncryptedPdf("the PDF is encrypted by other means than a password")
    if counts or b"after the last page (0)" in complaints:
        raise UnreadableFile("the PDF has no pages")
    raise UnreadableFile("the PDF is damaged beyond repair")


def pdf_page_size(path: str, number: int) -> tuple[float, float]:
    """CropBox width and height in points, before rotation; pages count from 1. Raise ``UnreadablePage``."""
    said, _ = _run("pdfinfo", *_only(number), path)
    sizes = re.findall(rb"^Page +%d size: +(\S+) x (\S+) pts" % number, said, re.MULTILINE)
    if not sizes:
        raise UnreadablePage("the page is missing from the file")
    width_pt, height_pt = map(float, sizes[-1])
    if not (math.isfinite(width_pt * height_pt) and width_pt > 0 and height_pt > 0):
        raise UnreadablePage("the page has no area")
    return width_pt, height_pt


def render_pdf_page(path: str, number: int, longer_px: int) -> Image.Image:
    """A page as viewers show it, its longer side so many pixels. Raise ``UnreadablePage``."""
    try:
        images = convert_from_path(
            path, first_page=number, last_page=number, size=longer_px, use_cropbox=True
        )
    except PDFPageCountError:  # pdf2image believes every line that begins with "Pages:", a title's too
        images = _rendered(path, number, longer_px)
    if len(images) != 1:
        raise UnreadablePage("poppler renders nothing for this page")
    image: Image.Image = images[0]
    image.load()
    if _is_empty(image) and _is_damaged(path, number):
        raise UnreadablePage("poppler shows nothing of this page, whose data is damaged")
    return image


def _is_empty(image: Image.Image) -> bool:
    shades = [shade for shade, count in enumerate(image.convert("L").histogram()) if count]
    return shades[-1] - shades[0] <= SAME_SHADE


def _is_damaged(path: str, number: int) -> bool:
    """Whether rendering the page brings complaints that reading the file does not: poppler goes on without
    what it cannot decode, a page's only picture too.
    """
    _, of_file = _run("pdfinfo", *_only(number), path)
    _, of_page = _run("pdftoppm", *_only(number), "-scale-to", str(SMALL_PX), "-cropbox", path)
    complaints = set(of_page.splitlines()) - set(of_file.splitlines())
    return any(b"Warning" not in complaint for complaint in complaints)


def _rendered(path: str, number: int, longer_px: int) -> list[Image.Image]:
    pixels, _ = _run("pdftoppm", *_only(number), "-scale-to", str(longer_px), "-cropbox", path)
    return [Image.open(io.BytesIO(pixels), formats=["PPM"])] if pixels else []


def _only(number: int) -> tuple[str, ...]:
    return "-f", str(number), "-l", str(number)


def _run(*command: str) -> tuple[bytes, bytes]:
    """Standard output and standard error."""
    try:
        # paths of ours begin with a slash: none is an option
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    except FileNotFoundError as error:
        raise NotReady("poppler is not installed") from error
    return done.stdout, done.stderr
