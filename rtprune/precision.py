"""Matrix products whose precision no global switch can lower.

A process-wide setting may replace float32 in a matrix product by TF32 (CUDA) or bfloat16 (CPU, "medium");
autocast does the same within a context. None of them touches float64. On data-centre GPUs float64 products
are fast enough here. On a CPU they cost three times as much, so float32 is used there as long as the setting
leaves it exact.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def product_dtype(embeds: torch.Tensor) -> torch.dtype:
    """Choose float32 or float64, so that a matrix product of ``embeds`` keeps float32's 24 bits."""
    exact = embeds.device.type == "cpu" and _float32_is_exact()
    return torch.float32 if exact and embeds.dtype != torch.float64 else torch.float64


def _float32_is_exact() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # a backend was set by the newer API, which this one cannot read
        return False


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Compute left @ right.mT without gradient. (B, M, D), (B, N, D) of ``product_dtype`` -> (B, M, N).

    On a CPU a single float32 page goes through oneDNN, which uses AVX-512 on processors of any maker. MKL,
    which ``@`` calls, stays at AVX2 on AMD processors and takes twice as long.
    """
    one_page = left.device.type == "cpu" and left.dtype == torch.float32 and len(left) == 1
    if not one_page or not _has_onednn() or 0 in (*left.shape, *right.shape):
        return left @ right.mT
    # converting to oneDNN's own layout is the public way to call its product
    answer: torch.Tensor = torch.nn.functional.linear(left[0].to_mkldnn(), right[0]).to_dense()[None]
    return answer


def _has_onednn() -> bool:
    has: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
