"""``rtprune worker``: read pages for services that share its database."""

import argparse

from app.commands.words import DONE, Parsers
from app.settings import Settings


def add_to(commands: Parsers) -> None:
    commands.add_parser("worker", help="read pages of a database that services share; see docs/deploy.md")


def run(asked: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - it reads them itself
    from app.worker import main as work  # noqa: PLC0415 - nothing of it belongs into the API's process

    work()
    return DONE
