"""Feed metrics with finished pages and ended jobs of all machines, each row once."""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.document import PageResult
from app.jobs.job import decode_page
from app.jobs.store import JobEnd, PageEnd, Store

LATE_S = 10.0
"""How much later than its time a row may become visible. A row has the time at which its transaction began.
"""
BATCH = 500

Row = TypeVar("Row", PageEnd, JobEnd)


class _Feed(Generic[Row]):
    """New rows since this object was made.

    ``read``: return rows from a time on, oldest first, up to a limit.
    """

    def __init__(self, read: Callable[[float, int], Sequence[Row]]) -> None:
        self._read: Callable[[float, int], Sequence[Row]] = read
        self._began_at = self._read_to = time.time()
        self._told: dict[object, float] = {}

    def new(self) -> list[Row]:
        """Return some rows that were not returned before; none when there are no more."""
        since = max(self._began_at, self._read_to - LATE_S)
        self._told = {key: at for key, at in self._told.items() if at >= since}
        found = [row for row in self._read(since, BATCH + len(self._told)) if row.key not in self._told]
        for row in found:
            self._told[row.key] = row.at
            self._read_to = max(self._read_to, row.at)
        return found


class MetricsFeed:
    """Reads the database only when it is asked, so a service without monitoring pays nothing.

    Use it from one thread at a time. Methods raise ``StorageUnavailable`` or ``StorageFull``.
    """

    def __init__(self, store: Store) -> None:
        self._pages: _Feed[PageEnd] = _Feed(store.pages_done)
        self._jobs: _Feed[JobEnd] = _Feed(store.jobs_ended)

    def new_pages(self) -> list[PageResult]:
        """Return some finished pages that were not returned before; none when there are no more."""
        return [decode_page(row.result) for row in self._pages.new()]

    def new_jobs(self) -> list[str]:
        """Return the statuses of some ended jobs that were not returned before."""
        return [row.status for row in self._jobs.new()]
