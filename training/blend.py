"""Average two checkpoints weight by weight, to keep what a late stage taught and forget less of the rest.

    python -m training.blend --earlier FOLDER --later FOLDER --out FOLDER [--vision 0.7] [--decoder 1]

The shares are those of the later checkpoint. All files but the weights are copied from it.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
VISION_PARTS = ("sam_model", "vision", "projector", "newline", "separator", "seperator")
"""Parts of the names of tensors that belong to vision: all between the page and its visual tokens."""


def blend(
    earlier: dict[str, torch.Tensor], later: dict[str, torch.Tensor], vision: float, decoder: float
) -> dict[str, torch.Tensor]:
    """Interpolate tensors of the same names and shapes in float32; return them in the later one's dtype.

    ``vision``, ``decoder``: the later one's shares, in [0, 1]. Raise ``ValueError`` when names differ.
    """
    if earlier.keys() != later.keys():
        raise ValueError(f"tensors of one checkpoint alone: {sorted(earlier.keys() ^ later.keys())[:5]}")
    blended = {}
    for name, tensor in later.items():
        share = vision if any(part in name for part in VISION_PARTS) else decoder
        blended[name] = earlier[name].float().lerp(tensor.float(), share).to(tensor.dtype)
    return blended


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("earlier", "later", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--vision", type=float, default=0.7)
    parser.add_argument("--decoder", type=float, default=1.0)
    arguments = parser.parse_args()
    tensors = [load_file(folder / WEIGHTS) for folder in (arguments.earlier, arguments.later)]
    blended = blend(tensors[0], tensors[1], arguments.vision, arguments.decoder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.later.iterdir():
        if path.name != WEIGHTS and path.is_file():
            shutil.copy(path, arguments.out / path.name)
    save_file(blended, arguments.out / WEIGHTS, {"format": "pt"})


if __name__ == "__main__":
    main()
