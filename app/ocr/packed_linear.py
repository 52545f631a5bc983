"""The same decoder on CPU, its linear layers' weights laid out once for oneDNN.

torch's float32 ``linear`` multiplies through another library, which on this kind of processor (AMD,
AVX-512) is half as fast at the batches a decode step has: (16, 256) x (256, 768) takes 86 us there and 41
us here, one core. For 1 to 3 rows it is faster and is kept. No module of the network is changed: the
modules are copied shallowly, so they share every parameter, and only their ``nn.Linear`` children are
others. That holds each linear weight twice, so it is for small checkpoints; in bfloat16 torch goes
through oneDNN by itself.
"""

import copy
from typing import Any

import torch
from torch import nn

MIN_ROWS = 4
"""Rows from which the packed layout is faster."""
MAX_MIB = 256
"""Of linear weights, above which holding them twice is not worth it."""


class PackedLinear(nn.Module):
    """(..., I) -> (..., O), like the ``nn.Linear`` it was made of."""

    def __init__(self, linear: nn.Linear, num_rows: int) -> None:
        super().__init__()
        self._bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), num_rows)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self._weight, self._bias, "none", [], ""
        )
        return output


def packed(module: Any, num_rows: int) -> Any:
    """``module`` with packed linear layers, best at ``num_rows`` rows; ``module`` itself stays as it is."""
    if type(module) is nn.Linear:
        return PackedLinear(module, num_rows)
    clone = copy.copy(module)
    clone._modules = {name: packed(child, num_rows) for name, child in module.named_children()}
    return clone


def is_worth_packing(module: nn.Module, device: torch.device) -> bool:
    """On CPU, in float32, for a checkpoint of pocket size, where this build of torch has oneDNN."""
    linears = [child.weight for child in module.modules() if type(child) is nn.Linear]
    is_small = sum(weight.nbytes for weight in linears) <= MAX_MIB * 2**20
    is_float32 = all(weight.dtype == torch.float32 for weight in linears)
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return device.type == "cpu" and is_float32 and is_small and has_onednn
