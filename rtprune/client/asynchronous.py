"""The client for asynchronous code."""

import contextlib
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, Unpack, cast

import anyio
import httpx

from rtprune.client.answers import Document, Job, Options, Page, Readiness, decode
from rtprune.client.errors import UnexpectedAnswer
from rtprune.client.events import events
from rtprune.client.exchange import CONNECT_S, SILENCE_S, Exchange
from rtprune.client.uploads import OnUpload, Upload, form

DEFAULT_SERVER = "http://127.0.0.1:8000"
NUM_RETRIES = 6
GIVE_UP_S = 5.0
MEDIA_TYPES = {"json": "application/json", "markdown": "text/markdown", "text": "text/plain"}

OnPage = Callable[[Page], None]
"""Callback that gets each page as it is read."""


class AsyncClient:
    """Client of one service. Use it as an async context manager, or call ``close``.

    ``key``: an API key, if the service asks for one. ``num_retries``: attempts after the first while the
    service is busy or unreachable; a document that is sent twice becomes one job. ``transport``: the httpx
    transport to use.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        key: str | None = None,
        num_retries: int = NUM_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(
            base_url=server,
            headers=headers,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            transport=transport,
        )
        self._exchange = Exchange(self._http, num_retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections. Jobs continue."""
        await self._http.aclose()

    async def parse(
        self,
        document: Path | str | bytes,
        *,
        on_upload: OnUpload | None = None,
        on_page: OnPage | None = None,
        **options: Unpack[Options],
    ) -> Document:
        """Read a document: a path, its bytes, or an address (``https://...``) that the service fetches.

        Wait as long as it takes. When this call is cancelled, the job is cancelled.
        """
        job = await self.submit(document, on_upload=on_upload, **options)
        async with self.cancelling(job):
            await self.wait(job, on_page=on_page)
            return await self.result(job)

    async def submit(
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
        fields = form({**options, "priority": priority, "webhook": webhook})
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        if isinstance(document, str) and "://" in document:
            content = {**options, "url": document, "priority": priority, "webhook": webhook}
            body = await self._exchange.body(
                lambda: self._http.build_request("POST", "v1/jobs", json=content, headers=headers)
            )
            return decode(Job, _json(body))
        source = Path(document) if isinstance(document, str) else document
        with Upload(source, on_upload) as upload:
            files = {"file": (upload.name, cast("IO[bytes]", upload))}

            def request() -> httpx.Request:
                upload.seek(0)
                return self._http.build_request("POST", "v1/jobs", data=fields, files=files, headers=headers)

            return decode(Job, _json(await self._exchange.body(request)))

    async def job(self, job: Job | str) -> Job:
        """Return the current state of a job."""
        return decode(Job, _json(await self._get(_address(job))))

    async def jobs(self, *, status: str | None = None, limit: int = 20) -> tuple[Job, ...]:
        """Return this client's jobs, newest first."""
        query = {"limit": str(limit)} | ({"status": status} if status else {})
        answer = _json(await self._get("v1/jobs", query))
        return tuple(decode(Job, one) for one in answer["jobs"])

    async def cancel(self, job: Job | str) -> Job:
        """Cancel a job. A job that has ended stays as it is."""
        address = _address(job)
        return decode(
            Job, _json(await self._exchange.body(lambda: self._http.build_request("DELETE", address)))
        )

    @asynccontextmanager
    async def cancelling(self, job: Job) -> AsyncIterator[None]:
        """Cancel the job, trying once, when the block raises or is cancelled: then nobody waits for it."""
        try:
            yield
        except BaseException:
            # tell the service even if the block was cancelled
            with anyio.move_on_after(GIVE_UP_S, shield=True), contextlib.suppress(httpx.HTTPError):
                await self._http.delete(_address(job))
            raise

    async def pages(self, job: Job | str, *, after: int = 0) -> AsyncGenerator[Page, None]:
        """Yield pages as they are read, until the job has ended. Leave out the first ``after`` pages.

        A stream that breaks off is resumed where it stopped.
        """
        async with aclosing(self._follow(job, after)) as news:
            async for one in news:
                if isinstance(one, Page):
                    yield one

    async def wait(self, job: Job | str, *, on_page: OnPage | None = None) -> Job:
        """Wait until the job has ended and return it."""
        async with aclosing(self._follow(job, 0)) as news:
            async for one in news:
                if isinstance(one, Job):
                    return one
                if on_page is not None:
                    on_page(one)
        return await self.job(job)

    async def result(self, job: Job | str) -> Document:
        """Return the document of an ended job. Raise ``ServiceError`` when it failed."""
        return decode(Document, _json(await self.answer(job, "json")))

    async def answer(self, job: Job | str, format: str = "markdown", **shown: Any) -> bytes:  # noqa: A002
        """Return the result of an ended job as ``json``, ``markdown``, ``text`` or another format it has.

        ``shown``: options of presentation, such as ``math`` and ``headers``.
        """
        query = form(shown)
        if format not in MEDIA_TYPES:
            query["format"] = format
        return await self._get(f"{_address(job)}/result", query, MEDIA_TYPES.get(format, "*/*"))

    async def readiness(self) -> Readiness:
        """Return what pages are read with. Raise ``ServiceError`` ``not_ready``, without retries, if no
        worker reads.
        """
        once = Exchange(self._http, 0)
        body = await once.body(lambda: self._http.build_request("GET", "readyz"))
        return decode(Readiness, _json(body))

    async def _follow(self, job: Job | str, after: int) -> AsyncGenerator[Page | Job, None]:
        address, attempt = f"{_address(job)}/events", 0
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            error: Exception = httpx.RemoteProtocolError("the event stream ended before the job")
            try:
                async with self._exchange.answer(
                    lambda headers=headers: self._http.build_request("GET", address, headers=headers)  # type: ignore[misc]
                ) as response:
                    async for event in events(response.aiter_bytes()):
                        if event.name == "page":
                            after, attempt = int(event.id), 0
                            yield decode(Page, _json(event.data))
                        elif event.name == "end":
                            yield decode(Job, _json(event.data))
                            return
            except httpx.TransportError as broken:
                error = broken
            await self._exchange.pause(attempt, error)
            attempt += 1

    async def _get(
        self, address: str, query: Mapping[str, str] | None = None, accept: str = "application/json"
    ) -> bytes:
        headers = {"Accept": accept}
        return await self._exchange.body(
            lambda: self._http.build_request("GET", address, params=query, headers=headers)
        )


def _address(job: Job | str) -> str:
    # relative, so that a path prefix in the service's address is kept
    return f"v1/jobs/{job if isinstance(job, str) else job.id}"


def _json(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise UnexpectedAnswer("the answer is no JSON: is this the address of an rtprune service?") from error
