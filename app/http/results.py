"""What came of ended jobs, as answers: made in threads, few large ones at a time, and sent in pieces.

A document is put together once, for its text, and then read again from the database a few pages at a time,
while they are sent. So a client that is slow, or many of them, hold no documents in memory.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from app.document import AnswerOptions, PageResult, ParsedDocument, Status
from app.errors import Expired, Overloaded
from app.http.openapi import JSON, PLAIN
from app.http.schemas.parse import DocumentShape, PageShape
from app.http.status_headers import status_headers
from app.jobs.api.jobs import Jobs
from app.jobs.api.outcome import raise_if_unread
from app.jobs.job import Job
from app.jobs.store import Store
from app.output.pages import Joined, join_pages

CHUNK_CHARS = 2**17
"""What is sent, and compressed, at a time."""
GZIP_LEVEL = 4
GZIP_WBITS = 31  # zlib's name for the gzip format
BATCH_PAGES = 8
"""Pages read from the database at a time."""
FEW_PAGES = 16
"""Documents of so many pages are put together in milliseconds, and do not wait for large ones."""
NUM_LARGE = 2
NUM_SMALL = 8
MAX_WAITING = 256
"""Results that wait to be put together; more are refused."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """An answer without its pages, which are read while it is sent."""

    status: Status
    job: Job
    headers: Mapping[str, str]
    head: str
    """What goes before the pages; the whole answer if it is text."""
    tail: str = ""
    num_pages: int = 0
    types: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Types of the blocks of pages with running heads and feet, by the page's index."""
    dollars: bool = False

    def pieces(self, store: Store) -> Iterator[str]:
        """Give the answer's text, in a thread. Raise ``Expired`` when pages are gone meanwhile."""
        yield from (self.head[at : at + CHUNK_CHARS] for at in range(0, len(self.head), CHUNK_CHARS))
        num_pages = 0
        if self.num_pages:
            for page in self._pages(store):
                shape = PageShape.of(page, dollars=self.dollars)
                yield ("," if num_pages else "") + shape.model_dump_json()
                num_pages += 1
        if num_pages != self.num_pages:
            raise Expired("the job ended longer ago than results are kept")
        yield self.tail

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


class Results:
    """Puts answers together, few at a time."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._large = asyncio.Semaphore(NUM_LARGE)
        self._small = asyncio.Semaphore(NUM_SMALL)
        self._num_waiting = 0

    @property
    def store(self) -> Store:
        return self._jobs.store

    async def of(self, job: Job, media_type: str, options: AnswerOptions) -> Result:
        """Put the answer of an ended job together. Raise its own error, or ``NotFinished``."""
        return await self.made(job, lambda: self._make(job, media_type, options))

    async def made(self, job: Job, make: Callable[[], T]) -> T:
        """Make something of an ended job, in a thread. Raise the job's own error, or ``NotFinished``."""
        await self._jobs.raise_if_no_document(job)
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(f"{self._num_waiting} results wait to be put together")
        self._num_waiting += 1
        try:
            async with self._small if job.num_pages <= FEW_PAGES else self._large:
                return await asyncio.to_thread(make)
        finally:
            self._num_waiting -= 1

    def document(self, job: Job) -> ParsedDocument:
        """Read an ended job's document, in a thread. Raise its error if no page of it was read."""
        document = self._jobs.read_document(job)
        raise_if_unread(document)
        return document

    def _make(self, job: Job, media_type: str, options: AnswerOptions) -> Result:
        document = self.document(job)
        headers = status_headers(document)
        joined = join_pages(document.pages, options)
        if media_type != JSON:
            text = joined.plain() if media_type == PLAIN else joined.markdown(dollars=options.math != "latex")
            return Result(document.status, job, headers, text + "\n")
        frame = DocumentShape.frame(document, joined, options).model_dump_json()
        # inside a string, a quote would have a backslash before it
        head, pages, tail = frame.partition(',"pages":[]')
        return Result(
            document.status,
            job,
            headers,
            head + pages[:-1],
            "]" + tail,
            len(document.pages),
            _types(document.pages, joined),
            options.math == "dollar",
        )


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
