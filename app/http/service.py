"""The object that serves all routes. ``create_app`` makes it, at ``request.app.state.service``."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from app.documents.safe_http import SafeHttp
from app.documents.spool import Spool
from app.errors import NotReady, Overloaded
from app.http.access import Access
from app.http.results import Results
from app.jobs.api.jobs import Jobs
from app.jobs.api.metrics_feed import MetricsFeed
from app.metrics import Metrics
from app.settings import Settings

ENDING = "the service is being stopped; what it accepted is read by the next one"


@dataclass(slots=True)
class Service:
    settings: Settings
    metrics: Metrics
    jobs: Jobs
    spool: Spool
    http: SafeHttp
    access: Access
    meter: MetricsFeed
    results: Results
    is_ending: bool = field(default=False, init=False)
    """Whether the process ends as soon as its requests are answered."""
    _num_documents: int = field(default=0, init=False)
    _metering: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Reserve a place for one document, before its first byte.

        Raise ``Overloaded`` or ``NotReady`` at once.
        """
        if self.is_ending:
            raise NotReady(ENDING)
        if self._num_documents >= self.settings.max_documents:
            raise Overloaded(f"{self._num_documents} documents are being served, which is the limit")
        self._num_documents += 1
        self.metrics.documents_in_flight.set(self._num_documents)
        try:
            yield
        finally:
            self._num_documents -= 1
            self.metrics.documents_in_flight.set(self._num_documents)

    def let_go(self) -> None:
        """Accept no more documents, and answer waiting clients now.

        Their jobs continue without this process.
        """
        self.is_ending = True
        self.jobs.watcher.close()

    async def count_ends(self) -> None:
        """Bring the counters of pages and jobs up to date.

        Raise ``StorageUnavailable`` or ``StorageFull``.
        """
        async with self._metering:
            while pages := await asyncio.to_thread(self.meter.new_pages):
                for page in pages:
                    self.metrics.count(page)
            while statuses := await asyncio.to_thread(self.meter.new_jobs):
                for status in statuses:
                    self.metrics.jobs.labels(status).inc()

    def check_ready(self) -> None:
        """Raise ``NotReady`` if no worker can read, so that a client that would wait is told at once."""
        readiness = self.jobs.readiness
        if not readiness.ready:
            raise NotReady(readiness.detail, phase=readiness.phase)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def note_job(request: Request, job_id: str) -> None:
    """Make the request's log line name the job."""
    request.scope["job_id"] = job_id


def root_of(request: Request) -> str:
    """Return the path that a proxy puts before every address of this service: ``/ocr``, or nothing."""
    root: str = request.scope.get("root_path", "")
    return root
