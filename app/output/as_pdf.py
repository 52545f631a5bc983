"""Make a searchable PDF: pictures of pages under an invisible text layer at the boxes of their blocks.

The layer's font is made for the document: it has every character in any script, without outlines. Where the
lines of a block are is not known, so they are spread over the block's box.
"""

import contextlib
import io
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category, east_asian_width

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fpdf import FPDF
from fpdf.enums import TextMode

from app.document import PageResult
from app.errors import FormatUnavailable, NotFound, TooManyPages
from app.output.answer import Answer, Piece, pieces_of
from app.output.cutting import page_image_name
from app.output.parts import Part, parts_of
from app.output.plain import to_plain

MAX_PAGES = 500
"""Most pages of a PDF, because all their pictures are in memory together."""
POINTS_AN_INCH = 72
DEFAULT_DPI = 150.0
EMPTY_PAGE_PT = (595.0, 842.0)
MAX_SIDE_PT = 14_400.0  # largest side that viewers show
FARTHEST = 999
UNITS = 1000
HALF = 500
"""Width of a letter in font units. Characters that are wide in East Asian scripts have twice as much."""
MAX_CHARACTERS = 60_000  # most glyphs in a font
LINE_HEIGHT = 1.2
MIN_FONT_PT = 1.0
MIN_STRETCH = 10.0  # per cent
MAX_STRETCH = 1000.0
FAMILY = "layer"


@dataclass(frozen=True, slots=True)
class _Area:
    """A text and its area: x, y, width and height in points."""

    text: str
    x: float
    y: float
    width: float
    height: float


def make(answer: Answer) -> Iterable[Piece]:
    """Write the PDF to a file. Raise ``TooManyPages``, or ``FormatUnavailable`` without pictures of pages."""
    pages = answer.joined.pages
    if len(pages) > MAX_PAGES:
        raise TooManyPages(f"a searchable PDF may have {MAX_PAGES} pages, the document has {len(pages)}")
    pdf = FPDF(unit="pt")
    pdf.set_auto_page_break(False)
    pdf.set_margin(0)
    texts = {page.index: [(part, _line_text(part)) for part in _parts(page)] for page in pages}
    characters = {character for parts in texts.values() for _, text in parts for character in text}
    with _font(characters) as path:
        pdf.add_font(FAMILY, fname=path)
        try:
            num_pictures = sum(_add_page(pdf, page, texts[page.index], answer) for page in pages)
            if pages and not num_pictures:
                raise FormatUnavailable("a searchable PDF is made of pictures of pages, and none are kept")
            file = answer.scratch()
            file.write(pdf.output())
        finally:
            for font in pdf.fonts.values():  # fpdf2 leaves these open
                font.ttfont.close()
    return pieces_of(file)


def _parts(page: PageResult) -> list[Part]:
    return [] if page.failure else parts_of(page)


def _line_text(part: Part) -> str:
    text = to_plain(part.markdown)
    is_reference = text.startswith("![")
    lines = text.split("\n")[1:] if is_reference else text.split("\n")
    kept = (
        "".join(character if category(character)[0] != "C" else " " for character in line) for line in lines
    )
    return "\n".join(" ".join(line.split()) for line in kept if line.strip())


def _add_page(pdf: FPDF, page: PageResult, parts: list[tuple[Part, str]], answer: Answer) -> bool:
    """Add a page. Return whether there is a picture of it."""
    try:
        picture = answer.pictures(page_image_name(page.index))
    except NotFound:
        picture = None
    width, height = _size_pt(page)
    pdf.add_page(format=(width, height))
    if picture is not None:
        pdf.image(io.BytesIO(picture.data), 0, 0, width, height)
    for part, text in parts:
        left, top, right, bottom = part.box or (0, 0, FARTHEST, FARTHEST)
        across, down = width / FARTHEST, height / FARTHEST
        area = _Area(text, left * across, top * down, (right - left) * across, (bottom - top) * down)
        _write(pdf, area)
    return picture is not None


def _size_pt(page: PageResult) -> tuple[float, float]:
    if not page.width or not page.height:
        return EMPTY_PAGE_PT
    scale = POINTS_AN_INCH / (page.dpi or DEFAULT_DPI)
    scale = min(scale, MAX_SIDE_PT / max(page.width, page.height))
    return page.width * scale, page.height * scale


def _write(pdf: FPDF, area: _Area) -> None:
    """Fill an area with lines of one font size, stretched or squeezed to the area's width if needed."""
    if not area.text:
        return
    lines, size = _fitted(area)
    pitch = area.height / len(lines)
    with pdf.local_context(text_mode=TextMode.INVISIBLE):
        pdf.set_font(FAMILY, size=size)
        for number, line in enumerate(lines):
            natural = _width(line) * size
            stretch = 100 * area.width / natural if natural > area.width or len(lines) == 1 else 100
            pdf.set_stretching(min(max(stretch, MIN_STRETCH), MAX_STRETCH))
            pdf.text(area.x, area.y + pitch * (number + 0.8), line)
        pdf.set_stretching(100)


def _fitted(area: _Area) -> tuple[list[str], float]:
    """Break a text into as few lines as fill its area. Return the lines and their font size."""
    given = area.text.split("\n")

    def size_of(num_lines: int) -> float:
        return max(MIN_FONT_PT, area.height / num_lines / LINE_HEIGHT)

    def broken(num_lines: int) -> list[str]:
        return [line for text in given for line in _wrapped(text, area.width / size_of(num_lines))]

    fewest, most = len(given), max(len(given), int(area.height / LINE_HEIGHT / MIN_FONT_PT))
    # more lines are smaller, so search by bisection
    num_lines = bisect_left(range(fewest, most), True, key=lambda num: len(broken(num)) <= num) + fewest
    return broken(num_lines), size_of(num_lines)


def _wrapped(text: str, width: float) -> list[str]:
    """Break a text at spaces, and anywhere in scripts without spaces. ``width``: in font sizes."""
    lines: list[str] = []
    line, used = "", 0.0
    for word in _words(text):
        needed = _width(word.rstrip())
        if line and used + needed > width:
            lines.append(line.rstrip())
            line, used = "", 0.0
        line += word
        used += _width(word)
    return [*lines, line.rstrip()]


def _words(text: str) -> Iterator[str]:
    """Yield words with the space behind them, and wide characters one by one."""
    word = ""
    for character in text:
        if _is_wide(character):
            if word:
                yield word
            word = ""
            yield character
            continue
        word += character
        if character == " ":
            yield word
            word = ""
    if word:
        yield word


def _width(text: str) -> float:
    """Return the width of a text in font sizes."""
    return sum(2 if _is_wide(character) else 1 for character in text) * HALF / UNITS


def _is_wide(character: str) -> bool:
    return east_asian_width(character) in "WF"


@contextlib.contextmanager
def _font(characters: set[str]) -> Iterator[Path]:
    """Make a font whose glyphs have the widths of letters but no outlines.

    It is a file until it is embedded.
    """
    shown = sorted(characters | {" "})[:MAX_CHARACTERS]
    names = {ord(character): f"u{ord(character):X}" for character in shown}
    glyphs = [".notdef", *names.values()]
    widths = {f"u{ord(character):X}": 2 * HALF if _is_wide(character) else HALF for character in shown}
    builder = FontBuilder(UNITS, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: TTGlyphPen(None).glyph() for name in glyphs})
    builder.setupHorizontalMetrics({name: (widths.get(name, HALF), 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Invisible", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    with tempfile.TemporaryDirectory(prefix="rtprune-") as folder:
        path = Path(folder) / "layer.ttf"
        builder.save(path)
        yield path
