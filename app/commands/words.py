"""What all subcommands have in common: exit statuses, and the arguments that were given."""

import argparse
import os
from typing import Any

DONE = 0
NOT_ALL_READ = 1
"""Some pages or files were not read, or nothing here can read."""
WRONG_USE = 2
"""The command line, a setting or the machine's state does not let the command begin."""
INTERRUPTED = 130
CLOSED_PIPE = 141
TERMINATED = 143

Parsers = Any
"""What ``add_subparsers`` gives; argparse keeps its type to itself."""


def given(asked: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the arguments of these names that are on the command line."""
    return {name: value for name, value in vars(asked).items() if name in names and value is not None}


def add_server_to(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments that choose a service."""
    parser.add_argument(
        "--server",
        default=os.environ.get("RTPRUNE_SERVER"),
        metavar="URL",
        help="service that reads (default: RTPRUNE_SERVER, or one of its own)",
    )
    parser.add_argument(
        "--key",
        default=os.environ.get("RTPRUNE_KEY"),
        help="its API key; other users of this machine see command lines, so set RTPRUNE_KEY instead",
    )
