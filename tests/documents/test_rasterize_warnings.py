"""What a page does not show, or cannot, is said with it."""

import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_client import A4, pdf_bytes
from small_pdfs import HELVETICA, THREE_LINES, lines_page, page_of, pdf_of, stream
from test_rasterize import read, run
from test_rasterize_resolution import codes, page

from app.document import Page
from app.documents.raster import pool
from app.documents.raster.pool import Rasterizers
from app.documents.raster.poppler import undrawable
from app.documents.raster.text_layer import MAX_WORD_CHARS, MAX_WORDS, has_cjk, is_garbage, words_of
from app.errors import EncryptedPdf, ParseError, UnreadableFile, UnreadablePage

WORDS = tuple(" ".join(THREE_LINES).split())
HIDDEN = "12 TL 3 Tr"


def cjk_page(collection: str, encoding: str, font: str, text: str) -> bytes:
    """Text in a font that is not embedded, above a line in Helvetica."""
    system = f"/CIDSystemInfo<</Registry(Adobe)/Ordering({collection})/Supplement 2>>"
    metrics = (
        "/Flags 6/FontBBox[0 -120 1000 880]/ItalicAngle 0/Ascent 880/Descent -120/CapHeight 880/StemV 90"
    )
    shown = f"BT /C 24 Tf 60 760 Td <{text.encode('utf-16-be').hex()}> Tj ET"
    return page_of(
        f"{shown} BT /F 12 Tf 60 600 Td (Invoice number 4471) Tj ET",
        HELVETICA,
        f"<</Type/Font/Subtype/Type0/BaseFont/{font}/Encoding/{encoding}/DescendantFonts[7 0 R]>>".encode(),
        f"<</Type/Font/Subtype/CIDFontType0/BaseFont/{font}{system}/DW 1000/FontDescriptor 8 0 R>>".encode(),
        f"<</Type/FontDescriptor/FontName/{font}{metrics}>>".encode(),
        names="/Font<</F 5 0 R/C 6 0 R>>",
    )


CJK = {
    "GB1": ("UniGB-UCS2-H", "STSong-Light", "中华人民共和国发票"),
    "CNS1": ("UniCNS-UCS2-H", "MSung-Light", "中華民國發票總計"),
    "Japan1": ("UniJIS-UCS2-H", "HeiseiMin-W3", "日本語の請求書です"),
    "Korea1": ("UniKS-UCS2-H", "HYSMyeongJo-Medium", "대한민국세금계산서"),
}


def num_different_letters(shown: Page) -> int:
    """Of those in the line of 24 points."""
    em_px = round(24 * 150 / 72)
    top, left = round((842 - 760 - 22) * 150 / 72), round(60 * 150 / 72)
    boxes = [(left + em_px * at, top, left + em_px * (at + 1), top + em_px) for at in range(8)]
    return len({shown.image.crop(box).tobytes() for box in boxes})


@pytest.mark.parametrize("collection", CJK)
def test_fonts_that_are_not_embedded_are_drawn(tmp_path: Path, collection: str) -> None:
    if collection in undrawable():
        pytest.skip("no font for it is installed here")
    shown = page(tmp_path, cjk_page(collection, *CJK[collection]))
    assert num_different_letters(shown) == 8
    assert codes(shown) == []


@pytest.fixture
def latin_fonts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "fonts.conf"
    config.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
        f"<dir>/usr/share/fonts/truetype/dejavu</dir><cachedir>{tmp_path / 'cache'}</cachedir></fontconfig>"
    )
    monkeypatch.setenv("FONTCONFIG_FILE", str(config))


@pytest.mark.usefixtures("latin_fonts_alone")
@pytest.mark.parametrize("collection", CJK)
def test_boxes_in_place_of_letters_are_told(tmp_path: Path, collection: str) -> None:
    shown = page(tmp_path, cjk_page(collection, *CJK[collection]))
    assert num_different_letters(shown) == 1, "all look the same"
    assert codes(shown) == ["missing_glyphs"]
    latin = page(tmp_path, cjk_page(collection, *CJK[collection][:2], "   "))
    assert codes(latin) == [], "a font that is not used is not missed"


