"""A real server in a real process, and small documents written by hand."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from PIL import Image

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
"""How long a test waits for what must happen; never a measure of speed."""


class Server:
    """``rtprune serve`` with the fake reader. Settings are given as keywords: ``max_pages=3``."""

    def __init__(self, data_dir: Path, *, env: dict[str, str] | None = None, **settings: object) -> None:
        variables = {f"RTPRUNE_{name.upper()}": str(value) for name, value in settings.items()}
        defaults = {"RTPRUNE_READER": "fake", "RTPRUNE_DATA_DIR": str(data_dir), "RTPRUNE_PORT": "0"}
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"],
            cwd=ROOT,
            env={**os.environ, **defaults, **variables, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.port = self._wait_port()
        address = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=address, timeout=PATIENCE_S, trust_env=False)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.noise.append(line)

    def _wait_port(self) -> int:
        def port() -> int | None:
            assert self.process.poll() is None, self.noise
            for line in list(self.log):
                if match := re.search(r"running on http://[\d.]+:(\d+)", str(line["message"])):
                    return int(match[1])
            return None

        return eventually(port)

    def wait_ready(self) -> "Server":
        eventually(lambda: self.http.get("/readyz").status_code == 200)
        return self

    def parse(self, data: bytes, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
        form = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()
        }
        return self.http.post("/v1/parse", files={"file": ("x", data)}, data=form, headers=headers)

    def metric(self, name: str) -> float:
        text = self.http.get("/metrics").text
        match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def worker_pid(self) -> int:
        """The worker that lives; what is logged arrives a little after what it is about."""

        def living() -> int | None:
            pids = [int(line["pid"]) for line in list(self.log) if line["message"] == "model loaded"]
            return next((pid for pid in reversed(pids) if alive(pid)), None)

        return eventually(living)

    def spooled(self) -> list[Path]:
        return [path for path in self.data_dir.glob("spool/*/*") if path.is_file()]

    def stop(self) -> int:
        """SIGTERM, as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        self.process.kill()
        self._wait()

    def _wait(self) -> int:
        self.http.close()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._reader.join(PATIENCE_S)
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()


@contextmanager
def serving(data_dir: Path, **settings: Any) -> Iterator[Server]:
    server = Server(data_dir, **settings)
    try:
        yield server
    finally:
        if server.process.returncode is None:
            server.stop()


def eventually(condition: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """Wait until ``condition`` is true, and give what it gave."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it ended while we looked
    found: set[int] = set()
    layer = {pid}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer}
        found |= layer
    return found


def image_bytes(
    file_format: str = "PNG", size: tuple[int, int] = (60, 40), mode: str = "RGB", **save: Any
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, "white").save(buffer, file_format, **save)
    return buffer.getvalue()


def pdf_bytes(*pages: str, count: int | None = None, catalog: str = "", trailer: str = "") -> bytes:
    """A PDF with a page for each string of page attributes; ``count`` may lie about their number."""
    pages = pages or (A4,)
    num_pages = len(pages) if count is None else count
    kids = " ".join(f"{number} 0 R" for number in range(3, 3 + len(pages)))
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{catalog}>>",
        f"<</Type/Pages/Kids[{kids}]/Count {num_pages}>>",
        *(f"<</Type/Page/Parent 2 0 R{attributes}>>" for attributes in pages),
    ]
    body = b"%PDF-1.7\n"
    offsets = []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        body
        + (
            f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer<</Size {size}/Root 1 0 R{trailer}>>\n"
            f"startxref\n{len(body)}\n%%EOF"
        ).encode()
    )


A4 = "/MediaBox[0 0 595 842]"
ENCRYPTED = (
    "/ID[<00112233445566778899aabbccddeeff><00112233445566778899aabbccddeeff>]"
    f"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<{'11' * 32}>/U<{'22' * 32}>>>"
)


def answers(port: int) -> bool:
    """Whether something on this machine takes connections at the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
