"""Run the command ``rtprune`` and its subcommands."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from pydantic import ValidationError

from app.commands import doctor, evaluate, keys, mcp, parse, serve, worker
from app.commands.words import WRONG_USE, given
from app.settings import Settings


class Command(Protocol):
    """The interface of the modules in ``app.commands``."""

    def add_to(self, commands: Any) -> None:
        """Add the command and its arguments to the parser."""

    def run(self, asked: argparse.Namespace, settings: Settings) -> int:
        """Run the command. Return the exit status."""


COMMANDS: dict[str, Command] = {
    "parse": parse,
    "serve": serve,
    "worker": worker,
    "keys": keys,
    "doctor": doctor,
    "mcp": mcp,
    "eval": evaluate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. Return its exit status, 2 if the command line or a setting is wrong."""
    asked = parser().parse_args(arguments)
    try:
        settings = Settings(**given(asked, "host", "port"))
    except ValidationError as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return WRONG_USE
    return COMMANDS[asked.command].run(asked, settings)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    program = argparse.ArgumentParser(prog="rtprune", description="Documents to Markdown.")
    program.add_argument("--version", action="version", version=f"rtprune {_version()}")
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add_to(commands)
    return program


def _version() -> str:
    try:
        return version("rtprune")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
