"""Score the pocket checkpoint's Markdown and that of other tools on annotated pages with ``rtprune eval``.

    python -m benchmarks.evaluation --documents FOLDER [--tool NAME=FOLDER] [--tesseract LANGUAGES]
        [--rapidocr-python PYTHON] [--keep FOLDER] [--out benchmarks/results/evaluation.json]

``--documents``: a folder in OmniDocBench's layout, one ``.json`` and ``images``. Ours is read by a server
that is started for it. ``--tool``: Markdown that another tool wrote. tesseract and RapidOCR are run here if
asked for; their answer is plain text. ``--keep``: where answers and page scores are kept; a run that was cut
short goes on there. The last line of stdout is one JSON document. Written to its place in
``benchmarks/results``, its table is put into docs/evaluation.md, too.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from app.evaluation.program import main as evaluate
from benchmarks.accuracy.peers import Peer, RapidOcr, Tesseract
from benchmarks.accuracy.report import DOCS, replace_section
from benchmarks.report import ROOT, publish
from benchmarks.service import serving

RESULTS = ROOT / "benchmarks" / "results" / "evaluation.json"
OURS = "pocket checkpoint"
POCKET = {"RTPRUNE_READER": "model", "RTPRUNE_MODEL": "pocket", "RTPRUNE_PAGE_DEADLINE_S": "600"}
"""Settings of our server. The deadline is long: beside other work, no page is cut short."""
METRICS = (
    "overall",
    "text_edit",
    "formula_edit",
    "order_edit",
    "teds",
    "teds_structure",
    "grits",
    "cells",
)
LANGUAGE, TEXT = "language", "text_edit"
TOGETHER = 6
"""Pages that a peer is given at once: some load their models for each call."""
SCORED_FAILED = 2
"""Exit status of ``rtprune eval`` when something is wrong."""


def read_by_us(truth: Path, images: Path, folder: Path) -> None:
    """Have a server with the pocket checkpoint read what ``folder`` lacks, by ``rtprune eval --read``."""
    with serving(POCKET) as (http, _):
        words = [str(truth), str(folder), "--read", str(http.base_url), "--documents", str(images)]
        if evaluate(words) == SCORED_FAILED:
            raise SystemExit("the pages could not be read")


def read_by_peer(peer: Peer, images: Path, folder: Path) -> None:
    """Write the peer's text of every image that ``folder`` lacks, ``TOGETHER`` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [path for path in sorted(images.iterdir()) if not (folder / f"{path.stem}.md").exists()]
    for first in range(0, len(missing), TOGETHER):
        batch = missing[first : first + TOGETHER]
        with tempfile.TemporaryDirectory() as alone:
            pages = [Path(alone) / f"{number}.png" for number in range(len(batch))]
            for path, page in zip(batch, pages, strict=True):
                with Image.open(path) as image:
                    image.convert("RGB").save(page)
            answers = peer.read(pages)
        for path, answer in zip(batch, answers, strict=True):
            (folder / f"{path.stem}.md").write_text(answer.text, encoding="utf-8")
        print(f"{peer.name}: {first + len(batch)} of {len(missing)} pages", flush=True)


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of ``results.json`` what the tables show: scores of all pages, and text by language."""
    return {
        name: {
            "pages": tool["pages"],
            "missing": len(tool["missing"]),
            "scores": {metric: tool["scores"][metric] for metric in METRICS if metric in tool["scores"]},
            "text_edit_by_language": {
                value: scores[TEXT]
                for value, scores in tool["by_attribute"].get(LANGUAGE, {}).items()
                if TEXT in scores
            },
        }
        for name, tool in results["tools"].items()
    }


def table(figures: Mapping[str, Any]) -> str:
    """Return a Markdown table: a row for each metric and language, a column for each tool, best first."""
    tools = figures["tools"]
    names = sorted(tools, key=lambda name: float(tools[name]["scores"][TEXT]["value"]))
    languages = sorted({language for one in tools.values() for language in one["text_edit_by_language"]})
    rows = [["", *names], ["---", *["---:"] * len(names)]]
    rows += [
        [f"`{metric}`", *(_cell(tools[name]["scores"].get(metric)) for name in names)] for metric in METRICS
    ]
    rows += [
        [
            f"`text_edit`, {language.replace('_', ' ')}",
            *(_cell(tools[name]["text_edit_by_language"].get(language)) for name in names),
        ]
        for language in languages
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _cell(score: Mapping[str, float | None] | None) -> str:
    if score is None or score["value"] is None:
        return ""
    digits = 1 if score["value"] > 1 else 3
    shown = f"{score['value']:.{digits}f}"
    return (
        shown
        if score["low"] is None
        else f"{shown} ({score['low']:.{digits}f} to {score['high']:.{digits}f})"
    )


def section(figures: Mapping[str, Any]) -> str:
    """Return the table with its source, as docs/evaluation.md shows it."""
    versions = "; ".join(f"{name}: {what}" for name, what in figures["versions"].items())
    source = f"{figures['hardware']}, commit {figures['commit']}, {figures['measured_at'][:10]}. {versions}."
    return f"{table(figures)}\n\n{source}"


def main(words: Sequence[str] | None = None, ours: Callable[[Path, Path, Path], None] = read_by_us) -> None:
    """Read, score, publish. ``ours``: reads ``(truth, images, folder)``."""
    asked = _parse(words)
    [truth] = sorted(asked.documents.glob("*.json"))
    images = asked.documents / "images"
    with tempfile.TemporaryDirectory() as scratch:
        keep = asked.keep or Path(scratch)
        folders = {OURS: keep / "ours", **dict(asked.tool)}
        versions = {OURS: "reads English print alone"}
        ours(truth, images, folders[OURS])
        for peer, says in _peers(asked):
            folders[peer.name] = keep / peer.name
            versions[peer.name] = says
            read_by_peer(peer, images, folders[peer.name])
        scores = keep / "scores"
        named = [f"{name}={folder}" for name, folder in folders.items()]
        if evaluate([str(truth), *named, "--out", str(scores)]) == SCORED_FAILED:
            raise SystemExit("the pages could not be scored")
        results = json.loads((scores / "results.json").read_text(encoding="utf-8"))
    figures = {"pages": results["tools"][OURS]["pages"], "versions": versions, "tools": summary(results)}
    publish(figures, torch.device("cpu"), asked.out)
    if asked.out and asked.out.resolve() == RESULTS:
        replace_section(DOCS / "evaluation.md", "evaluation", section(json.loads(RESULTS.read_text())))


def _peers(asked: argparse.Namespace) -> list[tuple[Peer, str]]:
    peers: list[tuple[Peer, str]] = []
    if asked.tesseract:
        tesseract = Tesseract(threads=1, languages=asked.tesseract)
        peers.append((tesseract, f"{tesseract.version}, {asked.tesseract}, plain text"))
    if asked.rapidocr_python:
        rapidocr = RapidOcr(asked.rapidocr_python)
        peers.append((rapidocr, f"{rapidocr.version}, its defaults, plain text"))
    return peers


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--tool", type=_named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--tesseract", metavar="LANGUAGES")
    parser.add_argument("--rapidocr-python", metavar="PYTHON")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(words)


def _named(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if not (name and equals and Path(folder).is_dir()):
        raise argparse.ArgumentTypeError(f"must be NAME=FOLDER with a folder that exists, got {word}")
    return name, Path(folder)


if __name__ == "__main__":
    main()
