"""Databases that tests of jobs run on, and a service that tests of HTTP ask."""

import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import postgres
import pytest
from service_client import Server, serving

from app.settings import Settings

NewDatabase = Callable[[], str]
# taken out of the environment: the services that tests start warn of what is no setting of theirs
NO_SKIPS = os.environ.pop("RTPRUNE_NO_SKIPS", "") == "1"
OF_THE_MACHINE = re.compile(
    r"GPU|processor|kernel here|permitted|only root|not here|on this machine|shared|C libraries"
)
"""Why a test is skipped that no package can help; other skips are failures with ``RTPRUNE_NO_SKIPS=1``."""
_skipped: list[str] = []

# how long an example takes is no property
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

if not Path("/dev/nvidiactl").exists():
    # read when Triton is first imported: without a card its kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")
collect_ignore = [] if find_spec("triton") else ["engine/test_cuda_kernels.py"]


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if not OF_THE_MACHINE.search(reason):
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End with an error where a test was skipped for want of something that could be installed."""
    if _skipped and NO_SKIPS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and NO_SKIPS:
        terminalreporter.section("skipped, which is a failure here")
        for line in _skipped:
            terminalreporter.line(line)


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


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {
        "max_upload_mib": 1,
        "max_form_kib": 16,
        "max_pages": 5,
        "upload_idle_s": 1,
        "page_deadline_s": 1,
    }
    with serving(tmp_path_factory.mktemp("data"), **limits) as started:
        yield started


@pytest.fixture
def server(running: Server) -> Server:
    return running.wait_ready()
