"""``rtprune doctor``: say what this machine has of what the service needs."""

import argparse
import asyncio

from app.commands.words import DONE, NOT_ALL_READ, Parsers
from app.doctor import examine
from app.settings import Settings


def add_to(commands: Parsers) -> None:
    commands.add_parser(
        "doctor", help="say what this machine has of what the service needs, and what to mend"
    )


def run(asked: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - the signature of all
    found = asyncio.run(examine(settings))
    print(*found, sep="\n")
    return NOT_ALL_READ if any(finding.is_fatal for finding in found) else DONE
