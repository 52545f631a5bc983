"""Processes that die, hang and come back; databases and disks that go away. Nothing accepted is lost.

``RTPRUNE_KILLS`` is the number of kills for each database and victim (default 2); 50 take some minutes.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import postgres
import pytest
import sqlalchemy as sa
from jobs_client import Client, Worker, api, assert_every_page_once, workers
from service_client import A4, PATIENCE_S, Server, eventually, image_bytes, pdf_bytes

from app.jobs.database import open_engine
from app.jobs.tables import attempts, pages
from app.settings import Settings

NUM_KILLS = int(os.environ.get("RTPRUNE_KILLS", "2"))
ADOPTED_WITHIN_S = 15.0


@pytest.mark.parametrize("victim", ["worker", "api"])
def test_kill_9_at_random_moments(database_url: str, tmp_path: Path, victim: str) -> None:
    """One API with its worker; jobs of 12 pages, two in flight, killed anywhere from accepted to done."""
    chance = random.Random(f"{database_url == ''} {victim}")
    settings: dict[str, Any] = {"database_url": database_url, "max_pages_in_flight": 2, "batch_pages": 3}
    settings |= {"num_rasterizers": 1, "max_restart_delay_s": 0.2, "queue_poll_s": 0.05}
    server = Server(tmp_path, **settings).wait_ready()
    try:
        for number in range(NUM_KILLS):
            client = Client(server)
            prompt = {"delay_s": 0.15, "text": f"kill {number}"}
            job_id = client.accepted(pdf_bytes(*[A4] * 12), dpi=36, prompt=prompt)
            time.sleep(chance.uniform(0, 1.2))
            if victim == "worker":
                os.kill(server.worker_pid(), signal.SIGKILL)
            else:
                server.kill()
                server = Server(tmp_path, **settings)
                client = Client(server)
            job = client.ended(job_id)
            assert job["status"] == "succeeded", job
            assert_every_page_once(client, job_id, 12)
            assert job["retries"]["pages"] <= 2, "at most the pages in flight are begun again"
            server.wait_ready()
    finally:
        server.stop()


@pytest.fixture
def client(database_url: str, tmp_path: Path) -> Iterator[Client]:
    with api(tmp_path, database_url, max_documents=100) as started:
        yield started


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_share_a_queue_and_none_idles(
    client: Client, database_url: str, tmp_path: Path, num_workers: int
) -> None:
    settings = {"max_pages_in_flight": 2, "batch_pages": 2, "queue_poll_s": 0.05}
    with workers(num_workers, tmp_path, database_url, **settings) as running:
        large = client.accepted(pdf_bytes(*[A4] * 48), dpi=36, prompt={"delay_s": 0.4})
        small = [
            client.accepted(image_bytes(size=(60 + number, 40)), prompt={"delay_s": 0.4})
            for number in range(8)
        ]
        for job_id in (large, *small):
            job = client.ended(job_id)
            assert (job["status"], job["retries"]["pages"]) == ("succeeded", 0), (
                "nobody reads what another has"
            )
        assert_every_page_once(client, large, 48)
        shares = pages_by_worker(tmp_path, database_url)
        assert sum(shares.values()) == 56
        assert all(shares[worker.id] >= 56 / num_workers / 4 for worker in running), "none idles"


def pages_by_worker(data_dir: Path, database_url: str) -> Counter[str]:
    engine = open_engine(Settings.model_validate({"data_dir": data_dir, "database_url": database_url}))
    with engine.connect() as connection:
        shares = Counter(connection.execute(sa.select(pages.c.worker)).scalars())
    engine.dispose()
    return shares


def test_a_worker_that_is_told_to_end_hands_over_at_once(
    client: Client, database_url: str, tmp_path: Path
) -> None:
    settings = {"max_pages_in_flight": 2, "batch_pages": 4, "shutdown_grace_s": 5}
    with workers(2, tmp_path, database_url, **settings) as (leaving, staying):
        job_id = client.accepted(pdf_bytes(*[A4] * 24), dpi=36, prompt={"delay_s": 0.3})  # three batches
        eventually(lambda: leaving.pages() and staying.pages())
        assert leaving.stop() == 0
        job = client.ended(job_id)
        assert (job["status"], job["retries"]["pages"]) == ("succeeded", 0), "no page was torn from the model"


@pytest.mark.parametrize("database_url", [""], ids=["sqlite"])
def test_a_page_that_kills_its_workers_twice_is_an_error(
    client: Client, database_url: str, tmp_path: Path
) -> None:
    """Nobody restarts these workers but the test; what is left of the document is read."""
    settings = {"max_pages_in_flight": 1, "batch_pages": 4}
    prompt = {"die_on": [1]}
    job_id = client.accepted(pdf_bytes(*[A4] * 3), dpi=36, prompt=prompt)
    for _ in range(2):
        worker = Worker(tmp_path, database_url, **settings)
        worker.process.wait(PATIENCE_S)
        worker.kill()
    with workers(1, tmp_path, database_url, **settings):
        job = client.ended(job_id)
        assert (job["status"], job["retries"]["pages"]) == ("partial", 1)
        read = client.result(job_id)["pages"]
        assert [page.get("error", {}).get("code") for page in read] == [None, "worker_lost", None]


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    """The API's own, and there is no other one."""
    with api(tmp_path, embedded_worker=True, max_pages_in_flight=2, worker_silence_s=4) as client:
        client.server.wait_ready()
        job_id = client.accepted(pdf_bytes(*[A4] * 8), dpi=36, prompt={"delay_s": 0.3})
        eventually(lambda: client.done(job_id) >= 2)
        os.kill(client.server.worker_pid(), signal.SIGSTOP)
        assert client.ended(job_id)["status"] == "succeeded"
        assert_every_page_once(client, job_id, 8)


