"""Open the pocket checkpoint. This is the package's only entry point."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.ocr.engine.engine import Engine
from app.ocr.engine.settings import EngineSettings
from app.ocr.models.checkpoint_spec import SPEC_FILE
from app.ocr.models.deepseek import DeepSeekOcr, load_model
from app.pocket.cpu_modules import PackedDecoder, is_worth_packing, with_packed_linears
from app.pocket.reader import PocketReader

NAME = "pocket"
"""Value of ``RTPRUNE_MODEL``, and of ``reader`` in the ``rtprune.json`` of checkpoints read the same way."""
WEIGHTS = Path(__file__).parent / "weights"
VIEWS_A_PAGE = 192
"""Number of views that most pages do not exceed."""


def is_pocket(folder: Path) -> bool:
    """Tell whether a checkpoint folder asks for this reader."""
    try:
        spec = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # another reader will then report what is wrong
    return isinstance(spec, dict) and spec.get("reader") == NAME


def open_pocket(
    device: str = "cpu",
    settings: EngineSettings | None = None,
    on_death: Callable[[], None] | None = None,
    folder: Path = WEIGHTS,
) -> PocketReader:
    """Load the checkpoint and start its engine on ``device``.

    ``on_death``: see ``Engine``. Raise ``CheckpointError`` for a folder that cannot be used.
    """
    model = load_pocket(device, folder)
    settings = replace(settings or EngineSettings(), encode_beside_decode=True, view_group=VIEWS_A_PAGE)
    return PocketReader(Engine(model, settings, on_death), model)


def load_pocket(device: str = "cpu", folder: Path = WEIGHTS) -> DeepSeekOcr:
    """Load the checkpoint, with faster modules for a CPU where they apply."""
    model = load_model(folder, device)
    network: Any = model.network
    language_model, head = network.model.language_model, network.lm_head
    model.compute_with(
        with_packed_linears(network.model.vision_tower),
        PackedDecoder(language_model, head) if is_worth_packing(language_model) else None,
    )
    return model
