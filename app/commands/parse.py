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
    DONE,
    INTERRUPTED,
    NOT_ALL_READ,
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
    *("mode", "prune", "keep_ratio", "pages", "dpi", "prompt", "max_output_tokens"),
    *("math", "headers", "join_pages", "page_marks", "images", "tokens"),
)
# docling's is JSON as well: two formats of a document may lie side by side
SUFFIXES = {name: f".{one.suffix}" for name, one in FORMATS.items()} | {"docling": ".docling.json"}
DEFAULT_JOBS = 8
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
    try:
        return asyncio.run(_until_signalled(_parse(asked, settings, fields)))
    except KeyboardInterrupt:
        print(
            "rtprune: interrupted" + ("; the same command goes on" if asked.output else ""), file=sys.stderr
        )
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read the output has had enough; the interpreter would complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Run until the end or SIGTERM, at which everything that was started is ended."""
    task = asyncio.ensure_future(work)
    was_terminated = False

    def terminate() -> None:
        nonlocal was_terminated
        was_terminated = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if was_terminated:
            return TERMINATED
        raise


async def _parse(asked: argparse.Namespace, settings: Settings, fields: OptionFields) -> int:
    # not before they are needed: the API's process has nothing of the library
    from app.commands.batch import Batch, Wish  # noqa: PLC0415
    from app.commands.connection import CannotRead, connected  # noqa: PLC0415
    from app.commands.inputs import find_inputs  # noqa: PLC0415
    from app.commands.progress import open_progress  # noqa: PLC0415
    from app.commands.results import ResultFolder  # noqa: PLC0415
    from rtprune.client import Options  # noqa: PLC0415

    options: Options = fields.model_dump(exclude_unset=True)  # type: ignore[assignment]

    try:
        folder = ResultFolder(asked.output, SUFFIXES[asked.format], options) if asked.output else None
    except OSError as error:
        print(f"rtprune: results cannot be kept in {asked.output}: {error.strerror}", file=sys.stderr)
        return WRONG_USE
    inputs, num_others = await asyncio.to_thread(find_inputs, asked.inputs, asked.output)
    if num_others:
        print(f"rtprune: left out what is no document: {num_others} in folders", file=sys.stderr)
    waiting = inputs
    if folder is not None and not asked.force:
        waiting = [one for one in inputs if not folder.is_done(one)]
        if num_done := len(inputs) - len(waiting):
            print(f"rtprune: left out what is done: {num_done}; --force reads it again", file=sys.stderr)
    if not waiting:
        return DONE
    progress = open_progress(len(waiting), to_folder=folder is not None)
    wish = Wish(options, asked.format, asked.jobs, folder, overwrites=asked.force)
    try:
        async with connected(asked, settings) as client:
            all_read = await Batch(client, wish, progress, with_names=len(inputs) > 1).read(waiting)
    except CannotRead as error:
        progress.say(f"rtprune: {error}")
        return NOT_ALL_READ
    finally:
        progress.close()
    return DONE if all_read else NOT_ALL_READ
