"""Run a rasterizer: fork a reader for each document, confined to that one file.

``python -m app.documents.raster.confined MAX_MIB CPU_S``: requests on standard input, answers on standard
output, one socket.

This process never opens a document and does not interpret a reader's answer, and a reader never has the
socket. So a document that takes over its decoder reaches neither the next document nor its answer.
It imports neither torch nor pydantic: a new one is ready in a tenth of a second, a reader in milliseconds.
"""

import contextlib
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from PIL import Image

from app.document import Failure
from app.documents.raster.child import PageRequest, count_pages, rasterize
from app.documents.raster.ipc import pack, read_frame_blocking
from app.documents.raster.poppler import PROGRAMS, undrawable
from app.documents.raster.sandbox import Sandbox, confine, needed
from app.errors import ParseError
from app.processes import kill_group, when_orphaned

MIB = 2**20
MAX_TMP_FILE_BYTES = 64 * MIB
IDLE_S = 1.0
"""A reader ends after this long without a request, so that no file stays open."""
PROBE_S = 20.0
RELAY_BYTES = MIB
ANSWER = struct.Struct("!QB")
"""What a reader sends first: the length of its answer in bytes, and whether it probed for missing fonts."""
PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg2K", "Jpeg", "Png", "Tiff", "WebP")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a reader and of each program that it starts."""

    max_mib: int
    cpu_s: int


@dataclass(frozen=True, slots=True)
class _Reader:
    """A forked process that reads one document, as the file was when it was forked."""

    document: tuple[Any, ...]
    pid: int
    link: socket.socket

    def end(self) -> int:
        """Kill it. Return its exit code, negative for a signal."""
        self.link.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _ReaderDied(Exception):
    """The reader ended before it had answered."""


def _fork(run: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Run a function in a child that keeps only standard error and one end of a link open."""
    ours, theirs = socket.socketpair()
    gc.freeze()  # otherwise a garbage collection copies every shared page of memory
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        run(theirs)
    except BaseException:  # noqa: BLE001 - the boundary of a process: nothing of it may run what follows
        traceback.print_exc()
    finally:
        os._exit(0)


def _limit(limits: Limits) -> None:
    """Limit this process, and poppler, which inherits the limits.

    RLIMIT_NPROC is not set: it counts all of the user's processes and the model's threads, so a useful limit
    would stop the service.
    """
    resource.setrlimit(resource.RLIMIT_AS, (limits.max_mib * MIB, limits.max_mib * MIB))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_TMP_FILE_BYTES, MAX_TMP_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(cpu_s: int) -> None:
    """Allow ``cpu_s`` more CPU seconds. They add up over a reader's life, so this runs before each page."""
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used_s) + cpu_s, resource.RLIM_INFINITY))


# --- in the reader


def _read(link: socket.socket, path: Path, limits: Limits, others: Sequence[Path] | None) -> None:
    """Answer requests for one document until the other end of the link is closed."""
    _limit(limits)
    confine([path], others)
    requests = link.makefile("rb")
    knew_fonts = undrawable.cache_info().currsize
    while (message := read_frame_blocking(requests)) is not None:
        _limit_cpu(limits.cpu_s)
        header, pixels = _answer(message)
        frame = pack({**header, "num_bytes": len(pixels)})
        has_probed = undrawable.cache_info().currsize > knew_fonts
        link.sendall(ANSWER.pack(len(frame) + len(pixels), has_probed))
        link.sendall(frame)
        link.sendall(pixels)


