"""Web servers of strangers, good and bad, and names that lead where they like, for clients elsewhere."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

RESOLVER = """
import json, os, socket

_resolve = socket.getaddrinfo
_path = os.environ["NAMES_FILE"]

def getaddrinfo(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    with open(_path + ".asked", "a") as asked:
        asked.write(f"{name}\\n")
    with open(_path + ".asked") as asked:
        num_asked = sum(line.strip() == name for line in asked)
    addresses = json.load(open(_path)).get(name)
    if addresses is not None:
        host = addresses[min(num_asked, len(addresses)) - 1]
    return _resolve(host, *args, **kwargs)

socket.getaddrinfo = getaddrinfo
"""


def names(folder: Path, addresses: dict[str, list[str]]) -> dict[str, str]:
    """What a process is to find in its environment so that these names lead there: the nth question to the
    nth address, later ones to the last.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(RESOLVER)
    (folder / "names").write_text(json.dumps(addresses))
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(paths), "NAMES_FILE": str(folder / "names")}


def num_asked(folder: Path, name: str) -> int:
    """How often the name was resolved."""
    return (folder / "names.asked").read_text().split().count(name)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], document: bytes) -> None:
        super().__init__(address, _Handler)
        self.document = document
        self.asked: list[str] = []
        self.ended = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.server.asked.append(url.path)
        with suppress(OSError):
            if url.path == "/silent":
                self.server.ended.wait()
            elif url.path == "/headers":
                self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                self._write_for_ever(b"X-More: 1\r\n")
            else:
                self._answer(url)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _answer(self, url: SplitResult) -> None:
        self.send_response(302 if url.path == "/to" else 200)
        if url.path == "/to":
            self.send_header("Location", parse_qs(url.query)["where"][0])
        self.end_headers()
        self.wfile.write(self.server.document)
        if url.path == "/endless":
            self._write_for_ever(bytes(1000))

    def _write_for_ever(self, data: bytes) -> None:
        while not self.server.ended.is_set():
            self.wfile.write(data)
            time.sleep(0.05)

    def log_message(self, *_: Any) -> None:
        pass


class Stranger:
    """``/document``; ``/to?where=ADDRESS`` redirects; ``/silent`` never answers; ``/endless`` never stops its
    body, ``/headers`` its headers.
    """

    def __init__(self, document: bytes, host: str, port: int = 0) -> None:
        self._server = _Server((host, port), document)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def asked(self) -> list[str]:
        """The paths it was asked for, without their queries."""
        return self._server.asked

    def close(self) -> None:
        self._server.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def stranger(document: bytes, host: str, port: int = 0) -> Iterator[Stranger]:
    running = Stranger(document, host, port)
    try:
        yield running
    finally:
        running.close()
