"""TIFF is many formats: which frames are pages, which way is up, and which sample is white."""

import struct
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from test_rasterize import image_of, read

from app.document import Page
from app.errors import UnreadableFile, UnreadablePage

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION = 256, 257, 258, 259, 262, 273, 274
ROWS, COUNTS, SUBFILE, SAMPLES, PLANAR = 278, 279, 254, 277, 284
REDUCED, PAGE_OF_MANY, MASK = 1, 2, 4
TURNED = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def letter(size: tuple[int, int] = (40, 60)) -> Image.Image:
    """White, with a black F: no turn and no mirror leaves it the same."""
    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    width, height = size
    for box in [(0.2, 0.1, 0.3, 0.9), (0.2, 0.1, 0.8, 0.2), (0.2, 0.45, 0.6, 0.55)]:
        draw.rectangle(
            (box[0] * width, box[1] * height, box[2] * width, box[3] * height),
            fill=0,
        )
    return image


def twelve_bits(image: Image.Image) -> bytes:
    """Two samples in three bytes, for even widths."""
    samples = [sample * 4095 // 255 for sample in image.tobytes()]
    pairs = zip(samples[::2], samples[1::2], strict=True)
    return b"".join(((first << 12) | second).to_bytes(3, "big") for first, second in pairs)


def sixteen_bits(image: Image.Image, *, inverted: bool = False) -> bytes:
    samples = [sample * 257 for sample in image.tobytes()]
    return struct.pack(f"<{len(samples)}H", *(65535 - sample if inverted else sample for sample in samples))


def thirty_two_bits(image: Image.Image) -> bytes:
    return b"".join(struct.pack("<I", sample * 0x01010101) for sample in image.tobytes())


Frame = tuple[dict[int, int], bytes]


def frame(image: Image.Image, tags: dict[int, int] | None = None, data: bytes | None = None) -> Frame:
    fields = {
        WIDTH: image.width,
        HEIGHT: image.height,
        BITS: 8,
        COMPRESSION: 1,
        PHOTOMETRIC: 1,
        ROWS: image.height,
        **(tags or {}),
    }
    return fields, image.tobytes() if data is None else data


def tiff(*frames: Frame) -> bytes:
    """An uncompressed TIFF with these frames."""
    body = b"II*\0" + struct.pack("<I", 8)
    for number, (fields, data) in enumerate(frames):
        num_entries = len(fields) + 2
        data_at = len(body) + 2 + 12 * num_entries + 4
        tags = sorted({**fields, OFFSETS: data_at, COUNTS: len(data)}.items())
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        following = data_at + len(data) if number < len(frames) - 1 else 0
        body += struct.pack("<H", num_entries) + entries + struct.pack("<I", following) + data
    return body


def directories(num: int, num_entries: int) -> bytes:
    """A TIFF of directories each of which begins within the one before."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + bytes(4 * num + 12 * num_entries + 6))
    for at in range(8, 8 + 4 * num, 4):
        struct.pack_into("<H", data, at, num_entries)
        following = at + 4 if at < 4 + 4 * num else 0
        struct.pack_into("<I", data, at + 2 + 12 * num_entries, following)
    return bytes(data)


def difference(image: Image.Image, expected: Image.Image) -> float:
    """Mean over the pixels, 0..255."""
    assert image.size == expected.size
    pairs = zip(image.convert("L").tobytes(), expected.tobytes(), strict=True)
    return sum(abs(one - other) for one, other in pairs) / (image.width * image.height)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_turned_frame_is_upright(tmp_path: Path, orientation: int, compression: str | None) -> None:
    stored = letter().transpose(TURNED[orientation])
    path = tmp_path / "stored"
    stored.save(path, "TIFF", compression=compression, tiffinfo={ORIENTATION: orientation})
    assert difference(image_of(tmp_path, path.read_bytes()), letter()) < 1


WHITE_IS_ZERO = {PHOTOMETRIC: 0}


@pytest.mark.parametrize(
    "stored",
    [
        frame(letter()),
        frame(letter().point(lambda sample: 255 - sample), WHITE_IS_ZERO),
        frame(letter(), {BITS: 12}, twelve_bits(letter())),
        frame(letter(), {BITS: 16}, sixteen_bits(letter())),
        frame(letter(), {BITS: 16, **WHITE_IS_ZERO}, sixteen_bits(letter(), inverted=True)),
        frame(letter(), {BITS: 32}, thirty_two_bits(letter())),
    ],
)
def test_paper_is_white_whatever_the_samples_mean(tmp_path: Path, stored: Frame) -> None:
    assert difference(image_of(tmp_path, tiff(stored)), letter()) < 1


@pytest.mark.parametrize(("photometric", "num_colours"), [(2, 3), (5, 4)])
def test_planes_that_pillow_misreads_are_refused(tmp_path: Path, photometric: int, num_colours: int) -> None:
    """It takes samples of 16 bits for two of eight where each colour has a plane of its own."""
    colour = {BITS: 16, PHOTOMETRIC: photometric, SAMPLES: num_colours}
    samples = sixteen_bits(letter())
    together = b"".join(samples[at : at + 2] * num_colours for at in range(0, len(samples), 2))
    assert image_of(tmp_path, tiff(frame(letter(), colour, together))).size == letter().size
    [apart] = read(tmp_path, tiff(frame(letter(), {**colour, PLANAR: 2}, samples * num_colours)))
    assert isinstance(apart, UnreadablePage)


def test_colours_of_sixteen_bits_side_by_side_are_read(tmp_path: Path) -> None:
    samples = sixteen_bits(letter())
    together = b"".join(samples[at : at + 2] * 3 for at in range(0, len(samples), 2))
    stored = tiff(frame(letter(), {BITS: 16, PHOTOMETRIC: 2, SAMPLES: 3}, together))
    assert difference(image_of(tmp_path, stored), letter()) < 1


def sizes(tmp_path: Path, *frames: Frame) -> list[tuple[int, int]]:
    return [page.image.size for page in read(tmp_path, tiff(*frames)) if isinstance(page, Page)]


PAGE, SMALL = letter((80, 120)), letter((40, 60))


def test_copies_at_a_lower_resolution_are_no_pages(tmp_path: Path) -> None:
    thumbnail = frame(SMALL, {SUBFILE: REDUCED})
    assert sizes(tmp_path, frame(PAGE), thumbnail, thumbnail) == [(80, 120)]
    assert sizes(tmp_path, thumbnail, frame(PAGE, {SUBFILE: PAGE_OF_MANY})) == [(80, 120)]


def test_no_page_is_left_out_for_being_called_a_copy(tmp_path: Path) -> None:
    called_copy = frame(PAGE, {SUBFILE: REDUCED})
    assert sizes(tmp_path, called_copy, called_copy) == [(80, 120)] * 2
    assert sizes(tmp_path, frame(SMALL), called_copy) == [(40, 60), (80, 120)]
    assert sizes(tmp_path, frame(PAGE), frame(SMALL)) == [(80, 120), (40, 60)]


def test_a_mask_is_no_page(tmp_path: Path) -> None:
    mask = frame(SMALL, {SUBFILE: MASK, PHOTOMETRIC: 4})
    assert sizes(tmp_path, frame(SMALL), mask, frame(PAGE), mask) == [(40, 60), (80, 120)]


def test_a_frame_that_cannot_be_decoded_leaves_the_others(tmp_path: Path) -> None:
    first, second, third = read(tmp_path, tiff(frame(PAGE), frame(PAGE, {BITS: 11}), frame(SMALL)))
    assert isinstance(second, UnreadablePage)
    assert isinstance(first, Page)
    assert isinstance(third, Page)
    assert (first.image.size, third.image.size) == ((80, 120), (40, 60))


def test_directories_in_a_circle_end(tmp_path: Path) -> None:
    data = bytearray(tiff(frame(PAGE), frame(SMALL)))
    second = struct.unpack_from("<I", data, 8 + 2 + 12 * 8)[0]
    struct.pack_into("<I", data, second + 2 + 12 * 8, 8)
    assert len(read(tmp_path, bytes(data))) == 2


def test_a_directory_outside_the_file_is_damage(tmp_path: Path) -> None:
    data = bytearray(tiff(frame(PAGE)))
    struct.pack_into("<I", data, 8 + 2 + 12 * 8, 10**8)
    [result] = read(tmp_path, bytes(data))
    assert isinstance(result, UnreadableFile)


def test_a_large_file_of_the_second_kind(tmp_path: Path) -> None:
    path = tmp_path / "big"
    PAGE.save(path, "TIFF", big_tiff=True, save_all=True, append_images=[SMALL])
    pages = read(tmp_path, path.read_bytes())
    assert [page.image.size for page in pages if isinstance(page, Page)] == [PAGE.size, SMALL.size]


SAMPLE_FORMAT, FLOATING = 339, 3


@pytest.mark.parametrize(("bits", "samples"), [(16, 1), (24, 1), (32, 3), (16, 3)])
def test_floating_samples_that_are_not_read_are_named(tmp_path: Path, bits: int, samples: int) -> None:
    tags = {BITS: bits, SAMPLE_FORMAT: FLOATING, SAMPLES: samples, PHOTOMETRIC: 2 if samples == 3 else 1}
    data = bytes(letter().width * letter().height * samples * bits // 8)
    [alone] = read(tmp_path, tiff(frame(letter(), tags, data)))
    first, second = read(tmp_path, tiff(frame(PAGE), frame(letter(), tags, data)))
    assert isinstance(first, Page)
    for error in (alone, second):
        assert isinstance(error, UnreadableFile | UnreadablePage)
        assert "floating point" in str(error)


def test_what_is_damaged_is_not_called_floating(tmp_path: Path) -> None:
    [error] = read(tmp_path, tiff(frame(PAGE, {BITS: 11})))
    assert isinstance(error, UnreadableFile)
    assert "floating" not in str(error)
