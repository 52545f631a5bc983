"""``rtprune parse``: read documents, here or by a service elsewhere."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from app.commands.words import (
    CLOSED_PIPE,
    INTERRUPTED,
    TERMINATED,
    WRONG_USE,
    Parsers,
    add_server_to,
    given,
)
from app.errors import ParseError
from app.http.schemas.parse import OptionFields
from app.output.formats import FORMATS
from app.settings import Settings
from app.telemetry import log_to_stderr

OPTIONS = (
    *("mode", "prune", "keep_ratio", "pages", "dpi", "prompt", "max_output_tokens", "fixation"),
    *("pages_per_prompt", "math", "headers", "join_pages", "page_marks", "images", "tokens"),
)
# docling's is JSON as well: two formats of a document may lie side by side
SUFFIXES = {name: f".{one.suffix}" for name, one in FORMATS.items()} | {"docling": ".docling.json"}
DEFAULT_JOBS = 8
STATUSES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
CANCEL_AGAIN_S = 10.0
"""Longer than ending the jobs of a command may take, which a second cancellation would interrupt."""
EPILOG = """\
exit status: 0 all was read; 1 some pages or files were not, each with a line on standard error;
2 the command line or a setting is wrong; 130 interrupted, 141 the reader of the output left, 143 terminated.
See docs/cli.md.
"""


def add_to(commands: Parsers) -> None:
    parser = commands.add_parser(
        "parse",
        help="read files, folders and addresses",
        description="Read documents, and print Markdown or write a file for each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE|FOLDER|URL|-", help="- is standard input; folders with all below"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write results here, named after inputs"
    )
    parser.add_argument(
        "--format", choices=SUFFIXES, default="markdown", help="what to write (default: markdown)"
    )
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="the same as --format json"
    )
    parser.add_argument(
        "--force", action="store_true", help="with -o: read again what is done, and overwrite"
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        default=DEFAULT_JOBS,
        metavar="N",
        help=f"documents at a time (default: {DEFAULT_JOBS})",
    )
    add_server_to(parser)
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", help=OptionFields.model_fields[name].description)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(asked: argparse.Namespace, settings: Settings) -> int:
    settings = settings.model_copy(update={"log_level": "WARNING"})  # of the worker, too
    log_to_stderr(settings)
    if (
        FORMATS[asked.format].is_file
        and asked.output is None
        and (len(asked.inputs) > 1 or sys.stdout.isatty())
    ):
        print(
            f"rtprune: {asked.format} is a file: say where to with -o, or > FILE for one input",
            file=sys.stderr,
        )
        return WRONG_USE
    try:
        fields = OptionFields.from_form(given(asked, *OPTIONS))
        if not asked.server:
            fields.options(settings)
    except ParseError as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return WRONG_USE
    # not before it is needed: the process of `rtprune serve` has nothing of the client
    from app.commands.batch import parse_documents  # noqa: PLC0415

    try:
        suffix = SUFFIXES[asked.format]
        status = asyncio.run(_until_signalled(parse_documents(asked, settings, fields, suffix)))
    except KeyboardInterrupt:  # before the handler was there
        status = INTERRUPTED
    except BrokenPipeError:
        # whoever read the output has had enough; the interpreter would complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    if status == INTERRUPTED:
        print(
            "rtprune: interrupted" + ("; the same command goes on" if asked.output else ""), file=sys.stderr
        )
    return status


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Run until the end or a signal, at which everything that was started is ended. Return the exit status.

    A library may lose a cancellation that comes together with what it waited for, so it is repeated.
    """
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    status = 0

    def end(number: signal.Signals) -> None:
        nonlocal status
        status = STATUSES[number]
        cancel()

    def cancel() -> None:
        if not task.done():
            task.cancel()
            loop.call_later(CANCEL_AGAIN_S, cancel)

    for number in STATUSES:
        loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if status == 0:
            raise
        return status
