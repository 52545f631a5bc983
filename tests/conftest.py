"""Databases that tests of jobs run on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import postgres
import pytest

from app.settings import Settings

NewDatabase = Callable[[], str]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    """A real server of the tests' own."""
    if (reason := postgres.missing()) is not None:
        pytest.skip(reason)
    server = postgres.Postgres().start()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each kind; empty for SQLite in the data folder."""
    if request.param == "sqlite":
        return ""
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    return server.create(f"test_{tmp_path.name}")


@pytest.fixture
def job_settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings.model_validate({"data_dir": tmp_path, "database_url": database_url})
