"""Bytes -> pages, in a process of its own: this module is the program of that process.

It reads hostile files with C libraries, so it runs under limits, is asked for one page at a time, and may be
killed at any moment. Damage that it knows it names; what it does not expect ends it, and the parent reports
the page as unreadable. It imports neither torch nor pydantic: a fresh one is ready in a tenth of a second.

Choices: a PDF page is its CropBox, as viewers show it. Poppler 22 does not know UserUnit, so such a page is
rendered as if it were 1. An animated GIF, WebP or PNG is its first frame; a TIFF has all its pages. EXIF
orientation is applied, transparency lies on white. An image that does not decode to its end is refused, not
half read.
"""

import contextlib
import math
import os
import resource
import select
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pdf2image import convert_from_path, pdfinfo_from_path
from pdf2image.exceptions import PDFInfoNotInstalledError, PDFPageCountError
from PIL import Image, ImageOps

from app.document import Failure
from app.errors import EncryptedPdf, NotReady, ParseError, TooManyPixels, UnreadableFile, UnreadablePage
from app.frames import pack, read_frame_blocking
from app.processes import kill_group, when_orphaned

MIB = 2**20
MIN_DPI = 18.0
"""A page that fits the pixel limit only below this is larger than PDF allows pages to be: 200 inches."""
MAX_SIDE_PX = 30_000
MAX_TMP_FILE_BYTES = 64 * MIB
MAX_OPEN_FILES = 8
MAX_OPEN_PIXELS = 10_000_000
"""Of four bytes. A file whose page alone has more is opened for each page."""
OPEN_IDLE_S = 1.0
"""Without a request for so long, nothing stays open."""

MULTIPAGE_FORMATS = ("PDF", "TIFF")

