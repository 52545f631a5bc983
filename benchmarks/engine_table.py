"""Print the full-size figures as the tables of docs/engine.md: ``python -m benchmarks.engine_table``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT
from benchmarks.whole import NAME as WHOLE

RESULTS = ROOT / "benchmarks" / "results" / "engine-h200.json"
STAGES = ("vision", "prune", "prefill", "decode")


def table(document: Mapping[str, Any]) -> str:
    head = ["mode", "pages at once", *(f"{stage} ms" for stage in STAGES), "tok/s", "pages/s", "GiB"]
    lines = [head, ["---"] * len(head)]
    for row in document["rows"]:
        if row["mode"] == WHOLE:
            continue
        if "error" in row:
            lines.append([row["mode"], str(row["pages"]), row["error"], *[""] * (len(head) - 3)])
            continue
        stages = [_stage(row, stage) for stage in STAGES]
        rates = [f"{row['decode_tok_per_s']:,.0f}", f"{row['pages_per_s']:.1f}", f"{row['memory_gib']:.0f}"]
        lines.append([row["mode"], str(row["pages"]), *stages, *rates])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _stage(row: Mapping[str, Any], stage: str) -> str:
    """Format milliseconds a page, and the share of the physical limit if it is at least 1 per cent."""
    milliseconds = row[f"{stage}_ms_a_page"]
    shown = f"{milliseconds:.2f}" if milliseconds < 100 else f"{milliseconds:.0f}"
    share = row.get(f"{stage}_share", 0.0)
    return f"{shown} ({share:.0%})" if share >= 0.01 else shown


def main(path: Path = RESULTS) -> None:
    print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
