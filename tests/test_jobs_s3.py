"""Documents in a bucket, on a server that speaks S3: moto's, in a process of its own."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
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

Stop = Callable[[], None]
URL = "s3://documents/incoming"


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stop]:
    """A bucket; every process of the test finds it by what boto reads from the environment."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def stop() -> None:
        process.kill()
        process.wait(PATIENCE_S)

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
        yield stop
    finally:
        stop()


def bucket() -> Any:
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def test_a_document_is_there_for_every_machine_until_it_is_removed(s3_server: Stop, tmp_path: Path) -> None:
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
    s3_server()
    for attempt in (lambda: there.put(document), lambda: there.remove(name)):
        with pytest.raises(StorageUnavailable):
            attempt()
    with pytest.raises(StorageUnavailable), there.local(name, tmp_path):
        pass


def test_jobs_go_through_a_bucket(s3_server: Stop, tmp_path: Path) -> None:
    """The API and its worker share a database and the bucket."""
    with api(tmp_path, blob_url=URL) as client:
        job_id = client.accepted(pdf_bytes(*[A4] * 3), dpi=36)
        assert len(bucket().find("documents")) == 1, "on the server before it is accepted"
        with workers(1, tmp_path, "", blob_url=URL):
            assert client.ended(job_id)["status"] == "succeeded"
            assert len(client.result(job_id)["pages"]) == 3
            eventually(lambda: bucket().find("documents") == [])
        s3_server()
        refused = client.submit(image_bytes())
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
