"""Workers that are stopped, not killed: to the others they are dead until they go on."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from jobs_bench import accept, done, new_job, open_store
from jobs_client import Client, Worker, api, assert_every_page_once, workers
from service_client import A4, PATIENCE_S, ROOT, eventually, pdf_bytes

from app.jobs.leases import Leases, WorkerState
from app.jobs.worker.page_store import PageStore
from app.settings import Settings

ADOPTED_WITHIN_S = 15.0


@pytest.fixture
def client(database_url: str, tmp_path: Path) -> Iterator[Client]:
    with api(tmp_path, database_url, max_documents=100) as started:
        yield started


def test_a_worker_that_never_returns_and_one_that_was_only_slow(
    client: Client, database_url: str, tmp_path: Path
) -> None:
    """Stopped, not killed: to the others it is dead until it goes on."""
    settings = {"max_pages_in_flight": 2, "batch_pages": 4}
    with workers(1, tmp_path, database_url, **settings) as (slow,):
        job_id = client.accepted(pdf_bytes(*[A4] * 8), dpi=36, prompt={"delay_s": 0.3})
        eventually(lambda: client.done(job_id) >= 2)
        stop_between_writes(slow, database_url, tmp_path)
        stopped_at = time.monotonic()
        done = client.done(job_id)
        with workers(1, tmp_path, database_url, **settings) as (other,):
            eventually(lambda: client.done(job_id) > done)
            assert time.monotonic() - stopped_at < ADOPTED_WITHIN_S + PATIENCE_S / 2, "and a busy machine"
            slow.signal(signal.SIGCONT)
            assert client.ended(job_id)["status"] == "succeeded"
            assert_every_page_once(client, job_id, 8)
            assert other.pages()
            again = client.accepted(pdf_bytes(*[A4] * 4), dpi=36)
            assert client.ended(again)["status"] == "succeeded"


def stop_between_writes(worker: Worker, database_url: str, data_dir: Path) -> None:
    """SIGSTOP. A process that holds SQLite's write lock while stopped keeps it, and nobody can take that."""
    worker.signal(signal.SIGSTOP)
    while not database_url:
        with contextlib.closing(sqlite3.connect(data_dir / "jobs.sqlite", timeout=0.1)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                worker.signal(signal.SIGCONT)
                worker.signal(signal.SIGSTOP)
            else:
                return


STOPPED_IN_A_TRANSACTION = """
import os, signal, sys
import sqlalchemy as sa
from app.jobs.database import {opened}
from app.jobs.tables import jobs, workers
from app.settings import Settings

with {opened}(Settings(database_url=sys.argv[1])).begin() as connection:
    for table in (jobs, workers):
        connection.execute(sa.select(table).with_for_update())
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("opened", ["open_engine", "open_dbos_engine"])
def test_what_a_stopped_process_has_locked_is_taken_from_it(
    postgres_server: postgres.Postgres, tmp_path: Path, opened: str
) -> None:
    """Its connection is alive and its transaction open: to the server it is only slow."""
    database_url = postgres_server.create(f"test_{tmp_path.name}")
    store = open_store(Settings.model_validate({"data_dir": tmp_path, "database_url": database_url}))
    job_id = accept(store, new_job(1))
    Leases(store).renew(WorkerState("stopped", "here", "ready", "ready"), lease_s=0.0)
    script = STOPPED_IN_A_TRANSACTION.format(opened=opened)
    process = subprocess.Popen([sys.executable, "-c", script, database_url], cwd=ROOT)
    try:
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert state is not None
        assert state.si_code == os.CLD_STOPPED
        assert Leases(store).claim_expired("other") == "stopped"
        PageStore(store).write("other", [done(job_id, 0, "by another")])
        assert store.job(job_id).status == "succeeded"
    finally:
        process.kill()
        process.wait()
        store.close()
