"""Turn an image file into one RGB page: upright, with square pixels, on a ground that shows its print.

An animated GIF, WebP, AVIF or PNG gives its first frame; a TIFF has all its pages. EXIF orientation is
applied. An image that does not decode to its end is refused, not half read.
"""

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageMath, ImageOps, ImageStat
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from app.document import Page, PageWarning
from app.documents.raster.tiff import OpenTiff
from app.errors import TooManyPixels, UnreadablePage

BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO, ORIENTATION = 258, 262, 0, 274
X_RESOLUTION, Y_RESOLUTION = 282, 283
PLANAR, SEPARATE, SAMPLE_FORMAT, UNSIGNED = 284, 2, 339, 1
"""TIFF tags and some of their values."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations whose stored rows are columns of the picture."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes a picture of each orientation upright."""
WIDE = ("I", "F")
"""Beginnings of names of modes whose samples have more than eight bits."""
STRIP_PIXELS = 4_000_000
FILTER_ROWS = 3  # rows that Lanczos reads on either side, in rows of the smaller picture

HEAD_BYTES = 2**16
"""How much of a file to read to find the size of the picture."""
MIN_STRETCH, MAX_STRETCH = 1.1, 4.0
"""Range of aspect ratios of pixels that are believed.

Fax has 204 x 98 or 204 x 391 dpi; beyond, the numbers are junk.
"""
CLEARLY_CLEARER = 2.0
"""How many times more contrast a dark ground must give than a white one to be chosen."""
READABLE_PX = 1500
"""Longer side of an A4 page at 128 dpi."""
CLEARLY_MORE = 1.3

# What Pillow and its plugins were seen to raise for damaged files. ``Exception`` would hide our defects.
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

open_tiff = OpenTiff()


def image_page(path: str, file_format: str, index: int, *, max_image_pixels: int, max_pixels: int) -> Page:
    """Read one page of an image file.

    Raise ``TooManyPixels`` before decoding, or one of ``DECODER_ERRORS``.
    """
    _check_size(_announced_size(path, file_format), max_image_pixels)
    with _opened(path, file_format, index) as image:
        _check_size(image.size, max_image_pixels)
        size = image.size
        scale = math.sqrt(max_pixels / (image.width * image.height))
        if scale < 1:
            image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
        if isinstance(image, Jpeg2KImageFile) and scale < 0.5:  # its decoder takes 16 bytes a pixel
            image.reduce = min(_num_halvings(path), int(-math.log2(scale)))
        tags = getattr(image, "tag_v2", {})
        is_wide = tags.get(BITS_PER_SAMPLE, (8,))[0] > 8
        if is_wide and tags.get(PLANAR) == SEPARATE and len(image.getbands()) > 1:
            raise UnreadablePage(
                "samples of more than 8 bits are not read where each colour has its own plane"
            )
        wider, higher = _stretch(image, tags)
        if tags.get(ORIENTATION) in SIDEWAYS:  # Pillow rotates a TIFF when it loads it
            wider, higher = higher, wider
        image.load()
        turn = None if tags else TURNS.get(_orientation(image))
        fitting = _fit(image, tags, wider, higher, max_pixels)
    page = _on_ground(fitting if turn is None else fitting.transpose(turn))
    warnings: tuple[PageWarning, ...] = ()
    if loses_detail(max(size), max(page.size)):
        detail = f"The image has {size[0]} x {size[1]} pixels and was read at {page.width} x {page.height}."
        warnings = (PageWarning("low_resolution", detail),)
    return Page(index, page, warnings=warnings)


def loses_detail(own_px: float, shown_px: int) -> bool:
    """Tell whether a picture is shown with so many fewer pixels that print may be lost."""
    return own_px > CLEARLY_MORE * shown_px and shown_px < READABLE_PX


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooManyPixels(f"the image has {width} x {height} pixels")


def _announced_size(path: str, file_format: str) -> tuple[int, int]:
    """Return the size in a file's header if its decoder allocates memory when it opens the file; else (0,
    0)."""
    if file_format not in {"WEBP", "AVIF"}:
        return 0, 0
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    return _webp_size(head) if file_format == "WEBP" else _avif_size(head)


