"""Write a trained run as a checkpoint folder.

    python -m training.export --run runs/pocket --out app/pocket/weights

The folder gets bfloat16 safetensors (the running mean of the weights), config, tokenizer, modes, and the
training facts that its card quotes. The card's error rates come from ``python -m benchmarks.accuracy``, which
reads this folder.
"""

import argparse
import json
from pathlib import Path

import torch

from training.facts import RunFacts, write_facts
from training.model import fresh_network
from training.settings import Settings, load_settings
from training.vocabulary import GROUNDED_PROMPT, build_tokenizer

MIN_CONFIDENCE = -0.7
"""Lowest trusted confidence. Most text invented for other scripts is below it, hardly any that is right."""


def export(settings: Settings, run: Path, out: Path) -> None:
    """Write the checkpoint folder. Raise ``RuntimeError`` when the run's weights have other sizes."""
    state = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    network = fresh_network(settings.model, settings.run.seed)
    native = {name.replace(".attn.native.", ".attn."): tensor for name, tensor in state["mean"].items()}
    network.load_state_dict(native)
    out.mkdir(parents=True, exist_ok=True)
    network.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    build_tokenizer().save(str(out / "tokenizer.json"))
    _write_json(out / "rtprune.json", _modes(settings))
    write_facts(out, [RunFacts.model_validate(facts) for facts in state["runs"]])


def _modes(settings: Settings) -> dict[str, object]:
    view_px = settings.model.view_px
    return {
        "name": "rtprune-pocket",
        "reader": "pocket",
        "modes": {
            "pocket": {
                "view_px": view_px,
                "pad": True,
            },
            "tiny": {"view_px": 512, "pad": False, "trained": False},
            "small": {"view_px": 640, "pad": False, "trained": False},
            "base": {"view_px": 1024, "pad": True, "trained": False},
            "large": {"view_px": 1280, "pad": True, "trained": False},
            "gundam": {"view_px": 1024, "pad": True, "tile_px": 640, "max_tiles": 9, "trained": False},
        },
        "default_mode": "pocket",
        "default_prompt": GROUNDED_PROMPT,
        "ngram_exempt_tokens": ["<td>", "</td>"],
        "strict_ngram_n": 24,
        "min_confidence": MIN_CONFIDENCE,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    parser.add_argument("--run", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--out", type=Path, default=Path("app/pocket/weights"))
    arguments = parser.parse_args()
    export(load_settings(arguments.settings), arguments.run, arguments.out)


if __name__ == "__main__":
    main()
