"""Pages that were finished, of all jobs and machines, each told once: what metrics count."""

import time

from app.document import PageResult
from app.jobs.job import decode_page
from app.jobs.store import Store

LATE_S = 10.0
"""A page bears the time at which its transaction began, and may be seen this much later."""
BATCH = 500


class MetricsFeed:
    """Reads the database when it is asked, so that a service which nobody watches pays nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._began_at = self._read_to = time.time()
        self._told: dict[tuple[str, int], float] = {}

    def new_pages(self) -> list[PageResult]:
        """Some of the pages that were finished since this object was made and not told yet; none when there
        are no more. By one thread at a time.

        Raise ``StorageUnavailable`` or ``StorageFull``.
        """
        since = max(self._began_at, self._read_to - LATE_S)
        self._told = {key: at for key, at in self._told.items() if at >= since}
        found = self._store.pages_done(since, BATCH + len(self._told))
        new = [row for row in found if row[:2] not in self._told]
        for job_id, index, done_at, _ in new:
            self._told[job_id, index] = done_at
            self._read_to = max(self._read_to, done_at)
        return [decode_page(text) for *_, text in new]
