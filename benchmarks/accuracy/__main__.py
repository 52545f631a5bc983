"""Measure how well a checkpoint reads through the engine, beside peers on the same pages in the same run.

    python -m benchmarks.accuracy --peers --documents FOLDER --curve --out benchmarks/results/accuracy.json
    python -m benchmarks.accuracy.report            the tables and the plot in docs/, from benchmarks/results

Covers held-out rendered pages (unseen texts; unseen fonts except in "seen fonts"), blank pages, real
documents, speed, and error against what pruning keeps. training/README.md names the Debian packages needed.
Each row is printed as it is measured; the last line of stdout is one JSON document.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from app.ocr.sizing import resolve_device
from app.open_reader import open_reader
from app.reader import PageReader
from benchmarks.accuracy import peers as peers_of
from benchmarks.accuracy.browser import BROWSER, browser_pages
from benchmarks.accuracy.curve import curve, open_curve_reader
from benchmarks.accuracy.pages import (
    A4_KINDS,
    BLANK,
    CLEAN,
    OUT_OF_SCOPE,
    RENDERED,
    Kind,
    RenderedPages,
    blank_pages,
    documents,
)
from benchmarks.accuracy.reading import PLAIN, PROMPTS, PRUNINGS, Figures, blank_row, row, speed
from benchmarks.report import publish
from training.settings import Settings, load_settings

RENDERED_PAGES, BLANK_PAGES, SPEED_PAGES = 24, 8, 6
NOTES = {
    "rendered": "texts never trained on; fonts neither, but for 'seen fonts'; A4 at 150 dpi, 9 to 14 pt",
    "documents": "plain prompt, dynamic pruning; truth as it lies beside the images, receipts without case",
    "curve": "a share of the training steps read through RTPrune-pruned tokens (pruned_share in"
    " training/pocket.toml): the checkpoint was taught RTPrune's selection and fold, not the others'",
}


async def measure(arguments: argparse.Namespace, settings: Settings, save: Callable[[Figures], None]) -> None:
    """Measure all that is asked for. Save after each part, so that a run cut short keeps the parts before."""
    figures: dict[str, Any] = {
        "checkpoint": arguments.checkpoint,
        "threads": arguments.threads,
        "notes": NOTES,
    }
    rendered = RenderedPages(settings)
    if not arguments.curve_only:
        await measure_accuracy(arguments, settings, rendered, figures, save)
    if arguments.curve or arguments.curve_only:
        figures["curve"] = await measure_curve(arguments, rendered)
    save(figures)


async def measure_accuracy(
    arguments: argparse.Namespace,
    settings: Settings,
    rendered: RenderedPages,
    figures: dict[str, Any],
    save: Callable[[Figures], None],
) -> None:
    count = arguments.pages or RENDERED_PAGES
    kinds = [rendered.kind(name, count) for name in arguments.kinds if name in RENDERED]
    if BROWSER in arguments.kinds:
        kinds.append(browser_pages(settings, arguments.weasyprint).kind(count))
    real = documents(arguments.documents, arguments.pages) if arguments.documents else []
    peers, absent = (
        peers_of.find_peers(arguments.rapidocr_python, arguments.threads) if arguments.peers else ([], {})
    )
    for name, reason in absent.items():
        print(f"{name} is not measured: {reason}")
    reader = open_reader(arguments.checkpoint, arguments.device)
    try:
        figures["model"] = reader.model_name
        figures |= await read_kinds(reader, kinds, real, arguments)
    finally:
        await reader.close()
    if real:
        figures["out_of_scope"] = OUT_OF_SCOPE
    if arguments.peers_of:
        figures["peers"] = peers_of.recorded_peers(arguments.peers_of, figures["readings"])
    save(figures)
    if arguments.peers:
        rows, failed = read_by_peers(peers, [*kinds, *real])
        versions = {peer.name: peer.version for peer in peers}
        figures["peers"] = {"versions": versions, "absent": absent | failed, "rows": rows}
        save(figures)


async def read_kinds(
    reader: PageReader, kinds: Sequence[Kind], real: Sequence[Kind], arguments: argparse.Namespace
) -> Figures:
    figures: Figures = {}
    rows = [
        _shown(await row(reader, kind, prompt, pruning))
        for kind in kinds
        for prompt in arguments.prompts
        for pruning in arguments.pruning
    ]
    rows += [_shown(await row(reader, kind, PLAIN, "dynamic")) for kind in real]
    figures["readings"] = rows
    if BLANK in arguments.kinds:
        count = min(BLANK_PAGES, arguments.pages or BLANK_PAGES)
        figures["blank"] = _shown(await blank_row(reader, blank_pages(count)))
    timed = next((kind for kind in kinds if kind.name in A4_KINDS), None)
    if timed is not None:
        images = [sample.image for sample in timed.samples[:SPEED_PAGES]]
        figures["speed"] = _shown({"kind": timed.name, **await speed(reader, images)})
    return figures


def read_by_peers(
    peers: Sequence[peers_of.Peer], kinds: Sequence[Kind]
) -> tuple[list[Figures], dict[str, str]]:
    """Return a row for each kind and peer, and why peers stopped midway; the other figures are kept."""
    rows: list[Figures] = []
    failed: dict[str, str] = {}
    for kind in kinds:
        for peer in peers:
            if peer.name in failed:
                continue
            try:
                rows.append(_shown(peers_of.row(peer, kind)))
            except peers_of.PeerMissing as missing:
                failed[peer.name] = str(missing)
                print(f"{peer.name} stopped at {kind.name}: {missing}")
    return rows, failed


async def measure_curve(arguments: argparse.Namespace, rendered: RenderedPages) -> Figures:
    clean = rendered.kind(CLEAN, arguments.curve_pages or arguments.pages or RENDERED_PAGES)
    reader = open_curve_reader(arguments.checkpoint, arguments.device)
    try:
        return {"kind": CLEAN, "rows": await curve(reader, clean, show=_shown)}
    finally:
        await reader.close()


def _shown(figures: Figures) -> Figures:
    print(json.dumps(figures), flush=True)
    return figures


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", default="pocket", help="name or folder (default: %(default)s)")
    add("--device", default="auto")
    add(
        "--settings", type=Path, default=Path("training/pocket.toml"), help="fonts and word list of the pages"
    )
    add(
        "--pages",
        type=_positive,
        help=f"of each kind (default: {RENDERED_PAGES} rendered, {BLANK_PAGES} blank, all real ones)",
    )
    kinds = [*RENDERED, BLANK]
    add("--kinds", nargs="+", choices=[*kinds, BROWSER], default=kinds, help=f"default: all but {BROWSER}")
    add("--weasyprint", default="weasyprint", help=f"command that prints {BROWSER} pages")
    add(
        "--pruning",
        nargs="+",
        choices=[*PRUNINGS],
        default=[*PRUNINGS],
        help="of rendered pages; default: both",
    )
    add(
        "--prompts",
        nargs="+",
        choices=[*PROMPTS],
        default=[*PROMPTS],
        help="of rendered pages; default: both",
    )
    add("--documents", type=Path, help="folder of real pages with their truth")
    add("--peers", action="store_true", help="tesseract and RapidOCR on the same pages, where found")
    add("--peers-of", type=Path, help="their recorded rows of an earlier run, where its pages were the same")
    add("--rapidocr-python", help="interpreter that has RapidOCR (default: this one)")
    add("--curve", action="store_true", help="error against keep ratio, on the clean pages")
    add("--curve-only", action="store_true", help="that and nothing else")
    add("--curve-pages", type=_positive, help="so many of them (default: as --pages)")
    add("--threads", type=_positive, default=2, help="CPU threads (default: %(default)s)")
    add("--out", type=Path)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None, load: Callable[[Path], Settings] = load_settings) -> None:
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    device = torch.device(resolve_device(arguments.device))
    asyncio.run(
        measure(arguments, load(arguments.settings), lambda figures: publish(figures, device, arguments.out))
    )


if __name__ == "__main__":
    main()
