"""An API and workers in processes of their own, over one database; jobs as a client sees them."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from service_client import PATIENCE_S, ROOT, Server, eventually

JOB_PATIENCE_S = 90.0
ENDED = {"succeeded", "partial", "failed", "cancelled"}


def environment(data_dir: Path, database_url: str, **settings: object) -> dict[str, str]:
    variables = {f"RTPRUNE_{name.upper()}": str(value) for name, value in settings.items()}
    defaults = {"RTPRUNE_READER": "fake", "RTPRUNE_DATA_DIR": str(data_dir), "RTPRUNE_NUM_RASTERIZERS": "1"}
    return {**os.environ, **defaults, "RTPRUNE_DATABASE_URL": database_url, **variables}


class Worker:
    """``python -m app.worker``, anywhere."""

    def __init__(self, data_dir: Path, database_url: str, **settings: object) -> None:
        self.id = str(settings.pop("worker_id", uuid.uuid4().hex))
        env = environment(data_dir, database_url, **settings) | {"RTPRUNE_WORKER_ID": self.id}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.worker"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.log: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.log.append(json.loads(line))

    def wait_ready(self) -> "Worker":
        eventually(lambda: any(line["message"] == "model loaded" for line in list(self.log)))
        return self

    def pages(self) -> list[tuple[str, int]]:
        """The pages it finished: job and index."""
        return [(line["document"], line["index"]) for line in list(self.log) if line["message"] == "page"]

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self._end()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


class Client:
    """Jobs of one API."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = server.http

    def submit(self, data: bytes, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        form = {name: text if isinstance(text, str) else json.dumps(text) for name, text in fields.items()}
        return self.http.post("/v1/jobs", files={"file": ("x", data)}, data=form, headers=headers)

    def accepted(self, data: bytes, **fields: Any) -> str:
        response = self.submit(data, **fields)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        response = self.http.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        return job

    def ended(self, job_id: str, patience_s: float = JOB_PATIENCE_S) -> dict[str, Any]:
        """The job, once it has ended. A service that is away meanwhile is waited for."""

        def look() -> dict[str, Any] | None:
            try:
                job = self.job(job_id)
            except (httpx.HTTPError, AssertionError):
                return None
            return job if job["status"] in ENDED else None

        return eventually(look, patience_s)

    def done(self, job_id: str) -> int:
        return int(self.job(job_id)["pages"]["done"])

    def result(self, job_id: str) -> dict[str, Any]:
        response = self.http.get(f"/v1/jobs/{job_id}/result")
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document

    def events(
        self, job_id: str, after: int = 0, limit: int = 10_000
    ) -> list[tuple[int, str, dict[str, Any]]]:
        """(id, name, data) of events until the stream ends, or so many."""
        found: list[tuple[int, str, dict[str, Any]]] = []
        headers = {"Last-Event-ID": str(after)} if after else {}
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            assert response.status_code == 200
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if line and name:
                    fields[name] = value
                elif "data" in fields:
                    found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
                    fields = {}
                    if len(found) >= limit:
                        break
        return found


@contextmanager
def api(data_dir: Path, database_url: str = "", **settings: Any) -> Iterator[Client]:
    """An API. Without ``embedded_worker=True`` it has no worker of its own."""
    settings = {"embedded_worker": False, "num_rasterizers": 1, "max_jobs_per_client": 1000, **settings}
    server = Server(data_dir, database_url=database_url, **settings)
    try:
        yield Client(server)
    finally:
        if server.process.returncode is None:
            server.stop()


@contextmanager
def workers(num: int, data_dir: Path, database_url: str, **settings: Any) -> Iterator[list[Worker]]:
    started = [Worker(data_dir, database_url, **settings) for _ in range(num)]
    try:
        for worker in started:
            worker.wait_ready()
        yield started
    finally:
        for worker in started:
            if worker.process.returncode is None:
                worker.kill()


def assert_every_page_once(client: Client, job_id: str, num_pages: int) -> None:
    result = client.result(job_id)
    assert [page["index"] for page in result["pages"]] == list(range(num_pages))
    assert all(page["markdown"] and "error" not in page for page in result["pages"])
    events = client.events(job_id)
    assert [number for number, _, _ in events] == list(range(1, num_pages + 2))
    assert sorted(page["index"] for _, name, page in events if name == "page") == list(range(num_pages))
