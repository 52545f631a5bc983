"""Render a page of a PDF at a suitable resolution. Return its words, and warn about what it does not show."""

import itertools
import math
import mmap
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from app.document import Page, PageWarning, PlacedWord, WarningCode
from app.documents.raster.images import loses_detail
from app.documents.raster.poppler import (
    POINTS_PER_INCH,
    PdfPage,
    Picture,
    count_attachments,
    describe_page,
    glyph_height,
    has_undrawable_font,
    pictures_on,
    placed_words,
    render,
    text_of,
)
from app.documents.raster.text_layer import MAX_WORD_CHARS, MAX_WORDS, has_cjk, is_garbage, words_of
from app.errors import TooManyPixels

BASE_DPI = 150.0
"""Default resolution. Letters of usual print are then 20 to 25 pixels high, with ascenders and descenders."""
MIN_LONGER_PX = 1280
"""Least longer side, as most modes' views have it. A small page is rendered larger, not enlarged later."""
MAX_DRAWN_DPI = 300.0
"""Highest resolution of drawn pages, which have no pixels of their own; a stamp has no small print."""
MAX_SCAN_PX = 2600
"""Longer side up to which a scanned page's own pixels are kept, because no view shows more of a page."""
SCAN_SHARE = 0.5
"""Least share of the area of a scanned page that pictures cover."""
MIN_DPI = 18.0
"""Lowest resolution. A page that needs less to fit the pixel limit exceeds PDF's largest page, 200 inches."""
MAX_SIDE_PX = 30_000

SMALLEST_SHARE = 0.25
"""Share of a page's letters by which its smallest print is measured. A footnote alone is less."""

SMALL_PRINT_PX = 12.0
"""Height of letters, descender to ascender, below which a drawn page is rendered larger: they are misread."""
READ_PRINT_PX = 15.0
"""Height at which it is rendered then. Between the two, nothing is gained."""
NEEDS_RENDERING = re.compile(rb"/NeedsRendering\s+true")
OBJECT_STREAM = re.compile(rb"/ObjStm\b")
STREAM = re.compile(rb"stream\r?\n")
MAX_DICTIONARY_BYTES = 1000
MAX_OBJECT_STREAMS = 200
MAX_OBJECT_STREAM_BYTES = 2**20
PLACEHOLDER = "please wait"

COMPLAINTS: tuple[tuple[bytes, WarningCode], ...] = (
    (b"No font in show", "dropped_text"),
    (b"Unknown font tag", "dropped_text"),
    (b"Couldn't create a font for", "dropped_text"),
    (b"Couldn't find a font for", "missing_glyphs"),
    (b"non-embedded font using identity encoding", "missing_glyphs"),
    (b"Missing language pack for", "missing_glyphs"),
)
"""Poppler's complaints about text that it does not draw, or draws wrongly, and their warnings."""
DETAILS: dict[WarningCode, str] = {
    "dropped_text": "Some text names a font that the file lacks or that is damaged; it is not drawn.",
    "missing_glyphs": "A font is neither in the file nor installed; its characters are boxes or missing.",
    "dynamic_xfa": "The document is a dynamic XFA form: the page is a placeholder, the form is not shown.",
    "text_layer_unusable": "The text layer of the page is not its text and was not used.",
}


def pdf_page(
    path: str,
    index: int,
    dpi: int | None,
    max_pixels: int,
    *,
    is_first: bool,
    follows_print: bool = False,
    places_words: bool = False,
) -> Page:
    """Render one page as viewers show it. Raise the page's ``ParseError``. ``dpi``: ``None`` chooses from
    the page.

    ``is_first``: include the warnings about the whole document. ``follows_print``: measure the print in the
    text layer, and choose a higher resolution where it is small. ``places_words``: tell where words are.
    """
    page = describe_page(path, index + 1)
    longer_pt = max(page.width_pt, page.height_pt)
    picture_dpi = scanned_dpi(pictures_on(page), page.width_pt * page.height_pt)
    text = text_of(page)
    words = words_of(text)
    is_usable = bool(words) and not is_garbage(words)
    placed = placed_words(page) if is_usable and (follows_print or places_words) else []
    glyph_pt = glyph_height(placed, SMALLEST_SHARE) if follows_print else None
    wanted = chosen_dpi(longer_pt, picture_dpi, glyph_pt) if dpi is None else dpi
    used = fitting_dpi(page.width_pt, page.height_pt, wanted, max_pixels)
    image, complaints = render(page, max(1, round(longer_pt * used / POINTS_PER_INCH)))
    codes = _codes(page, words, complaints)
    if words and not is_usable:
        codes.append("text_layer_unusable")
    warnings = [PageWarning(code, DETAILS[code]) for code in codes]
    if loses_detail(picture_dpi * longer_pt / POINTS_PER_INCH, max(image.size)):
        detail = f"The page was rendered at {used:.0f} dpi; its picture has {picture_dpi:.0f} dpi."
        warnings.append(PageWarning("low_resolution", detail))
    if is_first and (number := count_attachments(path)):
        files = "1 attached file, which is" if number == 1 else f"{number} attached files, which are"
        warnings.append(PageWarning("attachments_not_read", f"The PDF has {files} not read."))
    return Page(
        index,
        image,
        dpi=round(float(used), 1),
        words=words if is_usable else None,
        has_text=bool(text.strip()),
        glyph_px=None if glyph_pt is None else glyph_pt * used / POINTS_PER_INCH,
        placed_words=_in_pixels(placed, used / POINTS_PER_INCH) if places_words else (),
        warnings=tuple(warnings),
    )


