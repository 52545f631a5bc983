"""State of running pages on the device, beside their keys and values."""

from dataclasses import dataclass

import torch

from app.ocr.engine.kv_cache import KvCache
from app.ocr.engine.loops import RepeatState


@dataclass(frozen=True, slots=True, eq=False)
class DecodeState:
    """State of every row at fixed addresses, (S,) each.

    ``tokens``: int64, each row's last token. ``positions``: int64, that token's position. ``logprob_sums``:
    float32. ``is_running``: int32, 1 or 0.
    """

    cache: KvCache
    repeats: RepeatState
    tokens: torch.Tensor
    positions: torch.Tensor
    logprob_sums: torch.Tensor
    is_running: torch.Tensor

    @classmethod
    def of(cls, cache: KvCache, repeats: RepeatState) -> "DecodeState":
        def zeros(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(cache.plan.num_slots, dtype=dtype, device=cache.lengths.device)

        return cls(
            cache, repeats, zeros(torch.int64), zeros(torch.int64), zeros(torch.float32), zeros(torch.int32)
        )

    def admit(
        self, first: int, tokens: torch.Tensor, positions: torch.Tensor, logprobs: torch.Tensor
    ) -> None:
        """Start rows ``first`` and following with their first tokens, (B,) each."""
        rows = slice(first, first + len(tokens))
        self.tokens[rows] = tokens
        self.positions[rows] = positions
        self.logprob_sums[rows] = logprobs
        self.is_running[rows] = 1

    def release(self, row: int, last: int) -> None:
        """Free ``row`` and move the last row into its place."""
        for state in (self.tokens, self.positions, self.logprob_sums):
            state[row] = state[last]
        self.is_running[last] = 0
        if row != last:
            self.repeats.move(last, row)
