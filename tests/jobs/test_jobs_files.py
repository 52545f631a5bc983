"""Files that clients uploaded to name them later, on SQLite and on PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs_bench import open_store

from app.errors import NotFound, TooManyFiles
from app.jobs.blobs import Blobs
from app.jobs.files import Files
from app.settings import Settings

LIFETIME_S = 3600.0


@pytest.fixture
def files(job_settings: Settings) -> Iterator[Files]:
    store = open_store(job_settings)
    yield Files(store, Blobs(job_settings))
    store.close()


@pytest.fixture
def document(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(data: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return path

    return written


def test_a_file_is_its_clients_until_it_is_removed(
    files: Files, document: Callable[[bytes], Path], tmp_path: Path
) -> None:
    kept = files.add("ours", document(b"first"), "a.pdf", "ocr", "application/pdf", most=2)
    assert files.file(kept.id, "ours", LIFETIME_S) == kept
    assert files.listed("ours", LIFETIME_S) == [kept]
    assert files.listed("theirs", LIFETIME_S) == []
    with pytest.raises(NotFound):
        files.file(kept.id, "theirs", LIFETIME_S)
    with files.local(kept, tmp_path) as path:
        assert path.read_bytes() == b"first"
    files.remove(kept)
    with pytest.raises(NotFound):
        files.file(kept.id, "ours", LIFETIME_S)


def test_a_client_keeps_so_many_files(files: Files, document: Callable[[bytes], Path]) -> None:
    for name in ("a", "b"):
        files.add("ours", document(b"x"), name, "ocr", "", most=2)
    with pytest.raises(TooManyFiles):
        files.add("ours", document(b"x"), "c", "ocr", "", most=2)
    files.add("theirs", document(b"x"), "c", "ocr", "", most=2)


def test_files_over_their_lifetime_are_gone_from_everywhere(
    files: Files, document: Callable[[bytes], Path], tmp_path: Path
) -> None:
    kept = files.add("ours", document(b"x"), "a", "ocr", "", most=2)
    with pytest.raises(NotFound):
        files.file(kept.id, "ours", -1.0)
    files.expire(LIFETIME_S)
    assert files.listed("ours", LIFETIME_S) == [kept]
    files.expire(-1.0)
    assert files.listed("ours", LIFETIME_S) == []
    assert not [path for path in tmp_path.glob("blobs/*/*") if path.is_file()]
