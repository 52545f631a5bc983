"""What is refused, and that the refusal names what is wrong."""

import base64
import gzip
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from service_client import A4, ENCRYPTED, Server, image_bytes, pdf_bytes

from app.errors import all_errors
from app.http.schemas.parse import ParseFields

Answer = Callable[[Server], httpx.Response]

ENORMOUS = "/MediaBox[0 0 99999999 99999999]"
BIG = b"\x89PNG\r\n\x1a\n" + bytes(2 * 2**20)

CASES: dict[str, Answer] = {
    "bad_request": lambda server: server.http.post(
        "/v1/parse", content=b"{", headers={"Content-Type": "application/json"}
    ),
    "bad_option": lambda server: server.parse(image_bytes(), dpy=3),
    "host_refused": lambda server: server.http.get("/docs", headers={"Host": "rebound.example.com"}),
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
    *("unauthorized", "forbidden", "rate_limited", "format_unavailable", "too_many_files"),
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
        ({"fixation": "0"}, "fixation"),
        ({"fixation": "1.1"}, "fixation"),
        ({"pages_per_prompt": "0"}, "pages_per_prompt"),
        ({"pages_per_prompt": "65"}, "pages_per_prompt"),
        ({"pages_per_prompt": "2", "fixation": "0.5"}, "fixation"),
        ({"pages_per_prompt": "2", "tokens": "detail"}, "tokens=detail"),
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


@pytest.mark.parametrize("num_bytes", [10, 5_000, 100_000])
def test_a_document_under_another_name_is_told_its_own(server: Server, num_bytes: int) -> None:
    document = ("a.png", image_bytes() + b"\xff" * num_bytes)
    for address in ("/v1/parse", "/v1/jobs"):
        response = server.http.post(address, files={"document": document})
        assert response.status_code == 400
        assert response.json()["detail"].startswith("document ")
        assert "called file" in response.json()["detail"]


def test_a_request_without_a_document_is_told_what_it_has(server: Server) -> None:
    form = server.http.post("/v1/parse", files={"dpi": (None, "72"), "doc": (None, "text")})
    assert form.json()["detail"] == "the form has no part called file; there is dpi, doc"
    job = server.http.post("/v1/jobs", json={"document": "AAAA"})
    assert "at file, nor an address at url; there is document" in job.json()["detail"]
    assert "there is nothing" in server.http.post("/v1/parse", json={}).json()["detail"]


@pytest.mark.parametrize("text", ["data:application/pdf;base64,-_-_", "-_-_"])
def test_base64_of_another_kind_is_told_which_is_read(server: Server, text: str) -> None:
    response = server.http.post("/v1/parse", json={"file": text})
    assert response.json()["code"] == "bad_option"
    assert "standard alphabet" in response.json()["detail"]
    assert "data:" in response.json()["detail"]


def test_null_is_not_given(server: Server) -> None:
    body = {"file": base64.b64encode(image_bytes()).decode()}
    nulls = dict.fromkeys(ParseFields.model_fields)
    assert server.http.post("/v1/parse", json={**body, **nulls}).status_code == 200
    unknown = server.http.post("/v1/parse", json={**body, "language": None})
    assert "language" in unknown.json()["detail"]


def test_a_body_that_is_compressed_is_named_as_such(server: Server) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    refused = server.http.post("/v1/parse", content=gzip.compress(b"{}"), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
    assert "gzip" in refused.json()["detail"]
    plain = server.http.post(
        "/v1/parse", files={"file": image_bytes()}, headers={"Content-Encoding": "identity"}
    )
    assert plain.status_code == 200


def test_no_request_is_sent_elsewhere(server: Server) -> None:
    for address in ("/v1/parse/", "/v1/jobs/", "/livez/"):
        headers = {"Host": "elsewhere.localhost"}
        response = server.http.post(address, files={"file": image_bytes()}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert "location" not in response.headers


def test_what_is_allowed_is_answered(server: Server) -> None:
    job_id = server.http.post("/v1/jobs", files={"file": image_bytes()}).json()["id"]
    paths = [*server.http.get("/openapi.json").json()["paths"], "/openapi.json", "/docs"]
    for path in paths:
        address = path.replace("{job_id}", job_id)
        refused = server.http.request("BREW", address)
        assert refused.status_code == 405
        allowed = refused.headers["allow"].split(", ")
        assert allowed != [""]
        assert ("HEAD" in allowed) == ("GET" in allowed)
        for method in allowed:
            assert server.http.request(method, address).status_code != 405, (method, path)
