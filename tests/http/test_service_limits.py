"""Uploads piece by piece, clients that leave, and limits of requests, bytes and time."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from service_client import A4, Server, eventually, image_bytes, pdf_bytes, serving


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One page at a time, two documents, little patience."""
    limits = {"max_documents": 2, "max_pages_in_flight": 1, "document_deadline_s": 3}
    with serving(tmp_path_factory.mktemp("data"), **limits) as started:
        yield started.wait_ready()


def connect(server: Server, head: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(f"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of an answer that ends the connection."""
    data = b""
    while b"\r\n\r\n" not in data or b"}" not in data.partition(b"\r\n\r\n")[2]:
        received = connection.recv(65536)
        assert received, data
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


MULTIPART = "Content-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def test_chunked_upload_in_small_pieces(server: Server) -> None:
    body = PART + image_bytes(size=(77, 20)) + b"\r\n--b--\r\n"
    with connect(server, MULTIPART + "Transfer-Encoding: chunked\r\n") as connection:
        for at in range(0, len(body), 7):
            connection.sendall(chunk(body[at : at + 7]))
        connection.sendall(chunk(b""))
        status, document = answer(connection)
    assert (status, document["pages"][0]["width"]) == (200, 77)


@pytest.mark.parametrize("kind", ["form", "json"])
def test_the_server_stops_reading_at_the_limit(server: Server, kind: str) -> None:
    head, start = (
        (MULTIPART, PART) if kind == "form" else ("Content-Type: application/json\r\n", b'{"file":"')
    )
    piece = chunk(b"A" * 65536)
    num_sent, max_spooled, total = 0, 0, 256 * 2**20
    with connect(server, head + "Transfer-Encoding: chunked\r\n") as connection:
        connection.sendall(chunk(start))
        try:
            while num_sent < total:
                connection.sendall(piece)
                num_sent += 65536
                max_spooled = max([max_spooled, *(path.stat().st_size for path in server.spooled())])
        except (ConnectionError, FileNotFoundError):
            pass
        assert num_sent < total / 4, "it read on, long after the limit"
        status, problem = answer(connection)
    assert (status, problem["code"]) == (413, "too_large")
    assert max_spooled <= (2**20 if kind == "form" else 2 * 2**20)
    eventually(lambda: not server.spooled())


def test_too_much_is_refused_before_it_is_sent(server: Server) -> None:
    with connect(server, MULTIPART + f"Content-Length: {2**40}\r\nExpect: 100-continue\r\n") as connection:
        status, problem = answer(connection)
    assert (status, problem["code"]) == (413, "too_large")


def test_a_stalled_upload_is_given_up(server: Server) -> None:
    with connect(server, MULTIPART + "Content-Length: 5000\r\n") as connection:
        connection.sendall(PART)
        status, problem = answer(connection)
    assert (status, problem["code"]) == (408, "upload_timeout")


def test_an_aborted_upload_leaves_nothing(server: Server) -> None:
    with connect(server, MULTIPART + "Content-Length: 500000\r\n") as connection:
        connection.sendall(PART + bytes(100_000))
        eventually(server.spooled)
    eventually(lambda: not server.spooled())
    eventually(lambda: server.metric("rtprune_documents_in_flight") == 0)


def start_slow_parse(server: Server, delay_s: float) -> socket.socket:
    prompt = json.dumps({"delay_s": delay_s}).encode()
    fields = b'\r\n--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + prompt
    body = PART + image_bytes() + fields + b"\r\n--b--\r\n"
    connection = connect(server, MULTIPART + f"Content-Length: {len(body)}\r\n")
    connection.sendall(body)
    return connection


def test_a_client_that_leaves_frees_its_place_and_the_model(tight: Server) -> None:
    with start_slow_parse(tight, 1000):
        eventually(lambda: tight.metric("rtprune_documents_in_flight") == 1)
    eventually(lambda: tight.metric("rtprune_documents_in_flight") == 0)
    # one page at a time: this one is read only if the other was cancelled in the worker, too
    assert tight.parse(image_bytes()).status_code == 200


def test_one_document_too_many_is_refused_at_once(tight: Server) -> None:
    with start_slow_parse(tight, 1000), start_slow_parse(tight, 1000):
        eventually(lambda: tight.metric("rtprune_documents_in_flight") == 2)
        refused = tight.parse(image_bytes())
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
    eventually(lambda: tight.metric("rtprune_documents_in_flight") == 0)


def test_the_document_deadline_keeps_what_is_ready(tight: Server) -> None:
    document = tight.parse(pdf_bytes(*[A4] * 4), prompt={"delay_s": 1.2}, dpi=72).json()
    codes = [page.get("error", {}).get("code") for page in document["pages"]]
    assert codes[0] is None
    assert codes[-1] == "document_deadline"
    nothing = tight.parse(image_bytes(), prompt={"delay_s": 1000})
    assert (nothing.status_code, nothing.json()["code"]) == (504, "document_deadline")