def test_a_font_that_is_not_embedded_and_has_no_known_letters_is_told(tmp_path: Path) -> None:
    assert codes(page(tmp_path, cjk_page("Identity", "Identity-H", "SimSun", "中华人"))) == ["missing_glyphs"]


BROKEN_FONTS = {
    "named and not there": (b"<</A/B>>", "/Font<</G 5 0 R>>"),
    "damaged": (b"<</Type/Font/Subtype/TrueType/BaseFont/X/FontDescriptor 6 0 R>>", "/Font<</F 5 0 R>>"),
}


@pytest.mark.parametrize("kind", BROKEN_FONTS)
def test_text_that_poppler_drops_is_told(tmp_path: Path, kind: str) -> None:
    font, names = BROKEN_FONTS[kind]
    rest = (b"<</Type/FontDescriptor/FontName/X/Flags 4/FontFile2 7 0 R>>", stream(b"no font"))
    frame = "50 50 400 400 re S BT /F 12 Tf 60 300 Td (this is lost) Tj ET"
    assert codes(page(tmp_path, page_of(frame, font, *rest, names=names))) == ["dropped_text"]
    whole = page_of(frame, HELVETICA, names="/Font<</F 5 0 R>>")
    assert codes(page(tmp_path, whole)) == []


def test_a_thousand_complaints_are_one_warning(tmp_path: Path) -> None:
    shown = page(tmp_path, page_of("50 50 400 400 re S BT " + "(x) Tj " * 50_000 + "ET"))
    assert codes(shown) == ["dropped_text"]


WAIT = ("Please wait...", "If this message is not eventually replaced by the proper contents")
XFA = "/AcroForm<</Fields[]/XFA 4 0 R>>"


@pytest.mark.parametrize(
    ("lines", "catalog", "expected"),
    [
        (WAIT, XFA + "/NeedsRendering true", ["dynamic_xfa"]),
        (WAIT, XFA, ["dynamic_xfa"]),
        (("Bitte warten...",), XFA + "/NeedsRendering true", ["dynamic_xfa"]),
        (THREE_LINES, XFA, []),
        (THREE_LINES, XFA + "/NeedsRendering false", []),
        (WAIT, "/AcroForm<</Fields[]>>", []),
        (WAIT, "/NeedsRendering true", []),
    ],
)
def test_the_placeholder_of_a_form_is_told(
    tmp_path: Path, lines: tuple[str, ...], catalog: str, expected: list[str]
) -> None:
    assert codes(page(tmp_path, lines_page(*lines, catalog=catalog))) == expected


def test_a_form_is_told_by_a_catalog_in_a_stream_of_objects(tmp_path: Path) -> None:
    catalog = b"1 0 <</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[]/XFA 4 0 R>>/NeedsRendering true>>"
    packed = stream(zlib.compress(catalog), b"/Type/ObjStm/N 1/First 4/Filter/FlateDecode")
    visible = "<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[]/XFA 4 0 R>>>>"
    shown = lines_page("Bitte warten...")
    assert codes(page(tmp_path, shown.replace(b"<</Type/Catalog/Pages 2 0 R>>", visible.encode()))) == []
    with_stream = pdf_of(
        visible.encode(),
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R{A4}>>".encode(),
        packed,
    )
    assert codes(page(tmp_path, with_stream)) == ["dynamic_xfa"]


def attached(number: int) -> str:
    names = "".join(f"(f{at})<</Type/Filespec/F(f{at}.txt)/EF<</F 3 0 R>>>>" for at in range(number))
    return f"/Names<</EmbeddedFiles<</Names[{names}]>>>>/Collection<</Type/Collection>>"


