"""What a log says: the job of a request, one line for a job's end, and nothing that is secret or was read."""

import json
import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from jobs_bench import NoQueue
from jobs_client import Client, api
from service_client import A4, eventually, image_bytes, pdf_bytes
from web_site import Site

from app.document import Failure, PageSelection, ParseOptions, TokenCounts
from app.jobs.database import open_engine
from app.jobs.job import NewJob
from app.jobs.store import Limits, Store
from app.jobs.worker.page_store import Done, PageStore
from app.settings import Settings

SIGNATURE = "c0ffee5190a7e"
KEY = "k3y0f4client"
SECRET_TEXT = "words0fapage"  # noqa: S105
PROMPT_TEXT = "words0faprompt"
WEBHOOK_SECRET = "A" * 44
FAILURE = Failure("bad_option", "mode 'huge' is unknown")
TOKENS = TokenCounts(267, 214, 256, 204, 0.8, 0.2, None, 12, 40)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings: dict[str, Any] = {
        "embedded_worker": True,
        "url_allow": "127.0.0.0/8",
        "webhook_secret": WEBHOOK_SECRET,
    }
    settings |= {"log_level": "DEBUG", "batch_pages": 2}
    with api(tmp_path_factory.mktemp("data"), **settings) as started:
        started.server.wait_ready()
        yield started


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()


def ends(client: Client, job_id: str) -> list[dict[str, Any]]:
    return [
        line
        for line in list(client.server.log)
        if line["message"] == "job ended" and line.get("job") == job_id
    ]


def end(client: Client, job_id: str) -> dict[str, Any]:
    """The line of a job's end, which comes with or a little after it, and of which there is one."""
    client.ended(job_id)
    eventually(lambda: ends(client, job_id))
    client.server.parse(image_bytes())  # what else there was to be logged is logged by then
    [line] = ends(client, job_id)
    return line


def test_a_job_that_ends_has_one_line_with_what_it_cost(client: Client) -> None:
    job_id = client.accepted(pdf_bytes(*[A4] * 5), dpi=36, prompt={"fail_on": [3], "text": "a b c"})
    line = end(client, job_id)
    usage = client.result(job_id)["usage"]
    assert (line["status"], line["level"]) == ("partial", "info")
    assert (line["pages"], line["done"], line["failed"], line["incomplete"]) == (5, 5, 1, 0)
    assert {name: line[name] for name in ("visual_tokens", "kept_tokens", "output_tokens")} == {
        name: usage[name] for name in ("visual_tokens", "kept_tokens", "output_tokens")
    }
    assert line["output_tokens"] == 4 * 3
    assert line["ms"] > 0


def test_a_job_whose_worker_dies_has_one_line(client: Client) -> None:
    job_id = client.accepted(pdf_bytes(*[A4] * 6), dpi=36, prompt={"delay_s": 1, "text": "a b"})
    eventually(lambda: client.job(job_id)["status"] == "running")
    os.kill(client.server.worker_pid(), signal.SIGKILL)
    line = end(client, job_id)
    assert (line["status"], line["pages"], line["output_tokens"]) == ("succeeded", 6, 12)


def test_a_job_that_is_cancelled_has_one_line(client: Client) -> None:
    cancelled = client.accepted(image_bytes(size=(41, 30)), prompt={"delay_s": 600})
    for _ in range(2):
        client.http.delete(f"/v1/jobs/{cancelled}")
    line = end(client, cancelled)
    assert (line["status"], line["done"], "code" in line) == ("cancelled", 0, False)


def test_the_line_of_a_request_names_its_job(client: Client) -> None:
    parsed = client.server.parse(image_bytes(size=(42, 30)), headers={"X-Request-Id": "parsed"}).json()["id"]
    submitted = client.submit(image_bytes(size=(43, 30)), headers={"X-Request-Id": "submitted"}).json()["id"]
    asked = {"parsed": parsed, "submitted": submitted}
    for name, address in {"shown": "", "result": "/result", "events": "/events"}.items():
        client.http.get(f"/v1/jobs/{submitted}{address}", headers={"X-Request-Id": name})
        asked[name] = submitted
    strange = f"/v1/jobs/{SIGNATURE}?key={SIGNATURE}"
    assert client.http.get(strange, headers={"X-Request-Id": "strange"}).status_code == 404

    def lines() -> dict[str, dict[str, Any]] | None:
        found = {line["request"]: line for line in list(client.server.log) if line["message"] == "request"}
        return found if found.keys() >= {*asked, "strange"} else None

    logged = eventually(lines)
    assert {name: logged[name]["job"] for name in asked} == asked
    assert "job" not in logged["strange"]
    assert logged["strange"]["route"] == "/v1/jobs/{job_id}"


