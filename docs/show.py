"""Print an answer of ``POST /v1/parse``: its Markdown, then tokens and milliseconds by page.

python docs/show.py answer.json
"""

import json
import sys
from pathlib import Path
from typing import Any

STAGES = ("queue", "rasterize", "preprocess", "encode", "prune", "prefill", "decode", "total")


def table(answer: dict[str, Any]) -> str:
    rows = [["page", "visual", "kept", "retention", "output", *(f"{stage} ms" for stage in STAGES)]]
    for page in answer["pages"]:
        if page.get("tokens") is None:
            rows.append([str(page["index"] + 1), *["-"] * (len(rows[0]) - 1)])
            continue
        tokens, timing = page["tokens"], page["timing_ms"]
        counts = [tokens["visual"], tokens["kept"], f"{tokens['retention']:.3f}", tokens["output"]]
        milliseconds = [f"{timing.get(stage, 0):.1f}" for stage in STAGES]
        rows.append([str(page["index"] + 1), *map(str, counts), *milliseconds])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def main() -> None:
    answer = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(f"\n{answer['markdown']}\n\n{table(answer)}\n")


if __name__ == "__main__":
    main()
