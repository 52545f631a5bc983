"""Choose settings by device: memory for the weights, pages in flight, settings of the engine."""

import math
from pathlib import Path

import torch

from app.errors import NotReady
from app.ocr.engine.settings import MAX_DRAFT_TOKENS, EngineSettings
from app.ocr.models.checkpoint import open_weights
from app.ocr.models.deepseek import default_dtype
from app.processes import available_mib
from app.settings import Settings

LOADING_SHARE = 1.15
"""Memory needed while weights are loaded, in sizes of the weights: some tensors are joined on the way."""
ROOM_MIB = 600
"""Memory for the libraries and one page."""
CPU_PAGES_IN_FLIGHT = 8
CPU_RUNNING_PAGES = 24
"""Views decoded together on a CPU. 64 would cost 3 % less processor time per view, but a new page would wait
for them.
"""
GPU_RUNNING_PAGES = 128


def require_memory(folder: Path, device: str, max_rss_mib: float) -> None:
    """Raise ``NotReady`` for weights that do not fit this machine's memory, before any is read.

    Otherwise the kernel or the supervisor would end the process while it loads, again and again.
    """
    with open_weights(folder) as tensors:
        num_values = sum(math.prod(tensor.get_shape()) for tensor in tensors.values())
    bytes_each = default_dtype(torch.device(device)).itemsize
    needed_mib = num_values * bytes_each * LOADING_SHARE / 2**20 + ROOM_MIB
    for mib, what in (
        (max_rss_mib, "the worker may use (RTPRUNE_MAX_WORKER_RSS_MIB)"),
        (available_mib(), "this machine has free"),
    ):
        if needed_mib > mib:
            raise NotReady(
                f"the checkpoint needs {needed_mib / 1024:.1f} GiB of memory on {device}, and "
                f"{mib / 1024:.1f} GiB are what {what}: take a machine with more memory, a GPU "
                "(RTPRUNE_DEVICE=cuda), which halves it, or a smaller checkpoint (RTPRUNE_MODEL)"
            )


def resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def pages_in_flight(settings: Settings) -> int:
    """Return how many pages to render and read at a time.

    On a GPU that is as many as are decoded together. On a CPU a few keep every core busy; each further page
    costs memory and makes the others wait longer.
    """
    if resolve_device(settings.device) == "cpu":
        return CPU_PAGES_IN_FLIGHT
    return settings.max_running_pages or GPU_RUNNING_PAGES


def engine_settings(settings: Settings) -> EngineSettings:
    """Translate the service's settings into the engine's, for the device that they name."""
    if resolve_device(settings.device) == "cpu":
        return EngineSettings(
            max_running_pages=settings.max_running_pages or CPU_RUNNING_PAGES,
            prefetch_pages=8,
            kv_memory_mib=settings.kv_memory_mib,
            max_page_tokens=settings.max_page_tokens or None,
            max_output_tokens=settings.max_output_tokens,
            restore_risk=settings.restore_risk or None,
            max_draft_tokens=MAX_DRAFT_TOKENS if settings.drafts else 0,
        )
    return EngineSettings(
        max_running_pages=settings.max_running_pages or GPU_RUNNING_PAGES,
        max_page_tokens=settings.max_page_tokens or None,
        max_output_tokens=settings.max_output_tokens,
        restore_risk=settings.restore_risk or None,
        kv_memory_mib=None,
        kv_memory_share=settings.kv_memory_share,
        max_encode_pages=32,
        max_prefill_tokens=16_384,
        preprocess_threads=4,
        prefetch_pages=32,
    )
