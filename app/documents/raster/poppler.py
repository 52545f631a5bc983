"""Ask poppler's programs about a PDF. They run in the rasterizer's process group and under its limits.

The output of ``pdfinfo`` begins with the PDF's own title and author, unescaped. With line breaks in them
they can look like any other line, so the last line that matches is believed.
"""

import contextlib
import html
import math
import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import IO

from pdf2image.parsers import parse_buffer_to_ppm
from PIL import Image

from app.document import PlacedWord
from app.errors import EncryptedPdf, NotReady, UnreadableFile, UnreadablePage

PROGRAMS = ("pdfinfo", "pdftoppm", "pdfimages", "pdftotext", "pdffonts", "pdfdetach")
MAX_TEXT_BYTES = 2**20
"""How much standard output of a describing program is read."""
MAX_COMPLAINTS_BYTES = 2**16
"""How much standard error of any program is kept. A damaged page gives a line for each operator."""
PPM_HEADER_BYTES = 64
PAGES_AT_ONCE = 32  # how many sizes one call asks for
POINTS_PER_INCH = 72
SAME_SHADE = 16
"""Largest difference of gray levels (of 256) on an empty page. JPEG's noise on white paper is smaller."""

ENCRYPTION = (
    (
        rb"'Adobe\.PubSec' security handler",
        "the PDF is encrypted for the owners of certain certificates: no password opens it",
    ),
    (rb"Couldn't find the '.*' security handler", "the PDF is encrypted by a means that is not known here"),
    (
        rb"in encryption dictionary|Weird encryption info|Invalid encryption key length"
        rb"|of Standard security handler",
        "the PDF's encryption dictionary is damaged or of an unknown version",
    ),
    (rb"Incorrect password", "the PDF cannot be opened without its password"),
)
"""Patterns of poppler's errors, and their meaning. Without a handler, poppler takes ciphertext for plain."""

CJK_PROBES = {
    "GB1": ("UniGB-UCS2-H", "STSong-Light", "\u4e00\u56fd"),
    "CNS1": ("UniCNS-UCS2-H", "MSung-Light", "\u4e00\u570b"),
    "Japan1": ("UniJIS-UCS2-H", "HeiseiMin-W3", "\u4e00\u3042"),
    "Korea1": ("UniKS-UCS2-H", "HYSMyeongJo-Medium", "\u4e00\ud55c"),
}
"""For each character collection an encoding, a font, and two characters that differ in any font with them."""
BBOX_WORD = re.compile(
    rb'xMin="([0-9]{1,9}\.[0-9]{1,9})" yMin="([0-9]{1,9}\.[0-9]{1,9})" xMax="([0-9]{1,9}\.[0-9]{1,9})" '
    rb'yMax="([0-9]{1,9}\.[0-9]{1,9})">([^<]{1,1000})</word>'
)
"""Left, top, right and bottom of a word in points of the page, and the word as HTML."""
PROBE_PX = 48
CJK_ENCODINGS = (
    ("GB1", ("GB", "UniGB")),
    ("CNS1", ("B5", "HKscs", "ETen", "ETHK", "CNS", "UniCNS")),
    ("Korea1", ("KSC", "UniKS")),
    ("Japan1", ("83pv", "90ms", "90pv", "Add", "EUC", "Ext", "UniJIS", "H", "V")),
)
"""For each character collection, the beginnings of the names of its encodings."""


