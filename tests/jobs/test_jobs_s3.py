"""Documents in a bucket, on a server that speaks S3: moto's, in a process of its own."""

import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jobs_client import api, workers
from postgres import free_port
from service_client import A4, PATIENCE_S, eventually, image_bytes, pdf_bytes

from app.errors import StorageUnavailable, UnreadableFile
from app.jobs.blobs import Blobs
from app.settings import Settings

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (the extra s3)")
pytest.importorskip("moto.server", reason="moto with flask, a server that speaks S3, is not installed")
pytest.importorskip("flask_cors", reason="moto with flask, a server that speaks S3, is not installed")

URL = "s3://documents/incoming"
HANGS_S = 45.0
"""Nobody waits this long for a bucket that hangs; boto alone would wait for minutes."""


class S3Server:
    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def hang(self) -> None:
        """Connections are accepted, by the system, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A bucket; every process of the test finds it by what boto reads from the environment."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    server = S3Server(process)

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{address}/moto-api/", timeout=2).status == 200)  # noqa: S310
        except OSError:
            return False

    variables = {
        "ENDPOINT_URL": address,
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
        "REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        eventually(answers)
        bucket().mkdir("documents")
        yield server
    finally:
        server.stop()


def bucket() -> Any:
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def test_a_document_is_there_for_every_machine_until_it_is_removed(
    s3_server: S3Server, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path, "blob_url": URL})
    document = tmp_path / "document"
    document.write_bytes(bytes(range(256)) * 10_000)
    name = Blobs(settings).put(document)
    there = Blobs(settings)
    with there.local(name, tmp_path) as copy:
        assert copy.read_bytes() == document.read_bytes()
        assert copy != document
    assert not copy.exists()
    assert bucket().find("documents") == [f"documents/incoming/{name[:2]}/{name}"]
    there.remove(name)
    there.remove(name)
    with pytest.raises(UnreadableFile), there.local(name, tmp_path):
        pass
    assert bucket().find("documents") == []
    s3_server.stop()
    for attempt in (lambda: there.put(document), lambda: there.remove(name)):
        with pytest.raises(StorageUnavailable):
            attempt()
    with pytest.raises(StorageUnavailable), there.local(name, tmp_path):
        pass


def test_jobs_go_through_a_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    """The API and its worker share a database and the bucket."""
    with api(tmp_path, blob_url=URL) as client:
        job_id = client.accepted(pdf_bytes(*[A4] * 3), dpi=36)
        assert len(bucket().find("documents")) == 1, "on the server before it is accepted"
        with workers(1, tmp_path, "", blob_url=URL):
            assert client.ended(job_id)["status"] == "succeeded"
            assert len(client.result(job_id)["pages"]) == 3
            eventually(lambda: bucket().find("documents") == [])
        s3_server.stop()
        refused = client.submit(image_bytes())
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")


def test_a_bucket_that_hangs_is_said_and_waited_for(s3_server: S3Server, tmp_path: Path) -> None:
    """While documents are posted, as many as the API serves at a time, and read."""
    settings: dict[str, Any] = {
        "max_documents": 6,
        "max_pages_in_flight": 2,
        "batch_pages": 2,
        "embedded_worker": True,
    }
    with api(tmp_path, blob_url=URL, **settings) as client, ThreadPoolExecutor(6) as pool:
        client.server.wait_ready()
        job_id = client.accepted(pdf_bytes(*[A4] * 8), dpi=36, prompt={"delay_s": 0.3})
        eventually(lambda: client.done(job_id) >= 1)
        s3_server.hang()
        refusing = [pool.submit(client.submit, image_bytes(size=(60, 40 + n))) for n in range(6)]
        eventually(lambda: client.server.metric("rtprune_documents_in_flight") == 6)
        assert client.job(job_id)["status"] == "running"
        assert client.http.get("/v1/jobs").status_code == 200
        assert client.submit(image_bytes()).json()["code"] == "overloaded"
        assert not all(refused.done() for refused in refusing), "they waited while others were answered"
        answers = [refused.result(HANGS_S) for refused in refusing]
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {
            (503, "storage_unavailable")
        }
        assert client.http.get("/readyz").status_code == 200
        worker = client.server.worker_pid()
        s3_server.go_on()
        assert client.ended(job_id)["status"] == "succeeded"
        assert client.ended(client.accepted(image_bytes()))["status"] == "succeeded"
        assert client.server.worker_pid() == worker
        assert not bucket().find("documents") or eventually(lambda: bucket().find("documents") == [])


def test_a_bucket_that_hangs_keeps_no_webhook_and_no_takeover_waiting(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """What is done for ended jobs: the document of one that was cancelled cannot be removed."""
    settings: dict[str, Any] = {
        "embedded_worker": True,
        "webhook_secret": "s" * 32,
        "url_allow": "127.0.0.0/8",
    }
    with api(tmp_path, blob_url=URL, webhook_attempts=1, **settings) as client:
        client.server.wait_ready()
        webhook = f"http://127.0.0.1:{free_port()}/"
        ids = [
            client.accepted(image_bytes(size=(70, 40 + n)), webhook=webhook, prompt={"delay_s": 60})
            for n in range(3)
        ]
        s3_server.hang()
        for job_id in ids:
            client.http.delete(f"/v1/jobs/{job_id}")
        eventually(lambda: {client.job(job_id)["webhook"]["status"] for job_id in ids} == {"failed"})
        s3_server.go_on()
        eventually(lambda: bucket().find("documents") == [])
