"""Keep a few warm child processes (``confined.py``), and send each one request at a time, with a deadline."""

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

from app.document import Failure, Page, PageWarning, PlacedWord, WarningCode
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
"""Up to this size, copying a page's pixels takes less time than handing them to a thread."""
MAX_WARNINGS, MAX_DETAIL_CHARS = 10, 200
CHILD = "app.documents.raster.child"
CHILD = "app.documents.raster.confined"
REQUESTS_PER_CHILD = 1000
"""A child is replaced after this many requests, so that memory leaked by libraries stays small."""
START_S = 60.0  # longest time until a fresh child is ready
MIN_CHOSEN, MAX_CHOSEN = 3, 16
MAX_LATE = 1000  # most slow documents to remember
LAST_PLACE_S = 5.0
"""Longest time of a page in the last free place. Then it starts again, as a page of a slow document."""
COUNT_WAIT_S = 30.0
"""Longest wait for a turn to count pages, because the client waits for the answer."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request to a child, with its turn and its limits.

    ``late`` and ``dead``: the errors to raise if it is not answered in time, and if children die of it.
    ``max_wait_s``: longest wait for the turn. ``last_place_s``: time limit if it has the last place.
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
    """The last document it read. A child forks a reader for each document."""
    greeting: "asyncio.Task[Sandbox | None] | None" = None
    """Gives what confines its readers, as the child reports when it is ready; ``None``: it did not start."""

    def kill(self) -> None:
        kill_group(self.process.pid)

    async def receive(self, num_bytes: int) -> bytearray:
        """Read exactly this many bytes into one buffer, without copies. Raise ``_ChildDied``."""
        data = bytearray(num_bytes)
        rest = memoryview(data)
        while rest:
            received = await asyncio.get_running_loop().sock_recv_into(self.link, rest)
            if received == 0:
                raise _ChildDied
            rest = rest[received:]
        return data

    async def frame(self) -> dict[str, Any]:
        """Read one message. Raise ``_ChildDied`` or ``FrameError``."""
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
    """The child ended, or sent an invalid answer, during a request."""


def _check_page(header: dict[str, Any]) -> None:
    """Raise ``_ChildDied`` for values that no page of ours has. The words of a PDF come from a stranger."""
    words = header.get("words")
    for name in ("dpi", "glyph_px"):
        value = header.get(name)
        if value is not None and not (isinstance(value, float | int) and 0 < value < math.inf):
            raise _ChildDied
    if words is not None and not (isinstance(words, list) and len(words) <= MAX_WORDS):
        raise _ChildDied
    if not all(isinstance(word, str) and len(word) <= MAX_WORD_CHARS for word in words or ()):
        raise _ChildDied
    _warnings(header.get("warnings"))
    _placed_words(header.get("placed_words", []))


def _placed_words(told: Any) -> tuple[PlacedWord, ...]:
    """Return the places of words in an answer. Raise ``_ChildDied`` if they are invalid."""
    if not isinstance(told, list) or len(told) > MAX_WORDS:
        raise _ChildDied
    placed: list[PlacedWord] = []
    for one in told:
        if not (isinstance(one, list) and len(one) == 5 and isinstance(one[0], str)):
            raise _ChildDied
        text, *box = one
        if len(text) > MAX_WORD_CHARS or not all(
            isinstance(x, float | int) and math.isfinite(x) for x in box
        ):
            raise _ChildDied
        placed.append(PlacedWord(text, *map(float, box)))
    return tuple(placed)


def _warnings(told: Any) -> tuple[PageWarning, ...]:
    """Return the warnings of an answer. Raise ``_ChildDied`` if they are invalid."""
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
    """Return the number of children. By default choose by CPUs and memory.

    There are at least ``MIN_CHOSEN``, since one client may hold up all but one of them.
    """
    by_memory = int(memory_mib() / 2 / settings.max_rasterizer_mib)
    chosen = max(MIN_CHOSEN, min(len(os.sched_getaffinity(0)), MAX_CHOSEN, by_memory))
    return settings.num_rasterizers or chosen


class Rasterizers:
    """Turns files into pages, at most ``num_rasterizers`` at a time. One client leaves a place to others.

    A document with a late page may only have one place, and a page that was late is not tried again. Many
    clients cannot hold all places either: a page that keeps the last one for long loses it, and starts
    again as part of a slow document.
    """

    def __init__(self, settings: Settings, tmp_dir: Path) -> None:
        self._settings = settings
        self._tmp_dir = tmp_dir
        self._num = num_rasterizers(settings)
        self._late: dict[str, set[int]] = {}
        """Slow documents, and the indices of their pages that were late."""
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
        """Start the children. Raise ``NotReady`` now if poppler is missing, rather than at the first PDF."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise NotReady(f"poppler is not installed: {' and '.join(missing)} not found")
        await self._fill()

    async def greeted(self) -> Sandbox | None:
        """Wait until a child is ready. Return what confines decoders, ``None`` if none starts."""
        async with self._borrowed(Claim("")) as child:
            return await self._ready(child)

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*self._replacing, return_exceptions=True)
        while self._idle:
            await self._discard(self._idle.pop())

    async def count(self, path: Path, file_format: str, *, client: str = "") -> int:
        """Count the pages of a file. Clients take turns.

        Raise the file's ``ParseError``, ``RasterizeTimeout`` if it takes too long, or ``Overloaded`` if its
        turn does not come.
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
        """Rasterize one page. Raise its ``ParseError``; ``RasterizeTimeout`` if it takes too long.

        ``dpi``: ``None`` chooses from the page. ``is_first``: include the warnings about the whole document.
        ``claim``: whose turn it is (``Places``); by default the document counts as its own client.
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
            follows_print=self._settings.router_mode,
            places_words=self._settings.drafts,
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
                for other, since in self._asked:  # otherwise this page would get a place beside them again
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
        return Page(
            index,
            image,
            rasterize_ms=float(header["ms"]),
            dpi=None if header["dpi"] is None else float(header["dpi"]),
            words=None if header["words"] is None else tuple(header["words"]),
            has_text=bool(header.get("has_text")),
            glyph_px=header.get("glyph_px"),
            placed_words=_placed_words(header.get("placed_words", [])),
            warnings=_warnings(header["warnings"]),
        )

    def _pages_late(self, document_id: str) -> set[int]:
        """Mark a document as slow. Return the set of its late pages."""
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
        """Lend a child. Replace it in the background, unless the request ended well.

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
        """Take the idle child that last read this document, or else the most recently used one."""
        places = [at for at, child in enumerate(self._idle) if child.document_id == document_id]
        return self._idle.pop(places[-1] if places else -1)

    async def _ready(self, child: _Child) -> Sandbox | None:
        """Wait until a child has greeted, so that its start does not count as time of its first page."""
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
        """Send a request and read the answer.

        Check the answer: a child is as hostile as the file it reads.
        """
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
        # the wall-clock deadline counts; CPU time exceeds it only where poppler uses threads
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
