"""Make answers from ended jobs: in threads, few large ones at a time, sent in pieces.

A document is put together once, for its text, and then read again from the database a few pages at a time,
while it is sent. So slow clients, or many clients, hold no documents in memory.

Code that holds the interpreter's lock for long blocks the event loop for everybody. So large results have few
threads, which they share piece by piece, and no single call serialises anything large.
"""

import asyncio
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from pydantic_core import to_json

from app.document import AnswerOptions, PageResult, ParsedDocument, Picture, Status
from app.errors import Expired, NotFound, Overloaded
from app.http.schemas.parse import DocumentShape, PageShape
from app.http.status_headers import status_headers
from app.jobs.api.jobs import Jobs
from app.jobs.api.outcome import raise_if_unread
from app.jobs.job import Job
from app.jobs.store import Store
from app.output.answer import Answer, Piece
from app.output.embedding import Embedding
from app.output.figures import Address, readdressed, relative
from app.output.formats import Format
from app.output.pages import Joined, join_pages
from app.processes import give_back_freed_memory

CHUNK_CHARS = 2**17
"""How much is sent, and compressed, at a time."""
GZIP_LEVEL = 4
GZIP_WBITS = 31  # zlib's name for the gzip format
BATCH_PAGES = 8
"""Pages read from the database at a time."""
FEW_PAGES = 16
"""Documents with up to this many pages take milliseconds, and do not wait for large ones."""
NUM_LARGE = 1
NUM_SMALL = 8
NUM_SENDING = 2
"""Threads that prepare pieces of large results. Each further thread delays all other answers."""
TIDY_AFTER_S = 1.0
MAX_WAITING = 256
"""Most results that wait to be put together; more are refused."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """A JSON answer without its pages, which are read while it is sent."""

    status: Status
    job: Job
    headers: Mapping[str, str]
    text: str
    """The pages as one text."""
    frame: tuple[str, str, str]
    """The JSON before the text, between text and pages, and after the pages."""
    num_pages: int = 0
    types: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Types of the blocks of pages with running heads and feet, by the page's index."""
    dollars: bool = False
    address: Address | None = relative
    """Gives the figures' addresses in Markdown; ``None``: figures are not referred to."""
    only: Container[int] | None = None
    """Indices of the pages in the text of an unfinished job; later pages are left out. ``None``: all."""
    embedding: Embedding | None = None

    def pieces(self, store: Store) -> Iterator[Piece]:
        """Yield the answer's text, in a thread. Raise ``Expired`` when pages have gone meanwhile."""
        pieces = self._pieces(store)
        yield from pieces if self.embedding is None else self.embedding.filled(pieces)

    def _pieces(self, store: Store) -> Iterator[str]:
        before, between, after = self.frame
        yield before
        for part in _slices(self.text):
            yield to_json(part).decode()[1:-1]  # without its quotes
        yield between
        num_pages = 0
        for page in self._pages(store):
            shape = PageShape.of(readdressed(page, self.address), dollars=self.dollars)
            yield ("," if num_pages else "") + shape.model_dump_json()
            num_pages += 1
        if num_pages != self.num_pages:
            raise Expired("the job ended longer ago than results are kept")
        yield after

    def _pages(self, store: Store) -> Iterator[PageResult]:
        last = -1
        while batch := store.results(self.job.id, after=last, limit=BATCH_PAGES):
            for page in batch:
                if self.only is None or page.index in self.only:
                    yield self._with_types(page)
            last = batch[-1].index

    def _with_types(self, page: PageResult) -> PageResult:
        if page.index not in self.types:
            return page
        blocks = zip(page.blocks, self.types[page.index], strict=True)
        return replace(page, blocks=tuple(replace(block, type=one) for block, one in blocks))


@dataclass(frozen=True, slots=True)
class Made:
    """An answer in a format other than JSON, complete but for its images."""

    status: Status
    job: Job
    headers: Mapping[str, str]
    made: Iterable[Piece]
    embedding: Embedding | None = None

    def pieces(self, _: Store) -> Iterator[Piece]:
        """Yield the answer, in a thread. Raise ``Expired`` when images have gone meanwhile."""
        yield from self.made if self.embedding is None else self.embedding.filled(self.made)


