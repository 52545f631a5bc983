"""``rtprune serve``, ``parse FILE...``, ``doctor`` and ``keys add|list|revoke``."""

import argparse
import asyncio
import gc
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError

from app.doctor import examine
from app.document import ParseOptions
from app.documents.formats import sniff_file
from app.documents.spool import Spool
from app.errors import ParseError, StorageFull, StorageUnavailable
from app.http.connections import connection_class
from app.http.schemas.parse import DocumentShape, OptionFields
from app.jobs.api.jobs import Jobs
from app.jobs.api.outcome import raise_if_unread
from app.jobs.api.submission import Submission
from app.jobs.keys import SCOPES, Keys, open_keys
from app.main import create_app, embedded, let_go
from app.output.pages import join_pages
from app.processes import keep_private
from app.settings import Settings, is_loopback
from app.telemetry import Metrics, log_to_stderr

OPTIONS = (
    *("mode", "prune", "keep_ratio", "pages", "dpi", "prompt", "max_output_tokens"),
    *("math", "headers", "join_pages", "page_marks"),
)
FOREVER_S = 10.0**9
SWITCH_S = 0.001

logger = logging.getLogger("rtprune.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all was read, 1 some pages or files were not, 2 the command line is wrong.

    Of ``doctor``: 1 if something is missing without which the service does not work.
    """
    asked = _parser().parse_args(arguments)
    try:
        settings = Settings(**_given(asked, "host", "port"))
    except ValidationError as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return 2
    if asked.command == "serve":
        return _serve(settings)
    if asked.command == "doctor":
        return _doctor(settings)
    settings = settings.model_copy(update={"log_level": "WARNING"})  # of the worker, too
    keep_private()
    if asked.command == "keys":
        return _keys(asked, settings)
    log_to_stderr(settings)
    try:
        fields = OptionFields.from_form(_given(asked, *OPTIONS))
        options = fields.options(settings)
    except ParseError as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return 2
    return asyncio.run(_parse_files(asked.files, options, settings, as_json=asked.json))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rtprune", description="Documents to Markdown.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer HTTP; settings come from RTPRUNE_* variables")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    commands.add_parser("doctor", help="say what this machine has of what the service needs")
    parse = commands.add_parser("parse", help="parse files and print Markdown, or one JSON object a file")
    parse.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parse.add_argument("--json", action="store_true", help="print what the HTTP service would answer")
    _add_keys(
        commands.add_parser("keys", help="make, list and revoke API keys; once there is one, all need one")
    )
    for name in OPTIONS:
        parse.add_argument(f"--{name.replace('_', '-')}", help=OptionFields.model_fields[name].description)
    return parser


def _doctor(settings: Settings) -> int:
    found = asyncio.run(examine(settings))
    print(*found, sep="\n")
    return int(any(finding.is_fatal for finding in found))


def _add_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="what it is called in lists; a name is used once")
    add.add_argument(
        "--scope", choices=SCOPES, default="submit", help="read < submit < admin (default: submit)"
    )
    add.add_argument("--owner", help="whose jobs it makes and sees (default: its name); keys may share one")
    add.add_argument(
        "--max-jobs", type=int, help="most unfinished jobs (default: RTPRUNE_MAX_JOBS_PER_CLIENT)"
    )
    add.add_argument("--pages-per-minute", type=int, help="most pages accepted a minute (default: no limit)")
    actions.add_parser("list", help="show names, scopes and limits")
    actions.add_parser("revoke", help="let a key open nothing any more").add_argument("name")


def _keys(asked: argparse.Namespace, settings: Settings) -> int:
    log_to_stderr(settings)
    try:
        with open_keys(settings) as keys:
            return _act_on_keys(asked, keys)
    except ValueError as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return 2
    except (StorageUnavailable, StorageFull) as error:
        print(f"rtprune: {error}", file=sys.stderr)
        return 1


def _act_on_keys(asked: argparse.Namespace, keys: Keys) -> int:
    if asked.action == "add":
        print(keys.add(**_given(asked, "name", "scope", "owner", "max_jobs", "pages_per_minute")))
        print("rtprune: keep it; only its hash is stored", file=sys.stderr)
        return 0
    if asked.action == "revoke":
        if not keys.revoke(asked.name):
            raise ValueError(f"there is no key called {asked.name} that is valid")
        return 0
    print("name\towner\tscope\tmax jobs\tpages a minute\tmade\trevoked")
    for key in keys.all():
        limits = (key.max_jobs or "default", key.pages_per_minute or "any")
        times = (_day(key.created_at), _day(key.revoked_at) if key.revoked_at else "")
        print(key.name, key.owner, key.scope, *limits, *times, sep="\t")
    return 0


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _given(asked: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name, value in vars(asked).items() if name in names and value is not None}


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


def _serve(settings: Settings) -> int:
    keep_private()
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            pass
    except OSError as error:
        print(f"rtprune: nothing can be kept in {settings.data_dir}: {error.strerror}", file=sys.stderr)
        return 2
    log_to_stderr(settings)
    if not is_loopback(settings.host) and not _may_listen(settings):
        return 2
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        http=connection_class(settings),
        timeout_keep_alive=settings.keep_alive_s,
        ws="none",
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
    return 0 if server.started else 1


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


async def _parse_files(
    files: Sequence[Path], options: ParseOptions, settings: Settings, *, as_json: bool
) -> int:
    spool = Spool.open(settings.data_dir)
    # a database of its own, gone with this process: nobody else is to work on these files
    settings = settings.model_copy(
        update={"data_dir": spool.tmp_dir, "database_url": "", "blob_url": "", "embedded_worker": True}
    )
    jobs = Jobs(settings, spool.tmp_dir)
    supervisor = embedded(settings, jobs, spool, Metrics())
    await jobs.start()
    supervisor.start()
    try:
        readiness = await jobs.wait_ready()
        if not readiness.ready:
            print(f"rtprune: {readiness.detail}", file=sys.stderr)
            return 1
        all_read = [await _parse_file(file, options, jobs, as_json=as_json) for file in files]
    finally:
        await supervisor.close()
        await jobs.close()
        spool.close()
    return 0 if all(all_read) else 1


async def _parse_file(file: Path, options: ParseOptions, jobs: Jobs, *, as_json: bool) -> bool:
    """Print one file's answer. False when not all of it was read; then standard error has the reason."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            # the queue takes its document away; the user's file stays
            copy = await asyncio.to_thread(shutil.copyfile, file, Path(folder) / "document")
            job, _ = await jobs.submit(sniff_file(copy), options, Submission("cli"))
        document = await jobs.document(await jobs.watcher.wait(job.id, FOREVER_S))
        raise_if_unread(document)
    except (ParseError, OSError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return False
    for page in document.pages:
        said = [page.failure.detail] if page.failure else [warning.detail for warning in page.warnings]
        for sentence in said:
            print(f"{file}, page {page.index + 1}: {sentence}", file=sys.stderr)
    if as_json:
        print(DocumentShape.of(document, options.answer).model_dump_json(), flush=True)
    else:
        joined = join_pages(document.pages, options.answer)
        print(joined.markdown(dollars=options.answer.math != "latex"), flush=True)
    return document.status == "succeeded"


if __name__ == "__main__":
    sys.exit(main())
