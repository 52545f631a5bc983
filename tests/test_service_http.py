"""The HTTP side, against a real server process with a real worker and the fake reader."""

import base64
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_client import A4, ENCRYPTED, Server, eventually, image_bytes, pdf_bytes, serving

from app.errors import all_errors
from app.schemas.parse import ParseFields

Answer = Callable[[Server], httpx.Response]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {
        "max_upload_mib": 1,
        "max_form_kib": 16,
        "max_pages": 5,
        "upload_idle_s": 1,
        "page_deadline_s": 1,
    }
    with serving(tmp_path_factory.mktemp("data"), **limits) as started:
        yield started


@pytest.fixture
def server(running: Server) -> Server:
    return running.wait_ready()


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One page at a time, two documents, little patience."""
    limits = {"max_documents": 2, "max_pages_in_flight": 1, "document_deadline_s": 3}
    with serving(tmp_path_factory.mktemp("data"), **limits) as started:
        yield started.wait_ready()


def post_json(server: Server, data: bytes, **fields: Any) -> httpx.Response:
    return server.http.post("/v1/parse", json={"file": base64.b64encode(data).decode(), **fields})


def test_answer_has_every_promised_field(server: Server) -> None:
    response = server.parse(pdf_bytes(A4, "/MediaBox[0 0 300 200]"))
    assert response.status_code == 200
    document = response.json()
    assert (document["status"], document["model"]) == ("succeeded", "fake")
    assert document["markdown"] == "\n\n".join(page["markdown"] for page in document["pages"])
    first, second = document["pages"]
    assert (first["index"], second["index"]) == (0, 1)
    assert (second["width"], second["height"]) == (625, 417)
    assert set(first["tokens"]) == {
        *("visual", "kept", "retention", "patches", "kept_patches", "keep_ratio"),
        *("text_density", "diversity", "prompt", "output"),
    }
    assert set(first["timing_ms"]) == {
        *("queue", "rasterize", "preprocess", "encode", "prune", "prefill", "decode", "total")
    }
    assert first["attempts"][0]["mode"] == "base"
    assert first["finish_reason"] == "stop"
    assert document["usage"]["visual_tokens"] == sum(page["tokens"]["visual"] for page in document["pages"])
    assert document["usage"]["pages"] == 2
    assert document["timing_ms"]["total"] > 0


def test_form_and_json_say_the_same(server: Server) -> None:
    options: dict[str, Any] = {
        "mode": "large",
        "keep_ratio": 0.5,
        "pages": "2",
        "dpi": 72,
        "max_output_tokens": 10,
    }
    data = pdf_bytes(A4, A4)
    form = server.parse(data, **options).json()
    from_json = post_json(server, data, **options).json()
    for document in (form, from_json):
        del document["id"], document["timing_ms"]
        del document["pages"][0]["timing_ms"]
    assert form == from_json
    assert form["pages"][0]["tokens"]["kept_patches"] == 200
    assert form["pages"][0]["index"] == 1
    assert form["pages"][0]["height"] == 842


@pytest.mark.parametrize("spelling", ["plain", "escaped", "wrapped", "last"])
def test_json_may_spell_base64_in_its_own_ways(server: Server, spelling: str) -> None:
    text = base64.b64encode(image_bytes(size=(123, 45))).decode()
    assert "/" in text or "+" in text
    spelled = {
        "plain": text,
        "escaped": text.replace("/", "\\/").replace("+", "\\u002B"),
        "wrapped": "\\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        "last": text,
    }[spelling]
    body = (
        f'{{"file":"{spelled}","mode":"tiny"}}'
        if spelling != "last"
        else f'{{"mode":"tiny", "file" : "{spelled}"}}'
    )
    response = server.http.post("/v1/parse", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    assert response.json()["pages"][0]["width"] == 123
    assert response.json()["pages"][0]["mode"] == "tiny"


@pytest.mark.parametrize("media_type", ["text/markdown", "text/plain"])
def test_markdown_by_accept(server: Server, media_type: str) -> None:
    response = server.parse(pdf_bytes(A4, A4), headers={"Accept": media_type}, dpi=72)
    assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
    assert response.text == "# Page 1\n\n595 x 842 pixels\n\n# Page 2\n\n595 x 842 pixels\n"


def test_blocks_and_hostile_text(server: Server) -> None:
    text = "<|ref|>title<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|># Hi <script>alert(1)</script>"
    page = server.parse(image_bytes(), prompt={"text": text}).json()["pages"][0]
    assert page["blocks"] == [
        {"type": "title", "bbox": [1, 2, 30, 40], "text": "# Hi &lt;script>alert(1)&lt;/script>"}
    ]
    assert page["markdown"] == page["blocks"][0]["text"]


def test_a_failed_page_leaves_the_others(server: Server) -> None:
    response = server.parse(pdf_bytes(A4, A4, A4), prompt={"fail_on": [1]})
    assert response.status_code == 200
    document = response.json()
    assert document["status"] == "partial"
    failed = document["pages"][1]
    assert (failed["markdown"], failed["error"]["code"]) == ("", "page_failed")
    assert "error" not in document["pages"][0]
    assert document["usage"]["pages"] == 3


def test_a_lying_page_count_fails_the_pages_that_are_missing(server: Server) -> None:
    document = server.parse(pdf_bytes(A4, count=3)).json()
    assert document["status"] == "partial"
    assert [page.get("error", {}).get("code") for page in document["pages"]] == [
        None,
        *["unreadable_page"] * 2,
    ]


def test_documents_are_read_side_by_side(server: Server) -> None:
    sizes = [(50 + number, 20) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda size: server.parse(image_bytes(size=size), prompt={"delay_s": 0.3}), sizes)
        )
    assert [answer.json()["pages"][0]["width"] for answer in answers] == [width for width, _ in sizes]
    assert len({answer.json()["id"] for answer in answers}) == 8


def test_request_ids(server: Server) -> None:
    assert server.http.get("/livez", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    forged = server.http.get("/livez", headers={"X-Request-Id": 'x" y'}).headers["x-request-id"]
    assert forged.isalnum()
    eventually(lambda: any(line.get("request") == "abc-1" for line in server.log))


def test_metrics_count_pages_and_tokens(server: Server) -> None:
    before = server.metric("rtprune_visual_tokens_total")
    counts = server.parse(image_bytes()).json()["pages"][0]["tokens"]
    assert server.metric("rtprune_visual_tokens_total") - before == counts["visual"]
    assert server.metric('rtprune_pages_total{outcome="stop"}') > 0
    assert server.metric('rtprune_stage_seconds_count{stage="rasterize"}') > 0


def test_labels_do_not_come_from_requests(server: Server) -> None:
    server.http.get("/surprising-address")
    server.http.request("BREW", "/livez")
    text = server.http.get("/metrics").text
    assert "surprising" not in text
    assert "BREW" not in text


def test_docs_load_nothing_from_elsewhere(server: Server) -> None:
    page = server.http.get("/docs").text
    assert "/v1/parse" in page
    assert "src=" not in page
    assert "https://" not in page


def test_openapi_describes_bodies_answers_and_problems(server: Server) -> None:
    action = server.http.get("/openapi.json").json()["paths"]["/v1/parse"]["post"]
    bodies = action["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json"}
    for body in bodies.values():
        assert set(body["schema"]["properties"]) == {"file", *ParseFields.model_fields}
        assert body["schema"]["required"] == ["file"]
    assert set(action["responses"]["200"]["content"]) == {"application/json", "text/markdown", "text/plain"}
    described = {
        code.partition(":")[0]
        for status, response in action["responses"].items()
        if status != "200"
        for code in response["description"].split("; ")
    }
    assert described == {error.code for error in all_errors()}
    assert set(action["responses"]["413"]["content"]) == {"application/problem+json"}


ENORMOUS = "/MediaBox[0 0 99999999 99999999]"
BIG = b"\x89PNG\r\n\x1a\n" + bytes(2 * 2**20)

CASES: dict[str, Answer] = {
    "bad_request": lambda server: server.http.post(
        "/v1/parse", content=b"{", headers={"Content-Type": "application/json"}
    ),
    "bad_option": lambda server: server.parse(image_bytes(), dpy=3),
    "not_found": lambda server: server.http.get("/v2/parse"),
    "method_not_allowed": lambda server: server.http.get("/v1/parse"),
    "not_acceptable": lambda server: server.parse(image_bytes(), headers={"Accept": "image/png"}),
    "too_large": lambda server: server.parse(BIG),
    "too_many_pages": lambda server: server.parse(pdf_bytes(*[A4] * 6)),
    "too_many_pixels": lambda server: server.parse(pdf_bytes(ENORMOUS)),
    "unsupported_media_type": lambda server: server.http.post("/v1/parse", content=b"x"),
    "unsupported_format": lambda server: server.parse(b"\0\0\0\x18ftypheic" + bytes(99)),
    "empty_file": lambda server: server.parse(b""),
    "unreadable_file": lambda server: server.parse(image_bytes()[:60]),
    "encrypted_pdf": lambda server: server.parse(pdf_bytes(A4, trailer=ENCRYPTED)),
    "page_not_found": lambda server: server.parse(pdf_bytes(A4), pages="1-999999999"),
    "unreadable_page": lambda server: server.parse(pdf_bytes(A4, count=2), pages="2"),
    "page_failed": lambda server: server.parse(image_bytes(), prompt={"fail_on": [0]}),
    "page_deadline": lambda server: server.parse(image_bytes(), prompt={"delay_s": 60}),
    "worker_lost": lambda server: server.parse(image_bytes(), prompt={"die_on": [0]}),
}
TESTED_ELSEWHERE = {
    *("upload_timeout", "rasterize_timeout", "overloaded", "not_ready", "document_deadline"),
    *("document_failed", "internal_error", "invalid_request", "page_too_long"),
    *("url_refused", "url_failed", "idempotency_conflict", "not_finished", "job_cancelled", "expired"),
    *("queue_full", "too_many_jobs", "storage_unavailable", "storage_full"),
}


@pytest.mark.parametrize("code", CASES)
def test_every_error_is_a_problem(server: Server, code: str) -> None:
    response = CASES[code](server)
    error = next(error for error in all_errors() if error.code == code)
    assert response.status_code == error.status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == code
    assert problem["type"] == f"urn:rtprune:error:{code}"
    assert (problem["status"], problem["retryable"]) == (error.status, error.retryable)
    assert problem["instance"].endswith(response.headers["x-request-id"])
    assert problem["detail"]
    assert str(server.data_dir) not in response.text
    assert ("retry-after" in response.headers) == (error.status in {429, 503})
    assert server.spooled() == []


def test_no_error_is_untested() -> None:
    assert {*CASES, *TESTED_ELSEWHERE} == {error.code for error in all_errors()}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mode": "gigantic"}, "gigantic"),
        ({"prune": "all"}, "prune"),
        ({"keep_ratio": "0"}, "keep_ratio"),
        ({"keep_ratio": "nan"}, "keep_ratio"),
        ({"keep_ratio": "0.5", "prune": "none"}, "keep_ratio"),
        ({"pages": "3-1"}, "3-1"),
        ({"pages": "0"}, "pages"),
        ({"pages": "one"}, "one"),
        ({"dpi": "9999"}, "dpi"),
        ({"dpi": "1e3"}, "dpi"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"max_output_tokens": "0"}, "max_output_tokens"),
        ({"max_output_tokens": "999999"}, "max_output_tokens"),
        ({"language": "de"}, "language"),
    ],
)
def test_a_bad_option_is_named(server: Server, fields: dict[str, Any], named: str) -> None:
    response = server.parse(image_bytes(), **fields)
    assert (response.status_code, response.json()["code"]) == (400, "bad_option")
    assert named in response.json()["detail"]


def test_an_empty_form_field_is_not_given(server: Server) -> None:
    assert server.parse(image_bytes(), mode="", keep_ratio="", filename="a.pdf").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"file": 3}',
        b'{"file": "AAA"}',
        b'{"file": "AA==AAAA"}',
        b'{"file": "AAAA", "file": "AAAA"}',
        b'{"file": "\\u00e9AAA"}',
        b'{"file": "AAAA"',
        b'{"file": "iVBORw0KGgo=", "dpi": "72"}',
        b'{"file": "AAAA", "x": ' + b"[" * 50 + b"]" * 50 + b"}",
        b'["file"]',
        b"[" * 10_000,
        b"\xff\xfe{}",
        b"",
    ],
)
def test_bad_json_is_refused(server: Server, body: bytes) -> None:
    response = server.http.post("/v1/parse", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["code"] in {"bad_request", "bad_option"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no multipart at all",
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx',
        b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\ntiny\r\n--b--\r\n',
        b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\n\xff\r\n--b--\r\n',
    ],
)
def test_bad_multipart_is_refused(server: Server, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = server.http.post("/v1/parse", content=body, headers=headers)
    assert response.status_code == 400, response.text


def test_a_field_given_twice_and_address_options_are_refused(server: Server) -> None:
    twice = server.http.post("/v1/parse", files={"file": image_bytes()}, data={"dpi": ["72", "90"]})
    assert "dpi" in twice.json()["detail"]
    address = server.http.post("/v1/parse?dpi=72", files={"file": image_bytes()})
    assert address.json()["code"] == "bad_option"


def test_large_form_fields_are_refused(server: Server) -> None:
    response = server.parse(image_bytes(), prompt="x" * 40_000)
    assert response.json()["code"] == "too_large"


def connect(server: Server, head: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(f"POST /v1/parse HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
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
    assert max_spooled <= 2**20
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


def test_head_is_get_without_a_body(server: Server) -> None:
    for address in ("/livez", "/readyz", "/metrics", "/v1/jobs", "/docs", "/v1/jobs/none"):
        head, got = server.http.head(address), server.http.get(address)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    refused = server.http.options("/v1/jobs")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
    assert server.http.head("/v1/parse").headers["allow"] == "POST"


def test_the_document_deadline_keeps_what_is_ready(tight: Server) -> None:
    document = tight.parse(pdf_bytes(*[A4] * 4), prompt={"delay_s": 1.2}, dpi=72).json()
    codes = [page.get("error", {}).get("code") for page in document["pages"]]
    assert codes[0] is None
    assert codes[-1] == "document_deadline"
    nothing = tight.parse(image_bytes(), prompt={"delay_s": 1000})
    assert (nothing.status_code, nothing.json()["code"]) == (504, "document_deadline")


def test_the_api_process_has_no_model_code(server: Server) -> None:
    server.parse(image_bytes())
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "pydantic_core" in maps
    assert "torch" not in maps
