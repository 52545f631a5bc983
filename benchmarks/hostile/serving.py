"""The service under attack: on processors of its own, killed and started again on the same data."""

import contextlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from app.processes import resident_mib
from benchmarks.report import ROOT

START_S = 120.0
SETTLE_S = 20.0
MIN_SETTLE_S = 4.0
POLL_S = 0.2
NUM_WARM = 24
WORKER, RASTERIZER = b"app.worker", b"app.documents.raster.confined"


@dataclass(frozen=True, slots=True)
class Held:
    """What the service holds. ``descriptors``: of API and worker. ``temp_files``: documents in the spool."""

    api_mib: float
    worker_mib: float
    rasterizer_mib: float
    descriptors: int
    temp_files: int


@contextlib.contextmanager
def on_cpus(*, of_clients: bool) -> Iterator[None]:
    """Start processes in this context on the clients' processor, which is the last, or on all others."""
    ours = os.sched_getaffinity(0)
    if len(ours) > 1:
        os.sched_setaffinity(0, {max(ours)} if of_clients else ours - {max(ours)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


class Service:
    """``rtprune serve`` with its worker, in a folder that outlives it."""

    def __init__(self, folder: Path, settings: Mapping[str, str], root: Path = ROOT) -> None:
        self.folder = folder
        self.port = _free_port()
        variables = {"RTPRUNE_DATA_DIR": str(folder), "RTPRUNE_PORT": str(self.port)}
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(root),
            "RTPRUNE_LOG_LEVEL": "WARNING",
            **variables,
            **settings,
        }
        self._root = root
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120, trust_env=False)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, pinned: bool = True) -> None:
        """Start the service and wait until it reads pages. Raise ``TimeoutError``."""
        place = on_cpus(of_clients=False) if pinned else contextlib.nullcontext()
        with place, (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve"],
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/readyz").status_code == 200:
                    return
            time.sleep(POLL_S)
        raise TimeoutError("the service does not become ready")

    def warm(self, num_clients: int = NUM_WARM) -> Held:
        """Have it open what it keeps open, such as its database. Returns what it then holds."""
        page = io.BytesIO()
        Image.new("1", (64, 64), 1).save(page, "PNG")
        with ThreadPoolExecutor(num_clients) as clients:
            list(clients.map(lambda _: self.submit(page.getvalue()), range(2 * num_clients)))
            list(clients.map(lambda _: self.http.get("/v1/jobs"), range(2 * num_clients)))
        self.wait_ended(START_S)
        time.sleep(1)  # let the connections of the last answers close
        return self.held()

    def stop(self) -> None:
        self.http.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def kill(self) -> int:
        """Send SIGKILL to API, worker, rasterizers and their readers at once. Return how many there were."""
        family = [self.pid, *self._below(self.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(60)
        return len(family)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the service is not started")
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        return next(pid for pid, _ in self._children(self.pid) if WORKER in _command(pid))

    @property
    def rasterizer_pids(self) -> list[int]:
        """Rasterizers of API and worker, without the readers that they fork."""
        parents = (self.pid, self.worker_pid)
        return [pid for of in parents for pid, _ in self._children(of) if RASTERIZER in _command(pid)]

    def held(self) -> Held:
        pids = api, worker = self.pid, self.worker_pid
        rasterizers = {below for one in self.rasterizer_pids for below in (one, *self._below(one))}
        return Held(
            round(resident_mib(api) or 0, 1),
            round(resident_mib(worker) or 0, 1),
            round(sum(resident_mib(pid) or 0 for pid in rasterizers), 1),
            sum(map(_num_descriptors, pids)),
            sum(path.is_file() for path in self.folder.glob("spool/*/*")),
        )

    def settled(self, before: Held) -> Held:
        """Wait until files and descriptors are as before, and freed memory is given back; a while at most."""
        time.sleep(MIN_SETTLE_S)
        deadline = time.monotonic() + SETTLE_S
        while True:
            held = self.held()
            is_back = held.descriptors <= before.descriptors and held.temp_files <= before.temp_files
            if is_back or time.monotonic() > deadline:
                return held
            time.sleep(POLL_S)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Query the database of jobs."""
        database = sqlite3.connect(self.folder / "jobs.sqlite", timeout=30)
        try:
            return database.execute(sql, values).fetchall()
        finally:
            database.close()

    def num_open(self) -> int:
        """Count jobs that have not ended."""
        sql = "SELECT count(*) FROM rtprune_jobs WHERE status IN ('queued', 'running')"
        return int(self.query(sql)[0][0])

    def wait_ended(self, limit_s: float) -> None:
        """Wait until no job is open. Raise ``TimeoutError`` after ``limit_s``."""
        deadline = time.monotonic() + limit_s
        while num_open := self.num_open():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{num_open} jobs have not ended after {limit_s:g} s")
            time.sleep(POLL_S)

    def submit(self, data: bytes, directions: Mapping[str, Any] | None = None) -> str:
        """Submit a document and return its job's id. ``directions``: for the fake reader."""
        fields = {} if directions is None else {"prompt": json.dumps(directions)}
        answer = self.http.post("/v1/jobs", files={"file": data}, data=fields).raise_for_status()
        return str(answer.json()["id"])

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    @staticmethod
    def _children(pid: int) -> list[tuple[int, int]]:
        """Return (process, parent) of the processes whose parent is ``pid``."""
        return [(child, parent) for child, parent in _parents().items() if parent == pid]

    @staticmethod
    def _below(pid: int) -> set[int]:
        parents, family = _parents(), {pid}
        while more := {child for child, parent in parents.items() if parent in family} - family:
            family |= more
        return family - {pid}


@contextlib.contextmanager
def serving(root: Path, *, pinned: bool = True, **settings: object) -> Iterator[Service]:
    """Run a service with a folder of its own. Settings are keywords, such as ``max_documents=3``."""
    variables = {f"RTPRUNE_{name.upper()}": str(value) for name, value in settings.items()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        service = Service(Path(folder), {"RTPRUNE_READER": "fake", **variables}, root)
        try:
            service.start(pinned=pinned)
            yield service
        finally:
            service.stop()


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return found


def _num_descriptors(pid: int) -> int:
    """Count open files and sockets; 0 where only root may see them."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except PermissionError:
        return 0


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