def _answer(message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    started = time.perf_counter()
    try:
        if message["op"] == "count":
            return {"pages": count_pages(message["path"], message["format"])}, b""
        page = rasterize(PageRequest(**message["page"]))
    except ParseError as error:
        return {"failure": asdict(Failure.of(error))}, b""
    said = {
        "width": page.image.width,
        "height": page.image.height,
        "ms": (time.perf_counter() - started) * 1000,
        "dpi": page.dpi,
        "words": page.words,
        "has_text": page.has_text,
        "glyph_px": page.glyph_px,
        "placed_words": [astuple(word) for word in page.placed_words],
        "warnings": [asdict(warning) for warning in page.warnings],
    }
    return said, page.image.tobytes()


# --- in the process that forks


def _document(message: dict[str, Any]) -> tuple[Any, ...]:
    """Return a key that differs between documents, and between two files at the same path."""
    path = Path(message["page"]["path"] if "page" in message else message["path"]).absolute()
    try:
        status = path.stat()
    except OSError:
        return (path,)
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _relay(reader: _Reader, answers: BinaryIO) -> bool:
    """Pass on one answer. Return whether the reader probed fonts. Raise ``_ReaderDied``."""
    num_bytes, has_probed = ANSWER.unpack(_received(reader.link, ANSWER.size))
    while num_bytes:
        part = _received(reader.link, min(num_bytes, RELAY_BYTES))
        answers.write(part)
        num_bytes -= len(part)
    answers.flush()
    return bool(has_probed)


def _received(link: socket.socket, num_bytes: int) -> bytes:
    try:
        data = link.recv(num_bytes, socket.MSG_WAITALL)
    except OSError as error:
        raise _ReaderDied from error
    if len(data) < num_bytes:
        raise _ReaderDied
    return data


def _serve(requests: BinaryIO, answers: BinaryIO, limits: Limits, others: Sequence[Path] | None) -> int:
    """Answer requests by way of readers.

    Return the exit code of a reader that died; 0 when the parent is gone.
    """
    reader: _Reader | None = None
    while True:
        # nothing can be buffered: the parent waits for an answer before it asks again
        if reader is not None and not select.select([requests], [], [], IDLE_S)[0]:
            reader.end()
            reader = None
        if (message := read_frame_blocking(requests)) is None:
            return 0
        document = _document(message)
        if reader is not None and reader.document != document:
            reader.end()
            reader = None
        if reader is None:
            path: Path = document[0]

            def read(link: socket.socket, path: Path = path) -> None:
                _read(link, path, limits, others)

            reader = _Reader(document, *_fork(read))
        try:
            reader.link.sendall(pack(message))
            has_probed = _relay(reader, answers)
        except (OSError, _ReaderDied):
            return reader.end() or 1
        if has_probed:
            undrawable()  # probe here: one reader's word on fonts is not believed for other documents


def _probe() -> tuple[Sandbox, Sequence[Path] | None]:
    """Test which confinement works for a reader here. Return it, and the paths readable besides the document.

    ``None``: any path, because poppler does not start when it may only read the paths it is known to need.
    """
    for others in (tuple(needed(PROGRAMS)), None):

        def try_it(link: socket.socket, others: Sequence[Path] | None = others) -> None:
            holds = confine([], others)
            with contextlib.suppress(FileNotFoundError):  # images are read even without poppler
                command = [PROGRAMS[0], "-v"]
                subprocess.run(command, check=True, capture_output=True, timeout=PROBE_S)  # noqa: S603
            link.sendall(json.dumps(asdict(holds)).encode())

        pid, link = _fork(try_it)
        with link, link.makefile("rb") as answer:
            said = answer.read()
        os.waitpid(pid, 0)
        if said:
            return Sandbox(**json.loads(said)), others
    return Sandbox(), None


def main() -> NoReturn:
    """Report what confines readers, then answer requests."""
    limits = Limits(int(sys.argv[1]), int(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not reach the answers
    when_orphaned(0, lambda: kill_group(os.getpid()))
    # Our own limit is checked before decoding; Pillow's warning at half of its own would only be noise.
    Image.MAX_IMAGE_PIXELS = None
    warnings.simplefilter("ignore")  # one damaged file can cause thousands of lines
    for name in PLUGINS:
        with contextlib.suppress(ImportError):
            __import__(f"PIL.{name}ImagePlugin")
    sandbox, others = _probe()
    answers.write(pack(asdict(sandbox)))
    answers.flush()
    code = _serve(os.fdopen(0, "rb"), answers, limits, others)
    if code == -signal.SIGXCPU:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.raise_signal(signal.SIGXCPU)  # the parent tells from this that time ran out
    os._exit(abs(code))


if __name__ == "__main__":
    main()
