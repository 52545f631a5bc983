"""Who may be with the model together: pages that may have killed a worker are kept from the others."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Isolation:
    """Admits pages of one limit at a time, and no more of them than that limit.

    Smaller limits go first: while one waits, nobody of a larger limit is admitted. Of one limit, whoever came
    first is first.
    """

    def __init__(self) -> None:
        self._limit = 0
        self._num = 0
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def among(self, limit: int) -> AsyncIterator[None]:
        """Be admitted, among at most ``limit`` (from 1) pages of the same limit and none of another."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(limit, deque()).append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # others may have waited for this one alone
            else:
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._num -= 1
        self._admit()

    def _admit(self) -> None:
        while (limit := self._first()) is not None:
            if self._num and (limit != self._limit or self._num >= limit):
                return
            self._limit = limit
            self._num += 1
            self._waiting[limit].popleft().set_result(None)

    def _first(self) -> int | None:
        """The smallest limit that somebody waits with, who then is at the head of its line."""
        for limit in sorted(self._waiting):
            line = self._waiting[limit]
            while line and line[0].cancelled():
                line.popleft()
            if line:
                return limit
            del self._waiting[limit]
        return None
