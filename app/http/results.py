"""What came of ended jobs, as answers: made in threads, few large ones at a time, and sent in pieces.

A document is put together once, for its text, and then read again from the database a few pages at a time,
while they are sent. So a client that is slow, or many of them, hold no documents in memory.

Whatever takes the interpreter's lock for long keeps the event loop from answering anybody. So large results
have few threads, which they share piece by piece, and nothing large is serialised by one call.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic_core import to_json

from app.document import AnswerOptions, PageResult, Status
from app.errors import Expired, Overloaded
from app.http.openapi import JSON, PLAIN
from app.http.schemas.parse import DocumentShape, PageShape
from app.http.status_headers import status_headers
from app.jobs.api.jobs import Jobs
from app.jobs.api.outcome import raise_if_unread
from app.jobs.job import Job
from app.jobs.store import Store
from app.output.pages import Joined, join_pages
from app.processes import give_back_freed_memory

CHUNK_CHARS = 2**17
"""What is sent, and compressed, at a time."""
GZIP_LEVEL = 4
GZIP_WBITS = 31  # zlib's name for the gzip format
BATCH_PAGES = 8
"""Pages read from the database at a time."""
FEW_PAGES = 16
"""Documents of so many pages are put together in milliseconds, and do not wait for large ones."""
NUM_LARGE = 1
NUM_SMALL = 8
NUM_SENDING = 2
"""Threads that prepare pieces of large results: each one more makes everybody's answers later."""
TIDY_AFTER_S = 1.0
MAX_WAITING = 256
"""Results that wait to be put together; more are refused."""


@dataclass(frozen=True, slots=True)
class Result:
    """An answer without its pages, which are read while it is sent."""

    status: Status
    job: Job
    headers: Mapping[str, str]
    text: str
    """The pages as one text."""
    frame: tuple[str, str, str] | None = None
    """JSON before the text, between it and the pages, and after those; ``None``: the text is the answer."""
    num_pages: int = 0
    types: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Types of the blocks of pages with running heads and feet, by the page's index."""
    dollars: bool = False

    @property
    def is_large(self) -> bool:
        return _is_large(self.job)

    def pieces(self, store: Store) -> Iterator[str]:
        """Give the answer's text, in a thread. Raise ``Expired`` when pages are gone meanwhile."""
        parts = (self.text[at : at + CHUNK_CHARS] for at in range(0, len(self.text), CHUNK_CHARS))
        if self.frame is None:
            yield from parts
            return
        before, between, after = self.frame
        yield before
        for part in parts:
            yield to_json(part).decode()[1:-1]  # without its quotes
        yield between
        num_pages = 0
        for page in self._pages(store):
            shape = PageShape.of(page, dollars=self.dollars)
            yield ("," if num_pages else "") + shape.model_dump_json()
            num_pages += 1
        if num_pages != self.num_pages:
            raise Expired("the job ended longer ago than results are kept")
        yield after

    def _pages(self, store: Store) -> Iterator[PageResult]:
        last = -1
        while batch := store.results(self.job.id, after=last, limit=BATCH_PAGES):
            for page in batch:
                yield self._with_types(page)
            last = batch[-1].index

    def _with_types(self, page: PageResult) -> PageResult:
        if page.index not in self.types:
            return page
        blocks = zip(page.blocks, self.types[page.index], strict=True)
        return replace(page, blocks=tuple(replace(block, type=one) for block, one in blocks))


def _is_large(job: Job) -> bool:
    return job.num_pages > FEW_PAGES


class Results:
    """Puts answers together, and gives their parts, few at a time."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._sending = ThreadPoolExecutor(NUM_SENDING, "results")
        # threads, not turns for threads: what is begun for a client that leaves goes on, and holds its place
        self._large = ThreadPoolExecutor(NUM_LARGE, "large results")
        self._small = ThreadPoolExecutor(NUM_SMALL, "small results")
        self._num_waiting = 0
        self._num_large = 0
        self._tidying: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def store(self) -> Store:
        return self._jobs.store

    async def of(self, job: Job, media_type: str, options: AnswerOptions) -> Result:
        """Put the answer of an ended job together. Raise its own error, or ``NotFinished``."""
        await self._jobs.raise_if_no_document(job)
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(f"{self._num_waiting} results wait to be put together")
        self._num_waiting += 1
        try:
            threads = self._large if _is_large(job) else self._small
            make = partial(copy_context().run, self._make, job, media_type, options)
            return await asyncio.get_running_loop().run_in_executor(threads, make)
        finally:
            self._num_waiting -= 1
            if _is_large(job):
                self._tidy_soon()

    def _make(self, job: Job, media_type: str, options: AnswerOptions) -> Result:
        document = self._jobs.read_document(job)
        raise_if_unread(document)
        headers = status_headers(document)
        joined = join_pages(document.pages, options)
        if media_type != JSON:
            text = joined.plain() if media_type == PLAIN else joined.markdown(dollars=options.math != "latex")
            return Result(document.status, job, headers, text + "\n")
        # inside a string, a quote would have a backslash before it
        before, empty, after = DocumentShape.frame(document).model_dump_json().partition('"","pages":[]')
        return Result(
            document.status,
            job,
            headers,
            joined.markdown(dollars=options.math == "dollar"),
            (before + empty[0], empty[1:-1], "]" + after),
            len(document.pages),
            _types(document.pages, joined),
            options.math == "dollar",
        )

    async def parts(self, result: Result, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Take each part in a thread, when the one before it is sent. Those of large results take turns."""
        threads = self._sending if result.is_large else None
        loop = asyncio.get_running_loop()
        self._num_large += result.is_large
        try:
            while part := await loop.run_in_executor(threads, next, parts, b""):
                yield part
        finally:
            if result.is_large:
                self._num_large -= 1
                self._tidy_soon()

    def _tidy_soon(self) -> None:
        if self._tidying is None and not self._is_closed:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_AFTER_S, self._tidy)

    def _tidy(self) -> None:
        """Give memory back when no large result is made or sent any more."""
        self._tidying = None
        if self._num_waiting or self._num_large:
            self._tidy_soon()
        else:
            self._large.submit(give_back_freed_memory)  # behind what is still made for those who left

    def close(self) -> None:
        self._is_closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        for threads in (self._large, self._small, self._sending):
            threads.shutdown(wait=False, cancel_futures=True)


def _types(pages: Iterable[PageResult], joined: Joined) -> dict[int, tuple[str, ...]]:
    return {
        marked.index: tuple(block.type for block in marked.blocks)
        for page, marked in zip(pages, joined.pages, strict=True)
        if marked is not page
    }


def chunks(pieces: Iterator[str]) -> Iterator[bytes]:
    """Gather pieces into chunks that are worth sending."""
    gathered: list[str] = []
    num_chars = 0
    for piece in pieces:
        gathered.append(piece)
        num_chars += len(piece)
        if num_chars >= CHUNK_CHARS:
            yield "".join(gathered).encode()
            gathered, num_chars = [], 0
    yield "".join(gathered).encode()


def compressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Compress chunks as gzip."""
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WBITS)
    for part in parts:
        yield compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
