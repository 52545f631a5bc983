"""SAM's relative-position attention without its (H*W)^2 bias: exact, and open to fused attention kernels.

The native module adds ``rel_h[q, k_row] + rel_w[q, k_column]`` to every score, a (B*heads, H*W, H*W) tensor
(1.6 GB a page at 1024 px in bfloat16), and a dense bias rules flash kernels out. Both terms depend on the key
only through its row or column. So they are dot products with one-hot vectors and can be part of the head
dimension:

    q' = [q * scale, rel_h(q), rel_w(q)]
    k' = [k, onehot(row of k), onehot(column of k)]
    q' . k' = scale * q . k + rel_h[q, row of k] + rel_w[q, column of k]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Attention kernels want head dimensions in multiples of 8; without it CUDA falls back to materialised scores.
HEAD_DIM_MULTIPLE = 8


class FoldedSamAttention(nn.Module):
    """Replacement for a SAM layer's ``attn`` that computes with the native module's own parameters.

    The native module stays reachable as ``native`` (so parameter names gain ``native.``). In ``eval`` mode
    the position tables are built once per resolution, so weights must not change after the first forward. In
    ``train`` mode they are built each time, and gradients reach them.
    """

    def __init__(self, native: Any) -> None:
        super().__init__()
        self.native: Any = native
        self.attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = fused
        self._tables: dict[tuple[int, int, torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}
        self.train(native.training)  # a new module starts in train mode, whatever it wraps

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Attend. (B, H, W, C) -> (B, H, W, C) and ``None`` in the place of the attention weights."""
        batch, height, width, _ = hidden_states.shape
        heads = self.native.num_attention_heads
        qkv = self.native.qkv(hidden_states).reshape(batch, height * width, 3, heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, H*W, d) each
        if self.native.use_rel_pos:
            query, key = self._fold(query, key, height, width)
        else:
            query = query * self.native.scale
        mixed = self.attend(query, key, value).transpose(1, 2).reshape(batch, height, width, -1)
        return self.native.proj(mixed), None

    def _fold(
        self, query: torch.Tensor, key: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the bias terms to queries and keys.

        (B, heads, H*W, d) -> (B, heads, H*W, d + H + W + padding) each.
        """
        rows, columns, one_hot = self._position_tables(height, width, key)
        batch, heads, _, dim = query.shape
        grid = query.reshape(batch, heads, height, width, dim)
        # The bias comes from the UNSCALED query: only the content term carries the scale.
        rel_h = torch.einsum("bnhwd,hkd->bnhwk", grid, rows).flatten(2, 3)  # (B, heads, H*W, H)
        rel_w = torch.einsum("bnhwd,wkd->bnhwk", grid, columns).flatten(2, 3)  # (B, heads, H*W, W)
        padding = -(dim + height + width) % HEAD_DIM_MULTIPLE
        folded = torch.cat([query * self.native.scale, rel_h, rel_w], dim=-1)
        one_hot = one_hot.expand(batch, heads, -1, -1)
        return functional.pad(folded, (0, padding)), functional.pad(
            torch.cat([key, one_hot], -1), (0, padding)
        )

    def _position_tables(self, height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return relative positions of rows and columns, and one-hot rows and columns of the keys.

        (H, H, d), (W, W, d), (H*W, H + W).
        """
        at = (height, width, like.device, like.dtype)
        if self.training:
            return self._built_tables(height, width, like)
        if at not in self._tables:
            self._tables[at] = self._built_tables(height, width, like)
        return self._tables[at]

    def _built_tables(self, height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        native = self.native
        rows = native.get_rel_pos(height, height, native.rel_pos_h)
        columns = native.get_rel_pos(width, width, native.rel_pos_w)
        row_of_key = torch.eye(height).repeat_interleave(width, dim=0)
        column_of_key = torch.eye(width).repeat(height, 1)
        return rows, columns, torch.cat([row_of_key, column_of_key], dim=-1).to(like)


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend with a query that is already scaled. (..., L, d), (..., L, d), (..., L, e) -> (..., L, e)."""
    dim = value.shape[-1]
    # Flash kernels, on CUDA and CPU alike, want one head dimension for query, key and value.
    value = functional.pad(value, (0, query.shape[-1] - dim))
    return functional.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :dim]


def fold_sam_attention(network: Any) -> None:
    """Put ``FoldedSamAttention`` in every SAM layer of ``network``.

    Only instances are replaced; no class is changed.
    """
    for layer in network.model.vision_tower.sam_encoder.layers:
        layer.attn = FoldedSamAttention(layer.attn)