def _num_halvings(path: str) -> int:
    """Return how often a JPEG 2000 picture can be halved while it is decoded."""
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    at = head.find(b"\xff\x4f\xff\x51") + 2  # the first segment; a later one has the coding styles
    while head[at : at + 1] == b"\xff" and head[at : at + 2] not in {b"\xff\x52", b"\xff\x90"}:
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return head[at + 9] if head[at : at + 2] == b"\xff\x52" and at + 9 < len(head) else 0


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _avif_size(head: bytes) -> tuple[int, int]:
    """Return the largest size in the header, because tiles, thumbnails and the alpha plane have sizes too."""
    sizes = [struct.unpack(">II", part[4:12]) for part in head.split(b"ispe")[1:] if len(part) >= 12]
    return max(((width, height) for width, height in sizes), key=math.prod, default=(0, 0))


@contextlib.contextmanager
def _opened(path: str, file_format: str, index: int) -> Iterator[Image.Image]:
    if file_format == "TIFF":
        with open_tiff.page(path, index) as image:
            yield image
    else:
        with Image.open(path, formats=[file_format]) as image:
            yield image


def _stretch(image: Image.Image, tags: Mapping[int, Any]) -> tuple[float, float]:
    """Return the factors for width and height, as stored, that make the pixels square."""
    x, y = _density(image, tags)
    across, down = (x / y, y / x) if min(x, y) > 0 and math.isfinite(x / y) else (1.0, 1.0)
    wider = down if MIN_STRETCH <= down <= MAX_STRETCH else 1.0
    higher = across if MIN_STRETCH <= across <= MAX_STRETCH else 1.0
    return wider, higher


def _orientation(image: Image.Image) -> Any:
    """Return the orientation of a loaded image.

    Asking before it is loaded loads a PNG and hides its damage.
    """
    try:
        return image.getexif().get(ORIENTATION)
    except DECODER_ERRORS:
        return None  # unreadable metadata does not mean a damaged picture


def _density(image: Image.Image, tags: Mapping[int, Any]) -> tuple[float, float]:
    """Return the pixels per unit of length, across and down, as the file gives them; (1, 1) if it does
    not."""
    told: Any = (1, 1)
    if tags:
        told = tags.get(X_RESOLUTION, 1), tags.get(Y_RESOLUTION, 1)
    elif image.format == "JPEG":
        # without a unit, the numbers are often left over from something else
        told = image.info.get("jfif_density", told) if image.info.get("jfif_unit") in {1, 2} else told
    elif image.format in {"PNG", "BMP"}:
        told = image.info.get("dpi") or image.info.get("aspect") or told
    try:
        x, y = map(float, told)
    except (TypeError, ValueError, ArithmeticError):
        return 1.0, 1.0
    return x, y


def _eight_bits_each(image: Image.Image, tags: Mapping[int, Any], scale: tuple[float, float]) -> Image.Image:
    """Convert to gray or RGB, or to RGBA if there is transparency. ``scale``: the range of wide samples."""
    if image.mode.startswith(WIDE):
        image = _eight_bits(image, tags, scale)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in {"L", "RGB"} else image.convert("RGB")


def _on_ground(image: Image.Image) -> Image.Image:
    """Lay a transparent picture on white, or on black if its print is so light that white hides it.

    The contrast between neighbours decides, not the mean shade: white paper with black print and clear
    margins is light, too.
    """
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    on_white, on_black = (
        Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
        for ground in ("white", "black")
    )
    return on_black if _contrast(on_black) > CLEARLY_CLEARER * _contrast(on_white) else on_white


def _contrast(image: Image.Image) -> float:
    """Return the mean difference between neighbours in a row."""
    gray = image.convert("L")
    left, right = gray.crop((0, 0, gray.width - 1, gray.height)), gray.crop((1, 0, gray.width, gray.height))
    return float(ImageStat.Stat(ImageChops.difference(left, right)).mean[0]) if gray.width > 1 else 0.0


