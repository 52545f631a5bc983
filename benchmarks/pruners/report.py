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
    "error": ("character_error_rate", ".3f"),
    "retention": ("retention", ".3f"),
    "loops a page": ("loops_a_page", ".2f"),
    "prune ms": ("prune_ms", ".1f"),
    "prefill ms": ("prefill_ms", ".0f"),
    "KV KiB": ("kv_kib", ".0f"),
}
INSIDE_COLUMNS = {
    "error against unpruned": ("error_to_unpruned", ".3f"),
    "KV held": ("kv_held", ".3f"),
    "KV read a step": ("kv_read", ".3f"),
    "views cut off": ("views_cut_off", "d"),
}


def table(measured: Mapping[str, Any]) -> str:
    """Return one checkpoint's rows as a Markdown table."""
    rows = [{**one, "kv_kib": None if one["kv_bytes"] is None else one["kv_bytes"] / 1024}
            for one in measured["rows"]]  # fmt: skip
    return _table(rows, COLUMNS)


def inside_table(inside: Mapping[str, Any]) -> str:
    """Return the rows of methods inside the decoder as a Markdown table."""
    return _table(inside["rows"], INSIDE_COLUMNS)


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> str:
    lines = [f"| method | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for one in rows:
        cells = ["" if one[name] is None else format(one[name], form) for name, form in columns.values()]
        lines.append(f"| {' | '.join([one['method'], *cells])} |")
    return "\n".join(lines)


def section(figures: Mapping[str, Any]) -> str:
    """Return Markdown of the rows before the decoder, for all checkpoints of one run."""
    parts = []
    for measured in figures["checkpoints"]:
        name = measured["checkpoint"]
        if "rows" not in measured:
            reason = measured.get("not_measured")
            parts += [f"Checkpoint `{name}`: not measured on {_date(figures)}: {reason}."] if reason else []
            continue
        found = ", ".join(
            f"{name} {value:.2f}" for name, value in measured["rank_correlation"].items() if value is not None
        )
        parts += [
            f"Checkpoint `{name}`, {figures['pages']} {figures['kind']} pages, plain prompt, one attempt a"
            " page.",
            table(measured),
            f"Rank correlation with what the decoder looks at, mean over views: {found}.",
        ]
    loads = [one["load"] for measured in figures["checkpoints"] for one in measured.get("rows", ())]
    busy = (
        f" The machine's load was {min(loads):.1f} to {max(loads):.1f}, of which"
        f" {figures['threads']} was this run's own: times beside other work are too long."
        if loads
        else ""
    )
    timed = f"Times are of each view the least of {figures['timings']} passes over some of them.{busy}"
    return "\n\n".join([*parts, f"{timed} {_where(figures)}"])


def inside_section(figures: Mapping[str, Any]) -> str:
    """Return Markdown of the rows inside the decoder, for all checkpoints of one run."""
    parts = []
    for measured in figures["checkpoints"]:
        inside = measured.get("inside")
        if inside is None:
            continue
        fitted = inside.get("fitprune_table")
        parts += [
            f"Checkpoint `{measured['checkpoint']}`, {inside['views']} views of {figures['pages']}"
            f" {figures['kind']} pages.",
            inside_table(inside),
        ]
        if fitted:
            dropped = " and ".join(map(str, fitted))
            parts.append(
                f"FitPrune's table, fitted on a page more: {dropped} patches of a view leave between layers."
            )
    return "\n\n".join([*parts, _where(figures)])


def _where(figures: Mapping[str, Any]) -> str:
    took, busy = (
        sum(measured.get(name, 0) for measured in figures["checkpoints"])
        for name in ("minutes", "cpu_minutes")
    )
    return (
        f"{figures['hardware']}, commit {figures['commit']}, {_date(figures)}; {took:.0f} minutes in all,"
        f" {busy:.0f} of processor time."
    )


def _date(figures: Mapping[str, Any]) -> str:
    return str(figures["measured_at"])[:10]


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
    replace_section(asked.docs / "pruning.md", "inside", inside_section(figures))


if __name__ == "__main__":
    main()
