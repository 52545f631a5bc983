"""``rtprune mcp``: a tool that reads documents, for programs that speak the Model Context Protocol."""

import argparse
import asyncio
import sys
from pathlib import Path

from app.commands.words import DONE, INTERRUPTED, WRONG_USE, Parsers, add_server_to
from app.settings import Settings, is_loopback
from app.telemetry import log_to_stderr

DEFAULT_PORT = 8100


def add_to(commands: Parsers) -> None:
    parser = commands.add_parser("mcp", help="serve the tool parse_document to agents; see docs/agents.md")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="let documents below this folder be read; may be repeated (default: none, addresses alone)",
    )
    parser.add_argument(
        "--http", action="store_true", help="streamable HTTP at /mcp, in place of standard input and output"
    )
    # not --host and --port: those are settings of a service
    parser.add_argument("--http-host", default="127.0.0.1", metavar="HOST", help="loopback alone")
    parser.add_argument("--http-port", default=DEFAULT_PORT, type=int, metavar="PORT")
    add_server_to(parser)


def run(asked: argparse.Namespace, settings: Settings) -> int:
    settings = settings.model_copy(update={"log_level": "WARNING"})
    log_to_stderr(settings)
    if asked.http and not is_loopback(asked.http_host):
        said = (
            "has no keys: it listens on this machine alone; others reach `rtprune serve` and `mcp --server`"
        )
        print(f"rtprune: mcp {said}", file=sys.stderr)
        return WRONG_USE
    for folder in asked.allow:
        if not folder.is_dir():
            print(f"rtprune: --allow {folder}: there is no such folder", file=sys.stderr)
            return WRONG_USE
    try:
        from app.commands.mcp_server import serve  # noqa: PLC0415 - the SDK is an extra of its own
    except ModuleNotFoundError as error:
        if error.name != "mcp":
            raise
        print("rtprune: mcp is not installed: pip install 'rtprune[mcp]'", file=sys.stderr)
        return WRONG_USE
    try:
        asyncio.run(serve(asked, settings))
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE
