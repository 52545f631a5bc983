"""``rtprune eval``: score folders of Markdown, written by any tool, against truth.

    rtprune eval OmniDocBench.json predictions/ other=../their/markdown --out scores/
    rtprune eval OmniDocBench.json ours=scores/ours --read http://localhost:8000 --documents images/

Prints a table. ``--out`` keeps the results and every page's scores, so that a later run scores only pages
that are new or changed.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from app.evaluation.reports import NOTES, ToolResult, as_attribute_table, as_json, as_table
from app.evaluation.scores import PageScore
from app.evaluation.truth import ScoredPage, TruthError, find_prediction, open_truth

RULES = "1"
"""Version of the scoring rules. Raise it whenever a page's score may change: kept scores of another version
are not used.
"""
READ_TIMEOUT_S = 600.0
API_KEY = "RTPRUNE_API_KEY"
MAIN_METRICS = ("text_edit", "character_error", "tests_passed")


def add_parser(subparsers: Any) -> None:
    """Add ``eval`` to the subcommands of a command line."""
    _add_arguments(subparsers.add_parser("eval", help="score Markdown of any tool against truth"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with its own arguments.

    Return the exit status: 0, or 2 if the command line or the truth is wrong.
    """
    parser = argparse.ArgumentParser(prog="rtprune eval", description="Score Markdown against truth.")
    _add_arguments(parser)
    return run(parser.parse_args(argv))


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
        help=f"first let a server read what is missing of the first tool; its key: {API_KEY}",
    )
    parser.add_argument("--documents", type=Path, help="with --read: where the pages' files are")


def run(asked: argparse.Namespace) -> int:
    """Score the folders named by parsed arguments, print the report, and return the exit status."""
    try:
        pages = open_truth(asked.truth)
        folders = dict(_named(text) for text in asked.predictions)
        if asked.read:
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


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    return (name, Path(folder)) if equals else (Path(text).resolve().name, Path(text))


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
            missing.append(page.name)
        markdown = path.read_text(encoding="utf-8", errors="replace") if path else ""
        key = hashlib.sha256("\0".join((RULES, page.key, markdown)).encode()).hexdigest()
        samples = known.get(key)
        if samples is None:
            samples = dict(page.score(markdown).samples)
            if kept:
                with kept.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"key": key, "page": page.name, "samples": samples}) + "\n")
        scores.append(PageScore(page.name, samples, page.attributes))
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
    if documents is None or not documents.is_dir():
        raise TruthError("--read needs --documents, a folder that holds the pages' files")
    files = {path.stem: path for path in sorted(documents.iterdir()) if path.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    key = os.environ.get(API_KEY)
    headers = {"Accept": "text/markdown"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with httpx.Client(base_url=url, headers=headers, timeout=READ_TIMEOUT_S) as client:
        for number, page in enumerate(pages, start=1):
            if find_prediction(folder, page) is None and page.name in files:
                document = files[page.name]
                with document.open("rb") as content:
                    answer = client.post("/v1/parse", files={"file": (document.name, content)})
                if answer.status_code == httpx.codes.OK:  # not 202, which means that the job still runs
                    (folder / f"{page.name}.md").write_text(answer.text, encoding="utf-8")
                else:
                    _say(f"{document.name}: {answer.status_code} {answer.text[:200]}\n")
            _progress("reading", number, len(pages))


def _progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        _say(f"\r{what}: {done}/{total} pages" + ("\n" if done == total else ""))


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
