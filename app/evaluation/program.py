"""``rtprune eval``: score folders of Markdown, written by any tool, against truth.

    rtprune eval OmniDocBench.json predictions/ other=../their/markdown --out scores/
    rtprune eval OmniDocBench.json ours=scores/ours --read http://localhost:8000 --documents images/

Prints a table. ``--out`` keeps the results and every page's scores, so that a later run scores only pages
that are new or changed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from app.evaluation.own_service import own_service
from app.evaluation.reports import NOTES, ToolResult, as_attribute_table, as_json, as_table
from app.evaluation.scores import PageScore
from app.evaluation.truth import ScoredPage, TruthError, find_prediction, open_truth, prediction_path

RULES = "2"
"""Version of the scoring rules. Raise it whenever a page's score may change: kept scores of another version
are not used.
"""
READ_TIMEOUT_S = 600.0
"""Time for a document, from its submission to its result."""
ANSWER_TIMEOUT_S = 120.0
MOST_PAUSE_S = 5.0
LATER = frozenset({httpx.codes.CONFLICT, httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE})
"""Statuses of a result that is not finished (409), and of a server that is busy."""
API_KEY = "RTPRUNE_API_KEY"
OWN = ""
"""Stands for a server that the command starts."""
INTERRUPTED = 130
"""Exit status of a program that SIGINT ended."""
MAIN_METRICS = ("text_edit", "character_error", "tests_passed")


def add_parser(subparsers: Any) -> None:
    """Add ``eval`` to the subcommands of a command line."""
    _add_arguments(subparsers.add_parser("eval", help="score Markdown of any tool against truth"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with its own arguments.

    Return the exit status: 0, 2 if the command line or the truth is wrong, or 130 if it is interrupted.
    """
    parser = argparse.ArgumentParser(prog="rtprune eval", description="Score Markdown against truth.")
    _add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except KeyboardInterrupt:
        _say("\nrtprune eval: interrupted; the same command goes on from here\n")
        return INTERRUPTED


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "truth",
        type=Path,
        help="OmniDocBench's .json, a folder of olmOCR-bench's .jsonl, or a folder of .md and .txt",
    )
    parser.add_argument(
        "predictions", nargs="+", metavar="[NAME=]FOLDER", help="a tool's files, named as the pages are"
    )
    parser.add_argument("--out", type=Path, help="where results are kept, and page scores to go on from")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--read",
        metavar="URL",
        nargs="?",
        const=OWN,
        help="first let a server read what is missing of the first tool: its address, its key in"
        f" {API_KEY}; without an address one is started here",
    )
    parser.add_argument("--documents", type=Path, help="with --read: where the pages' files are")


def run(asked: argparse.Namespace) -> int:
    """Score the folders named by parsed arguments, print the report, and return the exit status."""
    try:
        pages = open_truth(asked.truth)
        folders = _folders(asked.predictions)
        if asked.read is not None:
            _read_missing(asked.read, asked.documents, pages, next(iter(folders.values())))
        _require_folders(folders)
        results = [_score(tool, folder, pages, asked.out) for tool, folder in folders.items()]
    except (TruthError, OSError, httpx.HTTPError) as error:
        _say(f"rtprune eval: {error}\n")
        return 2
    report = json.dumps(as_json(results), ensure_ascii=False, indent=1)
    if asked.out:
        (asked.out / "results.json").write_text(report + "\n", encoding="utf-8")
    _print(report if asked.json else _tables(results))
    return 0


def _tables(results: Sequence[ToolResult]) -> str:
    tables = [as_table(results), *(as_attribute_table(results, metric) for metric in MAIN_METRICS)]
    return "\n\n".join([*(table for table in tables if table), NOTES])


