"""Bytes -> pages, in a process of its own: this module is the program of that process.

It reads hostile files with C libraries, so it runs under limits, is asked for one page at a time, and may be
killed at any moment. Damage that it knows it names; what it does not expect ends it, and the parent reports
the page as unreadable. It imports neither torch nor pydantic: a fresh one is ready in a tenth of a second.

A PDF page is its CropBox, as viewers show it. Poppler 22 does not know UserUnit, so such a page is rendered
as if it were 1.
"""

import math
import os
import resource
import select
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from app.document import Failure, Page
from app.documents.raster.images import DECODER_ERRORS, image_page, open_tiffs
from app.documents.raster.ipc import pack, read_frame_blocking
from app.documents.raster.pdf import pdf_page
from app.documents.raster.poppler import count_pdf_pages
from app.documents.raster.tiff import has_floating_samples, page_frames
from app.errors import ParseError, UnreadableFile, UnreadablePage
from app.processes import kill_group, when_orphaned

MIB = 2**20
MAX_TMP_FILE_BYTES = 64 * MIB
OPEN_IDLE_S = 1.0
"""Without a request for so long, nothing stays open."""

MULTIPAGE_FORMATS = ("PDF", "TIFF")
FLOATING = "the samples of the TIFF are floating point numbers of a kind that is not read"


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One page wanted. ``index`` is 0-based. Larger pages are scaled down to ``max_page_pixels``.

    ``dpi``: resolution of a PDF page; ``None``: chosen from the page. ``is_first``: of those that are read of
    its document, so that the page carries what is to be said of the whole.
    """

    path: str
    format: str
    index: int
    dpi: int | None
    max_page_pixels: int
    max_image_pixels: int
    is_first: bool = False


def count_pages(path: str, file_format: str) -> int:
    """Pages the file says it has. Raise ``EncryptedPdf`` or ``UnreadableFile``."""
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
    """One RGB page, upright. Raise ``TooManyPixels``, ``UnreadablePage`` or ``UnreadableFile``."""
    unreadable = UnreadablePage if request.format in MULTIPAGE_FORMATS else UnreadableFile
    try:
        if request.format == "PDF":
            limit = request.max_page_pixels
            return pdf_page(request.path, request.index, request.dpi, limit, is_first=request.is_first)
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


def _answer(message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    started = time.perf_counter()
    try:
        if message["op"] == "count":
            return {"pages": count_pages(message["path"], message["format"])}, b""
        page = rasterize(PageRequest(**message["page"]))
    except ParseError as error:
        return {"failure": asdict(Failure.of(error))}, b""
    said = {
        "width": page.image.width,
        "height": page.image.height,
        "ms": (time.perf_counter() - started) * 1000,
        "dpi": page.dpi,
        "words": page.words,
        "warnings": [asdict(warning) for warning in page.warnings],
    }
    return said, page.image.tobytes()


def _limit(max_mib: int, cpu_s: int) -> None:
    """Limits of this process and of poppler, which inherits them.

    CPU seconds add up over this process's life, so the soft limit moves on before each page. No RLIMIT_NPROC:
    it counts all of the user's processes and the model's threads, so a limit that matters stops the service.
    """
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used_s) + cpu_s, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (max_mib * MIB, max_mib * MIB))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_TMP_FILE_BYTES, MAX_TMP_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(requests: BinaryIO, answers: BinaryIO, max_mib: int, cpu_s: int) -> None:
    while True:
        # nothing can be in the buffer: who asks waits for the answer before asking again
        if not select.select([requests], [], [], OPEN_IDLE_S)[0]:
            open_tiffs.close()
        if (message := read_frame_blocking(requests)) is None:
            return
        _limit(max_mib, cpu_s)
        header, pixels = _answer(message)
        answers.write(pack({**header, "num_bytes": len(pixels)}))
        answers.write(pixels)
        answers.flush()


def main() -> None:
    """``python -m app.documents.raster.child MAX_MIB CPU_S``: requests on stdin, answers on stdout."""
    max_mib, cpu_s = int(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    when_orphaned(0, lambda: kill_group(os.getpid()))
    # Our own limit is checked before decoding; Pillow's warning at half of its own would only be noise.
    Image.MAX_IMAGE_PIXELS = None
    warnings.simplefilter("ignore")  # one damaged file can cause thousands of lines
    _serve(os.fdopen(0, "rb"), answers, max_mib, cpu_s)


if __name__ == "__main__":
    main()
