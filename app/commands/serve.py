"""``rtprune serve``: answer HTTP."""

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from app.commands.words import DONE, NOT_ALL_READ, WRONG_USE, Parsers
from app.errors import StorageFull, StorageUnavailable
from app.http.connections import connection_class
from app.jobs.keys import open_keys
from app.main import create_app, let_go
from app.processes import keep_private
from app.settings import Settings, is_loopback
from app.telemetry import log_to_stderr

MAX_WEBSOCKET_BYTES = 4096
"""What a client says on a websocket is a word; more is refused."""
SWITCH_S = 0.001

logger = logging.getLogger("rtprune.cli")


def add_to(commands: Parsers) -> None:
    parser = commands.add_parser("serve", help="answer HTTP; settings come from RTPRUNE_* variables")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)


def run(asked: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - they are among the settings
    keep_private()
    problem = _unwritable(settings) or _taken(settings)
    if problem:
        print(f"rtprune: {problem}", file=sys.stderr)
        return WRONG_USE
    log_to_stderr(settings)
    if not is_loopback(settings.host) and not _may_listen(settings):
        return WRONG_USE
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        http=connection_class(settings),
        timeout_keep_alive=settings.keep_alive_s,
        ws="websockets-sansio",
        ws_max_size=MAX_WEBSOCKET_BYTES,
        proxy_headers=False,  # Proxies reads them, from those that are trusted
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_grace_s),
    )
    # a thread that puts a large result together keeps the event loop waiting for so long, again and again
    sys.setswitchinterval(SWITCH_S)
    # What is there now stays. A collection that looks at all of it holds everything up for 100 ms.
    gc.collect()
    gc.freeze()
    server = _Server(config, lambda: let_go(app))
    server.run()
    return DONE if server.started else NOT_ALL_READ


class _Server(uvicorn.Server):
    """Calls ``on_exit`` at the first SIGTERM or SIGINT, and then ends with status 0.

    uvicorn tells an application when all its requests are answered, which those who wait for a job are not.
    """

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._exit, number)
        yield

    def _exit(self, number: signal.Signals) -> None:
        self.handle_exit(number, None)
        self._on_exit()


def _unwritable(settings: Settings) -> str | None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            return None
    except OSError as error:
        return f"nothing can be kept in {settings.data_dir}: {error.strerror}"


def _taken(settings: Settings) -> str | None:
    """Say why nothing can listen where it is to. uvicorn would say so when a model is being loaded."""
    if settings.port == 0:
        return None
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                # as uvicorn's: what the last service's connections left behind keeps no new one from starting
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        advice = "; choose another one with --port, or 0 for a free one"
        return f"cannot listen on {settings.host} port {settings.port}: {error.strerror}{advice}"
    return None


def _may_listen(settings: Settings) -> bool:
    """Tell whether the service may listen where other machines reach it; say so if it is open to them."""
    try:
        with open_keys(settings) as keys:
            if keys.all():
                return True
    except (StorageUnavailable, StorageFull) as error:
        # it answers 503, then 401 until there is a key
        logger.warning("API keys are not known yet", extra={"reason": str(error)})
        return True
    if settings.allow_open:
        logger.warning(
            "no API keys: anyone who reaches this service may use it; make one with: rtprune keys add NAME",
            extra={"host": settings.host},
        )
        return True
    print(
        f"rtprune: {settings.host} can be reached by others and there are no API keys: make one with "
        "`rtprune keys add NAME`, listen on 127.0.0.1, or set RTPRUNE_ALLOW_OPEN=true",
        file=sys.stderr,
    )
    return False
