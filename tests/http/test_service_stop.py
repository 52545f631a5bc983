"""SIGTERM: whoever waits is answered at once, events end, nothing is lost, and nothing is a bare 500."""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from jobs_client import Client
from service_client import A4, PATIENCE_S, Server, alive, descendants, eventually, image_bytes, pdf_bytes

from app.main import create_app, let_go
from app.settings import Settings


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def assert_ended_well(server: Server) -> None:
    assert server.process.wait(PATIENCE_S) == 0
    server.stop()
    assert server.noise == []
    assert [line for line in server.log if "exception" in line or "Traceback" in str(line)] == []


def test_who_waits_gets_the_job_at_once_and_the_next_service_has_it(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    server = Server(tmp_path).wait_ready()
    family = descendants(server.process.pid)
    documents = [image_bytes(size=(40 + number, 30)) for number in range(3)]
    waiting = [pool.submit(server.parse, data, prompt={"delay_s": 600}) for data in documents]
    eventually(lambda: server.metric("rtprune_documents_in_flight") == len(documents))
    server.process.send_signal(signal.SIGTERM)
    answers = [future.result() for future in waiting]
    assert [answer.status_code for answer in answers] == [202] * len(documents)
    ids = [answer.json()["id"] for answer in answers]
    assert [answer.headers["location"] for answer in answers] == [f"/v1/jobs/{job_id}" for job_id in ids]
    assert_ended_well(server)
    assert not any(alive(pid) for pid in family)
    assert list(tmp_path.glob("spool/*")) == []
    again = Server(tmp_path)
    assert {again.http.get(f"/v1/jobs/{job_id}").json()["status"] for job_id in ids} <= {"queued", "running"}
    again.stop()


def test_events_end_without_an_error_and_go_on_with_the_next_service(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    server = Server(tmp_path, max_pages_in_flight=1).wait_ready()
    client = Client(server)
    job_id = client.accepted(pdf_bytes(*[A4] * 4), dpi=36, prompt={"delay_s": 1})
    following = pool.submit(client.events, job_id)
    eventually(lambda: client.done(job_id) >= 1)
    server.process.send_signal(signal.SIGTERM)
    before = following.result()  # a stream that breaks off in the middle is an error of httpx
    assert_ended_well(server)
    again = Server(tmp_path).wait_ready()
    after = Client(again).events(job_id, after=before[-1][0])
    assert [number for number, _, _ in before + after] == [1, 2, 3, 4, 5]
    assert after[-1][1] == "end"
    assert after[-1][2]["status"] == "succeeded"
    again.stop()


def test_an_upload_that_is_not_over_in_time_is_told_so(tmp_path: Path) -> None:
    server = Server(tmp_path, shutdown_grace_s=1).wait_ready()
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as stalled:
        stalled.sendall(
            b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        eventually(lambda: server.metric("rtprune_documents_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        answer = b""
        while b"}" not in answer and (received := stalled.recv(65536)):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 503 " in head.splitlines()[0]
    assert b"application/problem+json" in head
    assert b"retry-after" in head.lower()
    assert json.loads(body)["code"] == "not_ready"
    assert_ended_well(server)


def test_an_upload_that_is_over_in_time_is_accepted(tmp_path: Path) -> None:
    server = Server(tmp_path).wait_ready()
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + image_bytes()
    body += b"\r\n--b--\r\n"
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as slow:
        slow.sendall(
            b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body[:20]
        )
        eventually(lambda: server.metric("rtprune_documents_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: any(line["message"] == "Shutting down" for line in list(server.log)))
        slow.sendall(body[20:])
        answer = slow.recv(65536)
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert_ended_well(server)


def test_a_service_that_ends_takes_no_more_documents(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, embedded_worker=False))
    let_go(app)  # before it has started there is nobody to tell

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            accepted = await client.post("/v1/jobs", files={"file": image_bytes()})
            let_go(app)
            job = accepted.json()["links"]
            return [
                accepted,
                await client.post("/v1/jobs", files={"file": image_bytes()}),
                await client.post("/v1/parse", files={"file": image_bytes()}),
                await client.get(job["self"]),
                await client.get(job["events"]),
            ]

    accepted, job, parse, shown, events = asyncio.run(ask())
    assert accepted.status_code == 202
    for refused in (job, parse):
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert refused.json()["retryable"]
        assert int(refused.headers["retry-after"]) >= 1
    assert shown.status_code == 200
    assert (events.status_code, events.text) == (200, "")
