"""Files into pages: what users see, or a typed error, within limits."""

import asyncio
import contextlib
import csv
import io
import os
import random
import signal
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, features
from service_client import A4, ENCRYPTED, descendants, image_bytes, pdf_bytes

from app.document import Page
from app.documents.formats import OPTIONAL, Format, sniff, sniff_file
from app.documents.raster.pdf import MAX_SIDE_PX, MIN_DPI, fitting_dpi
from app.documents.raster.pool import Rasterizers
from app.errors import (
    EncryptedPdf,
    ParseError,
    RasterizeTimeout,
    TooManyPixels,
    UnreadableFile,
    UnreadablePage,
    UnsupportedFormat,
)
from app.settings import Settings

T = TypeVar("T")
SETTINGS = Settings(rasterize_deadline_s=20, max_page_megapixels=4, max_image_megapixels=9)


def run(tmp_path: Path, work: Callable[[Rasterizers], Awaitable[T]], settings: Settings = SETTINGS) -> T:
    async def with_children() -> T:
        rasterizers = Rasterizers(settings, tmp_path)
        await rasterizers.start()
        try:
            return await work(rasterizers)
        finally:
            await rasterizers.close()

    return asyncio.run(with_children())


async def outcome(rasterizers: Rasterizers, path: Path, max_pages: int = 3) -> list[Page | ParseError]:
    """The pages of a file; in place of a page that fails, or of the file, its error."""
    try:
        source = sniff_file(path)
        num_pages = await rasterizers.count(path, source.format)
    except ParseError as error:
        return [error]
    pages: list[Page | ParseError] = []
    for index in range(min(num_pages, max_pages)):
        try:
            pages.append(await rasterizers.page(path, source.format, index, 72))
        except ParseError as error:
            pages.append(error)
    return pages


def read(tmp_path: Path, data: bytes) -> list[Page | ParseError]:
    path = tmp_path / "file"
    path.write_bytes(data)
    return run(tmp_path, lambda rasterizers: outcome(rasterizers, path))


def image_of(tmp_path: Path, data: bytes) -> Image.Image:
    [page] = read(tmp_path, data)
    assert isinstance(page, Page), page
    assert page.image.mode == "RGB"
    return page.image


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        (A4, (595, 842)),
        (A4 + "/Rotate 90", (842, 595)),
        (A4 + "/CropBox[100 100 300 200]", (200, 100)),
        ("/MediaBox[0 0 6000 6000]", (2000, 2000)),
        ("/MediaBox[0 0 10 10000]", (10, 10000)),
    ],
)
def test_pdf_page_sizes(tmp_path: Path, attributes: str, size: tuple[int, int]) -> None:
    image = image_of(tmp_path, pdf_bytes(attributes))
    assert abs(image.width - size[0]) <= 1
    assert abs(image.height - size[1]) <= 1


@settings(deadline=None)
@given(st.floats(1e-3, 1e7), st.floats(1e-3, 1e7), st.integers(36, 600))
def test_no_page_is_rendered_over_the_limit(width_pt: float, height_pt: float, dpi: int) -> None:
    try:
        fitting = fitting_dpi(width_pt, height_pt, dpi, 4_000_000)
    except TooManyPixels:
        assert (
            width_pt * height_pt * (MIN_DPI / 72) ** 2 > 3.9e6
            or max(width_pt, height_pt) * 0.25 > MAX_SIDE_PX * 0.9
        )
        return
    assert MIN_DPI <= fitting <= dpi
    assert width_pt * height_pt * (fitting / 72) ** 2 <= 4_000_000 * (1 + 1e-9)
    assert max(width_pt, height_pt) * fitting / 72 <= MAX_SIDE_PX * (1 + 1e-9)


