"""Compute what attending to few patch tokens could save on a GPU: attention against share, context and batch.

    python -m benchmarks.fixation.paper

On paper: a decode step reads the keys and values of what it attends to, and the weights, at the speed of the
card's memory. Focal layers read everything. The other layers read all text and row breaks, and of the patch
tokens the share and half of it again (what is reused, at most), but for one step in 16. Rows gathered one by
one are taken to be read at full speed, and choosing to cost three launches for each focal layer: both in
favour of the method. No kernel is built. The last line of stdout is one JSON document.
"""

import argparse
import json
from dataclasses import dataclass
from itertools import product

import torch
from transformers import UnlimitedOcrForConditionalGeneration

from app.ocr.engine.fixation import FixationPlan
from app.ocr.models.random_init import full_size_config
from benchmarks.limits import BYTES_PER_S, Weights

SHARES = (1.0, 0.4, 0.2, 0.1, 0.05)
BATCHES = (1, 16, 64, 256)
CARDS = {"H200": BYTES_PER_S, "A100 80 GB": 2.0e12}
"""Bytes a second. H200: measured. A100: what NVIDIA states, less 2 %."""
LAUNCH_S = 4e-6
LAUNCHES_A_FOCAL_LAYER = 3
WRITTEN_TOKENS = 512
"""Prompt and output that a page holds half way through 1,000 tokens."""
PLAN = FixationPlan((0, 6))
"""Two focal layers of twelve. Which ones makes no difference to bytes."""


@dataclass(frozen=True, slots=True)
class Context:
    """A prompt. ``num_patches`` may be left out, ``num_breaks`` (row breaks, separators) may not."""

    name: str
    num_patches: int
    num_breaks: int


CONTEXTS = (
    Context("large", 400, 21),
    Context("large, RTPrune at 0.84", 336, 21),
    Context("gundam 2 x 3", 856, 47),
    Context("gundam 3 x 3", 1156, 47),
    Context("20 pages of base", 20 * 256, 20 * 17),
)


def full_size_weights() -> Weights:
    with torch.device("meta"):
        network = UnlimitedOcrForConditionalGeneration(full_size_config())
    return Weights.of(network.to(torch.bfloat16))


def kv_bytes_a_layer() -> int:
    """Return the bytes of one token's key and value in one layer, bfloat16."""
    text = full_size_config().text_config
    heads: int = text.num_key_value_heads
    head_dim: int = text.head_dim
    return 2 * heads * head_dim * 2


def attention_bytes(context: Context, share: float, num_layers: int) -> float:
    """Return the bytes of keys and values that a step reads for one page."""
    always = context.num_breaks + WRITTEN_TOKENS
    everything = always + context.num_patches
    num_focal = len(PLAN.focal_layers)
    chosen = min(context.num_patches, max(PLAN.min_patches, share * context.num_patches) * (1 + PLAN.reuse))
    dense_steps = 1 / PLAN.refresh_steps
    sparse = dense_steps * everything + (1 - dense_steps) * (always + chosen)
    return kv_bytes_a_layer() * (num_focal * everything + (num_layers - num_focal) * sparse)


def table() -> list[dict[str, object]]:
    """Compute a row for each card, context and batch. Its lists have a figure for each of ``SHARES``."""
    weights, num_layers = full_size_weights(), full_size_config().text_config.num_hidden_layers
    rows: list[dict[str, object]] = []
    for (card, speed), context, batch in product(CARDS.items(), CONTEXTS, BATCHES):
        # at this card's speed: a step of these batches is bound by memory
        weights_s = weights.limit_s(batch) * BYTES_PER_S / speed
        reading_s = [batch * attention_bytes(context, share, num_layers) / speed for share in SHARES]
        choosing_s = LAUNCHES_A_FOCAL_LAYER * len(PLAN.focal_layers) * LAUNCH_S
        attention_s = [reading_s[0], *(seconds + choosing_s for seconds in reading_s[1:])]
        step_s = weights_s + attention_s[0]
        rows.append(
            {
                "card": card,
                "context": context.name,
                "pages": batch,
                "step_ms": round(step_s * 1e3, 3),
                "attention_ms": [round(seconds * 1e3, 3) for seconds in attention_s],
                "step_saved": [round((attention_s[0] - seconds) / step_s, 3) for seconds in attention_s],
            }
        )
    return rows


def figures() -> dict[str, object]:
    return {
        "kv_bytes_a_token": kv_bytes_a_layer() * full_size_config().text_config.num_hidden_layers,
        "written_tokens": WRITTEN_TOKENS,
        "bytes_per_s": CARDS,
        "shares": SHARES,
        "rows": table(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for row in table():
        print(json.dumps(row))
    print(json.dumps(figures()))


if __name__ == "__main__":
    main()
