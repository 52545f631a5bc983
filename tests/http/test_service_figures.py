"""Figures and pictures of pages: kept with the result, and shown to those who may see the job."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jobs_client import Client
from PIL import Image, ImageDraw
from service_client import A4, Server, pdf_bytes, serving

from app.output.formats import FORMATS, Format

SIZE = (800, 1000)
RED = (80, 100, 480, 600)
TEXT = (
    "<|ref|>text<|/ref|><|det|>[[0, 0, 999, 90]]<|/det|>Above\n"
    "<|ref|>image<|/ref|><|det|>[[100, 100, 599, 599]]<|/det|>\n"
    "<|ref|>image_caption<|/ref|><|det|>[[100, 610, 599, 640]]<|/det|>A red field\n"
    "<|ref|>text<|/ref|><|det|>[[0, 700, 999, 900]]<|/det|>Below <b>\n"
)
FIGURE = "p1-1.png"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as started:
        yield started


def page_bytes() -> bytes:
    """A white page with a red field."""
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).rectangle(RED, fill="red")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def job_id(running: Server) -> str:
    client = Client(running.wait_ready())
    job_id = client.accepted(page_bytes(), prompt={"text": TEXT})
    assert client.ended(job_id)["status"] == "succeeded"
    return job_id


def test_a_figure_and_its_page_are_served(server: Server, job_id: str) -> None:
    result: dict[str, Any] = Client(server).result(job_id)
    assert "Above\n\n![A red field](images/p1-1.png)\n\nA red field\n\nBelow" in result["markdown"]
    [figure] = [block["figure"] for block in result["pages"][0]["blocks"] if "figure" in block]
    address = f"/v1/jobs/{job_id}/images/{figure['name']}"
    found = server.http.get(address)
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
    cut = Image.open(io.BytesIO(found.content))
    assert cut.size == (figure["width"], figure["height"])
    assert cut.getpixel((cut.width // 2, cut.height // 2)) == (255, 0, 0)
    page = server.http.get(f"/v1/jobs/{job_id}/pages/1/image")
    assert (page.status_code, page.headers["content-type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(page.content)).size == SIZE


@pytest.mark.parametrize("path", ["pages/2/image", "images/p1-2.png", "images/..%2fx", "images/%00"])
def test_what_is_not_there_is_not_found(server: Server, job_id: str, path: str) -> None:
    answer = server.http.get(f"/v1/jobs/{job_id}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert server.http.get(f"/v1/jobs/{'0' * 32}/{path}").status_code == 404


FIRST_BYTES = {
    "json": b'{"id":',
    "markdown": b"Above\n\n![",
    "text": b"Above\n\nA red field",
    "html": b"<!doctype html>",
    "docling": b'{"schema_name": "DoclingDocument"',
    "doctags": b"<doctag>",
    "zip": b"PK",
    "pdf": b"%PDF",
}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_result_is_given_in_any_format_by_name_or_accept(server: Server, job_id: str, form: Format) -> None:
    address = f"/v1/jobs/{job_id}/result"
    by_name = server.http.get(address, params={"format": form.name})
    assert by_name.status_code == 200, by_name.text
    assert by_name.content.startswith(FIRST_BYTES[form.name])
    assert by_name.headers["content-type"].partition(";")[0] == form.media_type
    assert by_name.headers["rtprune-status"] == "succeeded"
    by_accept = server.http.get(address, headers={"Accept": form.media_type})
    assert by_accept.headers["content-type"] == by_name.headers["content-type"]
    parsed = server.parse(page_bytes(), prompt={"text": TEXT}, format=form.name)
    assert parsed.content.startswith(FIRST_BYTES[form.name])


def test_figures_are_embedded_linked_or_left_out(server: Server, job_id: str) -> None:
    address = f"/v1/jobs/{job_id}/result"
    figure = server.http.get(f"/v1/jobs/{job_id}/images/{FIGURE}").content
    data = f"](data:image/png;base64,{base64.b64encode(figure).decode()})"
    for images, there in (
        ("relative", f"](images/{FIGURE})"),
        ("link", f"](/v1/jobs/{job_id}/images/{FIGURE})"),
        ("embed", data),
    ):
        document = server.http.get(address, params={"images": images}).json()
        assert there in document["markdown"], images
        assert there in document["pages"][0]["markdown"], images
        assert there in server.http.get(address, params={"images": images, "format": "markdown"}).text
    without = server.http.get(address, params={"images": "none"}).json()
    assert "![" not in without["markdown"] + without["pages"][0]["markdown"]
    parsed = server.parse(page_bytes(), prompt={"text": TEXT}, images="embed").json()
    assert data in parsed["markdown"]


def test_relative_figures_are_relative_to_where_the_answer_says_it_is(server: Server) -> None:
    answer = server.parse(page_bytes(), prompt={"text": TEXT})
    base = httpx.URL(f"http://127.0.0.1:{server.port}").join(answer.headers["content-location"])
    assert server.http.get(base.join(f"images/{FIGURE}")).headers["content-type"] == "image/png"


def test_what_a_job_was_sent_with_holds_for_its_result(server: Server) -> None:
    client = Client(server)
    job_id = client.accepted(page_bytes(), prompt={"text": TEXT}, format="markdown", images="none")
    client.ended(job_id)
    stored = server.http.get(f"/v1/jobs/{job_id}/result")
    assert stored.text == "Above\n\nA red field\n\nBelow &lt;b>\n"
    asked = server.http.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "application/json"})
    assert asked.json()["id"] == job_id


def test_html_may_do_nothing_in_a_browser(server: Server, job_id: str) -> None:
    html = server.http.get(f"/v1/jobs/{job_id}/result", params={"format": "html"})
    assert "sandbox" in html.headers["content-security-policy"]
    assert html.headers["x-content-type-options"] == "nosniff"
    assert "data:image/png;base64," in html.text
    zipped = server.http.get(f"/v1/jobs/{job_id}/result", params={"format": "zip"})
    assert zipped.headers["content-disposition"].startswith("attachment")


def test_who_waits_for_a_job_is_told_of_its_pages_and_its_end(server: Server) -> None:
    client = Client(server)
    job_id = client.accepted(pdf_bytes(A4, A4, A4), dpi=36, prompt={"delay_s": 0.2, "text": TEXT})
    known, seen = 0, []
    while True:
        job = server.http.get(f"/v1/jobs/{job_id}", params={"wait": 60, "done": known}).json()
        seen.append(job["pages"]["done"])
        if job["status"] == "succeeded":
            break
        assert job["pages"]["done"] > known
        known = job["pages"]["done"]
    assert seen == sorted(seen)
    assert seen[-1] == 3
    assert server.http.get(f"/v1/jobs/{job_id}", params={"wait": 60}).json()["status"] == "succeeded"
    refused = server.http.get(f"/v1/jobs/{job_id}", params={"wait": 3601})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


def test_the_pages_so_far_of_a_running_job_are_given_and_said_to_be(server: Server) -> None:
    client = Client(server)
    prompt = {"delay_s": 60, "delay_on": [1], "text": TEXT}
    job_id = client.accepted(pdf_bytes(A4, A4), dpi=36, prompt=prompt)
    address = f"/v1/jobs/{job_id}/result"
    assert server.http.get(address).json()["code"] == "not_finished"
    assert server.http.get(f"/v1/jobs/{job_id}", params={"wait": 60, "done": 0}).json()["pages"]["done"] == 1
    for form in FORMATS:
        so_far = server.http.get(address, params={"partial": True, "format": form})
        assert (so_far.status_code, so_far.headers["rtprune-status"]) == (200, "running"), so_far.text
    in_json = server.http.get(address, params={"partial": "true"}).json()
    assert (in_json["status"], [page["index"] for page in in_json["pages"]]) == ("running", [0])
    assert in_json["markdown"].startswith("Above")
    server.http.delete(f"/v1/jobs/{job_id}")
    assert server.http.get(address, params={"partial": True}).json()["code"] == "job_cancelled"
