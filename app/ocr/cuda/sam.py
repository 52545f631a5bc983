"""A SAM layer on CUDA that reads windows in place, adds no bias tensor and folds nothing into the keys.

The library's layer copies its input seven times, and its attention reads a head of 64 columns as one of 192.
Here the projection runs on the grid as it lies, and the kernels of ``sam_kernels`` find each window in it.
"""

import torch
from torch import nn
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2SamVisionLayer
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrSamVisionLayer

from app.ocr.cuda import sam_kernels

# tile of a program; measured on an H200 in windows and grids of 40, 64 and 80: fastest or within 4 %
QUERIES = 64
WARPS = 4
STAGES = 3


class FusedSamLayer(nn.Module):
    """Replacement for a SAM layer.

    It computes with that layer's parameters, which stay reachable as ``native``. Position tables are built
    once per resolution, so weights must not change after the first forward.
    """

    def __init__(self, native: UnlimitedOcrSamVisionLayer | DeepseekOcr2SamVisionLayer) -> None:
        super().__init__()
        self.native = native
        self.train(native.training)
        self._tables: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layer. (B, H, W, C) -> (B, H, W, C)."""
        native = self.native
        hidden = hidden + native.attn.proj(self.attend(native.attn.qkv(native.layer_norm1(hidden))))
        mixed: torch.Tensor = hidden + native.mlp(native.layer_norm2(hidden))
        return mixed

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attend within windows, or within the whole grid. (B, H, W, 3 C) -> (B, H, W, C)."""
        attention, side = self.native.attn, self.native.window_size
        batch, height, width, across = qkv.shape
        heads = attention.num_attention_heads
        dim = across // 3 // heads
        tall, wide = (side, side) if side > 0 else (height, width)
        of_rows, of_columns = (
            relate(qkv, table, axis, heads) for axis, table in enumerate(self._position_tables(tall, wide))
        )
        out = qkv.new_empty((batch, height, width, heads * dim))
        windows = -(-height // tall), -(-width // wide)
        first, rest = pieces(wide)
        sam_kernels.attend[(-(-tall * wide // QUERIES), windows[0] * windows[1], batch * heads)](
            qkv, attention.qkv.bias, of_rows, of_columns, out, attention.scale, height, width, windows[1],
            TALL=tall, WIDE=wide, HEADS=heads, DIM=dim,
            PADDED=windows[0] * tall > height or windows[1] * wide > width,
            BLOCK_M=QUERIES, FIRST=first, REST=rest, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
        return out

    def _position_tables(self, tall: int, wide: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return relative position tables (TALL, TALL, DIM) for rows and (WIDE, WIDE, DIM) for columns."""
        if (tall, wide) not in self._tables:
            attention = self.native.attn
            self._tables[tall, wide] = (
                attention.get_rel_pos(tall, tall, attention.rel_pos_h).contiguous(),
                attention.get_rel_pos(wide, wide, attention.rel_pos_w).contiguous(),
            )
        return self._tables[tall, wide]


def pieces(wide: int) -> tuple[int, int]:
    """Split a row of ``wide`` keys into two sizes, powers of two that hold it with little to spare.

    Matrix units need at least 16 keys, and a program reads at most 64 at once. The second size is 0 if one is
    enough.

    >>> pieces(64), pieces(80), pieces(40), pieces(14)
    ((64, 0), (64, 16), (32, 16), (16, 0))
    """
    first = min(64, max(16, 1 << (wide.bit_length() - 1)))
    rest = wide - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest > 0 else 0


def relate(qkv: torch.Tensor, table: torch.Tensor, axis: int, heads: int) -> torch.Tensor:
    """Multiply queries by relative positions: (B, H, W, 3 C) queries, keys and values with a (P, P, d) table.

    ``axis`` 0 is for rows and gives (B, heads, P, H * W); 1 is for columns and gives (B, heads, H * W, P).
    The result is flat.
    """
    batch, height, width, _ = qkv.shape
    period, _, dim = table.shape
    out = qkv.new_empty(batch * heads * period * height * width)
    sizes, strides, places = (height, width), qkv.stride()[1:3], (width, 1)
    block = 64
    sam_kernels.relate[(sizes[axis], -(-sizes[1 - axis] // block), batch * heads)](
        qkv, table, out, sizes[1 - axis], strides[axis], strides[1 - axis], qkv.stride(0), height * width,
        places[axis], places[1 - axis], PERIOD=period, HEADS=heads, DIM=dim, TURNED=axis == 0, BLOCK=block,
        BLOCK_K=max(16, 1 << (period - 1).bit_length()), num_warps=4,
    )  # fmt: skip
    return out
