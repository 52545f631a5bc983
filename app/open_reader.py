"""Open the reader for a checkpoint. This imports torch: only workers, benchmarks and tests use it."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from app.ocr.engine.engine import Engine
from app.ocr.engine.settings import EngineSettings
from app.ocr.models.checkpoint import locate
from app.ocr.models.deepseek import load_model
from app.ocr.sizing import require_memory, resolve_device
from app.pocket import opening as pocket
from app.pocket.reader import PocketReader


def folder_of(checkpoint: str) -> Path:
    """Find the folder of a checkpoint: ``"pocket"``, a folder or a hub id.

    Raise ``CheckpointError`` if it is missing.
    """
    return pocket.WEIGHTS if checkpoint == pocket.NAME else locate(checkpoint)


def open_reader(
    checkpoint: str = pocket.NAME,
    device: str = "auto",
    settings: EngineSettings | None = None,
    on_death: Callable[[], None] | None = None,
    max_rss_mib: float = math.inf,
) -> Engine | PocketReader:
    """Load a checkpoint and start its engine on ``device``; ``auto`` takes a GPU if there is one.

    ``checkpoint``: ``"pocket"``, a folder or a hub id. ``on_death``: see ``Engine``. ``max_rss_mib``:
    resident memory in MiB at which this process would be ended.

    Raise ``CheckpointError`` for a folder that cannot be used, ``NotReady`` for weights that do not fit.
    """
    device = resolve_device(device)
    folder = folder_of(checkpoint)
    require_memory(folder, device, max_rss_mib)
    if device.startswith("cuda"):
        # pages are prepared in separate threads, each of which would start one more thread per core
        torch.set_num_threads(1)
    if pocket.is_pocket(folder):
        return pocket.open_pocket(device, settings, on_death, folder)
    return Engine(load_model(folder, device), settings, on_death)
