"""A hub of models on 127.0.0.1: one repository, sent slowly, whose weights break off once."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40
WEIGHTS = "model.safetensors"


class FakeHub(ThreadingHTTPServer):
    """Serves the files of ``folder``. As long as ``breaks_left``, an answer with weights ends after half of
    them; later ones wait there for ``gate``. ``starts``: at which byte each began.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        self.gate = threading.Event()
        self.starts: list[int] = []
        self.breaks_left = 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
            for name, data in self.contents.items()
        ]


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with contextlib.suppress(OSError):  # who asked is gone
            if "/resolve/" in path:
                self._file(path.rpartition("/")[2])
            elif "/tree/" in path:
                self._json(self.server.listing())
            else:
                siblings = [{"rfilename": name} for name in self.server.contents]
                self._json({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings})

    def _json(self, body: object) -> None:
        data = json.dumps(body).encode()
        self._head(200, {"Content-Length": str(len(data)), "Content-Type": "application/json"})
        self.wfile.write(data)

    def _file(self, name: str) -> None:
        data = self.server.contents[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers["Content-Length"] = str(len(data) - start)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if asked else 200, headers)
        if self.command == "GET":
            self._send(data[start:], start if name == WEIGHTS else None)

    def _send(self, data: bytes, start: int | None) -> None:
        if start is None:
            self.wfile.write(data)
            return
        self.server.starts.append(start)
        half = len(data) // 2
        self.wfile.write(data[:half])
        if self.server.breaks_left:
            self.server.breaks_left -= 1
            return
        self.server.gate.wait(600)
        self.wfile.write(data[half:])

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def etag(data: bytes) -> str:
    return sha256(data).hexdigest()[:40]


@contextmanager
def serving_hub(folder: Path) -> Iterator[FakeHub]:
    hub = FakeHub(folder)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        hub.shutdown()
        hub.server_close()
        thread.join()
