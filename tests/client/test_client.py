"""The Python client against a real service, and through a connection that breaks."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_client import A4, ROOT, Server, eventually, pdf_bytes, serving

import rtprune.client as wire
from app.http.schemas import jobs as job_shapes
from app.http.schemas import parse as parse_shapes
from app.http.schemas.parse import OptionFields
from rtprune.client import AsyncClient, Client, Options, ServiceError, UnexpectedAnswer, Unreachable
from rtprune.client.answers import decode
from rtprune.client.events import Event, events
from rtprune.client.exchange import retry_after_s

TWO_PAGES = pdf_bytes(A4, A4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as started:
        yield started.wait_ready()


@pytest.fixture
def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_a_document_is_read_and_what_happens_is_told(address: str, tmp_path: Path) -> None:
    path = tmp_path / "two.pdf"
    path.write_bytes(TWO_PAGES)
    sent: list[tuple[int, int]] = []
    came: list[int] = []
    with Client(address) as client:
        document = client.parse(
            path,
            on_upload=lambda done, size: sent.append((done, size)),
            on_page=lambda page: came.append(page.index),
            join_pages=False,
            dpi=72,
        )
        assert document.markdown == "# Page 1\n\n595 x 842 pixels\n\n# Page 2\n\n595 x 842 pixels"
        assert [page.tokens is not None and page.tokens.kept > 0 for page in document.pages] == [True, True]
        assert sent[-1] == (len(TWO_PAGES), len(TWO_PAGES))
        assert sorted(came) == [0, 1]
        assert client.readiness().model == "fake"
        assert document.id in {job.id for job in client.jobs()}


def test_a_job_is_followed_from_any_page_on(address: str) -> None:
    with Client(address) as client:
        job = client.submit(TWO_PAGES, idempotency_key="the same")
        assert client.submit(TWO_PAGES, idempotency_key="the same").id == job.id
        assert sorted(page.index for page in client.pages(job)) == [0, 1]
        assert len(list(client.pages(job.id, after=1))) == 1
        assert client.wait(job.id).status == "succeeded"
        assert client.answer(job, "text").decode().startswith("Page 1")
        assert client.answer(job, "html").startswith(b"<!")
        assert client.answer(job, "markdown", headers="keep").startswith(b"# Page 1")
        assert client.cancel(job).status == "succeeded"


def test_errors_have_the_code_of_the_service(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(ServiceError, match="page 9") as refused:
            client.parse(TWO_PAGES, pages="9")
        assert (refused.value.code, refused.value.retryable) == ("page_not_found", False)
        with pytest.raises(ServiceError) as unread:
            client.parse(TWO_PAGES, prompt='{"fail_on": [0, 1]}')
        assert unread.value.code == "page_failed"
        with pytest.raises(ServiceError) as refused_url:
            client.submit("http://127.0.0.1/x.pdf", pages="1")
        assert refused_url.value.code == "url_refused"


def running(server: Server) -> list[str]:
    return [job["id"] for job in server.http.get("/v1/jobs?status=running").json()["jobs"]]


def test_a_cancelled_call_cancels_its_job(server: Server, address: str) -> None:
    async def run() -> str:
        async with AsyncClient(address) as client:
            reading = asyncio.create_task(client.parse(TWO_PAGES, prompt='{"delay_s": 100}'))
            [job] = await asyncio.to_thread(eventually, lambda: running(server))
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return (await client.job(job)).status

    assert asyncio.run(run()) == "cancelled"


class Unsteady(httpx.AsyncBaseTransport):
    """Refuses the first request of each kind, and breaks each event stream off after one event."""

    def __init__(self) -> None:
        self._real = httpx.AsyncHTTPTransport()
        self._refused: set[str] = set()
        self.resumed_after: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        kind = f"{request.method} {request.url.path.rpartition('/')[2]}"
        if kind not in self._refused:
            self._refused.add(kind)
            if request.method == "POST":
                raise httpx.ReadError("broken off", request=request)
            return httpx.Response(503, headers={"Retry-After": "0"}, json={"code": "overloaded"})
        response = await self._real.handle_async_request(request)
        if request.url.path.endswith("/events"):
            self.resumed_after.append(request.headers["last-event-id"])
            assert isinstance(response.stream, httpx.AsyncByteStream)
            return httpx.Response(200, stream=OneEvent(response.stream))
        return response

    async def aclose(self) -> None:
        await self._real.aclose()


class OneEvent(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = b""
        async for chunk in self._stream:
            seen += chunk
            yield chunk
            if b"event: page" in seen and b"\r\n\r\n" in seen:
                raise httpx.ReadError("broken off")

    async def aclose(self) -> None:
        await self._stream.aclose()


def test_what_breaks_off_is_taken_up_where_it_was(address: str) -> None:
    transport = Unsteady()
    pages = pdf_bytes(*[A4] * 3)
    with Client(address, transport=transport) as client:
        job = client.submit(pages, prompt='{"delay_s": 0.1}')
        assert sorted(page.index for page in client.pages(job)) == [0, 1, 2]
        assert client.result(job).status == "succeeded"
    assert transport.resumed_after[0] == "0"
    assert len(set(transport.resumed_after)) > 1


def test_it_gives_up_in_the_end() -> None:
    with (
        Client("http://127.0.0.1:9", num_retries=1) as client,
        pytest.raises(Unreachable, match="2 attempts"),
    ):
        client.jobs()

    def a_page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, text="<h1>not here</h1>")

    transport = httpx.MockTransport(a_page)
    with Client(transport=transport, num_retries=0) as client, pytest.raises(UnexpectedAnswer):
        client.jobs()


def shapes() -> Iterator[tuple[type[Any], type[Any]]]:
    """Each type of the client, and the service's shape of the same name."""
    others = {"Progress": job_shapes.PagesShape}
    for name in wire.__all__:
        kind: Any = getattr(wire, name)
        if isinstance(kind, type) and is_dataclass(kind) and name != "Readiness":
            shape = others.get(name) or getattr(parse_shapes, f"{name}Shape", None)
            yield kind, shape or getattr(job_shapes, f"{name}Shape")


def test_types_and_options_are_those_of_the_service() -> None:
    assert set(Options.__annotations__) == set(OptionFields.model_fields) - {"filename", "format"}
    for kind, shape in shapes():
        assert {one.name for one in fields(kind)} == set(shape.model_fields), kind


def test_what_does_not_fit_is_no_answer() -> None:
    values: tuple[object, ...] = ({}, [], "x", {"code": 1, "detail": "", "retryable": True})
    for value in values:
        with pytest.raises(UnexpectedAnswer):
            decode(wire.Failure, value)


def test_events_end_where_the_format_says() -> None:
    text = 'id: 1\r\nevent: page\r\ndata: "a\u2028b"\r\n\r\n: ping\n\ndata: 1\ndata: 2\n\ndata: broken off'

    async def pieces() -> AsyncIterator[bytes]:
        for byte in text.encode():
            yield bytes([byte])

    async def collect() -> list[Event]:
        return [event async for event in events(pieces())]

    assert asyncio.run(collect()) == [Event("page", "1", '"a\u2028b"'), Event("message", "", "1\n2")]


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("7") == 7
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("soon") is None


def test_the_client_imports_neither_torch_nor_the_service() -> None:
    code = (
        "import json, sys, rtprune.client;"
        "print(json.dumps(sorted({'torch', 'numpy', 'ot', 'app', 'pydantic'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_examples_of_the_documentation_run(address: str) -> None:
    text = (ROOT / "docs" / "client.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        code = example.replace("http://127.0.0.1:8000", address)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Page 1" in done.stdout
