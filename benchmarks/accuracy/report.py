"""Write the tables and the plot of the documentation from recorded figures.

    python -m benchmarks.accuracy.report

Rewrites the text between the markers in docs/checkpoints.md and docs/pruning.md, and docs/pruning-curve.svg.
Says so where something was not measured.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.browser import BROWSER
from benchmarks.accuracy.curve import METHOD_NAMES
from benchmarks.accuracy.pages import A4_KINDS
from benchmarks.accuracy.plot import Point, line_plot
from benchmarks.accuracy.reading import MARKDOWN, PLAIN
from benchmarks.report import ROOT

DOCS = ROOT / "docs"
RESULTS = (ROOT / "benchmarks/results/accuracy.json", ROOT / "benchmarks/results/pruning-curve.json")
PLOT = "pruning-curve.svg"
COMMAND = (
    "python -m benchmarks.accuracy --peers --documents FOLDER --curve --out benchmarks/results/accuracy.json"
)
METHODS = {"rtprune": "RTPrune", "norm": "norm, no fold", "random": "random"}
Table = list[Sequence[object]]


def write_docs(runs: Sequence[Mapping[str, Any]], docs: Path) -> None:
    """Write the documentation. ``runs``: recorded figures; of runs with the same part, the last counts.

    The curve may be in a run of its own. Raise ``ValueError`` when a page of docs/ lacks its markers.
    """
    accuracy: Mapping[str, Any] = next((run for run in reversed(runs) if "readings" in run), {})
    curve: Mapping[str, Any] = next((run for run in reversed(runs) if "curve" in run), {})
    replace_section(docs / "checkpoints.md", "accuracy", accuracy_section(accuracy))
    replace_section(docs / "pruning.md", "curve", curve_section(curve))
    plot = docs / PLOT
    if curve:
        plot.write_text(curve_plot(curve["curve"]["rows"]), encoding="utf-8")
    else:
        plot.unlink(missing_ok=True)


def recorded_runs() -> list[dict[str, Any]]:
    """Read the runs recorded in benchmarks/results."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS if path.is_file()]


def accuracy_section(figures: Mapping[str, Any]) -> str:
    if "readings" not in figures:
        return f"Not measured yet on the checkpoint that ships: `{COMMAND}`."
    rows = sorted(_all_rows(figures), key=lambda row: row["prompt"] != PLAIN)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    table: Table = [
        (
            "kind",
            "pages",
            "reader",
            "prompt",
            "pruning",
            "error",
            "median of pages",
            "words read",
            "structure right",
            "s a page",
        )
    ]
    for kind in kinds:
        table += [_cells(row) for row in rows if row["kind"] == kind]
    lines = [_table(table, left=(0, 2, 3, 4)), "", measured(figures), ""]
    lines += [f"- {line}" for line in _facts(figures)]
    return "\n".join(lines)


def _all_rows(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*figures["readings"], *figures.get("peers", {}).get("rows", [])]


def _cells(row: Mapping[str, Any]) -> Sequence[object]:
    has_structure = row["prompt"] == MARKDOWN and row["kind"] in (*A4_KINDS, BROWSER)
    return (
        row["kind"].replace("_", " "), row["pages"], row["reader"], row["prompt"], row.get("pruning", ""),
        _rate(row["character_error_rate"]), _rate(row["median_of_pages"]), _rate(row["words_read"]),
        _percent(row["structure"]["all"]["right"]) if has_structure else "", f"{row['seconds_per_page']:.1f}",
    )  # fmt: skip


def _facts(figures: Mapping[str, Any]) -> list[str]:
    facts = []
    if blank := figures.get("blank"):
        facts.append(
            f"Blank pages: {blank['empty']} of {blank['pages']} give empty Markdown"
            f" (empty: {_counts(blank['empty_by_paper'])});"
            f" {blank['invented_characters']} characters were invented in all."
        )
    if speed := figures.get("speed"):
        facts.append(
            f"Speed, {figures['threads']} threads, {speed['kind']} pages, default prompt and pruning:"
            f" {speed['seconds_alone_median']:.1f} s for one page alone (median of {speed['pages']}),"
            f" {speed['seconds_a_page_together']:.1f} s a page with {speed['in_flight']} in flight."
        )
    parts = [row for row in figures["readings"] if row["prompt"] == MARKDOWN and row["kind"] in A4_KINDS]
    facts += [
        f"Structure, {row['kind']}, pruning {row['pruning']}: "
        + ", ".join(
            f"{part} right on {_percent(score['right'])} of {score['pages']} pages"
            for part, score in row["structure"].items()
            if part != "all" and score["pages"]
        )
        + "."
        for row in parts
    ]
    unusual = [row for row in figures["readings"] if set(row["finish_reasons"]) != {"stop"}]
    facts += [
        f"Not all ended by `stop`, {row['kind']}, {row['prompt']}, {row['pruning']}:"
        f" {_counts(row['finish_reasons'])}."
        for row in unusual
    ]
    facts += [f"Out of scope, {kind}: {reason}." for kind, reason in figures.get("out_of_scope", {}).items()]
    facts += [
        f"{name} was not measured: {reason}."
        for name, reason in figures.get("peers", {}).get("absent", {}).items()
    ]
    return facts