def _folders(texts: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each tool, by name. Raise ``TruthError`` if two have one name."""
    folders: dict[str, Path] = {}
    for text in texts:
        given, equals, folder = text.partition("=")
        name, path = (given, Path(folder)) if equals else (Path(text).resolve().name, Path(text))
        if name in folders:
            raise TruthError(f"two tools are called {name!r}: give one another name, NAME={path}")
        folders[name] = path
    return folders


def _require_folders(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        if not folder.is_dir():
            raise TruthError(f"{folder}: no such folder")


def _score(tool: str, folder: Path, pages: Sequence[ScoredPage], out: Path | None) -> ToolResult:
    kept = out / f"{tool}.pages.jsonl" if out else None
    known = _known_scores(kept)
    scores, missing = [], []
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages, start=1):
        path = find_prediction(folder, page)
        if path is None:
            missing.append(page.label)
        markdown = path.read_text(encoding="utf-8", errors="replace") if path else ""
        key = hashlib.sha256("\0".join((RULES, page.key, markdown)).encode()).hexdigest()
        samples = known.get(key)
        if samples is None:
            samples = dict(page.score(markdown).samples)
            if kept:
                with kept.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"key": key, "page": page.label, "samples": samples}) + "\n")
        scores.append(PageScore(page.label, samples, page.attributes))
        _progress(tool, number, len(pages))
    return ToolResult(tool, tuple(scores), tuple(missing))


def _known_scores(path: Path | None) -> dict[str, dict[str, tuple[float, float]]]:
    if path is None or not path.exists():
        return {}
    known = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            known[row["key"]] = {name: (float(a), float(b)) for name, (a, b) in row["samples"].items()}
        except (ValueError, KeyError, TypeError):
            continue  # an interrupted run may leave an incomplete line
    return known


def _read_missing(url: str, documents: Path | None, pages: Sequence[ScoredPage], folder: Path) -> None:
    """Let a server, at ``url`` or our own, read the pages that ``folder`` lacks. Say what it refuses."""
    if documents is None or not documents.is_dir():
        raise TruthError("--read needs --documents, a folder that holds the pages' files")
    files = {path.stem: path for path in sorted(documents.iterdir()) if path.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    key = os.environ.get(API_KEY)
    headers = {"Accept": "text/markdown"} | ({"Authorization": f"Bearer {key}"} if key else {})
    settings = {name: value for name, value in os.environ.items() if name != API_KEY}  # no setting
    with (
        own_service(settings) if url == OWN else contextlib.nullcontext(url) as address,
        httpx.Client(base_url=address, headers=headers, timeout=ANSWER_TIMEOUT_S) as client,
    ):
        for number, page in enumerate(pages, start=1):
            if find_prediction(folder, page) is None and page.name in files:
                document = files[page.name]
                answer = _read(client, document, page.number)
                if answer.status_code == httpx.codes.OK:
                    whole = prediction_path(folder, page)
                    part = whole.with_suffix(".part")  # cut short, it is not taken for the page
                    part.write_text(answer.text, encoding="utf-8")
                    part.replace(whole)
                    if answer.headers.get("RTPrune-Status") == "partial":
                        _say(f"{document.name}: not read to its end\n")
                else:
                    _say(f"{document.name}: {answer.status_code} {answer.text[:200]}\n")
            _progress("reading", number, len(pages))


def _read(client: httpx.Client, document: Path, number: int | None) -> httpx.Response:
    """Submit a document, or its page ``number``, as a job. Return the result, or the refusal."""
    deadline = time.monotonic() + READ_TIMEOUT_S
    pages = {} if number is None else {"pages": str(number)}
    files = {"file": (document.name, document.read_bytes())}
    job = _answer(lambda: client.post("/v1/jobs", files=files, data=pages), deadline)
    if job.status_code != httpx.codes.ACCEPTED:
        return job
    address = job.headers["Location"]
    try:
        return _answer(lambda: client.get(f"{address}/result"), deadline)
    except BaseException:  # whoever interrupts the command does not want the page any more
        client.delete(address)
        raise


def _answer(ask: Callable[[], httpx.Response], deadline: float) -> httpx.Response:
    """Ask again while the server is busy or not finished, until the deadline on the monotonic clock."""
    while (answer := ask()).status_code in LATER and time.monotonic() < deadline:
        told = answer.headers.get("Retry-After", "")
        time.sleep(min(float(told), MOST_PAUSE_S) if told.isdecimal() else 1.0)
    return answer


def _progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        _say(f"\r{what}: {done}/{total} pages" + ("\n" if done == total else ""))


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
