"""Write the card of an exported checkpoint from what training and benchmarks/accuracy.py recorded.

python -m training.card --accuracy benchmarks/results/accuracy.json --checkpoint app/ocr/pocket
"""

import argparse
import json
from pathlib import Path
from typing import Any

from training.settings import load_settings

CARD = """# The pocket checkpoint

A small DeepSeek-OCR: transformers' own classes at small sizes, {parameters:.1f} million parameters,
{mib:.0f} MiB in bfloat16, one mixture-of-experts layer, a character vocabulary. It exists so that the
whole path, from rasterizing to Markdown, runs and is tested without a GPU or a model hub. It really
reads, within narrow limits.

## What it reads

Printed Latin text (ASCII), letters of 24 to 44 px em in its view of 256 x 256 px, a few short lines, in
the fonts below. Mode `pocket`, either of the prompts `\\n<|grounding|>Convert the document to
markdown.` and `\\nFree OCR.`; both give plain text, line by line.

## What it cannot do

- Ordinary documents: an A4 page of 11 pt has letters of 4 px in its view. Expect nonsense, or nothing.
- The modes `tiny` to `gundam` work mechanically (token counts, pruning, timings are real) but were
  never trained.
- Grounding tags, headings, lists, tables, several columns, formulas, handwriting, photographs, rotated
  text.
- Letters outside ASCII, other prompts, fonts far from those it saw.
- Pages it cannot read may come back as invented words. `confidence` (mean log-probability) is then low.

## Measured

Character error rate on {pages} held-out rendered pages ({characters:,} characters; fonts seen, texts
unseen; the same renderer as training), runs of whitespace counted as one space. Regenerate with `python
-m benchmarks.accuracy --pages {pages} --out benchmarks/results/accuracy.json`.

{table}

Retention is the share of the visual sequence that reaches the decoder. {pruning_note}

## Training

- Data: pages rendered by `training/`: words of the SCOWL list (public domain), invented words, numbers,
  codes; no text of anybody. Fonts, all free: {fonts}.
- Start: an earlier dense checkpoint of the same recipe (168,000 pages, the same renderer family), whose
  last feed-forward layer became the mixture's shared expert; training from nothing is the same command
  without `--start`.
- Compute: {pages_seen:,} pages more in {minutes:.0f} minutes on one core of a shared CPU machine.
- Supervision: the sequence, and a head that names the character centred in each 8 x 16 px cell, dropped
  at export.
- Pruning took part, in the last stage alone: half of its steps read through tokens pruned at the dynamic
  ratio, and a hinge kept the norm of patches with text above that of bare paper, which a model this small
  does not learn by itself: without that stage, pruning dropped text from short pages. RTPrune needs no
  training where norms carry meaning; so do not read its quality off this model.
- Settings: [`training/pocket.toml`](../../../training/pocket.toml), log in
  [`training/log.jsonl`](../../../training/log.jsonl).

Licence: Apache-2.0, like the code.
"""

COLUMNS = ("up to 2 lines", "3 to 5 lines", "6 lines and more")


def write_card(accuracy: dict[str, Any], checkpoint: Path, fonts: list[str]) -> str:
    weights = (checkpoint / "model.safetensors").stat().st_size
    facts = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    return CARD.format(
        parameters=weights / 2 / 1e6,
        mib=weights / 2**20,
        pages=accuracy["pages"],
        characters=accuracy["characters"],
        table=_table(accuracy["rows"]),
        pruning_note=_pruning_note(accuracy["rows"]),
        fonts=", ".join(Path(font).stem for font in fonts),
        pages_seen=facts["pages_seen"],
        minutes=facts["minutes"],
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| pruning | retention | error | median of pages | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * (3 + len(COLUMNS)),
    ]
    for row in rows:
        figures = [row["retention"], row["character_error_rate"], row["median_of_pages"]]
        figures += [row["by_length"][column] for column in COLUMNS]
        lines.append(f"| {row['pruning']} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    return "\n".join(lines)


def _pruning_note(rows: list[dict[str, Any]]) -> str:
    by_name = {row["pruning"]: row["character_error_rate"] for row in rows}
    cost = by_name["dynamic"] - by_name["none"]
    return (
        f"The dynamic ratio, the service's default, costs {cost:.3f} here; a fixed ratio costs more on full"
        " pages, for a model of this size has no redundancy inside a square with text."
    )


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--accuracy", type=Path, default=Path("benchmarks/results/accuracy.json"))
    parser.add_argument("--checkpoint", type=Path, default=Path("app/ocr/pocket"))
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    arguments = parser.parse_args()

    fonts = [regular for regular, _ in load_settings(arguments.settings).render.fonts]
    accuracy = json.loads(arguments.accuracy.read_text(encoding="utf-8"))
    card = write_card(accuracy, arguments.checkpoint, fonts)
    (arguments.checkpoint / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