class Results:
    """Puts answers together and yields their parts, few at a time."""

    def __init__(self, jobs: Jobs, tmp_dir: Path) -> None:
        self._jobs = jobs
        self._images = jobs.images
        self._tmp_dir = tmp_dir
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

    async def of(
        self,
        job: Job,
        form: Format,
        options: AnswerOptions,
        root: str = "",
        *,
        pages_so_far: bool = False,
    ) -> Result | Made:
        """Put together the answer of an ended job. Raise its own error, or ``NotFinished``.

        ``root``: the path before every address of this service, for links to figures. ``pages_so_far``:
        also accept a job that has not ended.
        """
        return await self.made(
            job,
            lambda: self._make(job, form, options, root),
            is_heavy=form.is_heavy,
            pages_so_far=pages_so_far,
        )

    async def made(
        self, job: Job, make: Callable[[], T], *, is_heavy: bool = False, pages_so_far: bool = False
    ) -> T:
        """Call ``make`` for a job, in a thread. Raise the job's own error, or ``NotFinished``."""
        if not (pages_so_far and job.is_open):
            await self._jobs.raise_if_no_document(job)
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(f"{self._num_waiting} results wait to be put together")
        is_small = job.num_pages <= FEW_PAGES and not is_heavy
        self._num_waiting += 1
        try:
            threads = self._small if is_small else self._large
            in_context = partial(copy_context().run, make)
            return await asyncio.get_running_loop().run_in_executor(threads, in_context)
        finally:
            self._num_waiting -= 1
            if not is_small:
                self._tidy_soon()

    def document(self, job: Job) -> ParsedDocument:
        """Read an ended job's document, in a thread. Raise its error if none of its pages was read."""
        document = self._jobs.read_document(job)
        raise_if_unread(document)
        return document

    def _make(self, job: Job, form: Format, options: AnswerOptions, root: str) -> Result | Made:
        document = self.document(job)
        headers = status_headers(document)
        embedding = Embedding(lambda name: self.picture(job, name))
        address = _address(form, options, f"{root}/v1/jobs/{job.id}/", embedding)
        shown = [readdressed(page, address) for page in document.pages]
        joined = join_pages(shown, options)
        used = embedding if address == embedding.address else None

        def in_json() -> Result:
            # inside a string, a quote would have a backslash before it
            before, empty, after = DocumentShape.frame(document).model_dump_json().partition('"","pages":[]')
            return Result(
                document.status,
                job,
                headers,
                joined.markdown(dollars=options.math == "dollar"),
                (before + empty[0], empty[1:-1], "]" + after),
                len(document.pages),
                _types(shown, joined),
                options.math == "dollar",
                address,
                frozenset(page.index for page in document.pages) if job.is_open else None,
                used,
            )

        if form.name == "json":
            return in_json()
        answer = Answer(
            document,
            joined,
            options,
            address,
            pictures=lambda name: self._images.picture(job.id, name),
            as_json=lambda: chunks(in_json().pieces(self.store)),
            scratch=self._scratch,
        )
        return Made(document.status, job, headers, form.make(answer), used)

    def _scratch(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._tmp_dir)

    def picture(self, job: Job, name: str) -> Picture:
        """Read a figure of a job, in a thread. Raise ``Expired`` when it is gone."""
        try:
            return self._images.picture(job.id, name)
        except NotFound as error:
            raise Expired("the job ended longer ago than results are kept") from error

    async def parts(self, parts: Iterator[bytes], *, is_large: bool = True) -> AsyncIterator[bytes]:
        """Take each part in a thread, once the one before it is sent.

        Parts of large results share few threads.
        """
        threads = self._sending if is_large else None
        loop = asyncio.get_running_loop()
        self._num_large += is_large
        try:
            while part := await loop.run_in_executor(threads, next, parts, b""):
                yield part
        finally:
            if is_large:
                self._num_large -= 1
                self._tidy_soon()

    def _tidy_soon(self) -> None:
        if self._tidying is None and not self._is_closed:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_AFTER_S, self._tidy)

    def _tidy(self) -> None:
        """Give memory back when no large result is being made or sent."""
        self._tidying = None
        if self._num_waiting or self._num_large:
            self._tidy_soon()
        else:
            self._large.submit(give_back_freed_memory)  # behind what is still made for clients that left

    def close(self) -> None:
        self._is_closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        for threads in (self._large, self._small, self._sending):
            threads.shutdown(wait=False, cancel_futures=True)


def _address(form: Format, options: AnswerOptions, base: str, embedding: Embedding) -> Address | None:
    """Return the function that gives figures' addresses in an answer.

    Files that contain figures have their own.
    """
    images = (
        form.images if options.images is None or form.is_file or form.images == "none" else options.images
    )
    match images:
        case "none":
            return None
        case "link":
            return lambda name: base + relative(name)
        case "embed":
            return embedding.address
    return relative


def _slices(text: str) -> Iterator[str]:
    """Cut a text after line ends, so that placeholders of figures stay whole."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + CHUNK_CHARS) + 1 or len(text)
        yield text[start:end]
        start = end


def _types(pages: Iterable[PageResult], joined: Joined) -> dict[int, tuple[str, ...]]:
    return {
        marked.index: tuple(block.type for block in marked.blocks)
        for page, marked in zip(pages, joined.pages, strict=True)
        if marked is not page
    }


def chunks(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Gather pieces into chunks of about ``CHUNK_CHARS``."""
    gathered = bytearray()
    for piece in pieces:
        for at in range(0, len(piece), CHUNK_CHARS):
            part = piece[at : at + CHUNK_CHARS]
            gathered += part.encode() if isinstance(part, str) else part
            if len(gathered) >= CHUNK_CHARS:
                yield bytes(gathered)
                gathered.clear()
    if gathered:
        yield bytes(gathered)


def compressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Compress chunks as gzip."""
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WBITS)
    for part in parts:
        yield compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