def test_a_worker_is_not_killed_for_what_its_database_does(tmp_path: Path) -> None:
    with api(tmp_path, embedded_worker=True, worker_silence_s=8) as client:
        client.server.wait_ready()
        worker = client.server.worker_pid()
        lock = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")  # others read, but nobody renews a lease
        eventually(lambda: client.http.get("/readyz").status_code == 503)
        time.sleep(8)
        lock.execute("ROLLBACK")
        lock.close()
        client.server.wait_ready()
        assert client.server.worker_pid() == worker


def test_a_page_is_not_blamed_for_the_death_of_the_api(tmp_path: Path) -> None:
    """Its worker ends with the API and takes the page, which is alone there, from the model first."""
    settings: dict[str, Any] = {"num_rasterizers": 1, "max_restart_delay_s": 0.2}
    server = Server(tmp_path, **settings).wait_ready()
    try:
        job_id = Client(server).accepted(image_bytes(), prompt={"delay_s": 5})
        for _ in range(3):
            eventually(lambda: open_pages(tmp_path) == 1)
            server.kill()
            eventually(lambda: open_pages(tmp_path) == 0)
            server = Server(tmp_path, **settings)
        job = Client(server).ended(job_id)
        assert (job["status"], job["retries"]["pages"]) == ("succeeded", 0)
    finally:
        server.stop()


def open_pages(data_dir: Path) -> int:
    """Pages that are with a model."""
    engine = open_engine(Settings.model_validate({"data_dir": data_dir}))
    with engine.connect() as connection:
        query = sa.select(sa.func.count()).select_from(attempts).where(attempts.c.worker.is_not(None))
        num = int(connection.execute(query).scalar_one())
    engine.dispose()
    return num


def test_results_expire_and_say_so(tmp_path: Path) -> None:
    with api(tmp_path, embedded_worker=True, result_lifetime_s=3) as client:
        client.server.wait_ready()
        data = image_bytes(size=(91, 40))
        job_id = client.accepted(data)
        client.ended(job_id)
        assert client.http.get(f"/v1/jobs/{job_id}/result").status_code == 200
        eventually(lambda: client.http.get(f"/v1/jobs/{job_id}/result").status_code == 410)
        assert client.http.get(f"/v1/jobs/{job_id}/result").json()["code"] == "expired"
        assert client.http.get(f"/v1/jobs/{job_id}").status_code == 410
        assert client.accepted(data) != job_id, "the same request is a new job"


def test_a_database_that_is_away_is_said_and_waited_for(tmp_path: Path) -> None:
    if (reason := postgres.missing()) is not None:
        pytest.skip(reason)
    away_s = float(os.environ.get("RTPRUNE_AWAY_S", "4"))
    database = postgres.Postgres().start()
    try:
        with api(tmp_path, database.create("away"), embedded_worker=True, max_pages_in_flight=2) as client:
            client.server.wait_ready()
            job_id = client.accepted(pdf_bytes(*[A4] * 12), dpi=36, prompt={"delay_s": 0.4})
            eventually(lambda: client.done(job_id) >= 2)
            database.stop()
            back_at = time.monotonic() + away_s
            while time.monotonic() < back_at:
                refused = client.submit(image_bytes())
                assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
                assert int(refused.headers["retry-after"]) >= 1
                assert client.http.get("/livez").status_code == 200
                time.sleep(0.5)
            database.start()
            assert client.ended(job_id)["status"] == "succeeded"
            assert_every_page_once(client, job_id, 12)
            client.server.wait_ready()
            assert client.server.parse(image_bytes()).status_code == 200
    finally:
        database.close()


