"""The parent's side of ``confined.py``: a few warm children, one request at a time, with a deadline."""

import asyncio
import contextlib
import logging
import math
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from app.document import Failure, Page, PageWarning, WarningCode
from app.documents.raster.child import PageRequest
from app.documents.raster.ipc import LENGTH, FrameError, frame_length, message_of, pack
from app.documents.raster.poppler import PROGRAMS
from app.documents.raster.sandbox import Sandbox, decoder_environment
from app.documents.raster.text_layer import MAX_WORD_CHARS, MAX_WORDS
from app.errors import NotReady, Overloaded, ParseError, RasterizeTimeout, UnreadableFile, UnreadablePage
from app.metrics import RASTERIZER_DEATHS
from app.places import Claim, Places, Turnstile
from app.processes import child_environment, kill_group, memory_mib, python_module
from app.settings import Settings

logger = logging.getLogger("rtprune.rasterize")

MAX_INLINE_BYTES = 2**20
"""Up to this, copying a page's pixels takes less time than handing them to a thread."""
MAX_WARNINGS, MAX_DETAIL_CHARS = 10, 200
CHILD = "app.documents.raster.child"
CHILD = "app.documents.raster.confined"
REQUESTS_PER_CHILD = 1000
"""A child is replaced after this many, so that what libraries leak stays small."""
START_S = 60.0  # longest time until a fresh child is ready
MIN_CHOSEN, MAX_CHOSEN = 3, 16
MAX_LATE = 1000  # documents that are remembered for having been late
LAST_PLACE_S = 5.0
"""Longest time of a page in the last place that was free; then it begins again, as one of a slow document."""
COUNT_WAIT_S = 30.0
"""Longest wait for a turn to be counted: whoever sent the file is waiting for the answer."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What a child is asked, in whose turn and for how long. ``late`` and ``dead``: what is raised if it is
    not answered in time, and if children die of it. ``max_wait_s``: longest wait for the turn.
    ``last_place_s``: its time where it has the last place.
    """

    message: dict[str, Any]
    claim: Claim
    deadline_s: float
    late: ParseError
    dead: ParseError
    max_wait_s: float | None = None
    last_place_s: float = math.inf


@dataclass(slots=True)
class _Child:
    process: asyncio.subprocess.Process
    link: socket.socket
    num_requests: int = 0
    document_id: str = ""
    """Read last: a child forks a reader for each document."""
    greeting: "asyncio.Task[Sandbox | None] | None" = None
    """What confines its readers, said as soon as it is ready; ``None``: it did not start."""

    def kill(self) -> None:
        kill_group(self.process.pid)

    async def receive(self, num_bytes: int) -> bytearray:
        """Exactly so many bytes, read to where they stay: a page is many. Raise ``_ChildDied``."""
        data = bytearray(num_bytes)
        rest = memoryview(data)
        while rest:
            received = await asyncio.get_running_loop().sock_recv_into(self.link, rest)
            if received == 0:
                raise _ChildDied
            rest = rest[received:]
        return data

    async def frame(self) -> dict[str, Any]:
        """Raise ``_ChildDied`` or ``FrameError``."""
        return message_of(await self.receive(frame_length(await self.receive(LENGTH.size))))

    async def greet(self) -> Sandbox | None:
        try:
            async with asyncio.timeout(START_S):
                return Sandbox(**await self.frame())
        except (TimeoutError, _ChildDied, ConnectionError, FrameError, TypeError):
            return None


class _HeldTheLast(Exception):
    """A page was in the last place for long, and others may be waiting for it."""


class _ChildDied(Exception):
    """The child ended, or wrote something that is no answer, while it was asked."""


