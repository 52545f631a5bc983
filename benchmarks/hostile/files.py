"""Harmful files: documents with errors of all kinds, and bombs that unpack to far more than their size."""

import io
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.report import ROOT

SHARED = ROOT.parent / "shared"
MAX_SEED_BYTES = 60_000
MAX_SHARED = 60
EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)
"""Values that counts and lengths are not expected to have."""
WIDE = 9990
"""Side in pixels of an image just under 100 megapixels, which the settings allow."""


def seeds() -> list[bytes]:
    """Return small documents of every format, and those found in ``../shared``."""
    page = Image.new("RGB", (240, 160), "white")
    ImageDraw.Draw(page).multiline_text((8, 8), "A page of text\nwith two lines", "black")
    found = []
    for file_format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PDF", "JPEG2000"):
        buffer = io.BytesIO()
        more: dict[str, Any] = {}
        if file_format in {"TIFF", "PDF", "GIF"}:
            more = {"save_all": True, "append_images": [page]}
        if file_format == "PDF":  # or its bytes were others every day
            more |= dict.fromkeys(("creationDate", "modDate"), time.gmtime(0))
        page.save(buffer, file_format, **more)
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    page.convert("1").save(buffer, "TIFF", compression="group4")
    found += [
        buffer.getvalue(),
        pdf(stream(b"BT /F 12 Tf 20 20 Td (words) Tj ET")),
        (ROOT / "docs/sample.pdf").read_bytes(),
    ]
    files = sorted(path for path in SHARED.glob("documents/odd/*/*") if path.is_file())
    small = [path for path in files if 0 < path.stat().st_size <= MAX_SEED_BYTES]
    return found + [path.read_bytes() for path in small[:: max(1, len(small) // MAX_SHARED)]]


def mutations(num: int, seed: int) -> Iterator[bytes]:
    """Yield documents with errors, always the same for the same ``seed``."""
    chance = random.Random(seed)  # noqa: S311
    known = seeds()
    for number in range(num):
        data = bytearray(known[number % len(known)])
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            chance.choice(CHANGES)(data, chance, known)
        yield bytes(data) or b"\0"


def _flip(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _number(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    size = chance.choice((1, 2, 4))
    at = chance.randrange(max(1, len(data) - size))
    data[at : at + size] = (chance.choice(EDGES) % 256**size).to_bytes(size, chance.choice(("little", "big")))


def _digits(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    """Replace a digit of a number that is written out, as in PDF, by another number."""
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if places:
        at = chance.choice(places)
        data[at : at + 1] = str(chance.choice((-1, *EDGES))).encode()


def _cut(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    del data[at : at + chance.choice((1, 16, 256, len(data)))]


def _repeat(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = data[at : at + chance.choice((1, 16, 256))] * chance.choice((1, 2, 64))


def _splice(data: bytearray, chance: random.Random, known: list[bytes]) -> None:
    other = chance.choice(known)
    at, begin = chance.randrange(len(data) + 1), chance.randrange(len(other))
    data[at : at + 128] = other[begin : begin + 512]


CHANGES = (_flip, _number, _digits, _cut, _repeat, _splice)


def pdf(contents: bytes, page: str = "", *more: bytes, count: int = 1) -> bytes:
    """Write a PDF of one page. ``page``: attributes of the page; ``more``: objects from number 5 on."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count %d>>" % count,
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R%s>>" % page.encode(),
        contents,
        *more,
    ]
    body = b"%PDF-1.7\n"
    offsets = []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, text)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table) + trailer


def stream(data: bytes, attributes: str = "") -> bytes:
    """Write a PDF stream."""
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (attributes.encode(), len(data), data)


def bombs(*, tiny: bool = False) -> dict[str, Callable[[], bytes]]:
    """Return names and makers of files that declare or unpack to far more than their size.

    ``tiny``: make small ones of the same kinds.
    """
    side, wide, deep, many, unpacked = (
        (64, 64, 2, 100, 10**6) if tiny else (60_000, WIDE, 14, 500_000, 5 * 10**8)
    )
    return {
        "PNG, 3,600 megapixels": lambda: _png(side),
        "PNG, 100 megapixels": lambda: _png(wide),
        "TIFF, 100 megapixels": lambda: _image(wide, "TIFF", compression="group4"),
        "GIF, 100 megapixels": lambda: _image(wide, "GIF"),
        "TIFF whose directories are a loop": _tiff_loop,
        "PDF, a stream of 500 MB, packed twice": lambda: _packed_twice(unpacked),
        "PDF, an image of 3,600 megapixels": lambda: _pdf_image(side),
        "PDF that says it has 10^9 pages": lambda: pdf(stream(b""), count=10**9),
        "PDF, q 500,000 times": lambda: pdf(stream(b"q " * many)),
        "PDF whose forms draw forms": lambda: _forms(deep),
        "PDF of brackets": lambda: pdf(stream(b""), "/X " + "[" * many),
    }


def _image(side: int, file_format: str, **save: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (side, side), 1).save(buffer, file_format, **save)
    return buffer.getvalue()


def _png(side: int) -> bytes:
    """Write a PNG of a black square with one bit a pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = _zeros((1 + (side + 7) // 8) * side)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _zeros(num_bytes: int) -> bytes:
    """Compress ``num_bytes`` zeros."""
    packer = zlib.compressobj(1)
    block = bytes(2**20)
    packed = [packer.compress(block) for _ in range(num_bytes // len(block))]
    return b"".join([*packed, packer.compress(bytes(num_bytes % len(block))), packer.flush()])


def _packed_twice(num_bytes: int) -> bytes:
    twice = zlib.compress(_zeros(num_bytes), 9)
    return pdf(stream(twice, "/Filter[/FlateDecode/FlateDecode]"))


def _pdf_image(side: int) -> bytes:
    attributes = f"/Subtype/Image/Width {side}/Height {side}/BitsPerComponent 1/ColorSpace/DeviceGray"
    image = stream(_zeros((side + 7) // 8 * side), attributes + "/Filter/FlateDecode")
    page = "/Resources<</XObject<</I 5 0 R>>>>"
    return pdf(stream(b"595 0 0 842 0 0 cm /I Do"), page, image)


def _forms(deep: int) -> bytes:
    """Write a PDF in which each form draws the next one ten times."""
    forms = [
        stream(
            b"/F Do " * 10 if number < deep - 1 else b"0 0 9 9 re f",
            f"/Subtype/Form/BBox[0 0 595 842]/Resources<</XObject<</F {6 + number} 0 R>>>>",
        )
        for number in range(deep)
    ]
    return pdf(stream(b"/F Do"), "/Resources<</XObject<</F 5 0 R>>>>", *forms)


def _tiff_loop() -> bytes:
    """Write a TIFF page whose next directory is its own."""
    tags = ((256, 16), (257, 16), (258, 1), (259, 1), (262, 1), (273, 8), (278, 16), (279, 32))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 40)
    return struct.pack("<2sHI", b"II", 42, 40) + bytes(32) + directory
