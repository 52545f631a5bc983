"""Write the comparison of pruners into docs/pruning.md as tables.

python -m benchmarks.pruners.report benchmarks/results/pruners.json
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.report import DOCS, replace_section

COLUMNS = {
    "character_error_rate": ".3f",
    "retention": ".3f",
    "loops_a_page": ".2f",
    "prune_ms": ".1f",
    "prefill_ms": ".0f",
}


def table(measured: Mapping[str, Any]) -> str:
    """Return one checkpoint's rows as a Markdown table."""
    lines = [
        "| method | error | retention | loops a page | prune ms | prefill ms | KV KiB |",
        "| --- |" + " ---: |" * 6,
    ]
    for one in measured["rows"]:
        cells = ["" if one[name] is None else format(one[name], form) for name, form in COLUMNS.items()]
        size = "" if one["kv_bytes"] is None else f"{one['kv_bytes'] / 1024:.0f}"
        lines.append(f"| {' | '.join([one['method'], *cells, size])} |")
    return "\n".join(lines)


def section(figures: Mapping[str, Any]) -> str:
    """Return Markdown for all checkpoints of one run, with pages, hardware, commit and date."""
    parts = []
    for measured in figures["checkpoints"]:
        found = ", ".join(
            f"{name} {value:.2f}" for name, value in measured["rank_correlation"].items() if value is not None
        )
        parts += [
            f"Checkpoint `{Path(measured['checkpoint']).name}`, {figures['pages']} {figures['kind']} pages,"
            " plain prompt, one attempt a page.",
            table(measured),
            f"Rank correlation with what the decoder looks at, mean over views: {found}.",
        ]
    where = f"{figures['hardware']}, commit {figures['commit']}, {figures['measured_at'][:10]}."
    return "\n\n".join([*parts, where])


def main(words: Sequence[str] | None = None) -> None:
    """Write the tables between their markers in docs/pruning.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruners.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", type=Path)
    parser.add_argument("--docs", type=Path, default=DOCS)
    asked = parser.parse_args(words)
    figures = json.loads(asked.figures.read_text(encoding="utf-8"))
    replace_section(asked.docs / "pruning.md", "pruners", section(figures))


if __name__ == "__main__":
    main()