@pytest.mark.parametrize("number", [1, 3])
def test_attached_files_are_told_once_with_their_number(tmp_path: Path, number: int) -> None:
    data = pdf_bytes(A4, A4, catalog=attached(number))
    first = page(tmp_path, data, is_first=True)
    assert codes(first) == ["attachments_not_read"]
    assert str(number) in first.warnings[0].detail
    assert codes(page(tmp_path, data)) == []
    assert codes(page(tmp_path, pdf_bytes(A4), is_first=True)) == []


def test_words_of_the_text_layer_come_with_the_page(tmp_path: Path) -> None:
    shown = page(tmp_path, lines_page(*THREE_LINES))
    assert shown.words == WORDS
    assert codes(shown) == []
    assert page(tmp_path, pdf_bytes(A4)).words is None
    assert page(tmp_path, lines_page("Page 7")).words is None, "a page number is no text layer"


def test_words_that_are_not_shown_count_too(tmp_path: Path) -> None:
    """Under a scan stands what another program read of it."""
    hidden = page_of(
        f"50 50 400 400 re S BT {HIDDEN} /F 12 Tf 60 700 Td ({THREE_LINES[0]}) Tj ET",
        HELVETICA,
        names="/Font<</F 5 0 R>>",
    )
    assert page(tmp_path, hidden).words == tuple(THREE_LINES[0].split())


def test_a_layer_that_is_no_text_is_told_and_not_used(tmp_path: Path) -> None:
    to_unicode = b"1 begincodespacerange<00><ff>endcodespacerange 1 beginbfrange<21><7e><e000>endbfrange"
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>"
    text = f"BT /F 12 Tf 50 700 Td ({' '.join(THREE_LINES)}) Tj ET"
    shown = page(tmp_path, page_of(text, font, stream(to_unicode), names="/Font<</F 5 0 R>>"))
    assert codes(shown) == ["text_layer_unusable"]
    assert shown.words is None


LONG = " ".join(THREE_LINES * 4)


@pytest.mark.parametrize(
    "text",
    [
        LONG.translate({code: code + 0xE000 for code in range(33, 127)}),
        "\ufffd\ufffd\ufffd \ufffd\ufffd word \ufffd\ufffd\ufffd",
        " ".join(f"(cid:{number})" for number in range(30)),
        "\x01\x02\x03 \x04\x05 \x06\x07 abc",
        "aaaa aaaaa aaaaaa aaaaaaa aaa",
        '"#$% &\'()* +,-./ :;<=> ?@[]^ !!"" ##$$',
        LONG.translate({code: code - 29 for code in range(ord("A"), 127)}),
    ],
)
def test_codes_of_a_font_are_no_text(text: str) -> None:
    assert is_garbage(words_of(text))


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        LONG.upper(),
        "1. Introduction ........................... 3 2. Method ................................. 17",
        "| 1,250.40 | 17 % | 3.5 | -12 | 4711 | 0.001 | 99 |" * 5,
        "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy. " * 3,
        "Strč prst skrz krk. " * 2,
        "Łódź, Wrocław, Gdańsk: szczęście, przestrzeń, źródło, chrząszcz brzmi w trzcinie. " * 3,
        "中华人民共和国发票 总计 一千二百元",
        "Общая сумма указана внизу страницы. " * 4,
        "يبلغ المجموع ألفًا ومئتين في أسفل الصفحة " * 4,
        "f(x) = x² + 2x + 1, ∫₀¹ f(x) dx = 7/3, ∀ε>0 ∃δ>0",
    ],
)
def test_languages_tables_and_formulas_are_text(text: str) -> None:
    assert not is_garbage(words_of(text))


@given(st.text(max_size=3000))
def test_any_text_layer_has_bounds(text: str) -> None:
    words = words_of(text * 3)
    assert len(words) <= MAX_WORDS
    assert all(0 < len(word) <= MAX_WORD_CHARS for word in words)
    assert is_garbage(words) in {True, False}
    assert has_cjk(words) in {True, False}


