"""A page that was not read to its end is no plain success, whichever way one asks."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from jobs_client import Client
from printed_pages import printed
from service_client import A4, ROOT, Server, image_bytes, pdf_bytes, serving

from app.document import PageResult, PageWarning, ParsedDocument
from app.http.status_headers import MAX_LISTED, status_headers
from app.jobs.database import open_engine
from app.jobs.store import Store
from app.jobs.tables import jobs, metadata
from app.settings import Settings


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as server:
        yield server.wait_ready()


def test_json_says_partial_and_the_page_says_why(service: Server) -> None:
    document = service.parse(image_bytes(), max_output_tokens=2).json()
    assert document["status"] == "partial"
    [page] = document["pages"]
    assert page["finish_reason"] == "length"
    assert [warning["code"] for warning in page["warnings"]] == ["length"]
    assert page["warnings"][0]["detail"].endswith(".")
    assert service.parse(image_bytes()).json()["status"] == "succeeded"


@pytest.mark.parametrize("media_type", ["text/markdown", "text/plain", "application/json"])
def test_headers_name_status_and_pages(service: Server, media_type: str) -> None:
    answer = service.parse(
        pdf_bytes(A4, A4, A4),
        {"Accept": media_type},
        max_output_tokens=2,
        prompt=json.dumps({"fail_on": [1]}),
    )
    assert answer.status_code == 200
    assert answer.headers["rtprune-status"] == "partial"
    assert answer.headers["rtprune-pages"] == "total=3, failed=1, incomplete=2"
    assert answer.headers["rtprune-shortfalls"] == "1;code=length, 2;code=page_failed, 3;code=length"


def test_print_that_was_not_read_is_told(service: Server) -> None:
    """An empty text, and one whose only block covers half of the page, of a page full of print."""
    image = printed()
    sent = io.BytesIO()
    image.save(sent, "PNG")
    for text, share in (
        ("", 1.0),
        ("<|ref|>text<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>\n" + "word " * 200, 0.5),
    ):
        document = service.parse(sent.getvalue(), prompt=json.dumps({"text": text})).json()
        [page] = document["pages"]
        assert page["unread_ink"] == pytest.approx(share, abs=0.1)
        assert [warning["code"] for warning in page["warnings"]] == ["unread_print"]
    [page] = service.parse(sent.getvalue()).json()["pages"]
    assert (page["unread_ink"], page["warnings"]) == (None, []), "a text without boxes"


def test_a_whole_document_has_no_shortfalls(service: Server) -> None:
    answer = service.parse(image_bytes(), {"Accept": "text/markdown"})
    assert answer.headers["rtprune-status"] == "succeeded"
    assert "rtprune-shortfalls" not in answer.headers


def test_job_events_result_and_metrics_say_it(service: Server) -> None:
    client = Client(service)
    before = service.metric('rtprune_page_warnings_total{code="length"}')
    job_id = client.accepted(pdf_bytes(A4, A4), max_output_tokens=1)
    job = client.ended(job_id)
    assert (job["status"], job["pages"]["incomplete"], job["pages"]["failed"]) == ("partial", 2, 0)
    *pages, end = client.events(job_id)
    assert [page["warnings"][0]["code"] for _, _, page in pages] == ["length", "length"]
    assert end[2]["status"] == "partial"
    assert client.result(job_id)["status"] == "partial"
    assert service.metric('rtprune_page_warnings_total{code="length"}') == before + 2


def test_the_command_line_says_it_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(image_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "parse", str(tmp_path / "page.png"), "--max-output-tokens", "2"],
        env={**os.environ, "RTPRUNE_READER": "fake", "RTPRUNE_DATA_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "page 1: The text was cut off" in done.stderr
    assert done.stdout.startswith("# Page")


def test_headers_stay_short_however_many_pages_fall_short() -> None:
    warning = PageWarning("missing_glyphs", "Glyphs are missing.")
    pages = tuple(PageResult(index, 1, 1, "", warnings=(warning,)) for index in range(2000))
    headers = status_headers(ParsedDocument("id", "model", "succeeded", pages, {}))
    assert headers["RTPrune-Warnings"].count("code=") == MAX_LISTED
    assert sum(map(len, headers.values())) < 4096


LATER_COLUMNS = {"num_incomplete", "visual_tokens", "kept_tokens", "output_tokens", "trace"}


def test_a_database_of_an_earlier_release_is_upgraded(job_settings: Settings) -> None:
    engine = open_engine(job_settings)
    with engine.begin() as c:
        metadata.create_all(c)
        for name in LATER_COLUMNS:
            c.execute(sa.text(f"ALTER TABLE {jobs.name} DROP COLUMN {name}"))
    Store(engine).migrate()
    Store(engine).migrate()  # what is there already stays
    with engine.connect() as c:
        assert {column["name"] for column in sa.inspect(c).get_columns(jobs.name)} >= LATER_COLUMNS
    engine.dispose()
