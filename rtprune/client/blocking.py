"""The client for code without an event loop."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
from anyio.from_thread import start_blocking_portal

from rtprune.client.answers import Document, Job, Options, Page, Readiness
from rtprune.client.asynchronous import DEFAULT_SERVER, NUM_RETRIES, AsyncClient, OnPage
from rtprune.client.uploads import OnUpload


class Client:
    """Blocking client: an ``AsyncClient`` in a thread of its own. Also works inside a notebook's loop.

    Takes one call at a time.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        key: str | None = None,
        num_retries: int = NUM_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(server, key=key, num_retries=num_retries, transport=transport)
        self._opening = start_blocking_portal()
        self._portal = self._opening.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and end the thread. Jobs continue."""
        self._portal.call(self._client.close)
        self._opening.__exit__(None, None, None)

    def parse(
        self,
        document: Path | str | bytes,
        *,
        on_upload: OnUpload | None = None,
        on_page: OnPage | None = None,
        **options: Unpack[Options],
    ) -> Document:
        """Read a document: a path, its bytes, or an address (``https://...``) that the service fetches."""
        return self._portal.call(
            lambda: self._client.parse(document, on_upload=on_upload, on_page=on_page, **options)
        )

    def submit(
        self,
        document: Path | str | bytes,
        *,
        on_upload: OnUpload | None = None,
        priority: int | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Send a document. Return its job as soon as the service has both on disk."""
        return self._portal.call(
            lambda: self._client.submit(
                document,
                on_upload=on_upload,
                priority=priority,
                webhook=webhook,
                idempotency_key=idempotency_key,
                **options,
            )
        )

    def job(self, job: Job | str) -> Job:
        """Return the current state of a job."""
        return self._portal.call(self._client.job, job)

    def jobs(self, *, status: str | None = None, limit: int = 20) -> tuple[Job, ...]:
        """Return this client's jobs, newest first."""
        return self._portal.call(lambda: self._client.jobs(status=status, limit=limit))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job. A job that has ended stays as it is."""
        return self._portal.call(self._client.cancel, job)

    def pages(self, job: Job | str, *, after: int = 0) -> Iterator[Page]:
        """Yield pages as they are read, until the job has ended. Leave out the first ``after`` pages."""
        pages = self._client.pages(job, after=after)
        try:
            while (page := self._portal.call(anext, pages, None)) is not None:
                yield page
        finally:
            self._portal.call(pages.aclose)

    def wait(self, job: Job | str, *, on_page: OnPage | None = None) -> Job:
        """Wait until the job has ended and return it."""
        return self._portal.call(lambda: self._client.wait(job, on_page=on_page))

    def result(self, job: Job | str) -> Document:
        """Return the document of an ended job. Raise ``ServiceError`` when it failed."""
        return self._portal.call(self._client.result, job)

    def answer(self, job: Job | str, format: str = "markdown", **shown: Any) -> bytes:  # noqa: A002
        """Return the result of an ended job in a format."""
        return self._portal.call(lambda: self._client.answer(job, format, **shown))

    def readiness(self) -> Readiness:
        """Return what pages are read with. Raise ``ServiceError`` ``not_ready`` if no worker reads."""
        return self._portal.call(self._client.readiness)