def test_a_page_of_too_many_words_has_the_first(tmp_path: Path) -> None:
    lines = " ".join(f"(word{number} and) Tj 0 -8 Td" for number in range(10_500))
    text = f"BT /F 8 Tf 10 84900 Td {lines} ET"
    data = page_of(text, HELVETICA, attributes="/MediaBox[0 0 90 85000]", names="/Font<</F 5 0 R>>")
    words = page(tmp_path, data, dpi=36).words
    assert words is not None
    assert len(words) == MAX_WORDS
    assert words[:3] == ("word0", "and", "word1")


LIES: list[dict[str, Any]] = [
    {},
    {"dpi": "150"},
    {"dpi": -1},
    {"words": "abc"},
    {"words": [1, 2]},
    {"words": ["x" * 10_000]},
    {"words": ["x"] * (MAX_WORDS + 1)},
    {"warnings": [{"code": "no_such", "detail": "x"}]},
    {"warnings": [{"code": "dropped_text", "detail": "x" * 1000}]},
    {"warnings": [{"code": "dropped_text", "detail": "\n\ud800"}]},
    {"warnings": [{"code": ["dropped_text"], "detail": "x"}]},
    {"warnings": ["dropped_text"]},
    {"warnings": None},
    {"warnings": [{"code": "dropped_text", "detail": "x"}] * 1000},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_child_that_lies_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any]
) -> None:
    child = tmp_path / "liar.py"
    answer: dict[str, Any] = {
        "width": 1,
        "height": 1,
        "ms": 1.0,
        "dpi": 150.0,
        "words": None,
        "warnings": [],
        "num_bytes": 3,
    }
    child.write_text(
        "import sys\nfrom app.documents.raster.ipc import pack, read_frame_blocking\n"
        "sys.stdout.buffer.write(pack({}))\nsys.stdout.buffer.flush()\n"
        "while read_frame_blocking(sys.stdin.buffer) is not None:\n"
        f"    sys.stdout.buffer.write(pack({ {**answer, **lie}!r}) + b'abc')\n    sys.stdout.buffer.flush()\n"
    )

    def python_module(name: str, *_: str) -> list[str]:
        return [sys.executable, str(child)]

    monkeypatch.setattr(pool, "python_module", python_module)

    async def ask(rasterizers: Rasterizers) -> Page | ParseError:
        try:
            return await rasterizers.page(child, "PDF", 0)
        except ParseError as error:
            return error

    assert isinstance(run(tmp_path, ask), UnreadablePage if lie else Page)


ENCRYPTIONS = {
    "/Filter/Adobe.PubSec/SubFilter/adbe.pkcs7.s4/V 2": "certificates",
    "/Filter/Adobe.PubSec/SubFilter/adbe.pkcs7.s5/V 4/R 4/Length 128": "certificates",
    "/Filter/FooBar/V 1": "not known",
    "/V 1/R 2/P -4": "damaged",
    "/Filter/Standard": "damaged",
    f"/Filter/Standard/V 9/R 9/P -4/O<{'11' * 32}>/U<{'22' * 32}>": "damaged",
    f"/Filter/Standard/V 1/R 2/P -4/O<{'11' * 32}>/U<{'22' * 32}>": "password",
}


@pytest.mark.parametrize("dictionary", ENCRYPTIONS)
def test_why_a_pdf_cannot_be_opened_is_told(tmp_path: Path, dictionary: str) -> None:
    identity = f"/ID[<{'00' * 16}><{'00' * 16}>]"
    [error] = read(tmp_path, pdf_bytes(A4, trailer=f"{identity}/Encrypt<<{dictionary}>>"))
    assert isinstance(error, EncryptedPdf)
    assert ENCRYPTIONS[dictionary] in str(error)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "no pages"), (-3, "negative"), (5000, "larger"), (10**12, "too large")]
)
def test_a_page_count_that_lies_is_told(tmp_path: Path, count: int, expected: str) -> None:
    [error] = read(tmp_path, pdf_bytes(A4, count=count))
    assert isinstance(error, UnreadableFile)
    assert "/Count" in str(error)
    assert expected in str(error)
