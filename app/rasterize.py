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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageMath, ImageOps

from app.document import Failure
from app.errors import ParseError, TooManyPixels, UnreadableFile, UnreadablePage
from app.frames import pack, read_frame_blocking
from app.poppler import count_pdf_pages, pdf_page_size, render_pdf_page
from app.processes import kill_group, when_orphaned
from app.tiff import OpenTiffs, page_frames

MIB = 2**20
MIN_DPI = 18.0
"""A page that fits the pixel limit only below this is larger than PDF allows pages to be: 200 inches."""
MAX_SIDE_PX = 30_000
MAX_TMP_FILE_BYTES = 64 * MIB
OPEN_IDLE_S = 1.0
"""Without a request for so long, nothing stays open."""

BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
PLANAR, SEPARATE, SAMPLE_FORMAT, UNSIGNED = 284, 2, 339, 1
"""Tags of TIFF, and values of theirs."""

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
        return count_pdf_pages(path)
    if file_format not in MULTIPAGE_FORMATS:
        return 1
    try:
        with Path(path).open("rb") as file, Image.open(file, formats=["TIFF"]):
            return len(page_frames(file))
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


def _pdf_page(request: PageRequest) -> Image.Image:
    number = request.index + 1
    width_pt, height_pt = pdf_page_size(request.path, number)
    dpi = fitting_dpi(width_pt, height_pt, request.dpi, request.max_page_pixels)
    # the longer side in pixels, not the resolution: this bounds the picture whatever else the file says
    return render_pdf_page(request.path, number, max(1, round(max(width_pt, height_pt) * dpi / 72)))


def _image_page(request: PageRequest) -> Image.Image:
    with _opened(request) as image:
        if image.width * image.height > request.max_image_pixels:
            raise TooManyPixels(f"the image has {image.width} x {image.height} pixels")
        scale = math.sqrt(request.max_page_pixels / (image.width * image.height))
        if scale < 1:
            image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
        tags = getattr(image, "tag_v2", {})
        is_wide = tags.get(BITS_PER_SAMPLE, (8,))[0] > 8
        if is_wide and tags.get(PLANAR) == SEPARATE and len(image.getbands()) > 1:
            raise UnreadablePage(
                "samples of more than 8 bits are not read where each colour has its own plane"
            )
        image.load()
        return _fit(_rgb(_upright(image), tags), request.max_page_pixels)


_tiffs = OpenTiffs()


@contextlib.contextmanager
def _opened(request: PageRequest) -> Iterator[Image.Image]:
    if request.format == "TIFF":
        with _tiffs.page(request.path, request.index) as image:
            yield image
    else:
        with Image.open(request.path, formats=[request.format]) as image:
            yield image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DECODER_ERRORS:
        return image  # metadata that cannot be read says nothing about the picture


def _rgb(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, tags)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Up to 16 bits keep their scale; wider and floating samples have none, so their range becomes 0..255."""
    wide = image.convert("F")
    if (
        image.mode == "I"
        and tags.get(BITS_PER_SAMPLE) == (32,)
        and tags.get(SAMPLE_FORMAT, (1,)) == (UNSIGNED,)
    ):
        # Pillow takes them for signed ones
        wide = ImageMath.lambda_eval(lambda bands: bands["wide"] + (bands["wide"] < 0) * 2.0**32, wide=wide)
    lowest, highest = wide.getextrema()
    if not (isinstance(lowest, float) and isinstance(highest, float) and math.isfinite(highest - lowest)):
        raise UnreadablePage("the samples of the image are no finite numbers")
    if image.mode.startswith("I") and lowest >= 0 and highest <= 65535:
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        lowest, highest = 0.0, 4095.0 if bits == 12 else 65535.0
    span = highest - lowest or 1.0
    grey = wide.point(lambda sample: sample * (255 / span) + (-lowest * 255 / span)).convert("L")
    # Pillow turns samples whose least is white only where they have eight bits or fewer
    return ImageOps.invert(grey) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey


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
            _tiffs.close()
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
