"""Follow jobs: wait for their end, stream their pages.

A follower is woken by notifications, reads the job, and waits again. ``look`` finds changes that no
notification announced, with one query for all followers.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing

from app.errors import StorageFull, StorageUnavailable
from app.jobs.database import promptly
from app.jobs.job import Job, PageEvent
from app.jobs.notifications import Notifications
from app.jobs.store import Store

STORAGE_RETRY_S = 0.5


class JobWatcher:
    """Follows jobs for one process. ``job`` reads one; ``begun`` is called when a follower begins."""

    def __init__(
        self,
        store: Store,
        notifications: Notifications,
        poll_s: float,
        job: Callable[[str], Awaitable[Job]],
        begun: Callable[[], None],
    ) -> None:
        self._store = store
        self._notifications = notifications
        self._poll_s = poll_s
        self._job = job
        self._begun = begun
        self._events: dict[str, list[asyncio.Event]] = {}
        self._seen: dict[str, tuple[str, int]] = {}
        self._waited_for: Counter[str] = Counter()
        self._looked_at = 0.0
        self._closed = False
        notifications.on("pages", self._wake)

    def close(self) -> None:
        """Release every follower, now and later.

        Waits return the job as it is; event streams stop without an end.
        """
        self._closed = True
        self._wake(())

    async def wait(self, job_id: str, timeout_s: float, after_pages: float = math.inf) -> Job:
        """Return the job when it has ended, or as it is after ``timeout_s`` or when this is closed.

        ``after_pages``: return also as soon as more pages than this are done.
        """
        self._waited_for[job_id] += 1
        try:
            async with asyncio.timeout(timeout_s), aclosing(self._changes(job_id)) as changes:
                async for _ in changes:
                    job = await self._patiently(job_id)
                    if not job.is_open or job.num_done > after_pages:
                        return job
        except TimeoutError:
            pass
        finally:
            self._waited_for -= Counter([job_id])
        return await self._job(job_id)

    def is_waited_for(self, job_id: str) -> bool:
        """Tell whether a request waits for a job. Two requests may share one job."""
        return self._waited_for[job_id] > 0

    async def events(self, job_id: str, after: int) -> AsyncIterator[PageEvent | Job]:
        """Yield each finished page with ``seq`` above ``after`` once, then the ended job.

        Stop without the job when this is closed.
        """
        async with aclosing(self._changes(job_id)) as changes:
            async for _ in changes:
                job = await self._patiently(job_id)
                while pages := await asyncio.to_thread(self._store.events, job_id, after):
                    for event in pages:
                        after = event.seq
                        yield event
                if not job.is_open:
                    yield job
                    return

    async def look(self) -> None:
        """Wake followers whose job has changed, if the interval between two looks has passed.

        Raise ``StorageUnavailable`` or ``StorageFull``.
        """
        if not self._events or time.monotonic() - self._looked_at < self._pause_s:
            return
        self._looked_at = time.monotonic()
        progress = await promptly(self._store.progress, list(self._events))
        for job_id, state in progress.items():
            if job_id in self._events and self._seen.get(job_id) != state:
                self._seen[job_id] = state
                self._wake([job_id])

    def within_s(self, pause_s: float) -> float:
        """Return the seconds until the next look, at most ``pause_s``."""
        return min(pause_s, self._pause_s) if self._events else pause_s

    @property
    def _pause_s(self) -> float:
        return self._notifications.pause_s(self._poll_s)

    async def _changes(self, job_id: str) -> AsyncGenerator[None, None]:
        """Yield at once, and then whenever the status or pages of a job may have changed."""
        event = asyncio.Event()
        self._events.setdefault(job_id, []).append(event)
        self._begun()
        try:
            while not self._closed:
                yield
                await event.wait()
                event.clear()
        finally:
            self._events[job_id].remove(event)
            if not self._events[job_id]:
                del self._events[job_id]
                self._seen.pop(job_id, None)

    def _wake(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids or self._events:
            for event in self._events.get(job_id, ()):
                event.set()

    async def _patiently(self, job_id: str) -> Job:
        while True:
            try:
                return await self._job(job_id)
            except (StorageUnavailable, StorageFull):
                if self._closed:
                    raise
                await asyncio.sleep(STORAGE_RETRY_S)
