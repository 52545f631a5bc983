"""``rtprune eval``: score folders of Markdown, written by any tool, against truth.

    rtprune eval OmniDocBench.json predictions/ other=../their/markdown --out scores/
    rtprune eval OmniDocBench.json ours=scores/ours --read http://localhost:8000 --documents images/
    rtprune eval OmniDocBench.json ours=out/a whole=out/b --read --documents images --option whole:prune=none

Prints a table. ``--out`` keeps the results and every page's scores, so that a later run scores only pages
that are new or changed.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from app.evaluation.own_service import own_service
from app.evaluation.reading import missing_pages, read_pages
from app.evaluation.reports import NOTES, ToolResult, as_attribute_table, as_json, as_table
from app.evaluation.scores import PageScore
from app.evaluation.truth import ScoredPage, TruthError, find_prediction, open_truth
from rtprune.client import ClientError

Options = dict[str, dict[str, str]]
"""How each tool is read, by name."""

RULES = "2"
"""Version of the scoring rules. Raise it whenever a page's score may change: kept scores of another version
are not used.
"""
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
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="[TOOL:]NAME=VALUE",
        help="with --read: how pages are read, e.g. prune=none; for the named tool, which is read as well",
    )


def run(asked: argparse.Namespace) -> int:
    """Score the folders named by parsed arguments, print the report, and return the exit status."""
    try:
        pages = open_truth(asked.truth)
        folders = _folders(asked.predictions)
        if asked.read is not None:
            _read_missing(asked.read, asked.documents, pages, folders, _options(asked.option, folders))
        elif asked.option:
            raise TruthError("--option needs --read")
        _require_folders(folders)
        results = [_score(tool, folder, pages, asked.out) for tool, folder in folders.items()]
    except (TruthError, OSError, ClientError) as error:
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


def _read_missing(
    url: str, documents: Path | None, pages: Sequence[ScoredPage], folders: dict[str, Path], options: Options
) -> None:
    """Let a server, at ``url`` or our own, read what the tools with options lack. Say what it refuses."""
    if documents is None or not documents.is_dir():
        raise TruthError("--read needs --documents, a folder that holds the pages' files")
    missing = []
    for tool, own in options.items():
        folders[tool].mkdir(parents=True, exist_ok=True)
        found, num_without = missing_pages(pages, documents, folders[tool], own)
        missing += found
        if num_without:
            _say(f"{tool}: {num_without} pages that are missing have no file in {documents}\n")
    if not missing:
        return
    key = os.environ.get(API_KEY)
    settings = {name: value for name, value in os.environ.items() if name != API_KEY}  # no setting
    with own_service(settings) if url == OWN else contextlib.nullcontext(url) as address:
        done = partial(_progress, "reading", total=len(missing))
        asyncio.run(read_pages(address, missing, key=key, say=_say, done=done))


def _options(texts: Sequence[str], folders: dict[str, Path]) -> Options:
    """Return the options of each tool that is read: the first, and those that options are given for.

    A text is ``[TOOL:]NAME=VALUE``; without a tool it is for all of them. Raise ``TruthError``.
    """
    of_all: dict[str, str] = {}
    options: Options = {next(iter(folders)): {}}
    for text in texts:
        given, equals, value = text.partition("=")
        tool, colon, name = given.rpartition(":")
        if not (equals and name) or (colon and tool not in folders):
            raise TruthError(
                f"--option {text}: wanted is NAME=VALUE or TOOL:NAME=VALUE, of a tool named here"
            )
        (options.setdefault(tool, {}) if colon else of_all)[name] = value
    return {tool: of_all | own for tool, own in options.items()}


def _progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        _say(f"\r{what}: {done}/{total} pages" + ("\n" if done == total else ""))


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
