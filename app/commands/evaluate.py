"""``rtprune eval``: listed here; ``app.program`` starts it, because it needs nothing of the service."""

import argparse
from typing import Any

from app.settings import Settings


def add_to(commands: Any) -> None:
    """Describe the arguments: its own parser knows them."""
    command = commands.add_parser(
        "eval", help="score Markdown of any tool against truth (see docs/evaluation.md)", add_help=False
    )
    command.add_argument("arguments", nargs=argparse.REMAINDER)


def run(asked: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001 - the signature of all
    """Hand on what followed the command's name."""
    from app.evaluation.program import main  # noqa: PLC0415 - has an extra of its own, which may be missing

    return main(asked.arguments)
