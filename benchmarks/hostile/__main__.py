"""Attack the service as strangers could, and report how it holds.

    python -m benchmarks.hostile [--part livez mutations ...] [--out benchmarks/results/hostile-cpu.json]

``livez``: how fast it answers beside four clients that send chunks of a byte, 200 that send a byte a second,
1,100 that send nothing, and 48 that download a result of 23 MB. ``mutations``: 400 documents with errors.
``bombs``: files that declare or unpack to far more than their size. ``leaving``: 200 clients each that leave
during an upload, a wait, and an answer. ``kill``: SIGKILL to all processes at once, then a restart on what is
left. ``soak``: memory over 3,000 pages. ``overload``: ten times the jobs that can be read. A part that fails
is recorded, and the others go on.

``--root`` serves another checkout. The last line is one JSON document. Written to its place in
``benchmarks/results``, its figures are put into docs/RELIABILITY.md, too.
"""

import argparse
import os
import signal
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.hostile.parts import PARTS, Plan
from benchmarks.hostile.table import RESULTS
from benchmarks.hostile.table import main as fill_docs
from benchmarks.report import ROOT, publish

DEFAULT = Plan()
PART_S = 300
"""Longest time of a part, in addition to what its own size needs."""


def measure(names: list[str], plan: Plan) -> dict[str, Any]:
    """Run parts one after the other. A part that raises or does not end becomes a row with its error."""
    rows: dict[str, Any] = {}
    for name in names:
        began_at = time.monotonic()
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(PART_S + int(plan.overload_s + plan.soak_pages / 5))
        try:
            rows[name] = PARTS[name](plan)
        except Exception as error:  # noqa: BLE001 - the others are still to be measured
            traceback.print_exc()
            rows[name] = {"error": f"{type(error).__name__}: {error}"}
        finally:
            signal.alarm(0)
        rows[name]["took_s"] = round(time.monotonic() - began_at, 1)
        print(f"{name}: {rows[name]}", flush=True)
    return rows


def _too_long(_: int, __: FrameType | None) -> None:
    raise TimeoutError("the part does not end")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=DEFAULT.seconds, help="beside each attack")
    parser.add_argument("--pages", type=int, default=DEFAULT.result_pages, help="of the large result")
    parser.add_argument("--mutations", type=int, default=DEFAULT.num_mutations)
    parser.add_argument("--seed", type=int, default=DEFAULT.seed)
    parser.add_argument("--overload-s", type=float, default=DEFAULT.overload_s)
    parser.add_argument("--leaving", type=int, default=DEFAULT.num_leaving)
    parser.add_argument("--soak-pages", type=int, default=DEFAULT.soak_pages)
    parser.add_argument("--reader", choices=["fake", "pocket"], default="fake", help="of the soak")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    plan = Plan(
        seconds=arguments.seconds,
        result_pages=arguments.pages,
        num_mutations=arguments.mutations,
        seed=arguments.seed,
        overload_s=arguments.overload_s,
        num_leaving=arguments.leaving,
        soak_pages=arguments.soak_pages,
        reader="model" if arguments.reader == "pocket" else "fake",
        root=arguments.root,
    )
    load = os.getloadavg()[0]
    rows = measure(arguments.part, plan)
    num_failed = sum("error" in row for row in rows.values())
    figures = {"benchmark": "hostile", "load_before": round(load, 1), "parts": rows, "num_failed": num_failed}
    publish(figures, torch.device("cpu"), arguments.out)
    if arguments.out is not None and arguments.out.resolve() == RESULTS:
        fill_docs()


if __name__ == "__main__":
    main()
