"""Which frames of a TIFF are pages. Its directories are read here: Pillow counts only what it can decode.

Scanners and image servers store more than pages: thumbnails, the same page at halved resolutions (pyramids),
transparency masks. A frame that cannot be decoded is a page that cannot be read, not the end of the others.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

NEW_SUBFILE_TYPE, WIDTH, HEIGHT = 254, 256, 257
REDUCED, MASK = 1, 4
MAX_FRAMES = 100_000
"""More is no document. One may take six bytes, so that the size of an upload does not bound the work."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Formats of the numbers of classic TIFF, or of BigTIFF."""

    first: int
    """Where the address of the first directory stands."""
    address: str
    num_entries: str
    entry_bytes: int
    value_at: int


CLASSIC = _Layout(first=4, address="I", num_entries="H", entry_bytes=12, value_at=8)
BIG = _Layout(first=8, address="Q", num_entries="Q", entry_bytes=20, value_at=12)
LAYOUTS = {42: CLASSIC, 43: BIG}
TYPES = {3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True, slots=True)
class _Frame:
    kind: int
    width: int
    height: int


def page_frames(file: BinaryIO) -> list[int]:
    """Numbers of the frames that are pages, in order. Raise ``ValueError`` for broken directories."""
    frames = _frames(file)
    full = [frame for frame in frames if not frame.kind & (REDUCED | MASK)]
    largest = max(full, key=lambda frame: frame.width * frame.height, default=None)
    pages = [number for number, frame in enumerate(frames) if _is_page(frame, largest)]
    return pages or list(range(len(frames)))


def _is_page(frame: _Frame, largest: _Frame | None) -> bool:
    """A frame's own word for being a copy of another is not enough: no page is to be left out."""
    if frame.kind & MASK:
        return False
    is_smaller = largest and frame.width < largest.width and frame.height < largest.height
    return not (frame.kind & REDUCED and is_smaller)


def _frames(file: BinaryIO) -> list[_Frame]:
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    layout = LAYOUTS[_number(file, order + "H")]
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(layout.first)
    at = _number(file, order + layout.address)
    seen: dict[int, _Frame] = {}
    while at and at not in seen:  # a directory that points back is the last, as for every reader
        if at >= num_bytes or len(seen) >= MAX_FRAMES:
            raise ValueError("a directory is not in the file, or there are too many")
        file.seek(at)
        seen[at] = _frame(file, order, layout)
        at = _number(file, order + layout.address)
    return list(seen.values())


def _frame(file: BinaryIO, order: str, layout: _Layout) -> _Frame:
    """The directory that begins here; the file is left where the address of the next one stands."""
    num_entries = _number(file, order + layout.num_entries)
    entries = file.read(min(num_entries, 2**16) * layout.entry_bytes)
    values = {NEW_SUBFILE_TYPE: 0, WIDTH: 0, HEIGHT: 0}
    for start in range(0, len(entries) - layout.entry_bytes + 1, layout.entry_bytes):
        tag, kind = struct.unpack_from(order + "HH", entries, start)
        if tag in values and kind in TYPES:
            [values[tag]] = struct.unpack_from(order + TYPES[kind], entries, start + layout.value_at)
    return _Frame(values[NEW_SUBFILE_TYPE], values[WIDTH], values[HEIGHT])


def _number(file: BinaryIO, form: str) -> int:
    try:
        [number] = struct.unpack(form, file.read(struct.calcsize(form)))
    except struct.error as error:
        raise ValueError("the file ends inside a directory") from error
    return int(number)
