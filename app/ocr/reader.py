"""A checkpoint's name -> a reader of pages: what the worker and the benchmarks open."""

from collections.abc import Callable

import torch

from app.ocr.deepseek import load_model
from app.ocr.engine import Engine
from app.ocr.engine_settings import EngineSettings


def open_reader(
    checkpoint: str = "pocket",
    device: str = "auto",
    settings: EngineSettings | None = None,
    on_death: Callable[[], None] | None = None,
) -> Engine:
    """Load the checkpoint and start its engine on ``device``; ``auto`` takes a GPU where there is one.

    ``on_death``: see ``Engine``. Raises ``CheckpointError`` for a folder that cannot be used.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Engine(load_model(checkpoint, device), settings, on_death)