def _check_page(header: dict[str, Any]) -> None:
    """Raise ``_ChildDied`` for what no page of ours has: the words of a PDF are a stranger's."""
    dpi, words = header.get("dpi"), header.get("words")
    if dpi is not None and not (isinstance(dpi, float | int) and 0 < dpi < math.inf):
        raise _ChildDied
    if words is not None and not (isinstance(words, list) and len(words) <= MAX_WORDS):
        raise _ChildDied
    if not all(isinstance(word, str) and len(word) <= MAX_WORD_CHARS for word in words or ()):
        raise _ChildDied
    _warnings(header.get("warnings"))


def _warnings(told: Any) -> tuple[PageWarning, ...]:
    """The warnings in an answer. Raise ``_ChildDied`` for what is none."""
    if not isinstance(told, list) or len(told) > MAX_WARNINGS:
        raise _ChildDied
    warnings = []
    for one in told:
        code: Any = one.get("code") if isinstance(one, dict) else None
        detail = one.get("detail") if isinstance(one, dict) else None
        if code not in get_args(WarningCode) or not isinstance(detail, str):
            raise _ChildDied
        if len(detail) > MAX_DETAIL_CHARS or not detail.isprintable():
            raise _ChildDied
        warnings.append(PageWarning(code, detail))
    return tuple(warnings)


def num_rasterizers(settings: Settings) -> int:
    """Choose how many there are, where nobody says: one client may hold up all but one of them."""
    by_memory = int(memory_mib() / 2 / settings.max_rasterizer_mib)
    chosen = max(MIN_CHOSEN, min(len(os.sched_getaffinity(0)), MAX_CHOSEN, by_memory))
    return settings.num_rasterizers or chosen