def _floating(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Convert wide samples to floating point numbers."""
    wide = image.convert("F")
    if (
        image.mode == "I"
        and tags.get(BITS_PER_SAMPLE) == (32,)
        and tags.get(SAMPLE_FORMAT, (1,)) == (UNSIGNED,)
    ):
        # Pillow reads unsigned samples as signed
        wide = ImageMath.lambda_eval(lambda bands: bands["wide"] + (bands["wide"] < 0) * 2.0**32, wide=wide)
    return wide


def _scale(image: Image.Image, tags: Mapping[int, Any]) -> tuple[float, float]:
    """Return the samples that become 0 and 255. Raise ``UnreadablePage`` if some are not finite numbers.

    Samples of up to 16 bits keep their scale. Wider and floating samples have none, so their range is
    used.
    """
    if not image.mode.startswith(WIDE):
        return 0.0, 255.0
    extremes: list[float] = []
    for top, bottom in _strips(image.height, image.width):
        for extreme in _floating(image.crop((0, top, image.width, bottom)), tags).getextrema():
            if not (isinstance(extreme, float) and math.isfinite(extreme)):
                raise UnreadablePage("the samples of the image are no finite numbers")
            extremes.append(extreme)
    lowest, highest = min(extremes), max(extremes)
    if not math.isfinite(highest - lowest):
        raise UnreadablePage("the samples of the image are no finite numbers")
    if image.mode.startswith("I") and lowest >= 0 and highest <= 65535:
        return 0.0, 4095.0 if tags.get(BITS_PER_SAMPLE, (16,))[0] == 12 else 65535.0
    return lowest, highest


def _eight_bits(image: Image.Image, tags: Mapping[int, Any], scale: tuple[float, float]) -> Image.Image:
    lowest, highest = scale
    span = highest - lowest or 1.0
    wide = _floating(image, tags)
    grey = wide.point(lambda sample: sample * (255 / span) + (-lowest * 255 / span)).convert("L")
    # Pillow inverts white-is-zero samples only up to eight bits
    return ImageOps.invert(grey) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey


def _fit(
    image: Image.Image, tags: Mapping[int, Any], wider: float, higher: float, max_pixels: int
) -> Image.Image:
    """Convert to eight bits, make the pixels square, and shrink the picture to ``max_pixels``.

    A large picture is converted and scaled in strips of rows, so only one strip is in memory beside it. Each
    strip is cut with the extra rows that the filter reads, so that no seam shows.
    """
    samples = _scale(image, tags)
    width, height = image.width * wider, image.height * higher
    shrinking = min(1.0, math.sqrt(max_pixels / (width * height)))
    size = (max(1, int(width * shrinking)), max(1, int(height * shrinking)))
    if size == image.size:
        return _eight_bits_each(image, tags, samples)
    rows_each = image.height / size[1]  # rows of the picture per row of the result
    margin = math.ceil(FILTER_ROWS * max(1.0, rows_each)) + 1
    fitting: Image.Image | None = None
    for top, bottom in _strips(size[1], math.ceil(image.width * rows_each)):
        above = max(0, math.floor(top * rows_each) - margin)
        below = min(image.height, math.ceil(bottom * rows_each) + margin)
        strip = _eight_bits_each(image.crop((0, above, image.width, below)), tags, samples)
        box = (0, top * rows_each - above, image.width, min(bottom * rows_each, image.height) - above)
        strip = strip.resize((size[0], bottom - top), Image.Resampling.LANCZOS, box, reducing_gap=2.0)
        fitting = fitting or Image.new(strip.mode, size)
        fitting.paste(strip, (0, top))
    if fitting is None:
        raise RuntimeError("a picture has rows")
    return fitting


def _strips(num_rows: int, pixels_a_row: int) -> Iterator[tuple[int, int]]:
    """Yield (top, bottom) of strips of rows with about ``STRIP_PIXELS`` pixels each."""
    step = max(1, STRIP_PIXELS // pixels_a_row)
    for top in range(0, num_rows, step):
        yield top, min(top + step, num_rows)
