"""What was told is on disk: a power cut takes nothing else than pages, which are read again."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import postgres
import pytest
import sqlalchemy as sa
from jobs_bench import accept, done, new_job, open_store

from app.jobs.blobs import Blobs
from app.jobs.database import open_engine
from app.jobs.keys import Keys
from app.jobs.store import Store
from app.jobs.worker.maintenance import sweep
from app.jobs.worker.page_store import PageStore
from app.settings import Settings

SYNCHRONOUS = re.compile(r"PRAGMA synchronous=(\w+)")


class Traced:
    """SQLite's statements, and with which care each transaction was committed."""

    def __init__(self, settings: Settings) -> None:
        open_store(settings).close()
        engine = open_engine(settings)
        self.commits: list[str] = []
        self._is_full = "FULL"  # SQLite's own default
        self._writes = False
        sa.event.listen(engine, "connect", lambda connection, _: connection.set_trace_callback(self._said))
        self.store = Store(engine)

    def _said(self, statement: str) -> None:
        if found := SYNCHRONOUS.search(statement):
            self._is_full = found[1]
        self._writes |= statement.startswith("BEGIN IMMEDIATE")
        if statement.startswith("COMMIT") and self._writes:
            self.commits.append(self._is_full)
            self._writes = False


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    opened = Traced(Settings(data_dir=tmp_path))
    yield opened
    opened.store.close()


def test_acceptance_is_on_disk_and_pages_need_not_be(traced: Traced) -> None:
    job_id = accept(traced.store, new_job(2))
    assert traced.commits == ["FULL"]
    PageStore(traced.store).write("w", [done(job_id, 0)])
    assert traced.commits == ["FULL", "NORMAL"]


def test_keys_are_on_disk_when_they_are_made_and_when_they_are_revoked(traced: Traced) -> None:
    keys = Keys(traced.store)
    keys.add("clinic")
    keys.revoke("clinic")
    assert traced.commits == ["FULL", "FULL"]


def test_the_end_of_a_job_is_on_disk_before_its_document_goes(traced: Traced, tmp_path: Path) -> None:
    class Watched(Blobs):
        def remove(self, name: str) -> None:
            assert traced.commits[-1] == "FULL"
            super().remove(name)

    blobs = Watched(Settings(data_dir=tmp_path))
    document = tmp_path / "document"
    document.write_bytes(b"%PDF-")
    job_id = accept(traced.store, new_job(1, blob=blobs.put(document)))
    PageStore(traced.store).write("w", [done(job_id, 0)])
    assert traced.commits[-1] == "NORMAL"
    sweep(traced.store, blobs)
    assert traced.store.job(job_id).blob == ""
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_a_document_is_on_disk_with_the_folders_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    document = tmp_path / "document"
    document.write_bytes(b"%PDF-")
    name = Blobs(Settings(data_dir=tmp_path)).put(document)
    folder = tmp_path / "blobs" / name[:2]
    assert set(synced) == {document, folder, folder.parent, tmp_path}
    assert synced.index(document) < synced.index(folder), "its bytes before its name"


def test_what_is_on_disk_is_a_whole_database(traced: Traced, tmp_path: Path) -> None:
    """The log without its last bytes, as a power cut leaves it: what is whole before them is there."""
    job_id = accept(traced.store, new_job(4))
    for page in range(4):
        PageStore(traced.store).write("w", [done(job_id, page, "text " * 500)])
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes((tmp_path / "jobs.sqlite").read_bytes())
    log = (tmp_path / "jobs.sqlite-wal").read_bytes()
    Path(f"{copy}-wal").write_bytes(log[: len(log) * 9 // 10])
    with closing(sqlite3.connect(copy)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        num_pages = database.execute("SELECT count(*) FROM rtprune_pages").fetchone()[0]
        job = database.execute("SELECT num_done, status FROM rtprune_jobs").fetchone()
    assert 0 < num_pages <= 4
    assert job == (num_pages, "succeeded" if num_pages == 4 else "queued")


def test_postgresql_waits_for_its_disk_where_it_is_set_not_to(
    postgres_server: postgres.Postgres, tmp_path: Path
) -> None:
    url = postgres_server.create(f"test_{tmp_path.name}")
    store = open_store(Settings.model_validate({"data_dir": tmp_path, "database_url": url}))
    shown = sa.text("SHOW synchronous_commit")

    def in_transaction(value: str, *, durable: bool) -> Any:
        with store.writing(durable=durable) as c:
            c.execute(sa.text(f"ALTER DATABASE test_{tmp_path.name} SET synchronous_commit = '{value}'"))
        store.close()  # a new connection has it
        with store.writing(durable=durable) as c:
            return c.execute(shown).scalar_one()

    try:
        assert in_transaction("off", durable=True) == "on"
        assert in_transaction("off", durable=False) == "off"
        assert in_transaction("remote_apply", durable=True) == "remote_apply"
    finally:
        store.close()
