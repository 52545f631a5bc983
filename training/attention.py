"""Attention for training on a CPU, where the backward pass of fused kernels is slow.

Plain products in bfloat16 are 2 to 4 times as fast as ``scaled_dot_product_attention`` in SAM's windows. Over
a page's sequence they are 1.5 times as fast, if keys after the query are not computed. A GPU keeps its fused
kernels: none of this applies there.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from app.ocr.models.sam_attention import FoldedSamAttention

BLOCKED = "blocked_causal"
_BLOCK = 640


def blocked_causal(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention for one block of queries at a time. (B, heads, T, d) each -> (B, T, heads, d).

    ``mask``: (B, 1, T, T) bool, needed where some keys are hidden; it must be causal itself.
    """
    length = query.shape[2]
    query, key = (query * scaling).to(value.dtype), key.to(value.dtype)
    mixed = []
    for start in range(0, length, _BLOCK):
        end = min(length, start + _BLOCK)
        scores = query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2)
        if mask is None:
            ahead = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).triu(1)
            scores[..., start:end].masked_fill_(ahead, -torch.inf)
        else:
            scores.masked_fill_(~mask[:, :, start:end, :end], -torch.inf)
        with _as_it_is():
            mixed.append(scores.softmax(-1) @ value[:, :, :end])
    return torch.cat(mixed, dim=2).transpose(1, 2), None


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute attention; the query is scaled already. (..., L, d), (..., L, d), (..., L, e) ->
    (..., L, e).
    """
    with _as_it_is():
        dtype = value.dtype
        return (query.to(dtype) @ key.to(dtype).transpose(-1, -2)).softmax(-1) @ value


def _as_it_is() -> torch.autocast:
    """Turn autocast off: it would take every softmax to float32, at more cost than the products around it."""
    return torch.autocast("cpu", enabled=False)


def use_plain_attention(network: Any) -> None:
    """Switch every part of the network to these attention functions, in place."""
    AttentionInterface.register(BLOCKED, blocked_causal)
    network.model.language_model.config._attn_implementation = BLOCKED
    network.model.vision_tower.vision_encoder.config._attn_implementation = "eager"
    for module in network.modules():
        if isinstance(module, FoldedSamAttention):
            module.attend = plain
