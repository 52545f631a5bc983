"""The resolution follows the page, and pixels are square."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import TypeAdapter
from service_client import A4, pdf_bytes
from small_pdfs import HELVETICA, lines_page, page_of, scan
from test_rasterize import SETTINGS, run
from test_rasterize_tiff import difference, letter

from app.document import Page, ParseOptions
from app.documents.raster.pdf import (
    BASE_DPI,
    MAX_DRAWN_DPI,
    MAX_SCAN_PX,
    MIN_LONGER_PX,
    READ_PRINT_PX,
    SMALL_PRINT_PX,
    chosen_dpi,
)
from app.jobs.job import encode_options
from app.settings import Settings


def page(
    tmp_path: Path,
    data: bytes,
    file_format: str = "PDF",
    dpi: int | None = None,
    settings: Settings = SETTINGS,
    *,
    is_first: bool = False,
) -> Page:
    path = tmp_path / "file"
    path.write_bytes(data)
    return run(
        tmp_path, lambda rasterizers: rasterizers.page(path, file_format, 0, dpi, is_first=is_first), settings
    )


def codes(page: Page) -> list[str]:
    return [warning.code for warning in page.warnings]


def test_a_usual_page_has_150_dpi(tmp_path: Path) -> None:
    shown = page(tmp_path, pdf_bytes(A4))
    assert (shown.dpi, shown.image.size) == (150, (1240, 1754))
    assert codes(shown) == []


@pytest.mark.parametrize("resolution", [200, 300, 600])
def test_a_small_scan_keeps_its_own_pixels(tmp_path: Path, resolution: int) -> None:
    shown = page(tmp_path, scan(letter((800, 1200)), resolution))
    assert (shown.dpi, codes(shown)) == (resolution if resolution > 213 else pytest.approx(213.3), [])
    assert max(shown.image.size) >= 1200


def test_the_pixels_of_a_scan_are_those_of_its_picture(tmp_path: Path) -> None:
    picture = letter((1240, 700))
    shown = page(tmp_path, scan(picture, 600))
    assert difference(shown.image, picture) < 1


def test_a_large_scan_is_rendered_as_large_as_views_are(tmp_path: Path) -> None:
    shown = page(tmp_path, scan(letter((3200, 4800)), 400), settings=Settings())
    assert max(shown.image.size) == MAX_SCAN_PX
    assert codes(shown) == [], "nothing of it is lost in reading"


def test_strips_of_a_scan_count_together(tmp_path: Path) -> None:
    picture = letter((1000, 1600))
    assert page(tmp_path, scan(picture, 400, strips=10)).dpi == 400
    few = page(tmp_path, scan(picture, 400, strips=10, num_covered=3))
    assert few.dpi != 400, "a picture on a page is no scanned page"


def test_what_is_asked_for_is_used_and_what_it_loses_is_said(tmp_path: Path) -> None:
    small = page(tmp_path, scan(letter((800, 1200)), 600), dpi=150)
    assert (small.dpi, max(small.image.size)) == (150, 300)
    [warning] = small.warnings
    assert warning.code == "low_resolution"
    assert "150" in warning.detail
    assert "600" in warning.detail
    assert codes(page(tmp_path, scan(letter((800, 1200)), 600), dpi=600)) == []


def test_the_pixel_limit_comes_first_and_is_said(tmp_path: Path) -> None:
    limited = SETTINGS.model_copy(update={"max_page_megapixels": 0.5})
    shown = page(tmp_path, scan(letter((800, 1200)), 300), settings=limited)
    assert shown.image.width * shown.image.height <= 0.5e6 * 1.01
    assert codes(shown) == ["low_resolution"]
    path = tmp_path / "image"
    letter((800, 1200)).save(path, "PNG")
    image = page(tmp_path, path.read_bytes(), "PNG", settings=limited)
    assert codes(image) == ["low_resolution"]
    assert image.dpi is None


@given(st.floats(1, 14_400), st.floats(0, 5000))
def test_no_page_has_less_than_before_or_more_than_it_needs(longer_pt: float, picture_dpi: float) -> None:
    dpi = chosen_dpi(longer_pt, picture_dpi)
    longer_px = longer_pt / 72 * dpi
    assert dpi >= BASE_DPI
    assert longer_px >= min(MIN_LONGER_PX, longer_pt / 72 * MAX_DRAWN_DPI) * 0.999
    assert dpi == BASE_DPI or longer_px <= MAX_SCAN_PX * 1.001
    assert dpi <= max(picture_dpi, MAX_DRAWN_DPI)


def test_jobs_stored_with_a_resolution_keep_it() -> None:
    options = TypeAdapter(ParseOptions)
    for dpi in (None, 150):
        assert options.validate_json(encode_options(ParseOptions(dpi=dpi))).dpi == dpi


TWO_LINES = "BT /F 12 Tf 50 100 Td (inside the small box) Tj 0 500 Td (outside of it and far away) Tj ET"


@pytest.mark.parametrize(
    ("crop", "size"),
    [
        ("[1000 1000 1200 1200]", (595, 842)),
        ("[-300 -300 -10 -10]", (595, 842)),
        ("[20 20 20 500]", (595, 842)),
        ("[-100 -100 300 200]", (300, 200)),
    ],
)
@pytest.mark.parametrize("turn", [0, 90])
def test_a_crop_box_beside_the_page_is_disregarded(
    tmp_path: Path, crop: str, size: tuple[int, int], turn: int
) -> None:
    attributes = f"{A4}/CropBox{crop}/Rotate {turn}"
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    shown = page(tmp_path, page_of(TWO_LINES, font, attributes=attributes, names="/Font<</F 5 0 R>>"), dpi=72)
    assert shown.image.size == pytest.approx(size[::-1] if turn else size, abs=1)
    assert shown.image.convert("L").getextrema() == (0, 255)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_words_are_those_of_the_crop_box(tmp_path: Path, turn: int) -> None:
    attributes = f"{A4}/CropBox[30 50 400 300]/Rotate {turn}"
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    shown = page(tmp_path, page_of(TWO_LINES, font, attributes=attributes, names="/Font<</F 5 0 R>>"))
    assert shown.words == ("inside", "the", "small", "box")


@pytest.mark.parametrize("crop", ["", "/CropBox[30 50 400 300]"])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_words_are_placed_where_they_are_printed(tmp_path: Path, turn: int, crop: str) -> None:
    """Around each word there is its ink, and no other ink is on the page."""
    attributes = f"{A4}{crop}/Rotate {turn}"
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    data = page_of(TWO_LINES, font, attributes=attributes, names="/Font<</F 5 0 R>>")
    shown = page(tmp_path, data, settings=Settings())
    ink = ImageOps.invert(shown.image.convert("L"))
    inside = [word for word in shown.placed_words if 0 < word.left < ink.width and 0 < word.top < ink.height]
    assert {"inside", "the", "small", "box"} <= {word.text for word in inside}
    for word in inside:
        box = (round(word.left) - 2, round(word.top) - 2, round(word.right) + 2, round(word.bottom) + 2)
        assert ink.crop(box).getextrema()[1] == 255, word
        ink.paste(0, box)
    assert ink.getextrema() == (0, 0)


FONT = "/Font<</F 5 0 R>>"


def print_page(size_pt: float, then: str = "") -> bytes:
    """Lines of print of one size, and what follows them."""
    line = "(Forty sheets of white stock lie in the northern store) Tj 0 -30 Td "
    return page_of(f"BT /F {size_pt} Tf 50 780 Td {line * 6} {then} ET", HELVETICA, names=FONT)


@pytest.mark.parametrize("size_pt", [3, 4, 5, 6, 8, 12, 24])
def test_small_print_is_rendered_as_large_as_other_print(tmp_path: Path, size_pt: float) -> None:
    shown = page(tmp_path, print_page(size_pt), settings=Settings())
    at_base = size_pt * 0.925 * BASE_DPI / 72  # ascender to descender of Helvetica
    assert shown.glyph_px is not None
    assert shown.dpi is not None
    assert shown.glyph_px == pytest.approx(at_base * shown.dpi / BASE_DPI, rel=0.05)
    assert (shown.dpi == BASE_DPI) == (at_base >= SMALL_PRINT_PX)
    assert shown.glyph_px >= SMALL_PRINT_PX or shown.dpi == MAX_DRAWN_DPI


def test_the_smallest_print_is_that_of_a_quarter_of_the_letters(tmp_path: Path) -> None:
    footnote = page(tmp_path, print_page(12, "/F 4 Tf (1 See there.) Tj"))
    assert footnote.glyph_px == pytest.approx(page(tmp_path, print_page(12)).glyph_px)
    notes = page(
        tmp_path,
        print_page(12, "/F 4 Tf " + "(1 See the list of stock at the end.) Tj 0 -9 Td " * 6),
        settings=Settings(),
    )
    assert notes.glyph_px == pytest.approx(READ_PRINT_PX, abs=0.1)


def test_print_raises_no_resolution_that_was_asked_for_or_is_that_of_a_scan_or_where_it_is_not_known(
    tmp_path: Path,
) -> None:
    small = print_page(4)
    asked = page(tmp_path, small, dpi=100)
    assert asked.dpi == 100
    assert asked.glyph_px == pytest.approx(4 * 0.925 * 100 / 72, rel=0.05)
    off = page(tmp_path, small, settings=SETTINGS.model_copy(update={"router_mode": False}))
    assert (off.dpi, off.glyph_px) == (BASE_DPI, None)
    assert chosen_dpi(842, 150, 3.0) == BASE_DPI, "a scan has no more pixels than it has"
    limited = SETTINGS.model_copy(update={"max_page_megapixels": 0.5})
    shown = page(tmp_path, small, settings=limited)
    assert shown.image.width * shown.image.height <= 0.5e6 * 1.01


GARBAGE = "(=#&%+ =#&%=# &+% =#&%= +%&#) Tj 0 -30 Td "


def test_print_is_not_measured_in_a_layer_that_is_not_used(tmp_path: Path) -> None:
    layers = {
        "none": (pdf_bytes(A4), False),
        "a stamp": (lines_page("Page 7"), True),
        "garbage": (page_of(f"BT /F 4 Tf 50 700 Td {GARBAGE * 6} ET", HELVETICA, names=FONT), True),
    }
    for name, (data, has_text) in layers.items():
        shown = page(tmp_path, data)
        assert (shown.words, shown.glyph_px, shown.has_text) == (None, None, has_text), name
        assert shown.dpi == BASE_DPI, name


def saved(image: Image.Image, file_format: str, **save: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **save)
    return buffer.getvalue()


PHYSICAL = [("TIFF", (204, 98)), ("PNG", (204, 98)), ("BMP", (200, 100)), ("JPEG", (204, 98))]


@pytest.mark.parametrize(("file_format", "density"), PHYSICAL)
@pytest.mark.parametrize("sideways", [False, True])
def test_pixels_that_are_not_square_are_made_square(
    tmp_path: Path, file_format: str, density: tuple[int, int], *, sideways: bool
) -> None:
    density = density[::-1] if sideways else density
    data = saved(letter((400, 300)), file_format, dpi=density)
    width, height = page(tmp_path, data, file_format).image.size
    # no axis loses pixels, and the shape is that of the paper
    assert (width, height) >= (400, 300)
    assert width / height == pytest.approx(400 / 300 * density[1] / density[0], rel=0.02)


def test_a_turned_frame_is_stretched_the_way_it_was_stored(tmp_path: Path) -> None:
    tags = {274: 6, 282: 204.0, 283: 98.0}
    data = saved(letter((400, 300)), "TIFF", tiffinfo=tags)
    assert page(tmp_path, data, "TIFF").image.size == pytest.approx((300 * 204 / 98, 400), abs=1)
    exif = Image.Exif()
    exif[274] = 6
    data = saved(letter((400, 300)), "JPEG", dpi=(204, 98), exif=exif.tobytes())
    assert page(tmp_path, data, "JPEG").image.size == pytest.approx((300 * 204 / 98, 400), abs=1)


@pytest.mark.parametrize("density", [(1, 72), (72, 72), (300, 299), (0, 0), (1, 1)])
@pytest.mark.parametrize("file_format", ["TIFF", "PNG", "BMP", "JPEG"])
def test_a_density_that_says_nothing_changes_nothing(
    tmp_path: Path, file_format: str, density: tuple[int, int]
) -> None:
    data = saved(letter((40, 60)), file_format, dpi=density)
    assert page(tmp_path, data, file_format).image.size == (40, 60)


def test_stretching_stays_within_the_limit(tmp_path: Path) -> None:
    data = saved(letter((2000, 1900)), "PNG", dpi=(400, 100))
    image = page(tmp_path, data, "PNG").image
    assert image.width * image.height <= 4_000_000
    assert image.width / image.height == pytest.approx(2000 / 1900 / 4, rel=0.01)
