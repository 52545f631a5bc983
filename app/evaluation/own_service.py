"""Run a service of this machine for as long as pages are read.

It is a process of its own: an evaluation imports the service's client alone, as the rest may not be
installed.
"""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

import httpx

START_TIMEOUT_S = 900.0
"""Time to start, of which loading a large model may take minutes."""
STOP_TIMEOUT_S = 30.0
POLL_S = 0.2


class NoServiceError(OSError):
    """The command's own service did not start. The text says why."""


@contextlib.contextmanager
def own_service(environment: Mapping[str, str]) -> Iterator[str]:
    """Start ``rtprune serve`` with the settings in ``environment``; yield its address; end it after that.

    Its data are in a folder of its own, removed in the end. Raise ``NoServiceError`` if it is not ready.
    """
    with tempfile.TemporaryDirectory(prefix="rtprune-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        own = {"DATA_DIR": folder, "HOST": "127.0.0.1", "PORT": str(port), "DATABASE_URL": "", "BLOB_URL": ""}
        settings = {f"RTPRUNE_{name}": value for name, value in own.items()}
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-P", "-m", "app.program", "serve"]
        with subprocess.Popen(command, env={**environment, **settings}) as service:  # noqa: S603 - our own program
            try:
                _wait_ready(service, address)
                yield address
            finally:
                service.terminate()
                try:
                    service.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    service.kill()


def _wait_ready(service: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise NoServiceError("the service does not start; the lines above say why")
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{address}/readyz")
            if answer.status_code == httpx.codes.OK:
                return
            if answer.json().get("phase") == "failed":
                raise NoServiceError(f"the service cannot read: {answer.json().get('detail')}")
        time.sleep(POLL_S)
    raise NoServiceError(f"the service is not ready after {START_TIMEOUT_S:g} s")
