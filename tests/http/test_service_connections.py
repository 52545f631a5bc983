"""Connections that are silent, slow, too many, or expensive to read."""

import asyncio
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from service_client import Server, eventually, image_bytes, serving
from uvicorn import Config
from uvicorn.server import ServerState

from app.http import connections
from app.http.connections import EVENTS_PER_TURN, MAX_CONNECTIONS, connection_class, connection_limit
from app.settings import Settings
from app.telemetry import Seldom

PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
CHUNKED = (
    b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def tiny_chunks(data: bytes) -> bytes:
    return b"".join(b"1\r\n%c\r\n" % byte for byte in data)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"head_s": 0.5, "keep_alive_s": 1, "max_connections": 12}
    with serving(tmp_path_factory.mktemp("data"), **limits) as started:
        yield started.wait_ready()


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    data = b""
    while received := connection.recv(65536):
        data += received
    return data


# --- work that one read causes


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.is_reading_now = True
        self.written = b""
        self.answered = asyncio.Event()

    def pause_reading(self) -> None:
        self.is_reading_now = False

    def resume_reading(self) -> None:
        self.is_reading_now = True

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.answered.set()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def test_tiny_chunks_leave_time_for_others() -> None:
    """Of 20,000 chunks in one read, few are taken apart before the event loop turns, and none is lost."""
    num_chunks = 20_000
    received: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            received.append(len(message["body"]))
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> FakeTransport:
        transport = FakeTransport()
        config = Config(app, ws="none", lifespan="off", access_log=False)
        made: Any = connection_class(Settings())
        connection = made(config=config, server_state=ServerState(), app_state={})
        connection.connection_made(transport)
        connection.data_received(CHUNKED + tiny_chunks(b"x" * num_chunks))
        assert len(connection.cycle.body) < EVENTS_PER_TURN
        assert not transport.is_reading_now, "what more it sends waits in the kernel"
        connection.data_received(b"0\r\n\r\n")  # what was read before reading stopped
        async with asyncio.timeout(120):
            await transport.answered.wait()
        connection.connection_lost(None)
        return transport

    assert asyncio.run(run()).written.startswith(b"HTTP/1.1 200")
    assert sum(received) == num_chunks
    assert max(received) < num_chunks / 4


def test_a_document_in_chunks_of_a_byte_is_read(impatient: Server) -> None:
    body = PART + image_bytes(size=(77, 20)) + b"\r\n--b--\r\n"
    with connect(impatient) as connection:
        connection.sendall(CHUNKED + tiny_chunks(body) + b"0\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_requests_that_follow_each_other_in_one_read_are_answered_in_order(impatient: Server) -> None:
    asked = b"".join(
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: %d\r\n%s\r\n"
        % (number, b"Connection: close\r\n" if number == 59 else b"")
        for number in range(60)
    )
    with connect(impatient) as connection:
        connection.sendall(asked)
        answers = rest(connection)
    ids = [int(line[14:]) for line in answers.split(b"\r\n") if line.startswith(b"x-request-id: ")]
    assert ids == list(range(60))


# --- silence


def test_a_connection_that_says_nothing_ends(impatient: Server) -> None:
    with connect(impatient) as connection:
        assert rest(connection) == b""


@pytest.mark.parametrize("begun", [b"G", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_head_that_does_not_end_is_given_up(impatient: Server, begun: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(begun)
        assert rest(connection).startswith(b"HTTP/1.1 408")


def test_a_head_that_trickles_is_given_up(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.settimeout(0.05)
        answer = b""
        for _ in range(2000):
            try:
                connection.sendall(b"x")
                answer = connection.recv(1000)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("it may go on for ever")
    assert answer in {b"", b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"}


def test_a_connection_without_another_request_ends(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200")


# --- answers that are not taken


@pytest.mark.parametrize("takes", [0, 1, 10**6])
def test_an_answer_has_to_be_taken_with_some_speed(monkeypatch: pytest.MonkeyPatch, takes: int) -> None:
    """``takes``: bytes that the client reads in each hundredth of a second."""
    monkeypatch.setattr(connections, "ANSWER_CHECK_S", 0.2)
    body = bytes(16 * 2**20)  # more than the kernel's buffers have room for

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    async def run() -> int:
        config = Config(app, ws="none", lifespan="off", access_log=False)
        made: Any = connection_class(Settings())
        lost = asyncio.Event()

        def protocol() -> Any:
            connection = made(config=config, server_state=ServerState(), app_state={})
            told = connection.connection_lost

            def note(error: Exception | None) -> None:
                told(error)
                lost.set()

            connection.connection_lost = note
            return connection

        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=2**16)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        num_read = 0
        async with asyncio.timeout(60):
            while not lost.is_set() and num_read < len(body):
                if takes:
                    num_read += len(await reader.read(takes))
                await asyncio.sleep(0.01)
        writer.transport.abort()
        server.close()
        await lost.wait()
        return num_read

    num_read = asyncio.run(run())
    assert (num_read >= len(body)) == (takes > 1)


# --- number


def test_more_connections_than_the_limit_are_refused(impatient: Server) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(impatient)) for _ in range(40)]
        answers = [rest(connection) for connection in connections]
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503")]
    assert len(refused) >= 40 - 12
    assert all(b"Retry-After: " in answer for answer in refused)
    assert impatient.http.get("/livez").status_code == 200
    warned = [line for line in impatient.log if "too many connections" in line["message"]]
    assert len(warned) == 1


def test_more_connections_than_descriptors_do_not_end_the_service(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = Server(tmp_path, head_s=5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        server.wait_ready()
        with ExitStack() as stack:
            for _ in range(400):
                stack.enter_context(connect(server))
            eventually(lambda: any("too many connections" in line["message"] for line in list(server.log)))
        assert server.parse(image_bytes()).status_code == 200
        assert sum("accept" in line["message"] for line in server.log) <= 1
        assert server.process.poll() is None
    finally:
        server.stop()


def test_the_limit_follows_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {}
    for descriptors in (64, 1024, 65_536, 1_048_576, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda _, num=descriptors: (num, num))
        limits[descriptors] = connection_limit(Settings())
    assert limits == {
        64: 32,
        1024: 640,
        65_536: MAX_CONNECTIONS,
        1_048_576: MAX_CONNECTIONS,
        resource.RLIM_INFINITY: MAX_CONNECTIONS,
    }
    assert connection_limit(Settings(max_connections=7)) == 7


def test_a_repeated_complaint_is_logged_once() -> None:
    seldom = Seldom()

    def passes(message: str, level: int = logging.ERROR) -> bool:
        return bool(seldom.filter(logging.LogRecord("asyncio", level, "", 0, message, (), None)))

    assert passes("socket.accept() out of system resource\nsocket: <1>")
    assert not passes("socket.accept() out of system resource\nsocket: <2>")
    assert passes("something else")
    assert all(passes("request", logging.INFO) for _ in range(3))


# --- requests that are malformed


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"no request\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_and_ends(impatient: Server, request_bytes: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(request_bytes)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"Invalid HTTP request received." in answer


def test_a_request_with_two_lengths_ends_its_connection(impatient: Server) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(impatient) as connection:
        connection.sendall(
            b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
        )
        answer = rest(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 405")
    assert b"connection: close" in answer.lower()