class Rasterizers:
    """Turns files into pages, at most ``num_rasterizers`` at a time. One client leaves a place to others.

    A document of which a page was late has one place, and a page that was late is not tried again. Nor do
    many clients hold all places: who has the last one for long loses it, and begins again as a slow document.
    """

    def __init__(self, settings: Settings, tmp_dir: Path) -> None:
        self._settings = settings
        self._tmp_dir = tmp_dir
        self._num = num_rasterizers(settings)
        self._late: dict[str, set[int]] = {}
        """Slow documents, and which of their pages were late."""
        self._asked: list[tuple[str, float]] = []
        """Documents that have places, and since when."""
        is_slow = self._late.__contains__
        self._turnstile = Turnstile(Places(self._num, for_clients=min(1, self._num - 1), is_slow=is_slow))
        self._idle: list[_Child] = []
        self._num_children = 0
        self._max_pixels = int(settings.max_page_megapixels * 1e6)
        self._replacing: set[asyncio.Task[None]] = set()
        self._closed = False
        self.sandbox: Sandbox | None = None
        """What confines decoders; ``None``: not known yet."""

    async def start(self) -> None:
        """Start the children. Raise ``NotReady`` if poppler is missing: better now than at the first PDF."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise NotReady(f"poppler is not installed: {' and '.join(missing)} not found")
        await self._fill()

    async def greeted(self) -> Sandbox | None:
        """Wait until a child is ready. Returns what confines decoders, ``None`` if none starts."""
        async with self._borrowed(Claim("")) as child:
            return await self._ready(child)

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*self._replacing, return_exceptions=True)
        while self._idle:
            await self._discard(self._idle.pop())

    async def count(self, path: Path, file_format: str, *, client: str = "") -> int:
        """Count the pages of a file; clients take turns.

        Raise its ``ParseError``: ``RasterizeTimeout`` if it takes too long, ``Overloaded`` if its turn does
        not come.
        """
        deadline_s = self._settings.count_deadline_s
        request = _Request(
            {"op": "count", "path": str(path), "format": file_format},
            Claim(str(path), client=client or str(path)),
            deadline_s,
            late=RasterizeTimeout(f"the pages were not counted within {deadline_s:g} s"),
            dead=UnreadableFile("the file cannot be decoded"),
            max_wait_s=COUNT_WAIT_S,
        )
        header, _ = await self._ask(request)
        return int(header["pages"])

    async def page(
        self,
        path: Path,
        file_format: str,
        index: int,
        dpi: int | None = None,
        *,
        is_first: bool = False,
        claim: Claim | None = None,
    ) -> Page:
        """Turn one page into pixels. Raise its ``ParseError``: ``RasterizeTimeout`` if it takes too long.

        ``dpi`` unset: chosen from the page. ``is_first``: it carries the warnings of its document, too.
        ``claim``: whose turn it is (``Places``); by default that of a document alone.
        """
        claim = claim or Claim(str(path), client=str(path))
        document_id = claim.document_id
        deadline_s = self._settings.rasterize_deadline_s
        late = RasterizeTimeout(f"not rendered within {deadline_s:g} s")
        if index in self._late.get(document_id, ()):
            raise late
        request = PageRequest(
            path=str(path),
            format=file_format,
            index=index,
            dpi=dpi,
            max_page_pixels=self._max_pixels,
            max_image_pixels=int(self._settings.max_image_megapixels * 1e6),
            is_first=is_first,
        )
        wanted = _Request(
            {"op": "page", "page": asdict(request)},
            claim,
            deadline_s,
            late=late,
            dead=UnreadablePage("the page cannot be decoded"),
            last_place_s=LAST_PLACE_S,
        )
        try:
            try:
                header, pixels = await self._ask(wanted)
            except _HeldTheLast:
                self._pages_late(document_id)
                for other, since in self._asked:  # or this one would be let in beside them again
                    if asyncio.get_running_loop().time() - since >= LAST_PLACE_S:
                        self._pages_late(other)
                header, pixels = await self._ask(wanted)
        except RasterizeTimeout:
            self._pages_late(document_id).add(index)
            raise
        size = (int(header["width"]), int(header["height"]))
        if len(pixels) <= MAX_INLINE_BYTES:
            image = Image.frombytes("RGB", size, pixels)
        else:
            image = await asyncio.to_thread(Image.frombytes, "RGB", size, pixels)
        dpi_used = None if header["dpi"] is None else float(header["dpi"])
        words = None if header["words"] is None else tuple(header["words"])
        return Page(index, image, float(header["ms"]), dpi_used, words, _warnings(header["warnings"]))

    def _pages_late(self, document_id: str) -> set[int]:
        """Take a document for a slow one. Returns which of its pages were late."""
        late = self._late.setdefault(document_id, set())
        if len(self._late) > MAX_LATE:
            del self._late[next(iter(self._late))]
        return late

    async def _ask(self, request: _Request) -> tuple[dict[str, Any], bytearray]:
        try:
            header, pixels = await self._try(request, fresh=False)
        except _ChildDied:
            # perhaps not the file's fault: children die for other reasons too, such as a lack of memory
            try:
                header, pixels = await self._try(request, fresh=True)
            except _ChildDied as error:
                raise request.dead from error
        if "failure" in header:
            raise Failure(**header["failure"]).error()
        return header, pixels

    async def _try(self, request: _Request, *, fresh: bool) -> tuple[dict[str, Any], bytearray]:
        """Ask one child, a new one if ``fresh``. Raise ``_ChildDied``, ``_HeldTheLast``, ``request.late``."""
        async with self._borrowed(request.claim, request.max_wait_s, fresh=fresh) as child:
            has_last = self._num > 1 and self._turnstile.is_full
            is_known = request.claim.document_id in self._late
            time_s = min(request.deadline_s, math.inf if is_known or not has_last else request.last_place_s)
            asked = (request.claim.document_id, asyncio.get_running_loop().time())
            self._asked.append(asked)
            try:
                if await self._ready(child) is None:
                    raise _ChildDied
                async with asyncio.timeout(time_s):
                    return await self._exchange(child, request.message)
            except TimeoutError as error:
                raise (_HeldTheLast if time_s < request.deadline_s else request.late) from error
            except _ChildDied as error:
                child.kill()
                returncode = await child.process.wait()
                RASTERIZER_DEATHS.inc()
                logger.warning("rasterizer died", extra={"returncode": returncode})
                if returncode == -signal.SIGXCPU:
                    raise request.late from error
                raise
            finally:
                self._asked.remove(asked)

    @contextlib.asynccontextmanager
    async def _borrowed(
        self, claim: Claim, max_wait_s: float | None = None, *, fresh: bool = False
    ) -> AsyncIterator[_Child]:
        """Lend a child. It is replaced, in the background, unless the request ended well.

        Raise ``Overloaded`` when the turn does not come within ``max_wait_s``.
        """
        async with contextlib.AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(max_wait_s):
                    await turn.enter_async_context(self._turnstile.place(claim))
            except TimeoutError as error:
                raise Overloaded("too many files wait for their pages to be counted") from error
            child = self._idle_for(claim.document_id) if self._idle and not fresh else await self._spawn()
            child.document_id = claim.document_id
            healthy = False
            try:
                yield child
                child.num_requests += 1
                healthy = child.num_requests < REQUESTS_PER_CHILD
            finally:
                if healthy and len(self._idle) < self._num:
                    self._idle.append(child)
                else:
                    child.kill()
                    task = asyncio.create_task(self._replace(child))
                    self._replacing.add(task)
                    task.add_done_callback(self._replacing.discard)

    def _idle_for(self, document_id: str) -> _Child:
        """Take the idle child that has a reader for the document, or else the last one."""
        places = [at for at, child in enumerate(self._idle) if child.document_id == document_id]
        return self._idle.pop(places[-1] if places else -1)

    async def _ready(self, child: _Child) -> Sandbox | None:
        """Wait until it has greeted: its start is no time of the page that comes first."""
        if child.greeting is None:
            raise RuntimeError("a child is listened to from its start")
        return await asyncio.shield(child.greeting)

    async def _greet(self, child: _Child) -> Sandbox | None:
        sandbox = await child.greet()
        if sandbox is not None and sandbox != self.sandbox:
            self.sandbox = sandbox
            if missing := [name for name, means in asdict(sandbox).items() if means is None]:
                logger.warning("decoders are not confined", extra={"not_confined": missing})
        return sandbox

    async def _exchange(self, child: _Child, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        """One request, one answer. The child is as hostile as the file it reads, so its answer is checked."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(child.link, pack(request))
            header = await child.frame()
            num_bytes = int(header["num_bytes"])
            if num_bytes != 3 * int(header.get("width", 0)) * int(header.get("height", 0)):
                raise _ChildDied
            if num_bytes > 3 * self._max_pixels * 1.1:
                raise _ChildDied
            if num_bytes:
                _check_page(header)
            return header, await child.receive(num_bytes)
        except (ConnectionError, FrameError, KeyError, ValueError) as error:
            raise _ChildDied from error

    async def _spawn(self) -> _Child:
        # the wall deadline is what counts; CPU time may run ahead of it only where poppler uses threads
        cpu_s = math.ceil(self._settings.rasterize_deadline_s) + 1
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                *python_module(CHILD, str(self._settings.max_rasterizer_mib), str(cpu_s)),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=child_environment(self._tmp_dir, decoder_environment(os.environ)),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._num_children += 1
        child = _Child(process, ours)
        child.greeting = asyncio.create_task(self._greet(child))
        return child

    async def _discard(self, child: _Child) -> None:
        self._num_children -= 1
        child.kill()
        if child.greeting is not None:
            child.greeting.cancel()
            await asyncio.gather(child.greeting, return_exceptions=True)
        child.link.close()
        await child.process.wait()

    async def _replace(self, child: _Child) -> None:
        await self._discard(child)
        await self._fill()

    async def _fill(self) -> None:
        while not self._closed and self._num_children < self._num:
            self._idle.append(await self._spawn())
