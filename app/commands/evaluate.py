"""List ``rtprune eval`` among the commands. ``app.program`` starts it: it needs no service."""

import argparse
from typing import Any

from app.settings import Settings


def add_to(commands: Any) -> None:
    """Add ``eval`` to the commands. All its arguments are passed on: its own parser knows them."""
    command = commands.add_parser(
        "eval", help="score Markdown of any tool against truth (see docs/evaluation.md)", add_help=False
    )
    command.add_argument("arguments", nargs=argparse.REMAINDER)


def run(asked: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - the signature of all
    """Run the evaluation with the arguments that followed the command's name."""
    from app.evaluation.program import main  # noqa: PLC0415 - needs an extra, which may be missing

    return main(asked.arguments)
