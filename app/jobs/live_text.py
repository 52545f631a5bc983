"""Text of a page while the model writes it, told from worker to API.

Pieces go the way of notifications: they may be lost, and then the text stops until the page's result is
stored. The result is what counts. Only jobs that ask for it are told of (``ParseOptions.is_live``).
"""

import asyncio
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field

from app.jobs.notifications import Notifications, Topic
from app.reader import PageStream, Restart

MAX_PIECE_CHARS = 500
"""Longest piece. A notification of PostgreSQL has up to 8,000 bytes, and a character up to 6 in JSON."""
MAX_WAITING = 10_000
"""Most pieces that a client has not taken yet. Later ones are lost."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a page. ``attempt`` counts how often the page was begun, ``start`` its characters."""

    job_id: str
    page: int
    attempt: int
    start: int
    text: str

    def __str__(self) -> str:
        return json.dumps(astuple(self))

    @classmethod
    def read(cls, text: str) -> "Piece":
        """Read what ``str`` wrote. Raise ``ValueError`` or ``TypeError`` for anything else."""
        return cls(*json.loads(text))


@dataclass(slots=True)
class LiveText:
    """The text of one page so far, put together from pieces."""

    text: str = ""
    attempt: int = 0
    is_broken: bool = field(default=False)
    """Whether a piece was lost: what follows is not appended."""

    def add(self, piece: Piece) -> None:
        if piece.attempt > self.attempt:
            self.text, self.attempt, self.is_broken = "", piece.attempt, False
        if piece.attempt < self.attempt or self.is_broken:
            return
        self.is_broken = piece.start != len(self.text)
        if not self.is_broken:
            self.text += piece.text


async def tell_text(
    stream: PageStream, job_id: str, page: int, tell: Callable[[Topic, Sequence[str]], None]
) -> None:
    """Notify of a page's text as it is decoded, until the page ends."""
    attempt = start = 0
    async for text in stream.pieces():
        if isinstance(text, Restart):
            attempt, start = attempt + 1, 0
            continue
        for at in range(0, len(text), MAX_PIECE_CHARS):
            part = text[at : at + MAX_PIECE_CHARS]
            tell("text", [str(Piece(job_id, page, attempt, start, part))])
            start += len(part)


class LiveTexts:
    """Passes pieces on to whoever follows their job."""

    def __init__(self, notifications: Notifications) -> None:
        self._followers: dict[str, set[asyncio.Queue[Piece]]] = {}
        notifications.on("text", self._hear)

    @contextmanager
    def of(self, job_id: str) -> Iterator["asyncio.Queue[Piece]"]:
        """Give a queue that gets a job's pieces from now on."""
        queue: asyncio.Queue[Piece] = asyncio.Queue(MAX_WAITING)
        self._followers.setdefault(job_id, set()).add(queue)
        try:
            yield queue
        finally:
            self._followers[job_id].discard(queue)
            if not self._followers[job_id]:
                del self._followers[job_id]

    def _hear(self, pieces: Collection[str]) -> None:
        for text in pieces:
            try:
                piece = Piece.read(text)
            except (ValueError, TypeError):
                continue  # of another release
            for queue in self._followers.get(piece.job_id, ()):
                if not queue.full():
                    queue.put_nowait(piece)