def curve_section(figures: Mapping[str, Any]) -> str:
    if "curve" not in figures:
        return f"Not measured yet on the checkpoint that ships: `{COMMAND}`."
    rows = figures["curve"]["rows"]
    whole = rows[0]
    table: Table = [("patch tokens kept", "retention", *(METHODS[name] for name in METHOD_NAMES))]
    table.append(
        ("1.0 (none pruned)", _rate(1.0), *[_rate(whole["character_error_rate"])] * len(METHOD_NAMES))
    )
    for ratio in dict.fromkeys(row["ratio"] for row in rows[1:]):
        at = {row["method"]: row for row in rows if row["ratio"] == ratio}
        label = f"dynamic ({at['rtprune']['keep_ratio']:.2f})" if ratio == "dynamic" else f"{ratio:.1f}"
        errors = [_rate(at[name]["character_error_rate"]) for name in METHOD_NAMES]
        table.append((label, _rate(at["rtprune"]["retention"]), *errors))
    pages = f"{whole['pages']} {figures['curve']['kind']} pages, {whole['characters']:,} characters"
    return "\n".join(
        [
            f"![Error against the share of patch tokens kept]({PLOT})",
            "",
            f"Character error rate, {pages}, plain prompt, one attempt a page.",
            "",
            _table(table, left=(0,)),
            "",
            *[f"- {verdict}" for verdict in _verdicts(rows)],
            "",
            measured({**figures, "peers": {}}),
        ]
    )


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """State what the figures say about the fold and the dynamic ratio, whichever way they fall."""
    at = {(row["method"], row["ratio"]): row for row in rows}
    ratios = list(dict.fromkeys(row["ratio"] for row in rows[1:]))
    verdicts = [
        f"{what}, change of the error (pages better, worse): "
        + "; ".join(f"{ratio}: {_change(at['rtprune', ratio], at[rival, ratio])}" for ratio in ratios)
        + "."
        for rival, what in (
            ("norm", "The fold (RTPrune against norm alone)"),
            ("random", "RTPrune against random"),
        )
    ]
    if ("rtprune", "dynamic") in at:
        dynamic = at["rtprune", "dynamic"]
        verdicts.append(
            f"The dynamic ratio keeps {dynamic['retention']:.3f} of the sequence; against no pruning:"
            f" {_change(dynamic, rows[0])}."
        )
    return verdicts


def _change(row: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    pairs = list(zip(row["page_errors"], other["page_errors"], strict=True))
    better, worse = sum(left < right for left, right in pairs), sum(left > right for left, right in pairs)
    return f"{row['character_error_rate'] - other['character_error_rate']:+.3f} ({better}, {worse})"


def curve_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    whole: Point = (1.0, rows[0]["character_error_rate"])
    fixed = [row for row in rows[1:] if row["ratio"] != "dynamic"]
    dynamic = [row for row in rows if row["ratio"] == "dynamic"]

    def point(row: Mapping[str, Any]) -> Point:
        return row["keep_ratio"], row["character_error_rate"]

    lines = {
        METHODS[name]: [whole, *(point(row) for row in fixed if row["method"] == name)]
        for name in METHOD_NAMES
    }
    marked = {METHODS[row["method"]]: point(row) for row in dynamic}
    least = min(x for points in [*lines.values(), [*marked.values()]] for x, _ in points)
    return line_plot("Error against what pruning keeps", lines, marked, (min(0.9, int(least * 10) / 10), 1.0))


def measured(figures: Mapping[str, Any]) -> str:
    peers = figures.get("peers", {})
    names = [*peers.get("versions", {}).values()]
    names += [f"at commit {peers['commit']}, {peers['measured_at'][:10]}"] if "commit" in peers else []
    with_peers = f"; peers: {', '.join(names)}" if names else ""
    return f"{figures['hardware']}, commit {figures['commit']}, {figures['measured_at'][:10]}{with_peers}."


def _table(rows: Table, left: Sequence[int]) -> str:
    rule = ["---" if column in left else "---:" for column in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [rows[0], rule, *rows[1:]])


def _rate(rate: float) -> str:
    return f"{rate:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def replace_section(path: Path, name: str, section: str) -> None:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path.name} needs one {begin} and one {end}")
    before, rest = text.split(begin)
    path.write_text(f"{before}{begin}\n{section}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.report", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--docs", type=Path, default=DOCS)
    write_docs(recorded_runs(), parser.parse_args(words).docs)


if __name__ == "__main__":
    main()
