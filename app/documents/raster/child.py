"""Turn bytes into pages, inside a confined process (``app.documents.raster.confined``).

It reads hostile files with C libraries, so the process runs under limits and may be killed at any moment.
Known kinds of damage get a named error. Anything unexpected ends the process, and the parent reports the
page as unreadable.

A PDF page is its CropBox, as viewers show it. Poppler 22 does not know UserUnit, so such a page is rendered
as if it were 1.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from app.document import Page
from app.documents.raster.images import DECODER_ERRORS, image_page
from app.documents.raster.pdf import pdf_page
from app.documents.raster.poppler import count_pdf_pages
from app.documents.raster.tiff import has_floating_samples, page_frames
from app.errors import UnreadableFile, UnreadablePage

MULTIPAGE_FORMATS = ("PDF", "TIFF")
FLOATING = "the samples of the TIFF are floating point numbers of a kind that is not read"


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for one page. ``index`` is 0-based. Larger pages are scaled down to ``max_page_pixels``.

    ``dpi``: resolution of a PDF page; ``None``: chosen from the page. ``is_first``: the page is the first one
    read of its document, so it carries the warnings about the whole document. ``follows_print``: measure the
    print of a PDF page in its text layer, and choose a higher resolution where it is small.
    ``places_words``: tell where its words are.
    """

    path: str
    format: str
    index: int
    dpi: int | None
    max_page_pixels: int
    max_image_pixels: int
    is_first: bool = False
    follows_print: bool = False
    places_words: bool = False


def count_pages(path: str, file_format: str) -> int:
    """Return the number of pages that a file says it has. Raise ``EncryptedPdf`` or ``UnreadableFile``."""
    if file_format == "PDF":
        return count_pdf_pages(path)
    if file_format not in MULTIPAGE_FORMATS:
        return 1
    try:
        with Path(path).open("rb") as file, Image.open(file, formats=["TIFF"]):
            return len(page_frames(file))
    except DECODER_ERRORS as error:
        detail = FLOATING if has_floating_samples(path, 0) else "the TIFF file is damaged"
        raise UnreadableFile(detail) from error


def rasterize(request: PageRequest) -> Page:
    """Return one RGB page, upright. Raise ``TooManyPixels``, ``UnreadablePage`` or ``UnreadableFile``."""
    unreadable = UnreadablePage if request.format in MULTIPAGE_FORMATS else UnreadableFile
    try:
        if request.format == "PDF":
            return pdf_page(
                request.path,
                request.index,
                request.dpi,
                request.max_page_pixels,
                is_first=request.is_first,
                follows_print=request.follows_print,
                places_words=request.places_words,
            )
        return image_page(
            request.path,
            request.format,
            request.index,
            max_image_pixels=request.max_image_pixels,
            max_pixels=request.max_page_pixels,
        )
    except MemoryError as error:
        raise unreadable("the page needs more memory than a page may use") from error
    except DECODER_ERRORS as error:
        if request.format == "TIFF" and has_floating_samples(request.path, request.index):
            detail = FLOATING
        else:
            detail = f"the {request.format} data is damaged or uses a variant that is not read"
        raise unreadable(detail) from error