@dataclass(frozen=True, slots=True)
class PdfPage:
    """A page as ``pdfinfo`` describes it. Sizes are in points, before rotation. ``number`` counts from 1."""

    path: str
    number: int
    width_pt: float
    height_pt: float
    is_cropped: bool
    """Whether the size is that of the CropBox.

    ``False``: the CropBox lies outside the page and is ignored.
    """
    window_pt: tuple[int, int, int, int] | None
    """Left, top, width and height of the CropBox in the MediaBox as shown; ``None``: the whole MediaBox."""
    is_xfa: bool
    complaints: frozenset[bytes]

    @property
    def only(self) -> tuple[str, ...]:
        return "-f", str(self.number), "-l", str(self.number), *(["-cropbox"] if self.is_cropped else [])


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as placed on the page: its resolution there, and the area that it covers."""

    dpi: float
    area_pt: float


def count_pdf_pages(path: str) -> int:
    """Return the number of pages, at least one. Raise ``EncryptedPdf`` or ``UnreadableFile``."""
    said, complaints = _run("pdfinfo", path)
    for pattern, meaning in ENCRYPTION:
        if re.search(pattern, complaints):
            raise EncryptedPdf(meaning)
    counts = re.findall(rb"^Pages: +([0-9]+)$", said, re.MULTILINE)
    if counts and int(counts[-1]) > 0:
        return int(counts[-1])
    wrong = re.search(
        rb"Invalid page count (-?[0-9]+)|Page count (\([0-9]+\) larger|in top-level)", complaints
    )
    if wrong and wrong[2]:
        is_large = wrong[2].startswith(b"(")
        why = "larger than the number of its objects" if is_large else "no number"
        raise UnreadableFile(f"the PDF's page count (/Count) is wrong: it is {why}")
    if wrong and int(wrong[1]) < 0:
        raise UnreadableFile("the PDF's page count (/Count) is wrong: it is negative or too large")
    if counts or wrong:
        raise UnreadableFile("the PDF says that it has no pages (/Count is 0)")
    if b"after the last page (0)" in complaints:
        raise UnreadableFile("the PDF has no pages: its page tree is damaged or missing")
    raise UnreadableFile("the PDF is damaged beyond repair")


def describe_page(path: str, number: int) -> PdfPage:
    """Return a page's size: its CropBox, or its MediaBox if the two do not meet, as viewers do.

    Raise ``UnreadablePage`` for a page that is missing or has no area.
    """
    said, complaints = _boxes(path, (number - 1) // PAGES_AT_ONCE * PAGES_AT_ONCE + 1)
    sizes = re.findall(rb"^Page +%d size: +(\S+) x (\S+) pts" % number, said, re.MULTILINE)
    turns = re.findall(rb"^Page +%d rot: +([0-9]+)$" % number, said, re.MULTILINE)
    media, crop = (
        re.findall(rb"^Page +%d %s: +(\S+) +(\S+) +(\S+) +(\S+)$" % (number, name), said, re.MULTILINE)
        for name in (b"MediaBox", b"CropBox")
    )
    forms = re.findall(rb"^Form: +(\S+)$", said, re.MULTILINE)
    if not (sizes and turns and media and crop):
        raise UnreadablePage("the page is missing from the file")
    left, bottom, right, top = map(float, media[-1])
    width_pt, height_pt = map(float, sizes[-1])
    is_cropped = width_pt > 0 and height_pt > 0
    if not is_cropped:
        width_pt, height_pt = right - left, top - bottom
    if not (math.isfinite(width_pt * height_pt) and width_pt > 0 and height_pt > 0):
        raise UnreadablePage("the page has no area")
    inner_left, inner_bottom, inner_right, inner_top = map(float, crop[-1])
    margins = (inner_left - left, top - inner_top, right - inner_right, inner_bottom - bottom)
    return PdfPage(
        path,
        number,
        width_pt,
        height_pt,
        is_cropped,
        _window(margins, width_pt, height_pt, int(turns[-1])) if is_cropped else None,
        bool(forms) and forms[-1] == b"XFA",
        frozenset(complaints.splitlines()),
    )


@lru_cache(maxsize=2)
def _boxes(path: str, first: int) -> tuple[bytes, bytes]:
    """Run ``pdfinfo`` for the sizes of several pages.

    Cache it: the process reads other pages of the document.
    """
    return _run("pdfinfo", "-box", "-f", str(first), "-l", str(first + PAGES_AT_ONCE - 1), path)


def _window(
    margins: tuple[float, ...], width_pt: float, height_pt: float, degrees: int
) -> tuple[int, int, int, int] | None:
    """Return the CropBox on the rotated page. ``margins``: left, top, right and bottom, before rotation."""
    if max(margins) < 1 or not all(map(math.isfinite, margins)):
        return None
    quarters = degrees // 90 % 4  # clockwise: the bottom moves to the left, the left to the top
    left, top = margins[-quarters % 4], margins[(1 - quarters) % 4]
    width, height = (height_pt, width_pt) if quarters % 2 else (width_pt, height_pt)
    return math.floor(left), math.floor(top), math.ceil(width), math.ceil(height)


def render(page: PdfPage, longer_px: int) -> tuple[Image.Image, tuple[bytes, ...]]:
    """Draw a page as viewers show it, and return poppler's complaints. ``longer_px``: its longer side.

    The longer side, not the resolution, is given, because it bounds the image whatever the file says. Raise
    ``UnreadablePage`` where nothing is drawn, or damage leaves the page empty.
    """
    longer_pt, shorter_pt = sorted((page.width_pt, page.height_pt), reverse=True)
    # poppler rounds sides up
    max_bytes = 3 * (longer_px + 1) * (math.ceil(longer_px * shorter_pt / longer_pt) + 1) + PPM_HEADER_BYTES
    ppm, said = _run("pdftoppm", *page.only, "-scale-to", str(longer_px), page.path, max_bytes=max_bytes)
    images = parse_buffer_to_ppm(ppm)
    if len(images) != 1:
        raise UnreadablePage("poppler renders nothing for this page")
    image: Image.Image = images[0]
    image.load()
    complaints = tuple(complaint for complaint in said.splitlines() if complaint not in page.complaints)
    # poppler skips what it cannot decode, even a page's only picture
    if _is_empty(image) and any(b"Warning" not in complaint for complaint in complaints):
        raise UnreadablePage("poppler shows nothing of this page, whose data is damaged")
    return image, complaints


def _is_empty(image: Image.Image) -> bool:
    lowest, highest = image.convert("L").getextrema()
    return isinstance(lowest, int) and isinstance(highest, int) and highest - lowest <= SAME_SHADE


def pictures_on(page: PdfPage) -> list[Picture]:
    """Return the pictures and stencils of a page, without their masks."""
    said, _ = _run("pdfimages", "-list", *page.only[:4], page.path)
    rows = re.findall(
        rb"^ *[0-9]+ +[0-9]+ (?:image|stencil) +([0-9]+) +([0-9]+) .* ([0-9]+) +([0-9]+) +\S+ +\S+$",
        said,
        re.MULTILINE,
    )
    pictures = []
    for width, height, x_dpi, y_dpi in (map(int, row) for row in rows):
        if x_dpi > 0 and y_dpi > 0:
            area_pt = width / x_dpi * height / y_dpi * POINTS_PER_INCH**2
            pictures.append(Picture(min(x_dpi, y_dpi), area_pt))
    return pictures


def text_of(page: PdfPage) -> str:
    """Return the text layer in reading order. Invalid UTF-8 becomes U+FFFD."""
    # pdftotext ignores -cropbox here, so give it the window
    window: tuple[str, ...] = ()
    if page.window_pt is not None:
        pairs = zip(("-x", "-y", "-W", "-H"), map(str, page.window_pt), strict=True)
        window = tuple(word for pair in pairs for word in pair)
    said, _ = _run("pdftotext", *page.only[:4], *window, "-enc", "UTF-8", "-nopgbrk", page.path, "-")
    return said.decode("utf-8", errors="replace")


def placed_words(page: PdfPage) -> list[PlacedWord]:
    """Return the words of the text layer with their places in points of the page as it is shown."""
    said, _ = _run("pdftotext", *page.only[:4], "-bbox", "-enc", "UTF-8", page.path, "-")
    across, down = (0, 0) if page.window_pt is None else page.window_pt[:2]
    return [
        PlacedWord(
            html.unescape(word.decode("utf-8", errors="replace")),
            float(left) - across,
            float(top) - down,
            float(right) - across,
            float(bottom) - down,
        )
        for left, top, right, bottom, word in BBOX_WORD.findall(said)
    ]


def glyph_height(words: Sequence[PlacedWord], share: float) -> float | None:
    """Return the height in points, descender to ascender, that ``share`` of the words' letters do not
    exceed; ``None`` without letters.

    The fonts tell it, not the picture. Words of a line that runs upwards count with their length.
    """
    heights = sorted((word.bottom - word.top, len(word.text)) for word in words)
    left = share * sum(num_letters for _, num_letters in heights)
    for height, num_letters in heights:
        left -= num_letters
        if left <= 0:
            return height if height > 0 else None
    return None


def count_attachments(path: str) -> int:
    """Count files embedded in a PDF: of a portfolio, of an invoice, pinned to pages."""
    said, _ = _run("pdfdetach", "-list", path)
    found = re.match(rb"([0-9]{1,9}) embedded files", said)
    return int(found[1]) if found else 0


def has_undrawable_font(page: PdfPage) -> bool:
    """Tell whether a CJK font of the page is neither in the file nor on this machine.

    Poppler then draws boxes without complaint. Call it only for pages with CJK text, because it runs a
    program.
    """
    said, _ = _run("pdffonts", *page.only[:4], page.path)
    encodings = re.findall(rb" CID \S.*? +(\S+) +no +(?:yes|no) +(?:yes|no) +\S+ +\S+$", said, re.MULTILINE)
    return any(_collections(encoding.decode("ascii", "replace")) & undrawable() for encoding in encodings)


def _collections(encoding: str) -> set[str]:
    """Return the character collection of an encoding; all collections if its name does not tell."""
    for collection, beginnings in CJK_ENCODINGS:
        if encoding.startswith(beginnings):
            return {collection}
    return set(CJK_PROBES)


@cache
def undrawable() -> frozenset[str]:
    """Return character collections without a font on this machine. Their characters all look the same."""
    return frozenset(collection for collection in CJK_PROBES if not _is_drawable(collection))


def _is_drawable(collection: str) -> bool:
    # by standard input, because a confined process cannot write a file
    ppm, _ = _run("pdftoppm", "-r", str(POINTS_PER_INCH), "-", given=_probe(collection))
    images = parse_buffer_to_ppm(ppm)
    if len(images) != 1:
        return False
    first, second = (images[0].crop((at, 0, at + PROBE_PX, PROBE_PX)).tobytes() for at in (0, PROBE_PX))
    return bool(first != second)


def _probe(collection: str) -> bytes:
    """Make a PDF of two characters side by side, in a font that it names and does not embed."""
    encoding, font, characters = CJK_PROBES[collection]
    first, second = (character.encode("utf-16-be").hex() for character in characters)
    content = f"BT /F 32 Tf 8 12 Td <{first}> Tj {PROBE_PX} 0 Td <{second}> Tj ET"
    system = f"/CIDSystemInfo<</Registry(Adobe)/Ordering({collection})/Supplement 0>>"
    metrics = (
        "/Flags 6/FontBBox[0 -120 1000 880]/ItalicAngle 0/Ascent 880/Descent -120/CapHeight 880/StemV 90"
    )
    return _pdf(
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {2 * PROBE_PX} {PROBE_PX}]/Contents 4 0 R"
        "/Resources<</Font<</F 5 0 R>>>>>>",
        f"<</Length {len(content)}>>stream\n{content}\nendstream",
        f"<</Type/Font/Subtype/Type0/BaseFont/{font}/Encoding/{encoding}/DescendantFonts[6 0 R]>>",
        f"<</Type/Font/Subtype/CIDFontType0/BaseFont/{font}{system}/DW 1000/FontDescriptor 7 0 R>>",
        f"<</Type/FontDescriptor/FontName/{font}{metrics}>>",
    )


def _pdf(*objects: str) -> bytes:
    """Assemble a PDF of these objects. The first one is its catalog."""
    body, offsets = b"%PDF-1.7\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode("ascii")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    end = f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(body)}\n%%EOF"
    return body + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{end}".encode("ascii")


def _run(*command: str, max_bytes: int = MAX_TEXT_BYTES, given: bytes = b"") -> tuple[bytes, bytes]:
    """Run a program. Return the beginnings of standard output, up to ``max_bytes``, and of standard error.

    ``given``: standard input, no more than a pipe holds.
    """
    complaints = bytearray()
    try:
        process = _started(command)
    except FileNotFoundError as error:
        raise NotReady("poppler is not installed") from error
    # leaving this block closes the pipes, which ends a program that still writes
    with process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise RuntimeError("all three are pipes")
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(given)
        drain = threading.Thread(target=_drain, args=(process.stderr, complaints), daemon=True)
        drain.start()
        said = process.stdout.read(max_bytes)
        process.stdout.close()
        drain.join()
    return said, bytes(complaints)


def _started(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    # our paths begin with a slash, so none looks like an option
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)  # noqa: S603


def _drain(stream: IO[bytes], kept: bytearray) -> None:
    """Read a stream to its end, so that a program with many complaints is not blocked. Keep the beginning."""
    while chunk := stream.read(2**16):
        kept += chunk[: MAX_COMPLAINTS_BYTES - len(kept)]
