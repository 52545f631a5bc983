"""Write events of pages in groups. While one transaction runs, the next group gathers."""

import asyncio
import logging

from app.errors import StorageFull, StorageUnavailable
from app.jobs.worker.page_store import Done, Entry, Interrupted, PageStore, Started

logger = logging.getLogger("rtprune.writer")

FIRST_RETRY_S = 0.1
MAX_RETRY_S = 2.0
GATHER_SHARE = 0.05
"""Time to gather a group while several pages are open, as a share of the time a page takes.

A transaction costs much more than its rows, and a page that takes seconds can wait.
"""
MIN_GATHER_S = 0.015
MAX_GATHER_S = 0.2
NEWEST_SHARE = 0.1
"""Weight of the newest page in the running average of seconds per page."""


class ResultWriter:
    """The only writer of page events in a process.

    It waits for a missing or full database, so no result is lost.
    """

    def __init__(self, log: PageStore, worker_id: str) -> None:
        self._log = log
        self._worker_id = worker_id
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._open: dict[tuple[str, int], float] = {}
        """Start times of pages that are in the model."""
        self._page_s = 0.0
        self._wrote_at = 0.0

    async def write(self, entry: Entry) -> None:
        """Write an entry, and return when it is in the database."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, written))
        if isinstance(entry, Started):
            self._open[entry.job_id, entry.page] = self._now()
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain(), name="writer")
        # shielded: cancelling this page must not cancel the write of others
        await asyncio.shield(written)

    async def _drain(self) -> None:
        while self._waiting:
            await self._gather()
            group, self._waiting = self._waiting, []
            await self._persist([entry for entry, _ in group])
            for entry, written in group:
                if not isinstance(entry, Started):
                    self._close(entry)
                if not written.done():
                    written.set_result(None)

    def _close(self, entry: Done | Interrupted) -> None:
        begun_at = self._open.pop((entry.job_id, entry.page), None)
        if begun_at is not None and isinstance(entry, Done):
            self._page_s += (self._now() - begun_at - self._page_s) * NEWEST_SHARE

    async def _gather(self) -> None:
        """Wait a moment so that quick successive entries form one group.

        Do not delay a page that is alone.
        """
        if len(self._open) > 1:
            gather_s = min(MAX_GATHER_S, max(MIN_GATHER_S, self._page_s * GATHER_SHARE))
            await asyncio.sleep(self._wrote_at + gather_s - self._now())
        self._wrote_at = self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _persist(self, entries: list[Entry]) -> None:
        delay_s = FIRST_RETRY_S
        while True:
            try:
                await asyncio.to_thread(self._log.write, self._worker_id, entries)
            except (StorageUnavailable, StorageFull) as error:
                logger.warning("page results wait for the database", extra={"reason": str(error)})
            else:
                return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_RETRY_S)
