"""The application in this process, with a worker that needs none."""

import asyncio
import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from service_client import A4, pdf_bytes

from app.document import Failure, PageResult
from app.errors import InternalError, StorageUnavailable, all_errors, error_named
from app.http.schemas.jobs import JobFields
from app.http.schemas.parse import OptionFields, ParseFields
from app.jobs.api.jobs import Jobs
from app.jobs.job import Job, encode_page
from app.jobs.leases import WorkerState
from app.jobs.worker.page_store import Done, PageStore
from app.main import create_app
from app.settings import Settings
from app.telemetry import JsonFormatter

DOCS = Path(__file__).resolve().parents[2] / "docs"


class FakeWorker:
    """Ends the pages of every job as told, out of order, without the processes a worker needs."""

    def __init__(self, *codes: str | None) -> None:
        self._codes = codes

    async def run(self, jobs: Jobs) -> None:
        while True:
            try:
                jobs.leases.renew(WorkerState("w", "here", "ready", "ready", "fake", ("tiny",)))
                for job in jobs.store.listed(CLIENT, "queued", None, 10):
                    assert jobs.store.begin(job.id) is not None
                    PageStore(jobs.store).write(
                        "w", [self._done(job, index) for index in reversed(range(job.num_pages))]
                    )
            except StorageUnavailable:
                pass  # the tables are being made
            await asyncio.sleep(0.02)

    def _done(self, job: Job, index: int) -> Done:
        code = self._codes[index]
        failure = Failure(code, f"because of {code}") if code else None
        page = PageResult(index, 1, 1, "" if code else f"page {index}", failure=failure)
        return Done(job.id, index, encode_page(page), bool(code), "fake")


CLIENT = hashlib.sha256(b"address:127.0.0.1").hexdigest()[:32]


def ask(
    tmp_path: Path, worker: FakeWorker, method: str = "POST", path: str = "/v1/parse", **options: str
) -> httpx.Response:
    app = create_app(Settings(data_dir=tmp_path, embedded_worker=False))
    _add_routes_that_fail(app)

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            jobs = app.state.service.jobs
            working = asyncio.create_task(worker.run(jobs))
            await jobs.wait_ready()
            files = {"file": pdf_bytes(*[A4] * len(worker._codes))} if method == "POST" else None
            answer = await client.request(method, path, files=files, data=options)
            working.cancel()
            return answer

    return asyncio.run(exchange())


def _add_routes_that_fail(app: FastAPI) -> None:
    @app.get("/defect")
    async def defect() -> None:
        raise ZeroDivisionError("secret")

    @app.get("/number/{number}")
    async def number(number: int) -> None:
        """Refuses what is no number."""


def test_pages_are_answered_in_order(tmp_path: Path) -> None:
    document = ask(tmp_path, FakeWorker(None, "page_failed", None)).json()
    assert [page["index"] for page in document["pages"]] == [0, 1, 2]
    assert document["markdown"] == "page 0\n\n<!-- page 2 was not read: page_failed -->\n\npage 2"
    assert document["status"] == "partial"


@pytest.mark.parametrize(
    ("codes", "status", "code"),
    [
        (("page_failed", "page_failed"), 500, "page_failed"),
        (("unreadable_page",), 422, "unreadable_page"),
        (("worker_lost", "page_deadline"), 500, "document_failed"),
    ],
)
def test_a_document_of_which_nothing_was_read_is_no_success(
    tmp_path: Path, codes: tuple[str, ...], status: int, code: str
) -> None:
    response = ask(tmp_path, FakeWorker(*codes))
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_a_defect_is_a_problem_without_its_details(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    response = ask(tmp_path, FakeWorker(), "GET", "/defect")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["instance"].endswith(response.headers["x-request-id"])
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_the_frameworks_own_refusals_are_problems(tmp_path: Path) -> None:
    response = ask(tmp_path, FakeWorker(), "GET", "/number/three")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "number" in response.json()["detail"]


def test_codes_are_unique_and_found_by_name() -> None:
    errors = list(all_errors())
    assert len({error.code for error in errors}) == len(errors)
    assert all(error_named(error.code) is error for error in errors)
    assert error_named("unheard_of") is InternalError
    assert all(400 <= error.status < 600 and error.title for error in errors)


def test_logs_are_json_with_what_was_added() -> None:
    record = logging.makeLogRecord(
        {"name": "x", "levelname": "INFO", "msg": "a %s", "args": ("b",), "page": 3}
    )
    line = JsonFormatter().format(record)
    assert '"message": "a b"' in line
    assert '"page": 3' in line
    assert "\n" not in line


def rows(page: str, first_heading: str) -> dict[str, list[str]]:
    """The rows of the table of ``page`` that has this heading first: first cell -> the others."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = re.search(rf"^\| {first_heading} \|.*\n\|.*\n((\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, f"{page} has no table of {first_heading}"
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]
    return {row[0].strip("| `"): [cell.strip("| `") for cell in row[1:]] for row in cells}


def shown(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_documented_settings_are_those_of_the_class() -> None:
    expected = {
        f"RTPRUNE_{name.upper()}": [shown(field.default), " ".join((field.description or "").split())]
        for name, field in Settings.model_fields.items()
    }
    documented = {
        name: [cells[0], cells[1].replace("`", "")] for name, cells in rows("settings.md", "Variable").items()
    }
    assert documented == {
        name: [default, text.replace("`", "")] for name, (default, text) in expected.items()
    }


def test_documented_errors_are_those_of_the_classes() -> None:
    expected = {
        error.code: [str(error.status), "yes" if error.retryable else "no", error.title]
        for error in all_errors()
    }
    assert rows("api.md", "Code") == expected


def test_documented_options_are_those_of_the_schema() -> None:
    assert set(rows("api.md", "Option")) == {"file", *ParseFields.model_fields}
    assert set(rows("jobs.md", "Option")) == set(JobFields.model_fields) - set(OptionFields.model_fields)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "RTPRUNE_HOST", "RTPRUNE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PORT", "1234")
    monkeypatch.setenv("RTPRUNE_MAX_PAGES", "7")
    settings = Settings()
    assert (settings.host, settings.port, settings.max_pages) == ("127.0.0.1", 1234, 7)
    monkeypatch.setenv("RTPRUNE_PORT", "4321")
    assert Settings().port == 4321
    monkeypatch.setenv("RTPRUNE_MAX_PAGES", "0")
    with pytest.raises(ValueError, match="max_pages"):
        Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(("name", "value"), [("fixation", "0.5"), ("pages_per_prompt", "2")])
def test_what_a_worker_does_not_have_is_refused_at_once(tmp_path: Path, name: str, value: str) -> None:
    answer = ask(tmp_path, FakeWorker(None), **{name: value})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_option")
    assert name in answer.json()["detail"]
    assert ask(tmp_path, FakeWorker(None)).status_code == 200
