"""Measure the full-size figures; a configuration that fails does not harm the others.

A configuration that raises becomes a row with its error. So does one that kills its process
(an illegal address, the kernel's memory killer); the rest then continues in a new process. The document is
always printed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.full_size import PAPER_KEEP_RATIO, cases
from benchmarks.measuring import failed
from benchmarks.report import ROOT
from benchmarks.whole import NAME as WHOLE

Configuration = tuple[str, int]
PRUNED = "large pruned"
PRUNE_PAGES = 32
"""Number of pages at which the aim for pruning is stated."""
WHOLE_PAGES = 64
"""Number of pages at which the aim for the whole engine is stated."""
PASSED_ON = ("device", "output_tokens", "encode_pages", "prefill_tokens", "raise_at", "die_at")


def configurations(batches: Sequence[int], *, tiny: bool) -> list[Configuration]:
    """List every case at every number of pages, smallest first.

    Pruning is also measured at 32 pages, and the whole engine at 64.
    """
    names = [case.name for case in cases(tiny=tiny)]
    pruned = {*batches, PRUNE_PAGES} if max(batches) >= PRUNE_PAGES else {*batches}
    rows = [(name, pages) for name in names for pages in sorted(pruned if name == PRUNED else {*batches})]
    return [*rows, (WHOLE, WHOLE_PAGES)] if WHOLE_PAGES in batches else rows


def measure(args: argparse.Namespace) -> dict[str, object]:
    todo = configurations(args.batches, tiny=args.tiny_sizes)
    rows: dict[Configuration, dict[str, Any]] = {}
    about: dict[str, object] = {}
    while left := [one for one in todo if one not in rows]:
        begun = left[0]
        for what, value in told(args, left):
            if what == "begun":
                begun = (value[0], value[1])
            elif what == "about":
                about = about or value
            else:
                print(value, flush=True)
                rows[value["mode"], value["pages"]] = value
        if all(one not in rows for one in left):
            rows[begun] = failed(*begun, "its process ended")
        elif begun not in rows:
            rows[begun] = failed(*begun, "its process ended while it was measured")
    return {**summary(rows), **about, "keep_ratio": PAPER_KEEP_RATIO, "rows": [rows[one] for one in todo]}


def told(args: argparse.Namespace, todo: list[Configuration]) -> Iterator[tuple[str, Any]]:
    """Measure ``todo`` in a process of its own; yield (topic, value) as it reports them."""
    words = [sys.executable, "-m", "benchmarks.measuring", "--configurations", json.dumps(todo)]
    for name in PASSED_ON:
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    words += [f"--{flag}" for flag in ("tiny-sizes", "native") if getattr(args, flag.replace("-", "_"))]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout or ():
            if line.startswith("{"):
                yield from json.loads(line).items()


def summary(rows: dict[Configuration, dict[str, Any]]) -> dict[str, object]:
    """Pick the figures that aims are stated for; ``None`` where one was not measured."""

    def figure(name: str, pages: int, key: str) -> object:
        return rows.get((name, pages), {}).get(key)

    return {
        "tok_per_s_1": figure("base", 1, "decode_tok_per_s"),
        "tok_per_s_100": figure("base", 100, "decode_tok_per_s"),
        "pages_per_s_base_64": figure("base", 64, "pages_per_s"),
        "engine_pages_per_s_base_64": figure(WHOLE, WHOLE_PAGES, "pages_per_s"),
        "prune_ms_a_page_32": figure(PRUNED, PRUNE_PAGES, "prune_ms_a_page"),
        "num_failed": sum("error" in row for row in rows.values()),
    }
