"""Attention by the variable-length flash kernel in torch's CUDA builds.

It reads exactly the keys that each page holds, with lengths from the device, so a step can be captured in a
CUDA graph and replayed. FlashInfer and flash-attn offer the same kernel, but from a package that must fit
torch and CUDA.
"""

import logging
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.nn.functional import scaled_dot_product_attention

from app.ocr.engine.kv_cache import KvCache, KvPlan, KvShape, to_device

logger = logging.getLogger(__name__)
LEAST_CAPABILITY = (8, 0)


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    starts: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    scale: float,
    held: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend within packed sequences. (Tq, H, D) queries, (Tk, Hkv, D) keys and values -> (Tq, H, D).

    Sequence i begins at ``starts[0][i]`` (queries) and ``starts[1][i]`` (keys), int32. ``held``: (n,) int32,
    keys in use of each sequence, with one query each. Without it, queries and keys belong to the same tokens,
    and attention is causal.

    Does not use ``torch.nn.attention.varlen``, whose signature differs in each of torch 2.10 to 2.13; the
    operator beneath it takes these arguments in all of them.
    """
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, *starts, *longest, 0.0, held is None, False, scale=scale, seqused_k=held
    )[0]
    return out


class PackedPrefill:
    """Prefill of pages packed one after the other, in one call.

    Page i goes to cache row ``first_row + i``.
    """

    def __init__(self, cache: KvCache, lengths: Sequence[int]) -> None:
        device, first = cache.lengths.device, cache.num_rows
        self._cache = cache
        self._longest = max(lengths)
        self._starts = to_device([0, *accumulate(lengths)], torch.int32, device)
        counts = torch.tensor(lengths)
        ends = counts.cumsum(0)
        rows = torch.arange(first, first + len(lengths)).repeat_interleave(counts)
        self._rows = to_device(rows, torch.int64, device)
        places = torch.arange(int(ends[-1])) - (ends - counts).repeat_interleave(counts)
        self._places = to_device(places, torch.int64, device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, H, D)
        self._cache.write_packed(layer, self._rows, self._places, keys, values)
        out = varlen(
            queries, keys, values, starts=(self._starts, self._starts),
            longest=(self._longest, self._longest), scale=scale,
        )  # fmt: skip
        return out.unsqueeze(0)


class PackedDecode:
    """Decode step in one call: one token for each of the first n rows."""

    def __init__(self, cache: KvCache, num_rows: int) -> None:
        device, slot_tokens = cache.lengths.device, cache.plan.slot_tokens
        self._cache = cache
        self._num_rows = num_rows
        self._rows = torch.arange(num_rows, device=device)
        self._query_starts = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self._key_starts = self._query_starts * slot_tokens
        self._at = cache.lengths[:0]
        self._held = cache.lengths[:0]

    def begin(self) -> "PackedDecode":
        self._at, self._held = self._cache.next_places(self._num_rows)
        return self

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        self._cache.write_packed(layer, self._rows, self._at, key[:, :, 0], value[:, :, 0])
        out = varlen(
            query[:, :, 0],  # (n, H, D)
            keys[: self._num_rows].flatten(0, 1),  # (n * T, Hkv, D)
            values[: self._num_rows].flatten(0, 1),
            starts=(self._query_starts, self._key_starts),
            longest=(1, self._cache.plan.slot_tokens),
            scale=scale,
            held=self._held,
        )
        return out.unsqueeze(1)  # (n, 1, H, D)


def works(shape: KvShape, num_heads: int, device: torch.device) -> bool:
    """Tell whether ``device`` runs these steps for a decoder of ``num_heads`` query heads.

    This is tried and compared, because cards, builds and versions of torch differ in what they accept.
    """
    if device.type != "cuda" or shape.dtype not in (torch.bfloat16, torch.float16):
        return False
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return False
    try:
        return _agrees(shape, num_heads, device)
    except Exception:  # whatever the error, SDPA still works
        logger.warning("no variable-length attention on this device, SDPA instead", exc_info=True)
        return False


@torch.inference_mode()
def _agrees(shape: KvShape, num_heads: int, device: torch.device) -> bool:
    """Compare with SDPA: one layer, two rows that hold 3 and 5 tokens."""
    small = KvShape(1, shape.num_heads, shape.head_dim, shape.dtype)
    cache = KvCache(KvPlan(2, 8), small, device)
    generator = torch.Generator().manual_seed(0)

    def states(heads: int, *sizes: int) -> torch.Tensor:
        drawn = torch.randn(sizes[0], heads, *sizes[1:], shape.head_dim, generator=generator)
        return drawn.to(device, shape.dtype)

    lengths, scale = [2, 4], shape.head_dim**-0.5
    prompt = PackedPrefill(cache, lengths)
    key, value = states(shape.num_heads, 1, 6), states(shape.num_heads, 1, 6)
    prompt.attend(0, states(num_heads, 1, 6), key, value, scale)
    cache.admit(lengths)
    query = states(num_heads, 2, 1)
    step = PackedDecode(cache, 2).begin()
    out = step.attend(0, query, states(shape.num_heads, 2, 1), states(shape.num_heads, 2, 1), scale)
    grouped = query.view(2, shape.num_heads, -1, shape.head_dim)
    wanted = []
    for row, length in enumerate(lengths):
        keys, values = (held[0][row, : length + 1].transpose(0, 1) for held in (cache.keys, cache.values))
        wanted.append(scaled_dot_product_attention(grouped[row], keys, values, scale=scale))
    return torch.allclose(out[:, 0].flatten(), torch.stack(wanted).flatten(), atol=2e-2, rtol=2e-2)
