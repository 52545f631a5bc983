"""Figures and pictures of pages: kept with the result, and shown to those who may see the job."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from jobs_client import Client
from PIL import Image, ImageDraw
from service_client import Server, serving

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