def test_no_log_has_addresses_keys_or_text(client: Client, site: Site) -> None:
    """Not even at the level DEBUG, at which libraries log what they are given."""
    site.pages[f"/a.pdf?X-Amz-Signature={SIGNATURE}"] = (200, {}, pdf_bytes(A4))
    body = {
        "url": f"{site.url}/a.pdf?X-Amz-Signature={SIGNATURE}",
        "webhook": f"{site.url}/hook?token={SIGNATURE}",
        "prompt": json.dumps({"text": SECRET_TEXT, "note": PROMPT_TEXT}),
    }
    response = client.http.post("/v1/jobs", json=body, headers={"Authorization": f"Bearer {KEY}"})
    job_id = response.json()["id"]
    assert SECRET_TEXT in str(client.events(job_id))
    eventually(lambda: client.job(job_id)["webhook"]["status"] == "delivered")
    refused = client.http.post("/v1/jobs", json=body | {"url": f"{site.url}/none?s={SIGNATURE}"})
    assert refused.json()["code"] == "url_failed"
    client.http.get(f"/nowhere/{SIGNATURE}?key={SIGNATURE}", headers={"X-API-Key": KEY})
    client.server.parse(image_bytes())
    said = json.dumps(list(client.server.log)) + "".join(client.server.noise)
    assert job_id in said
    for secret in (SIGNATURE, KEY, SECRET_TEXT, PROMPT_TEXT, WEBHOOK_SECRET):
        assert secret not in said


def test_a_page_that_is_written_again_does_not_end_its_job_again(
    job_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """As by two workers that both read the last page, or by a write that is repeated."""
    with migrated(job_settings) as store, caplog.at_level(logging.INFO, "rtprune.jobs"):
        job_id = accept(store, 2)
        log = PageStore(store)
        pages = [Done(job_id, page, "{}", failed=False, model="m", tokens=TOKENS) for page in range(2)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda worker: log.write(str(worker), pages), range(4)))
        store.cancel(job_id)
        store.fail(job_id, FAILURE)
    [line] = [vars(record) for record in caplog.records if record.message == "job ended"]
    assert (line["job"], line["status"], line["pages"]) == (job_id, "succeeded", 2)
    assert [line[f"{name}_tokens"] for name in ("visual", "kept", "output")] == [534, 428, 80]


def test_a_job_that_fails_as_a_whole_has_one_line_with_its_code(
    job_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with migrated(job_settings) as store, caplog.at_level(logging.INFO, "rtprune.jobs"):
        job_id = accept(store, 3)
        pages = [Done(job_id, 0, "{}", failed=False, model="m", tokens=TOKENS)]
        PageStore(store).write("w", pages)
        for _ in range(2):
            store.fail(job_id, FAILURE)
    [line] = [vars(record) for record in caplog.records if record.message == "job ended"]
    assert (line["status"], line["code"], line["done"], line["pages"]) == ("failed", "bad_option", 1, 3)
    assert line["visual_tokens"] == TOKENS.visual
    assert FAILURE.detail not in str(line), "it may quote what the client sent"


@contextmanager
def migrated(settings: Settings) -> Iterator[Store]:
    store = Store(open_engine(settings))
    store.migrate()
    yield store
    store.close()


def accept(store: Store, num_pages: int) -> str:
    job = NewJob(
        id="0" * 32,
        client="c",
        dedupe=None,
        request_hash="",
        options=ParseOptions(),
        format="PDF",
        blob="",
        pages=PageSelection().within(num_pages),
        priority=5,
        webhook=None,
        batch_pages=8,
    )
    store.accept(job, Limits(100, 100, 100.0), NoQueue())
    return job.id