def _in_pixels(words: Sequence[PlacedWord], scale: float) -> tuple[PlacedWord, ...]:
    return tuple(
        PlacedWord(
            word.text[:MAX_WORD_CHARS],
            *(round(side * scale, 1) for side in (word.left, word.top, word.right, word.bottom)),
        )
        for word in words[:MAX_WORDS]
    )


def scanned_dpi(pictures: Iterable[Picture], page_area_pt: float) -> float:
    """Return the least resolution of the sharpest pictures that cover a page; 0 for a drawn page.

    A scan may be one picture, strips of one, or a coarse background with sharp print on top.
    """
    area_pt = 0.0
    for picture in sorted(pictures, key=lambda picture: picture.dpi, reverse=True):
        area_pt += picture.area_pt
        if area_pt >= SCAN_SHARE * page_area_pt:
            return picture.dpi
    return 0.0


def chosen_dpi(longer_pt: float, picture_dpi: float, glyph_pt: float | None = None) -> float:
    """Return a resolution that is enough for the views of every mode, and for the pixels of a scan.

    ``glyph_pt``: height of the smallest print of a drawn page, which is rendered large enough to be read.
    """
    inches = longer_pt / POINTS_PER_INCH
    drawn = max(BASE_DPI, min(MIN_LONGER_PX / inches, MAX_DRAWN_DPI))
    if glyph_pt is not None and not picture_dpi and glyph_pt * drawn < SMALL_PRINT_PX * POINTS_PER_INCH:
        drawn = min(READ_PRINT_PX * POINTS_PER_INCH / glyph_pt, MAX_DRAWN_DPI)
    return max(drawn, min(picture_dpi, MAX_SCAN_PX / inches))


def fitting_dpi(width_pt: float, height_pt: float, dpi: float, max_pixels: int) -> float:
    """Return the largest resolution up to ``dpi`` at which a page of this size is within limits.

    Raise ``TooManyPixels`` for a page that no sensible resolution fits.
    """
    fitting = min(
        dpi,
        POINTS_PER_INCH * math.sqrt(max_pixels / (width_pt * height_pt)),
        POINTS_PER_INCH * MAX_SIDE_PX / max(width_pt, height_pt),
    )
    if fitting < min(MIN_DPI, dpi):
        inches = f"{width_pt / POINTS_PER_INCH:.0f} x {height_pt / POINTS_PER_INCH:.0f} inches"
        raise TooManyPixels(f"the page is {inches}")
    return fitting


def _codes(page: PdfPage, words: tuple[str, ...], complaints: tuple[bytes, ...]) -> list[WarningCode]:
    """Return the codes of a page's warnings, each once."""
    codes: list[WarningCode] = []
    for pattern, code in COMPLAINTS:
        if code not in codes and any(pattern in complaint for complaint in complaints):
            codes.append(code)
    if "missing_glyphs" not in codes and has_cjk(words) and has_undrawable_font(page):
        codes.append("missing_glyphs")
    if page.is_xfa and _is_placeholder(page.path, words):
        codes.append("dynamic_xfa")
    return codes


def _is_placeholder(path: str, words: tuple[str, ...]) -> bool:
    """Tell whether the page stands in for a form that only XFA viewers draw.

    A static form also has its pages.
    """
    return " ".join(words).lower().startswith(PLACEHOLDER) or _needs_rendering(path)


def _needs_rendering(path: str) -> bool:
    """Tell whether the catalog has NeedsRendering. It may be in a compressed object stream."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if NEEDS_RENDERING.search(data):
            return True
        for found in itertools.islice(OBJECT_STREAM.finditer(data), MAX_OBJECT_STREAMS):
            begin = STREAM.search(data, found.end(), found.end() + MAX_DICTIONARY_BYTES)
            at = begin.end() if begin else found.end()
            try:
                packed = data[at : at + MAX_OBJECT_STREAM_BYTES]
                objects = zlib.decompressobj().decompress(packed, MAX_OBJECT_STREAM_BYTES)
            except zlib.error:
                continue
            if NEEDS_RENDERING.search(objects):
                return True
    return False
