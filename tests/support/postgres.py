"""A PostgreSQL server of the tests' own, in a temporary folder, on a free port."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

START_S = 30.0
LOG_SHOWN = 3000
"""Characters."""


def find(program: str) -> str | None:
    """The newest installed one; Debian keeps them off the PATH."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(beside[-1]) if beside else shutil.which(program)


def missing() -> str | None:
    """Why there can be no server here."""
    if find("initdb") is None or find("postgres") is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.geteuid() == 0 and not _has_user("postgres"):
        return "PostgreSQL refuses to run as root, and there is no user postgres"
    return None


def _has_user(name: str) -> bool:
    return subprocess.run(["id", name], capture_output=True, check=False).returncode == 0


def _as_other_user() -> list[str]:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """Started by ``start``, which may be called again after ``stop``: the data stay."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rtprune-pg-"))
        self._folder.chmod(0o755)
        self._data, self._log = self._folder / "data", self._folder / "log"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        self._run("initdb", "-D", str(self._data), "-U", "rtprune", "-A", "trust", "-E", "UTF8", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*_as_other_user(), str(find(program)), *arguments],
            check=True,
            capture_output=True,
            cwd=self._folder,
        )

    def start(self) -> Self:
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "300"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *_as_other_user(),
                    str(find("postgres")),
                    *("-D", str(self._data), "-p", str(self._port)),
                    *options,
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,  # signals to the tests' process group are not for it
            )
        self._wait()
        return self

    def _wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def url(self, database: str) -> str:
        return f"postgresql://rtprune@127.0.0.1:{self._port}/{database}"

    def create(self, database: str) -> str:
        import psycopg

        if self._process is not None and self._process.poll() is not None:
            print(self._log.read_text(errors="replace")[-LOG_SHOWN:])  # noqa: T201 - why it ended by itself
            self.start()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"'.encode())
        return self.url(database)

    def stop(self) -> None:
        """At once, as when its machine goes away; connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)
            self._process = None

    def signal(self, number: int) -> None:
        """To all its processes, of which each connection has one."""
        if self._process is not None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
            for pid in (self._process.pid, *map(int, children.split())):
                os.kill(pid, number)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
