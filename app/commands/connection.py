"""Connect a command to a service: one that already runs, or its own for as long as the command runs."""

import argparse
import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import uvicorn

from app.http.connections import connection_class
from app.main import create_app, let_go
from app.processes import keep_private
from app.settings import Settings
from rtprune.client import AsyncClient, Readiness

MAX_SOCKET_PATH = 100  # bytes; Linux takes 107
NUM_RETRIES = 20
"""Retries of a request when the service's queue is full. They last some minutes."""
UNLIMITED = 2**31 - 1
MAX_UPLOAD_MIB = 4096
FOREVER_S = 10.0**9


class CannotRead(Exception):
    """The command's own service cannot read pages. The text says why."""


@asynccontextmanager
async def connected(asked: argparse.Namespace, settings: Settings) -> AsyncIterator[AsyncClient]:
    """Yield a client of the chosen service. Raise ``CannotRead`` if the command's own cannot read pages."""
    if asked.server:
        async with AsyncClient(asked.server, key=asked.key, num_retries=NUM_RETRIES) as client:
            yield client
        return
    keep_private()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rtprune-")))
        path = folder / "socket"
        if len(bytes(path)) > MAX_SOCKET_PATH:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))) / "socket"
        async with _served(_own(settings, folder), path):
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with AsyncClient("http://localhost", transport=transport) as client:
                yield client


def _own(settings: Settings, folder: Path) -> Settings:
    """Return settings for a service of one user. Limits that protect users from each other are lifted."""
    return settings.model_copy(
        update={
            "data_dir": folder,
            "database_url": "",
            "blob_url": "",
            "embedded_worker": True,
            "host": "127.0.0.1",
            "allowed_hosts": "",
            "trusted_proxies": "",
            "root_path": "",
            "max_upload_mib": MAX_UPLOAD_MIB,
            "max_queued_pages": UNLIMITED,
            "max_jobs_per_client": UNLIMITED,
            "result_lifetime_s": FOREVER_S,
            "upload_deadline_s": FOREVER_S,
            "shutdown_grace_s": 0.0,
            "worker_metrics_port": 0,
        }
    )


class _OwnServer(uvicorn.Server):
    """Server that leaves signals to the command and sets ``answers`` once it accepts requests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _served(settings: Settings, path: Path) -> AsyncIterator[Readiness]:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        uds=str(path),  # in a folder that only this user can enter
        log_config=None,
        access_log=False,
        http=connection_class(settings),
        ws="none",
        proxy_headers=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    server = _OwnServer(config)
    serving = asyncio.create_task(server.serve(), name="own service")
    try:
        answering = asyncio.create_task(server.answers.wait(), name="own service answers")
        await asyncio.wait({answering, serving}, return_when=asyncio.FIRST_COMPLETED)
        answering.cancel()
        if serving.done():
            raise CannotRead("the service does not start; the lines above say why")
        ready = await app.state.service.jobs.wait_ready()
        if not ready.ready:
            raise CannotRead(ready.detail)
        yield Readiness("ready", ready.phase, ready.model, tuple(sorted(ready.modes)))
    finally:
        if not serving.done():
            let_go(app)
            server.should_exit = True
            await serving
