"""A checkpoint's name -> a reader of pages: what the worker and the benchmarks open."""

from collections.abc import Callable

import torch

from app.ocr.deepseek import load_model
from app.ocr.engine import Engine
from app.ocr.engine_settings import EngineSettings
from app.ocr.model import has_regions
from app.ocr.regions.reader import RegionReader
from app.settings import Settings


def open_reader(
    checkpoint: str = "pocket",
    device: str = "auto",
    settings: EngineSettings | None = None,
    on_death: Callable[[], None] | None = None,
) -> Engine | RegionReader:
    """Load the checkpoint and start its engine on ``device``; ``auto`` takes a GPU where there is one.

    ``on_death``: see ``Engine``. Raises ``CheckpointError`` for a folder that cannot be used.
    """
    device = resolve_device(device)
    if device.startswith("cuda"):
        # pages are prepared in threads of their own, which would each start as many again as there are cores
        torch.set_num_threads(1)
    model = load_model(checkpoint, device)
    engine = Engine(model, settings, on_death)
    if has_regions(model):
        return RegionReader(engine, model)
    return engine


def resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def engine_settings(settings: Settings) -> EngineSettings:
    """What the service's settings say about the engine, for the device they name."""
    if resolve_device(settings.device) == "cpu":
        return EngineSettings(
            max_running_pages=settings.max_running_pages or 64,
            kv_memory_mib=settings.kv_memory_mib,
            max_page_tokens=8192,  # small checkpoints write a token for each character
            max_output_tokens=8192,
        )
    return EngineSettings(
        max_running_pages=settings.max_running_pages or 128,
        kv_memory_mib=None,
        kv_memory_share=settings.kv_memory_share,
        max_encode_pages=32,
        max_prefill_tokens=16_384,
        preprocess_threads=4,
        prefetch_pages=32,
    )