ODD: dict[str, tuple[bytes, type[ParseError]]] = {
    "password": (pdf_bytes(A4, trailer=ENCRYPTED), EncryptedPdf),
    "no pages": (pdf_bytes(A4, count=0).replace(b"3 0 R", b"     "), UnreadableFile),
    "header alone": (b"%PDF-1.7\n", UnreadableFile),
    "absurd": (pdf_bytes("/MediaBox[0 0 9999999 9999999]"), TooManyPixels),
    "many pixels": (image_bytes("PNG", (4000, 4000), "1"), TooManyPixels),
    "cut png": (image_bytes("PNG", (90, 90))[:60], UnreadableFile),
    "cut jpeg": (image_bytes("JPEG", (300, 300), quality=95)[:700], UnreadableFile),
    "cut gif": (image_bytes("GIF")[:30], UnreadableFile),
    "cut webp": (image_bytes("WEBP", (300, 300))[:-40], UnreadableFile),
    "cut bmp": (image_bytes("BMP")[:-100], UnreadableFile),
    "tiff header alone": (b"II*\0\x08\0\0\0", UnreadableFile),
    "cut tiff": (image_bytes("TIFF")[:-20], ParseError),
    "webp of many pixels": (
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xfe\x3f\0" * 2 + bytes(20),
        TooManyPixels,
    ),
    "lossless webp of many pixels": (
        b"RIFF\x1e\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + b"\xff\xff\xff\x0f" + bytes(20),
        TooManyPixels,
    ),
    "avif of many pixels": (
        struct.pack(">I4s4sI", 16, b"ftyp", b"avif", 0)
        + struct.pack(">I4sIII", 20, b"ispe", 0, 64, 64)
        + struct.pack(">I4sIII", 20, b"ispe", 0, 17_000, 17_000),
        TooManyPixels,
    ),
    "cut avif": (image_bytes("AVIF", (300, 300))[:-20], UnreadableFile),
    "cut jpeg 2000": (image_bytes("JPEG2000", (300, 300))[:-20], UnreadableFile),
    "bmp bomb": (
        b"BM" + bytes(12) + b"\x28\0\0\0" + b"\0\0\1\0" * 2 + b"\1\0\x18\0" + bytes(24),
        TooManyPixels,
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_give_typed_errors(tmp_path: Path, kind: str) -> None:
    data, error = ODD[kind]
    [result] = read(tmp_path, data)
    assert isinstance(result, error), result
    assert str(tmp_path) not in str(result)


def test_pages_beside_a_missing_one_are_read(tmp_path: Path) -> None:
    first, second = read(tmp_path, pdf_bytes(A4, count=2))
    assert isinstance(first, Page)
    assert isinstance(second, UnreadablePage)


def test_junk_before_the_header_is_skipped(tmp_path: Path) -> None:
    assert image_of(tmp_path, b"junk\n" * 20 + pdf_bytes(A4)).height == 842


def test_large_images_are_scaled_down(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        image = image_of(tmp_path, image_bytes(kind, (3200, 1600)))
        assert image.width * image.height <= 4_000_000
        assert image.width / image.height == pytest.approx(2, rel=0.01)


def corner(image: Image.Image) -> tuple[int, ...]:
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def drawn(mode: str, colour: Any, file_format: str = "PNG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (30, 20), colour).save(buffer, file_format, **save)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (drawn("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        (drawn("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
        (drawn("LA", (0, 0)), (255, 255, 255)),
        (drawn("P", 0, transparency=0), (255, 255, 255)),
        (drawn("L", 7, transparency=7), (255, 255, 255)),
        (drawn("1", 1), (255, 255, 255)),
        (drawn("I;16", 65535), (255, 255, 255)),
        (drawn("I;16", 32768), (127, 127, 127)),
        (drawn("F", 0.5, "TIFF"), (0, 0, 0)),
        (drawn("CMYK", (0, 0, 0, 0), "JPEG", quality=95), (255, 255, 255)),
        (drawn("CMYK", (0, 0, 0, 255), "TIFF"), (0, 0, 0)),
        (drawn("LAB", (255, 128, 128), "TIFF"), None),
    ],
)
def test_colours_become_rgb_on_white(tmp_path: Path, data: bytes, expected: tuple[int, ...] | None) -> None:
    if expected is None:
        assert isinstance(read(tmp_path, data)[0], Page | UnreadablePage)
        return
    assert corner(image_of(tmp_path, data)) == pytest.approx(expected, abs=2)


def printed(shade: int, mode: str, *, paper: tuple[int, ...] | None = None) -> bytes:
    """Letters of a shade on a transparent ground, or on paper with a clear margin."""
    rgba = Image.new("RGBA", (300, 100), (0, 0, 0, 0))
    draw = ImageDraw.Draw(rgba)
    if paper is not None:
        draw.rectangle((20, 20, 280, 80), fill=(*paper, 255))
    for at in range(40, 250, 15):
        draw.rectangle((at, 40, at + 4, 60), fill=(shade, shade, shade, 255))
    buffer = io.BytesIO()
    if mode == "P":
        clear_or_not = rgba.getchannel("A").point(lambda alpha: int(alpha > 0))
        image = Image.frombytes("P", rgba.size, clear_or_not.tobytes())
        image.putpalette([90, 90, 90, shade, shade, shade])
        image.save(buffer, "PNG", transparency=0)
    else:
        rgba.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("shade", [0, 100, 200, 255])
def test_print_of_any_shade_can_be_read_on_its_ground(tmp_path: Path, mode: str, shade: int) -> None:
    image = image_of(tmp_path, printed(shade, mode)).convert("L")
    ground, letter = image.getpixel((5, 5)), image.getpixel((42, 50))
    assert isinstance(ground, int)
    assert isinstance(letter, int)
    assert abs(ground - letter) > 90
    assert ground == (0 if shade > 150 else 255), "white is what print is on, where it can be"


def test_paper_with_clear_margins_is_on_white(tmp_path: Path) -> None:
    data = printed(0, "RGBA", paper=(250, 250, 250))
    assert corner(image_of(tmp_path, data)) == (255, 255, 255)


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG2000"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_formats_that_pillow_may_read_are_read(tmp_path: Path, file_format: str, mode: str) -> None:
    if not features.check(OPTIONAL[cast("Format", file_format)][0]):
        pytest.skip(f"Pillow was built without {file_format}")
    colour = {"RGB": (200, 30, 30), "L": 40, "RGBA": (0, 0, 0, 0)}[mode]
    expected = {"RGB": (200, 30, 30), "L": (40, 40, 40), "RGBA": (255, 255, 255)}[mode]
    image = image_of(tmp_path, drawn(mode, colour, file_format))
    assert image.size == (30, 20)
    assert corner(image) == pytest.approx(expected, abs=12)


def test_a_jpeg_2000_stream_without_its_box_is_read(tmp_path: Path) -> None:
    assert corner(image_of(tmp_path, drawn("RGB", "blue", "JPEG2000", no_jp2=True))) == pytest.approx(
        (0, 0, 255), abs=5
    )


def ftyp(brand: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 4 + len(body)) + body + bytes(100)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (ftyp(b"avif"), "AVIF"),
        (ftyp(b"avis", b"msf1"), "AVIF"),
        (ftyp(b"mif1", b"miaf", b"avif"), "AVIF"),
        (ftyp(b"mif1", b"heic"), None),
        (ftyp(b"heic", b"mif1", b"avif"), None),
        (ftyp(b"isom", b"avif"), None),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG2000"),
        (b"\xff\x4f\xff\x51" + bytes(50), "JPEG2000"),
    ],
)
def test_new_formats_are_told_by_their_brands(head: bytes, expected: str | None) -> None:
    if expected is not None:
        assert sniff(head) == expected
        return
    with pytest.raises(UnsupportedFormat, match="AVIF and JPEG 2000 are read"):
        sniff(head)


def test_a_format_that_pillow_was_built_without_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _: False)
    with pytest.raises(UnsupportedFormat, match="AVIF, which Pillow"):
        sniff(ftyp(b"avif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = image_of(tmp_path, drawn("RGB", "white", "JPEG", exif=exif.tobytes()))
    assert image.size == ((30, 20) if orientation < 5 else (20, 30))


def frames(file_format: str, **save: Any) -> bytes:
    images = [
        Image.new("RGB", (20 + number, 10), colour) for number, colour in enumerate(["red", "blue", "lime"])
    ]
    if file_format != "TIFF":
        images = [image.resize((20, 10)) for image in images]
    buffer = io.BytesIO()
    images[0].save(buffer, file_format, save_all=True, append_images=images[1:], **save)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(tmp_path: Path, file_format: str) -> None:
    assert corner(image_of(tmp_path, frames(file_format))) == pytest.approx((255, 0, 0), abs=5)


def test_a_tiff_has_all_its_pages(tmp_path: Path) -> None:
    pages = read(tmp_path, frames("TIFF"))
    assert [page.image.size for page in pages if isinstance(page, Page)] == [(20, 10), (21, 10), (22, 10)]
    assert [page.index for page in pages if isinstance(page, Page)] == [0, 1, 2]


def test_pages_of_many_tiffs_in_any_order_are_those_of_their_files(tmp_path: Path) -> None:
    """Files that are kept open are told apart, also from one that takes another's place."""
    rng = random.Random(5)
    sizes = {f"file {number}": [(10 + number, 20 + index) for index in range(6)] for number in range(12)}

    def write(name: str) -> None:
        pages = [Image.new("RGB", size) for size in sizes[name]]
        pages[0].save(tmp_path / name, "TIFF", save_all=True, append_images=pages[1:])

    for name in sizes:
        write(name)

    async def work(rasterizers: Rasterizers) -> None:
        for number in range(150):
            name = rng.choice(list(sizes))
            if number == 75:
                sizes[name] = [(40, 50 + index) for index in range(6)]
                (tmp_path / name).unlink()
                write(name)
            index = rng.randrange(6)
            page = await rasterizers.page(tmp_path / name, "TIFF", index, 72)
            assert (page.index, page.image.size) == (index, sizes[name][index])

    run(tmp_path, work, SETTINGS.model_copy(update={"num_rasterizers": 1}))


def test_a_damaged_page_of_a_tiff_costs_no_other(tmp_path: Path) -> None:
    noise = [Image.effect_noise((64, 64), 50 + index) for index in range(4)]
    path = tmp_path / "x"
    noise[0].save(path, "TIFF", save_all=True, append_images=noise[1:], compression="tiff_deflate")
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(1)
        [start] = image.tag_v2[273]  # type: ignore[attr-defined]
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)

    async def work(rasterizers: Rasterizers) -> None:
        for index in (0, 2, 1, 3, 1, 0, 2):
            if index == 1:
                with pytest.raises(UnreadablePage):
                    await rasterizers.page(path, "TIFF", 1, 72)
            else:
                page = await rasterizers.page(path, "TIFF", index, 72)
                assert page.image.tobytes() == noise[index].convert("RGB").tobytes()

    run(tmp_path, work, SETTINGS.model_copy(update={"num_rasterizers": 1}))


def test_a_file_that_was_removed_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(frames("TIFF"))

    def is_open() -> bool:
        targets = []
        for pid in descendants(os.getpid()):
            with contextlib.suppress(FileNotFoundError):  # it ended
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(FileNotFoundError):  # it was closed
                        targets.append(str(link.readlink()))
        return any(target.startswith(str(path)) for target in targets)

    def is_let_go() -> bool:
        deadline = time.monotonic() + 10
        while is_open() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not is_open()

    async def work(rasterizers: Rasterizers) -> None:
        await rasterizers.page(path, "TIFF", 0, 72)
        assert is_open(), "for the next page"
        path.unlink()
        assert await asyncio.to_thread(is_let_go)

    run(tmp_path, work)


def test_a_child_killed_at_random_costs_no_page(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(image_bytes())

    async def work(rasterizers: Rasterizers) -> None:
        for _ in range(3):
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            results = await asyncio.gather(*(outcome(rasterizers, path) for _ in range(4)))
            assert all(isinstance(result[0], Page) for result in results)

    run(tmp_path, work)


def test_a_file_of_too_much_work_is_stopped(tmp_path: Path) -> None:
    loops = "0 0 m 500 500 l S " * 200_000
    content = f"<</Length {len(loops)}>>stream\n{loops}\nendstream"
    body = pdf_bytes(A4 + "/Contents 4 0 R").replace(b"xref", f"4 0 obj\n{content}\nendobj\nxref".encode(), 1)
    path = tmp_path / "x"
    path.write_bytes(body)
    settings = SETTINGS.model_copy(update={"rasterize_deadline_s": 0.05})
    [result] = run(tmp_path, lambda rasterizers: outcome(rasterizers, path), settings)
    assert isinstance(result, RasterizeTimeout)


def test_memory_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(image_bytes("PNG", (20_000, 5_000), "1"))
    settings = Settings(max_rasterizer_mib=256, max_image_megapixels=1000, max_page_megapixels=500)
    [result] = run(tmp_path, lambda rasterizers: outcome(rasterizers, path), settings)
    assert isinstance(result, UnreadableFile)


def shared_folder() -> Path:
    named = os.environ.get("RTPRUNE_SHARED")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "shared"


ODD_FILES = shared_folder() / "documents" / "odd"
ENCRYPTED_FOR_SURE = "clear error (password required)"


@pytest.mark.skipif(not ODD_FILES.is_dir(), reason="the folder of odd documents is not here")
def test_every_odd_document_gives_pages_or_a_typed_error(tmp_path: Path) -> None:
    with (ODD_FILES.parent / "manifest.csv").open(newline="") as manifest:
        rows = [row for row in csv.DictReader(manifest) if row["file"].startswith("odd/")]
    if "CI" in os.environ:
        rows = random.Random(0).sample(rows, 60)

    async def work(rasterizers: Rasterizers) -> list[list[Page | ParseError]]:
        paths = [ODD_FILES.parent / row["file"] for row in rows]
        return list(await asyncio.gather(*(outcome(rasterizers, path, 2) for path in paths)))

    results = run(tmp_path, work, Settings(rasterize_deadline_s=20))
    for row, pages in zip(rows, results, strict=True):
        assert pages, row["file"]
        for page in pages:
            if isinstance(page, Page):
                assert page.image.width * page.image.height <= 17e6, row["file"]
            else:
                assert 400 <= page.status < 500, (row["file"], page)
        if row["expected_outcome"] == ENCRYPTED_FOR_SURE:
            assert isinstance(pages[0], EncryptedPdf), row["file"]
    num_read = sum(isinstance(pages[0], Page) for pages in results)
    assert num_read > 0.6 * len(rows)
