"""Products that no global switch can coarsen.

TF32 (CUDA) and bfloat16 (CPU, "medium") may stand in for float32 in a matrix product, by a setting of the
whole process; autocast does it by context. None of them touches float64. On data-centre GPUs float64
products are as fast as needed here; on a CPU they cost three times as much, so there float32 serves while
it is exact.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def product_dtype(embeds: torch.Tensor) -> torch.dtype:
    """float32 or float64: the dtype in which a matrix product of ``embeds`` keeps float32's 24 bits."""
    exact = embeds.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if exact and embeds.dtype != torch.float64 else torch.float64


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
