"""What every running page has on the device beside its keys and values."""

from dataclasses import dataclass

import torch

from app.ocr.kv_cache import KvCache
from app.ocr.loops import RepeatState


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """At fixed addresses, (S,) each: ``tokens`` int64, the last of each row; ``positions`` int64, where it
    stands; ``logprob_sums`` float32; ``is_running`` int32, 1 or 0.
    """

    cache: KvCache
    repeats: RepeatState
    tokens: torch.Tensor
    positions: torch.Tensor
    logprob_sums: torch.Tensor
    is_running: torch.Tensor

    @classmethod
    def of(cls, cache: KvCache, repeats: RepeatState) -> "Rows":
        def zeros(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(cache.plan.num_slots, dtype=dtype, device=cache.lengths.device)

        return cls(
            cache, repeats, zeros(torch.int64), zeros(torch.int64), zeros(torch.float32), zeros(torch.int32)
        )