# What Pillow and its plugins raise for damaged files, as seen. ``Exception`` would hide our defects.
DECODER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One page wanted. ``index`` is 0-based. Larger pages are scaled down to ``max_page_pixels``."""

    path: str
    format: str
    index: int
    dpi: int
    max_page_pixels: int
    max_image_pixels: int


def count_pages(path: str, file_format: str) -> int:
    """Pages the file says it has. Raise ``EncryptedPdf`` or ``UnreadableFile``."""
    if file_format == "PDF":
        return _count_pdf_pages(path)
    if file_format not in MULTIPAGE_FORMATS:
        return 1
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            return int(getattr(image, "n_frames", 1))
    except DECODER_ERRORS as error:
        raise UnreadableFile("the TIFF file is damaged") from error


def rasterize(request: PageRequest) -> Image.Image:
    """One RGB page, upright. Raise ``TooManyPixels``, ``UnreadablePage`` or ``UnreadableFile``."""
    unreadable = UnreadablePage if request.format in MULTIPAGE_FORMATS else UnreadableFile
    try:
        return _pdf_page(request) if request.format == "PDF" else _image_page(request)
    except MemoryError as error:
        raise unreadable("the page needs more memory than a page may use") from error
    except DECODER_ERRORS as error:
        raise unreadable(
            f"the {request.format} data is damaged or uses a variant that is not read"
        ) from error


def fitting_dpi(width_pt: float, height_pt: float, dpi: float, max_pixels: int) -> float:
    """The largest resolution up to ``dpi`` at which a page of this size is within limits, before rendering.

    Raise ``TooManyPixels`` for a page that no sensible resolution fits.
    """
    fitting = min(
        dpi,
        72 * math.sqrt(max_pixels / (width_pt * height_pt)),
        72 * MAX_SIDE_PX / max(width_pt, height_pt),
    )
    if fitting < min(MIN_DPI, dpi):
        raise TooManyPixels(f"the page is {width_pt / 72:.0f} x {height_pt / 72:.0f} inches")
    return fitting


def _count_pdf_pages(path: str) -> int:
    try:
        num_pages = int(pdfinfo_from_path(path)["Pages"])
    except PDFInfoNotInstalledError as error:
        raise NotReady("poppler is not installed") from error
    except PDFPageCountError as error:
        if "Incorrect password" in str(error):
            raise EncryptedPdf("the PDF cannot be opened without its password") from error
        raise UnreadableFile("the PDF is damaged beyond repair") from error
    if num_pages < 1:
        raise UnreadableFile("the PDF has no pages")
    return num_pages


def _pdf_page(request: PageRequest) -> Image.Image:
    number = request.index + 1
    width_pt, height_pt = _pdf_page_size(request.path, number)
    dpi = fitting_dpi(width_pt, height_pt, request.dpi, request.max_page_pixels)
    # the longer side in pixels, not the resolution: this bounds the picture whatever else the file says
    longer_px = max(1, round(max(width_pt, height_pt) * dpi / 72))
    images = convert_from_path(
        request.path, first_page=number, last_page=number, size=longer_px, use_cropbox=True
    )
    if len(images) != 1:
        raise UnreadablePage("poppler renders nothing for this page")
    image: Image.Image = images[0]
    image.load()
    return image


def _pdf_page_size(path: str, number: int) -> tuple[float, float]:
    """CropBox width and height in points, before rotation."""
    try:
        info = pdfinfo_from_path(path, first_page=number, last_page=number)
    except PDFPageCountError as error:
        raise UnreadablePage("the page is missing from the file") from error
    sizes = [str(value) for key, value in info.items() if key.split() == ["Page", str(number), "size"]]
    width, _, rest = (sizes[0] if sizes else "").partition(" x ")
    width_pt, height_pt = float(width), float(rest.partition(" ")[0])
    if not (math.isfinite(width_pt * height_pt) and width_pt > 0 and height_pt > 0):
        raise UnreadablePage("the page has no area")
    return width_pt, height_pt


def _image_page(request: PageRequest) -> Image.Image:
    with _opened.image(request.path, request.format) as image:
        if request.format in MULTIPAGE_FORMATS:
            image.seek(request.index)
        if image.width * image.height > request.max_image_pixels:
            raise TooManyPixels(f"the image has {image.width} x {image.height} pixels")
        scale = math.sqrt(request.max_page_pixels / (image.width * image.height))
        if scale < 1:
            image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
        image.load()
        return _fit(_rgb(_upright(image)), request.max_page_pixels)


class _Opened:
    """TIFF files of the last requests, open: a page is found by way of all pages before it, so that opening
    the file for each of them takes time in the square of their number.
    """

    def __init__(self) -> None:
        self._images: dict[tuple[str, int, int, int], Image.Image] = {}

    @contextlib.contextmanager
    def image(self, path: str, file_format: str) -> Iterator[Image.Image]:
        """The image, to be used before another one is asked for. What fails is opened anew the next time."""
        if file_format not in MULTIPAGE_FORMATS:
            with Image.open(path, formats=[file_format]) as image:
                yield image
            return
        status = Path(path).stat()
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        opened = self._images.pop(key, None) or self._open(path, file_format)
        try:
            yield opened
        except BaseException:
            opened.close()
            raise
        self._images[key] = opened
        self._close_oldest()

    def _open(self, path: str, file_format: str) -> Image.Image:
        # a file that was removed is not gone while it is open
        for key in [key for key in self._images if not Path(key[0]).exists()]:
            self._images.pop(key).close()
        return Image.open(path, formats=[file_format])

    def _close_oldest(self) -> None:
        """Each holds the pixels of its last page, too."""
        while len(self._images) > MAX_OPEN_FILES or self._num_pixels() > MAX_OPEN_PIXELS:
            self._images.pop(next(iter(self._images))).close()

    def _num_pixels(self) -> int:
        return sum(image.width * image.height for image in self._images.values())

    def close(self) -> None:
        while self._images:
            self._images.popitem()[1].close()


_opened = _Opened()


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DECODER_ERRORS:
        return image  # metadata that cannot be read says nothing about the picture


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits keep their scale; wider and floating samples have none, so their range becomes 0..255."""
    wide = image.convert("F")
    lowest, highest = wide.getextrema()
    if not (isinstance(lowest, float) and isinstance(highest, float) and math.isfinite(highest - lowest)):
        raise UnreadablePage("the samples of the image are no finite numbers")
    if image.mode.startswith("I") and lowest >= 0 and highest <= 65535:
        lowest, highest = 0.0, 65535.0
    span = highest - lowest or 1.0
    return wide.point(lambda sample: sample * (255 / span) + (-lowest * 255 / span)).convert("L")


def _fit(image: Image.Image, max_pixels: int) -> Image.Image:
    if image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _answer(message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    started = time.perf_counter()
    try:
        if message["op"] == "count":
            return {"pages": count_pages(message["path"], message["format"])}, b""
        image = rasterize(PageRequest(**message["page"]))
    except ParseError as error:
        return {"failure": asdict(Failure.of(error))}, b""
    milliseconds = (time.perf_counter() - started) * 1000
    return {"width": image.width, "height": image.height, "ms": milliseconds}, image.tobytes()


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
            _opened.close()
        if (message := read_frame_blocking(requests)) is None:
            return
        _limit(max_mib, cpu_s)
        header, pixels = _answer(message)
        answers.write(pack({**header, "num_bytes": len(pixels)}))
        answers.write(pixels)
        answers.flush()


def main() -> None:
    """``python -m app.rasterize MAX_MIB CPU_S``: requests on standard input, answers on standard output."""
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
