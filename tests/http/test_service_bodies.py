"""Bodies of requests besides a form with one file: the document itself, data URIs, several files."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jobs_client import Client
from service_client import A4, Server, image_bytes, pdf_bytes, serving

PDF = pdf_bytes(A4, A4)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"max_upload_mib": 1, "max_files": 3, "keep_page_images": "false"}
    with serving(tmp_path_factory.mktemp("data"), **limits) as started:
        yield started


def posted(server: Server, path: str, data: bytes, media_type: str, **options: str) -> httpx.Response:
    return server.http.post(path, content=data, headers={"Content-Type": media_type}, params=options)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(PDF, "application/pdf"), (image_bytes("JPEG"), "image/jpeg"), (PDF, "application/octet-stream")],
)
def test_a_body_may_be_the_document_with_options_in_the_address(
    server: Server, data: bytes, media_type: str
) -> None:
    parsed = posted(server, "/v1/parse", data, media_type, pages="1", prompt='{"text": "read"}')
    assert parsed.status_code == 200, parsed.text
    assert [page["markdown"] for page in parsed.json()["pages"]] == ["read"]
    accepted = posted(server, "/v1/jobs", data, media_type, priority="9")
    assert (accepted.status_code, accepted.json()["priority"]) == (202, 9)


def test_a_body_that_is_no_document_is_refused(server: Server) -> None:
    for data, options, code in (
        (b"", {}, "empty_file"),
        (b"text", {}, "unsupported_format"),
        (b"\0" * (2**20 + 1), {}, "too_large"),
        (PDF, {"colour": "red"}, "bad_option"),
    ):
        refused = posted(server, "/v1/parse", data, "application/pdf", **options)
        assert refused.json()["code"] == code
    twice = server.http.post(
        "/v1/parse?dpi=72&dpi=73", content=PDF, headers={"Content-Type": "application/pdf"}
    )
    assert twice.json()["code"] == "bad_option"
    assert posted(server, "/v1/parse", PDF, "text/html").json()["code"] == "unsupported_media_type"


def data_uri(data: bytes) -> str:
    return f"data:application/pdf;base64,{base64.b64encode(data).decode()}"


def test_a_data_uri_is_a_document(server: Server) -> None:
    for body in ({"file": data_uri(PDF)}, {"url": data_uri(PDF)}):
        assert server.http.post("/v1/parse", json=body).json()["usage"]["pages"] == 2
        assert server.http.post("/v1/jobs", json=body).status_code == 202
    in_form = server.http.post("/v1/jobs", files={"url": (None, data_uri(PDF))})
    assert in_form.status_code == 202, in_form.text
    for text in ("data:application/pdf,%25PDF", "data:;base64,????", data_uri(PDF)[:-3]):
        refused = server.http.post("/v1/jobs", json={"url": text})
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_option"), text


def several(server: Server, path: str, name: str, *data: bytes, **fields: Any) -> httpx.Response:
    parts: list[tuple[str, Any]] = [
        (name, (f"{number}.pdf", one, "application/pdf")) for number, one in enumerate(data)
    ]
    headers = fields.pop("headers", None)
    form = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    return server.http.post(path, files=parts, data=form, headers=headers)


@pytest.mark.parametrize("name", ["files", "file[]"])
def test_several_files_are_a_job_each_with_their_own_errors(server: Server, name: str) -> None:
    answer = several(server, "/v1/jobs", name, PDF, b"no document", image_bytes())
    assert answer.status_code == 207, answer.text
    first, second, third = answer.json()["files"]
    assert [one["filename"] for one in (first, second, third)] == ["0.pdf", "1.pdf", "2.pdf"]
    assert second["error"]["code"] == "unsupported_format"
    client = Client(server)
    for one, num_pages in ((first, 2), (third, 1)):
        assert client.ended(one["job"]["id"])["pages"]["done"] == num_pages


def test_several_files_are_parsed_in_one_exchange(server: Server) -> None:
    answer = several(server, "/v1/parse", "files", PDF, b"", PDF, prompt={"text": "read"}, pages="2")
    assert answer.status_code == 207, answer.text
    first, second, third = answer.json()["files"]
    assert first["document"]["markdown"] == third["document"]["markdown"] == "read"
    assert second["error"]["code"] == "empty_file"
    late = several(server, "/v1/parse", "files", PDF, wait_seconds=0, prompt={"delay_s": 60})
    [job] = late.json()["files"]
    server.http.delete(job["job"]["links"]["self"])
    for fields in ({"format": "zip"}, {"headers": {"Accept": "text/markdown"}}):
        assert several(server, "/v1/parse", "files", PDF, **fields).status_code in {400, 406}


def test_several_files_have_the_limits_of_one(server: Server) -> None:
    assert several(server, "/v1/jobs", "files", *[PDF] * 4).json()["code"] == "bad_option"
    large = b"%PDF-" + b"\0" * 2**19
    assert several(server, "/v1/jobs", "files", large, large).json()["code"] == "too_large"
    both = server.http.post("/v1/jobs", files=[("file", ("a", PDF)), ("files", ("b", PDF))])
    assert both.json()["code"] == "bad_option"
    same = [
        several(server, "/v1/jobs", "files", PDF, PDF, headers={"Idempotency-Key": "k"}).json()["files"]
        for _ in range(2)
    ]
    first, again = ([one["job"]["id"] for one in files] for files in same)
    assert first == again
    assert len(set(first)) == 2
    assert server.spooled() == []


def test_without_pictures_of_pages_there_are_none_and_no_pdf(server: Server) -> None:
    client = Client(server)
    job_id = client.accepted(image_bytes())
    client.ended(job_id)
    missing = server.http.get(f"/v1/jobs/{job_id}/pages/1/image")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "RTPRUNE_KEEP_PAGE_IMAGES" in missing.json()["detail"]
    pdf = server.http.get(f"/v1/jobs/{job_id}/result", params={"format": "pdf"})
    assert (pdf.status_code, pdf.json()["code"]) == (501, "format_unavailable")
