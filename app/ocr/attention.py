"""Attention over the slots, plugged into the unmodified decoder through transformers' attention interface.

The decoder calls ``attend_pages`` in each layer; the forward call's ``step`` argument says what this pass is:
a packed prefill or one decode step. No mask is built by the model and none is passed to it.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from app.ocr.config import FULL, SLIDING
from app.ocr.kv_cache import KvCache

NAME = "rtprune_pages"
NO_MASK: dict[str, None] = {FULL: None, SLIDING: None}
"""Given, as none, or the model would build one of its own."""


class Step(Protocol):
    """One forward pass. ``attend`` stores the new keys and values and gives (B, T, H, D) from (B, H, T,
    D).
    """

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor: ...


def attend_pages(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - part of transformers' interface
    *,
    scaling: float,
    step: Step,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    return step.attend(int(module.layer_idx), query, key, value, scaling), None  # type: ignore[arg-type]


def install(network: Any) -> int | None:
    """Make ``network``'s decoder attend through this module, and its experts run grouped.

    Gives the window of a sliding decoder. ValueError if its layers are not of one kind. Registering is global
    to the process and changes no other model: an instance uses it only when told.
    """
    text = network.config.text_config
    kinds = sorted(set(text.layer_types))
    if kinds not in ([FULL], [SLIDING]):
        raise ValueError(f"the engine decodes layers of one kind, {FULL} or {SLIDING}, not {kinds}")
    AttentionInterface.register(NAME, attend_pages)
    network.set_attn_implementation({"text_config": NAME})
    network.set_experts_implementation({"text_config": experts_for(network)})
    window: int | None = text.sliding_window if kinds == [SLIDING] else None
    return window


def experts_for(network: Any) -> str:
    """``grouped_mm`` for every checkpoint there is; the loop over experts for sizes its kernel refuses.

    Never batched_mm, which generate() picks on CUDA: it copies the experts' weights for every token.
    """
    text, dtype = network.config.text_config, network.dtype
    sizes = (text.hidden_size, text.moe_intermediate_size)
    is_aligned = all(size * dtype.itemsize % 16 == 0 for size in sizes)
    return "grouped_mm" if is_aligned and dtype.itemsize <= 4 else "eager"


class PackedPrefill:
    """Pages one after the other in a single row of tokens; page i goes to cache row ``first_row + i``.

    Nothing is padded. ``fused``: all pages in one variable-length kernel (CUDA); else one SDPA call a page.
    """

    def __init__(self, cache: KvCache, lengths: Sequence[int], *, fused: bool) -> None:
        self._cache = cache
        self._first_row = cache.num_rows
        self._lengths = lengths
        self._starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(cache.lengths.device)
        self._fused = fused

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # (T, H, D)
        start = 0
        for row, length in enumerate(self._lengths, start=self._first_row):
            end = start + length
            self._cache.write(layer, row, keys[start:end], values[start:end])
            start = end
        if self._fused:
            return self._attend_fused(query[0].transpose(0, 1), keys, values, scale)
        return self._attend_each(query, key, value, scale)

    def _attend_each(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        grouped = query.shape[1] != key.shape[1]
        outs, start = [], 0
        for length in self._lengths:
            q, k, v = (states[:, :, start : start + length] for states in (query, key, value))
            outs.append(
                scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
            )
            start += length
        return torch.cat(outs, dim=2).transpose(1, 2)  # (1, T, H, D)

    def _attend_fused(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        longest = max(self._lengths)
        out = varlen_attn(
            query, key, value, self._starts, self._starts, longest, longest,
            scale=scale, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return cast("torch.Tensor", out).unsqueeze(0)


class SlotDecode:
    """One token for each of the first n rows on CPU: one row after the other, on exactly its own keys.

    A masked call for all rows reads every row as far as the longest, and reading is what attention costs
    here. 16 rows of 84 to 384 keys (4 heads of 64, float32, one core): 0.42 ms as two matrix products a row,
    0.63 ms as 16 SDPA calls, 0.93 ms as one. SDPA is for bfloat16, whose scores must not be rounded before
    the softmax.
    """

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._rows = torch.arange(cache.num_rows)
        self._at = self._rows
        self._attend_row = sdpa_row if cache.shape.dtype.itemsize < 4 else exact_row
        self._keys: list[tuple[torch.Tensor, ...]] = []
        self._values: list[tuple[torch.Tensor, ...]] = []

    def begin(self) -> "SlotDecode":
        """Before each step: the places that all layers share, and each layer's keys and values by row."""
        self._at, _ = self._cache.next_places(len(self._rows))
        held = enumerate(self._cache.host_held(more=1))  # the token of this step included
        keys, values = zip(*(self._cache.held_of(row, num_tokens) for row, num_tokens in held), strict=True)
        self._keys, self._values = list(zip(*keys, strict=True)), list(zip(*values, strict=True))
        return self

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        cache, attend_row = self._cache, self._attend_row
        cache.keys[layer].index_put_((self._rows, self._at), key[:, :, 0])
        cache.values[layer].index_put_((self._rows, self._at), value[:, :, 0])
        num_groups = key.shape[1]
        scaled = (query * scale).reshape(len(query), num_groups, -1, query.shape[3])  # (n, Hkv, G, D)
        rows = zip(scaled.unbind(0), self._keys[layer], self._values[layer], strict=True)
        outs = [attend_row(q, k, v) for q, k, v in rows]
        return torch.cat(outs).view(len(query), 1, -1, query.shape[3])  # (n, 1, H, D)


def exact_row(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(Hkv, G, D) scaled queries, (Hkv, T, D) keys and values -> (Hkv, G, D).

    Keys come first in their product: it then reads memory half again as fast as the other way around.
    """
    scores = torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2)  # (Hkv, G, T)
    return torch.bmm(scores.softmax(dim=2), values)


def sdpa_row(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The same; scores stay in float32 whatever the dtype. A group's queries attend as its tokens would."""
    return scaled_dot_product_attention(query, keys, values, scale=1.0)


class PackedDecode:
    """One token for each of the first n rows on CUDA, by torch's own variable-length flash kernel.

    It reads exactly the keys each row holds and takes lengths from the device, so a step can be captured
    in a CUDA graph and replayed. bfloat16 or float16, compute capability 8.0 and later.
    """

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
        keys.index_put_((self._rows, self._at), key[:, :, 0])
        values.index_put_((self._rows, self._at), value[:, :, 0])
        out = varlen_attn(
            query[:, :, 0],  # (n, H, D)
            keys[: self._num_rows].flatten(0, 1),  # (n * T, H, D)
            values[: self._num_rows].flatten(0, 1),
            self._query_starts,
            self._key_starts,
            1,
            self._cache.plan.slot_tokens,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
            seqused_k=self._held,
        )
        return cast("torch.Tensor", out).unsqueeze(1)  # (n, 1, H, D)