def test_a_database_that_hangs_is_said_and_nobody_is_blamed(tmp_path: Path) -> None:
    """Connections stay open and nothing answers, for longer than a lease."""
    if (reason := postgres.missing()) is not None:
        pytest.skip(reason)
    database = postgres.Postgres().start()
    url = database.create("hangs")
    settings = {"max_pages_in_flight": 1, "batch_pages": 2}
    try:
        with api(tmp_path, url) as client, workers(2, tmp_path, url, **settings):
            client.server.wait_ready()
            job_id = client.accepted(pdf_bytes(*[A4] * 16), dpi=36, prompt={"delay_s": 1})
            eventually(lambda: client.done(job_id) >= 2)
            database.signal(signal.SIGSTOP)
            back_at = time.monotonic() + 10
            answers = [client.http.get(f"/v1/jobs/{job_id}"), client.submit(image_bytes())]
            assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
                (503, "storage_unavailable")
            ] * 2
            assert client.http.get("/livez").status_code == 200
            time.sleep(max(0.0, back_at - time.monotonic()))
            database.signal(signal.SIGCONT)
            job = client.ended(job_id)
            assert (job["status"], job["retries"]["pages"]) == ("succeeded", 0)
            assert_every_page_once(client, job_id, 16)
    finally:
        database.signal(signal.SIGCONT)
        database.close()


def test_a_locked_sqlite_is_said_and_waited_for(tmp_path: Path) -> None:
    with api(tmp_path, embedded_worker=True) as client:
        client.server.wait_ready()
        job_id = client.accepted(pdf_bytes(*[A4] * 4), dpi=36, prompt={"delay_s": 1})
        eventually(lambda: client.job(job_id)["status"] == "running")
        lock = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        refused = client.submit(image_bytes())
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        lock.execute("ROLLBACK")
        lock.close()
        assert client.ended(job_id)["status"] == "succeeded"
        assert_every_page_once(client, job_id, 4)
        assert client.submit(image_bytes()).status_code == 202


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Take what is left of a disk, to the last page."""
    with ballast.open("wb", buffering=0) as file:
        for num_bytes in (65536, 512):
            with contextlib.suppress(OSError):
                while file.write(bytes(num_bytes)):
                    pass


def test_a_full_disk_is_said_and_recovered_from(small_disk: Path) -> None:
    with api(small_disk, embedded_worker=True, max_pages_in_flight=2) as client:
        client.server.wait_ready()
        job_id = client.accepted(pdf_bytes(*[A4] * 8), dpi=36, prompt={"delay_s": 0.5, "text": "x" * 3000})
        eventually(lambda: client.done(job_id) >= 1)
        ballast = small_disk / "ballast"
        fill(ballast)
        refused = client.submit(image_bytes(size=(2000, 3000), mode="L") + bytes(200_000))
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_full")
        assert client.http.get("/livez").status_code == 200
        ballast.unlink()
        assert client.ended(job_id)["status"] == "succeeded"
        assert_every_page_once(client, job_id, 8)
        assert client.submit(image_bytes()).status_code == 202


def test_the_api_answers_while_its_worker_dies_again_and_again(tmp_path: Path) -> None:
    with api(tmp_path, embedded_worker=True, max_restart_delay_s=0.2) as client:
        client.server.wait_ready()
        for _ in range(3):
            os.kill(client.server.worker_pid(), signal.SIGKILL)
            waits = []
            for _ in range(20):
                asked = time.monotonic()
                assert client.http.get("/livez").status_code == 200
                waits.append(time.monotonic() - asked)
            assert sorted(waits)[len(waits) // 2] < 0.5
            client.server.wait_ready()


def test_a_job_is_accepted_while_there_is_no_worker(
    client: Client, database_url: str, tmp_path: Path
) -> None:
    job_id = client.accepted(image_bytes())
    assert client.job(job_id)["queue_position"] == 0
    refused = client.server.parse(image_bytes())
    assert refused.json()["code"] == "not_ready", "who waits for an answer is told that nobody reads"
    with pytest.raises(httpx.ReadTimeout):
        client.http.get(f"/v1/jobs/{job_id}/events", timeout=0.5)
    with workers(1, tmp_path, database_url):
        assert client.ended(job_id)["status"] == "succeeded"
