"""Pass the text of a page from the engine's thread to one asyncio consumer."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from app.reader import Restart

DecodeText = Callable[[Sequence[int]], str]

MAX_BYTES = 4
"""Most bytes, and so tokens, of a UTF-8 character. If that many tokens are no text, they are no unfinished
character.
"""


@dataclass(frozen=True, slots=True)
class News:
    """New tokens since the consumer last looked. ``attempt`` grows by one when the page is read again."""

    attempt: int
    ids: list[int]
    is_over: bool


class Feed:
    """Channel from the engine's thread, which writes, to the consumer's loop, which reads.

    Neither blocks the other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: list[int] = []
        self._attempt = 0
        self._is_over = False
        self._final: str | None = None
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    @property
    def final_text(self) -> str | None:
        """Text of the page, set once it is over; ``None`` for a page that failed."""
        return self._final

    def push(self, token: int) -> None:
        with self._lock:
            self._ids.append(token)
            self._wake()

    def restart(self) -> None:
        with self._lock:
            self._ids = []
            self._attempt += 1
            self._wake()

    def finish(self, text: str | None) -> None:
        with self._lock:
            self._is_over, self._final = True, text
            self._wake()

    async def news(self, attempt: int, num_seen: int) -> News:
        """Wait until there is more than ``num_seen`` ids of ``attempt``, a new attempt, or the end."""
        while True:
            with self._lock:
                if self._attempt != attempt:
                    return News(self._attempt, self._ids[:], self._is_over)
                if self._is_over or len(self._ids) > num_seen:
                    return News(attempt, self._ids[num_seen:], self._is_over)
                loop = asyncio.get_running_loop()
                changed: asyncio.Future[None] = loop.create_future()
                self._waiter = (loop, changed)
            await changed

    def _wake(self) -> None:
        if self._waiter is None:
            return
        loop, changed = self._waiter
        self._waiter = None
        try:
            loop.call_soon_threadsafe(_resolve, changed)
        except RuntimeError:
            # the consumer's loop is closed: nobody is left to read
            return


def _resolve(changed: "asyncio.Future[None]") -> None:
    if not changed.done():
        changed.set_result(None)


class TextDelta:
    """Incremental decoder: takes ids and returns the text they add.

    It decodes only a few ids each time and holds back an unfinished character.
    """

    def __init__(self, decode_text: DecodeText) -> None:
        self._decode_text = decode_text
        self._ids: list[int] = []
        self._context = 0
        self._sent = 0

    def add(self, ids: Sequence[int]) -> str:
        self._ids.extend(ids)
        # decoded with the ids sent last: a token's text may depend on the one before it
        before = self._decode_text(self._ids[self._context : self._sent])
        end = len(self._ids) - self._num_unfinished()
        text = self._decode_text(self._ids[self._context : end])
        if len(text) <= len(before):
            return ""
        self._context, self._sent = self._sent, end
        return text[len(before) :]

    def _num_unfinished(self) -> int:
        """Count the ids at the end that may be part of a character; 0 if dropping them does not help."""
        for held in range(min(MAX_BYTES, len(self._ids) - self._sent)):
            if not self._decode_text(self._ids[self._context : len(self._ids) - held]).endswith("\ufffd"):
                return held
        return 0 if len(self._ids) - self._sent >= MAX_BYTES else len(self._ids) - self._sent


async def pieces_of(feed: Feed, decode_text: DecodeText, interval_seconds: float) -> AsyncIterator[str]:
    """Yield text as it comes (``PageStream.pieces``); at the end, yield what completes the page's final text.

    Yields ``Restart`` where text already sent is no longer valid.
    """
    attempt, num_seen, sent, delta = 0, 0, "", TextDelta(decode_text)
    while True:
        news = await feed.news(attempt, num_seen)
        if news.attempt != attempt:
            if sent:
                yield Restart()
            attempt, num_seen, sent, delta = news.attempt, 0, "", TextDelta(decode_text)
        num_seen += len(news.ids)
        if news.is_over:
            break
        text = delta.add(news.ids)
        if text:
            sent += text
            yield text
        await asyncio.sleep(interval_seconds)
    final = feed.final_text
    if final is None or final == sent:
        return
    if not final.startswith(sent):
        yield Restart()
        sent = ""
    if len(final) > len(sent):
        yield final[len(sent) :]
