"""Write the card of an exported checkpoint from what training and benchmarks/accuracy recorded.

python -m benchmarks.accuracy.card --accuracy benchmarks/results/accuracy.json --checkpoint app/pocket/weights
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.pocket.layout.views import EM_PX
from benchmarks.accuracy.report import accuracy_section
from training.facts import read_facts
from training.settings import Settings, load_settings

CARD = """# The pocket checkpoint

A small DeepSeek-OCR: transformers' own classes at small sizes, {parameters:.1f} million parameters,
{mib:.0f} MiB in bfloat16, one mixture-of-experts layer, a character vocabulary. It exists so that the
whole path, from rasterizing to Markdown, runs and is tested without a GPU or a model hub. It really
reads; how well is measured below, beside readers that are made for reading.

## What it was trained for

Rows of print in Latin letters, of {em:.0f} px em, each in a row of patch tokens of its own, in a view of
{view_px} x {view_px} px ({tokens} visual tokens); scan noise, blur, skew of up to a degree, JPEG, gray paper,
one-bit, dotted and coarse copies. It gives their text, row by row, whatever the prompt.

Whole pages are read in regions ([how](../../../docs/checkpoints.md#reading-in-regions)): lines are found by
white space, each is shown to this model in views of its own, and headings, lists, tables and grounding tags
come from where things stand, not from the model. The default prompt,
`\\n<|grounding|>Convert the document to markdown.`, gives Markdown with grounding tags, `\\nFree OCR.` plain
text.

## What it cannot do

- Other scripts than Latin, formulas, handwriting, photographs.
- The modes `tiny` to `gundam` work mechanically (token counts, pruning, timings are real) but were
  never trained.
- Other prompts.
- What it cannot read may come back as invented words. Views read with very low confidence are left out, and
  a page of which a third are, or that was guessed as a whole, ends as `low_confidence`.

## Measured

{accuracy}

## Training

- Data: pages rendered by `training/` and cut by the service's own code: words of the SCOWL list (public
  domain), English's common words as often as they are used, invented words, numbers, codes, identifiers,
  citations, labels, amounts, signs and snippets of code; no text of anybody. Fonts, all free: {fonts}.
  Never trained on, for measuring: {held_out}.
- Start: {start}
- Compute: {compute}.
- Supervision: the sequence, and a head that names the character centred in each 8 x 16 px cell, dropped at
  export.
- Pruning took part: {pruned_share:.0%} of the last stage's steps read through tokens pruned at the
  dynamic ratio, and a hinge kept the norm of patches with text above that of bare paper, which a model this
  small does not learn by itself. RTPrune needs no training where norms carry meaning; so do not read its
  quality off this model.
- Settings: [`training/pocket.toml`](../../../training/pocket.toml), log in
  [`training/log.jsonl`](../../../training/log.jsonl).

Licence: Apache-2.0, like the code.
"""
START = (
    "the checkpoint before it, of the same sizes, trained on 396,000 views of smaller letters, the last"
    " 49,000 in these fonts; training from nothing is the same command without `--start`, with a longer"
    " schedule."
)


def write_card(accuracy: Mapping[str, Any], checkpoint: Path, settings: Settings) -> str:
    weights = (checkpoint / "model.safetensors").stat().st_size
    side = settings.model.view_px // 64
    return CARD.format(
        parameters=weights / 2 / 1e6,
        mib=weights / 2**20,
        view_px=settings.model.view_px,
        tokens=side * (side + 1) + 1,
        em=EM_PX,
        accuracy=accuracy_section(accuracy),
        fonts=_names(settings.render.fonts),
        held_out=_names(settings.render.held_out),
        start=START,
        compute=", then ".join(
            f"{run.pages_seen:,} views in {run.minutes:.0f} minutes on {run.device}"
            for run in read_facts(checkpoint)
        ),
        pruned_share=settings.stage[-1].pruned_share,
    )


def _names(fonts: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(Path(regular).stem for regular, _ in fonts)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--accuracy", type=Path, default=Path("benchmarks/results/accuracy.json"))
    parser.add_argument("--checkpoint", type=Path, default=Path("app/pocket/weights"))
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    arguments = parser.parse_args()
    accuracy = json.loads(arguments.accuracy.read_text(encoding="utf-8"))
    card = write_card(accuracy, arguments.checkpoint, load_settings(arguments.settings))
    (arguments.checkpoint / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
