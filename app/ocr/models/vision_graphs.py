"""The vision tower on CUDA as captured graphs: one launch per batch instead of some 450 operations.

The operations cost host time, 13 ms a batch of any size, and they hold the interpreter's lock, for which the
decoding loop would wait.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from app.ocr.engine.device import is_lost, on_side_stream, refusing_syncs

logger = logging.getLogger(__name__)
Tower = Callable[[torch.Tensor], torch.Tensor]
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)
MAX_PIXELS = 8 * 1024 * 1024
"""Most pixels in a batch. More are no faster together, and a graph keeps its working memory: 1.5 GB at this
size.
"""
MAX_SIDES = 4
"""Most view sizes that get graphs; a service has only a few."""


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    pixels: torch.Tensor
    features: torch.Tensor


class VisionGraphs:
    """Captured graphs of ``tower``, (B, 3, S, S) on the device -> (B, T, D), for pixels in pinned host
    memory.

    The first batch of a size runs one operation at a time; the second is captured. What cannot be captured,
    or does not fit the free memory, keeps running one operation at a time.
    """

    def __init__(self, tower: Tower, device: torch.device) -> None:
        self._tower, self._device = tower, device
        self._lock = threading.Lock()
        self._seen: set[tuple[int, int]] = set()
        self._graphs: dict[tuple[int, int], _Captured] = {}
        self._pool: Any = None
        self._is_off = False

    @staticmethod
    def most(side: int) -> int:
        """Return how many views of one side are best encoded together."""
        return max(batch for batch in BATCHES if batch == 1 or batch * side * side <= MAX_PIXELS)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        with self._lock:
            captured = self._graph_for(pixels)
            if captured is None:
                return self._tower(pixels.to(self._device, non_blocking=True))
            count = len(pixels)
            captured.pixels[:count].copy_(pixels, non_blocking=True)
            captured.graph.replay()
            return captured.features[:count].clone()  # the next replay writes there

    def _graph_for(self, pixels: torch.Tensor) -> _Captured | None:
        count, side = len(pixels), pixels.shape[-1]
        if self._is_off or count > self.most(side):
            return None
        batch = BATCHES[bisect_left(BATCHES, count)]
        at = (side, batch)
        if at in self._graphs:
            return self._graphs[at]
        if at not in self._seen:
            if len({seen for seen, _ in self._seen} | {side}) <= MAX_SIDES:
                self._seen.add(at)
            return None
        try:
            self._graphs[at] = self._capture(
                pixels.new_zeros((batch, *pixels.shape[1:]), device=self._device)
            )
        except Exception as error:
            if is_lost(self._device):
                raise
            logger.warning("the vision tower runs without CUDA graphs: %s", error)
            self._is_off = True
            self._graphs.clear()
            return None
        return self._graphs[at]

    def _capture(self, pixels: torch.Tensor) -> _Captured:
        with on_side_stream():
            self._tower(pixels)  # kernels choose and load themselves, tables are built
            with refusing_syncs():  # a capture that fails half way leaves the allocator in it
                self._tower(pixels)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            features = self._tower(pixels)
        return _Captured(graph, pixels, features)
