"""Find which frames of a TIFF are pages. This reads its directories, since Pillow counts only what it
decodes.

Scanners and image servers store more than pages: thumbnails, the same page at halved resolutions (pyramids),
transparency masks. A frame that cannot be decoded is an unreadable page and does not affect the others.

Not with tifffile (2026.3.3): it takes more than 300 s for 56 kB of 2,000 directories of 4,000 entries that
overlap, which are refused here in 0.01 s; it takes 0.55 s for 2,000 sound pages, against 0.02 s here; and it
needs numpy, which the API does without.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

NEW_SUBFILE_TYPE, WIDTH, HEIGHT, SAMPLE_FORMAT = 254, 256, 257, 339
REDUCED, MASK = 1, 4
FLOATING, COMPLEX_FLOATING = 3, 6
MAX_FRAMES = 100_000
"""Most frames of a document. A frame may take six bytes, so the size of an upload does not bound the work."""
MAX_ENTRIES = 1000  # read from one directory
MAX_OPEN_PIXELS = 10_000_000
"""Most pixels, of four bytes each, that may stay in memory between requests.

An open file holds its last page. A file with a larger page is closed and opened again for each page.
"""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Number formats of classic TIFF or of BigTIFF."""

    first: int
    """Offset of the address of the first directory."""
    address: str
    num_entries: str
    entry_bytes: int
    value_at: int


CLASSIC = _Layout(first=4, address="I", num_entries="H", entry_bytes=12, value_at=8)
BIG = _Layout(first=8, address="Q", num_entries="Q", entry_bytes=20, value_at=12)
LAYOUTS = {42: CLASSIC, 43: BIG}
SHORT = 3
TYPES = {SHORT: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True, slots=True)
class _Frame:
    kind: int
    width: int
    height: int
    sample_format: int


def page_frames(file: BinaryIO) -> list[int]:
    """Return the numbers of the frames that are pages, in order.

    Raise ``ValueError`` for broken directories.
    """
    frames = _frames(file)
    full = [frame for frame in frames if not frame.kind & (REDUCED | MASK)]
    largest = max(full, key=lambda frame: frame.width * frame.height, default=None)
    pages = [number for number, frame in enumerate(frames) if _is_page(frame, largest)]
    return pages or list(range(len(frames)))


def has_floating_samples(path: str, index: int) -> bool:
    """Tell whether the page is stored as floating point numbers; False if its directory cannot be read."""
    try:
        with Path(path).open("rb") as file:
            frame = _frames(file)[page_frames(file)[index]]
    except (OSError, ValueError, LookupError):
        return False
    return frame.sample_format in {FLOATING, COMPLEX_FLOATING}


def _is_page(frame: _Frame, largest: _Frame | None) -> bool:
    """Tell whether a frame is a page.

    Skip masks, and reduced copies that really are smaller.
    """
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
    num_directory_bytes = 0
    while at and at not in seen:  # a directory that points back counts as the last, as in other readers
        if at >= num_bytes or len(seen) >= MAX_FRAMES:
            raise ValueError("a directory is not in the file, or there are too many")
        file.seek(at)
        seen[at] = _frame(file, order, layout)
        num_directory_bytes += file.tell() - at
        if num_directory_bytes > num_bytes:  # 2,000 of them in a megabyte can take 17 s to read
            raise ValueError("the directories overlap")
        at = _number(file, order + layout.address)
    return list(seen.values())


def _frame(file: BinaryIO, order: str, layout: _Layout) -> _Frame:
    """Read the directory that begins here. Leave the file at the address of the next one."""
    num_entries = _number(file, order + layout.num_entries)
    begin = file.tell()
    entries = file.read(min(num_entries, MAX_ENTRIES) * layout.entry_bytes)
    values = {NEW_SUBFILE_TYPE: 0, WIDTH: 0, HEIGHT: 0, SAMPLE_FORMAT: 0}
    head = struct.Struct(order + "HH")
    for start in range(0, len(entries) - layout.entry_bytes + 1, layout.entry_bytes):
        tag, kind = head.unpack_from(entries, start)
        if tag in values and kind in TYPES:
            [values[tag]] = struct.unpack_from(order + TYPES[kind], entries, start + layout.value_at)
            [count] = struct.unpack_from(order + layout.address, entries, start + 4)
            if tag == SAMPLE_FORMAT and kind == SHORT and 2 * count > struct.calcsize(layout.address):
                # too many to be stored inline: read the first of them at the address
                file.seek(*struct.unpack_from(order + layout.address, entries, start + layout.value_at))
                values[tag] = _number(file, order + "H")
    file.seek(begin + num_entries * layout.entry_bytes)
    return _Frame(*values.values())


def _number(file: BinaryIO, form: str) -> int:
    try:
        [number] = struct.unpack(form, file.read(struct.calcsize(form)))
    except struct.error as error:
        raise ValueError("the file ends inside a directory") from error
    return int(number)


@dataclass(frozen=True, slots=True)
class _Open:
    file: BinaryIO
    image: Image.Image
    frames: list[int]

    def close(self) -> None:
        self.image.close()
        self.file.close()


class OpenTiff:
    """The TIFF file of the last request, kept open.

    A page is found through all pages before it, so opening the file for each page would take quadratic
    time.
    """

    def __init__(self) -> None:
        self._key: tuple[str, int, int, int] | None = None
        self._opened: _Open | None = None

    @contextlib.contextmanager
    def page(self, path: str, index: int) -> Iterator[Image.Image]:
        """Give a page, to be used before another one is requested.

        After an error the file is opened again.
        """
        status = Path(path).stat()
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._opened is None or key != self._key:
            self.close()
            self._key, self._opened = key, _open(path)
        image = self._opened.image
        try:
            image.seek(self._opened.frames[index])
            yield image
        except BaseException:
            self.close()
            raise
        if image.width * image.height > MAX_OPEN_PIXELS:
            self.close()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = None


def _open(path: str) -> _Open:
    # A file, not its path: Pillow maps raw TIFFs of a path into memory with the size that they have after
    # turning, so that those with an orientation of 5 to 8 come out as noise.
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Path(path).open("rb"))
        opened = _Open(file, Image.open(file, formats=["TIFF"]), page_frames(file))
        stack.pop_all()
    return opened
