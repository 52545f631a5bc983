"""Attention over the cache's slots, plugged into the unmodified decoder by transformers' interface.

The decoder calls ``attend_pages`` in each layer. The forward call's ``step`` argument says whether this pass
is a packed prefill or a decode step. The model builds no mask and gets none. Steps on CUDA's flash kernel are
in ``packed_attention``.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from app.ocr.engine.kv_cache import KvCache
from app.ocr.engine.scheduler import runs_of_like_length
from app.ocr.models.config import FULL, SLIDING

NAME = "rtprune_pages"
NO_MASK: dict[str, None] = {FULL: None, SLIDING: None}
"""Masks for both kinds of layers, all ``None``. They must be passed, or the model builds masks of its own."""


class Step(Protocol):
    """Attention of one forward pass.

    ``attend`` stores the new keys and values and maps (B, H, T, D) queries to (B, T, H, D).
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
    """Make ``network``'s decoder attend through this module and run its experts grouped.

    Returns the window of a sliding decoder, else ``None``. Raise ``ValueError`` if its layers are not all of
    one kind. The registration is global to the process but changes no other model: an instance uses it only
    when told.
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
    """Return the experts' implementation: ``grouped_mm``, or ``eager`` for sizes that its kernel refuses.

    All known checkpoints take ``grouped_mm``; ``eager`` is a loop. Never use ``batched_mm``, which generate()
    picks on CUDA: it copies the experts' weights for every token.
    """
    text, dtype = network.config.text_config, network.dtype
    sizes = (text.hidden_size, text.moe_intermediate_size)
    is_aligned = all(size * dtype.itemsize % 16 == 0 for size in sizes)
    return "grouped_mm" if is_aligned and dtype.itemsize <= 4 else "eager"


class EachPrefill:
    """Prefill of pages packed one after the other in a single row of tokens.

    Page i goes to cache row ``first_row + i``. Nothing is padded: each page takes one SDPA call per layer.
    """

    def __init__(self, cache: KvCache, lengths: Sequence[int]) -> None:
        self._cache = cache
        self._first_row = cache.num_rows
        self._lengths = lengths

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        grouped = query.shape[1] != key.shape[1]
        outs, start = [], 0
        for row, length in enumerate(self._lengths, start=self._first_row):
            q, k, v = (states[:, :, start : start + length] for states in (query, key, value))
            self._cache.write(layer, row, k[0].transpose(0, 1), v[0].transpose(0, 1))
            outs.append(
                scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
            )
            start += length
        return torch.cat(outs, dim=2).transpose(1, 2)  # (1, T, H, D)


CALL_TOKENS = {"cpu": 256, "cuda": 4096}
"""Cost of an SDPA call, in keys of one row. CPU: 58 us for a row by itself, 0.16 us for each key of a row (4
heads of 64, float32, AVX2). CUDA: some 20 us of launches at 5 ns a key (10 heads of 128, bfloat16).
"""
ROUND_TO = 16
"""Keys are read in multiples of this many, so that masks stay aligned and runs last for several steps."""


class RunsDecode:
    """Decode step in SDPA calls for runs: neighbouring rows of similar length. Each row gets one token.

    A run is read as far as its longest row; the rest is masked. Where a call costs little compared with
    reading, runs are short. With ``call_tokens`` 0 each row is read by itself, exactly as far as it goes. Not
    for CUDA graphs: runs follow the lengths, so two steps seldom have the same shapes.
    """

    def __init__(self, cache: KvCache, call_tokens: int | None = None) -> None:
        device = cache.lengths.device
        self._cache = cache
        self._call_tokens = CALL_TOKENS[device.type] if call_tokens is None else call_tokens
        self._rows = torch.arange(cache.num_rows, device=device)
        self._columns = torch.arange(cache.plan.slot_tokens, device=device)
        self._at = self._rows
        self._runs: list[tuple[slice, int, torch.Tensor | None]] = []

    def begin(self) -> "RunsDecode":
        """Prepare a step: compute what all layers share."""
        self._at, held = self._cache.next_places(len(self._rows))
        lengths = self._cache.host_held(more=1)  # including the token of this step
        runs = runs_of_like_length(lengths, self._call_tokens, ROUND_TO)
        self._runs = [self._run(slice(rows.start, rows.stop), lengths, held) for rows in runs]
        return self

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_put_((self._rows, self._at), key[:, :, 0])
        values.index_put_((self._rows, self._at), value[:, :, 0])
        # the queries of a group attend as its tokens would: (n, Hkv, G, D)
        grouped = query.reshape(len(query), key.shape[1], -1, query.shape[3])
        outs = [
            scaled_dot_product_attention(
                grouped[rows],
                keys[rows, :most].transpose(1, 2),
                values[rows, :most].transpose(1, 2),
                attn_mask=mask,
                scale=scale,
            )
            for rows, most, mask in self._runs
        ]
        mixed = outs[0] if len(outs) == 1 else torch.cat(outs)
        return mixed.reshape(len(query), 1, -1, query.shape[3])  # (n, 1, H, D)

    def _run(
        self, rows: slice, lengths: Sequence[int], held: torch.Tensor
    ) -> tuple[slice, int, torch.Tensor | None]:
        """Return the rows, how many keys are read, and a mask to add to the scores.

        The mask is (rows, 1, 1, keys), or ``None`` if all rows are equally long.
        """
        longest = max(lengths[rows])
        if min(lengths[rows]) == longest:
            return rows, longest, None
        most = min(-(-longest // ROUND_TO) * ROUND_TO, self._cache.plan.slot_tokens)
        beyond = self._columns[:most] >= held[rows, None]
        mask = torch.zeros(beyond.shape, dtype=self._cache.shape.dtype, device=beyond.device)
        return rows, most, mask.masked_fill_(beyond, -torch.inf)[:, None, None]


class DraftDecode:
    """Decode step that gives row i ``counts[i]`` tokens: its last one, and drafts of those that may follow.

    Tokens are packed one row after the other, as in ``EachPrefill``. Rows are read in runs, as in
    ``RunsDecode``; within a run, rows with fewer tokens are padded. Not for sliding windows, whose ring a
    rejected draft would have overwritten.
    """

    def __init__(self, cache: KvCache, counts: Sequence[int]) -> None:
        device = cache.lengths.device
        self._cache = cache
        counts_there = torch.tensor(counts, device=device)
        self.rows = torch.arange(len(counts), device=device).repeat_interleave(counts_there)  # (N,)
        self.starts = counts_there.cumsum(0) - counts_there  # (n,)
        self.offsets = torch.arange(len(self.rows), device=device) - self.starts[self.rows]
        self.places = cache.lengths[self.rows] + self.offsets
        lengths = [length + count for length, count in zip(cache.host_lengths, counts, strict=True)]
        runs = runs_of_like_length(lengths, CALL_TOKENS[device.type], ROUND_TO)
        self._runs = [self._run(slice(rows.start, rows.stop), lengths, counts) for rows in runs]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Map (1, H, N, D) queries to (1, N, H, D)."""
        self._cache.write_packed(
            layer, self.rows, self.places, key[0].transpose(0, 1), value[0].transpose(0, 1)
        )
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        grouped = query.shape[1] != key.shape[1]
        outs = [
            scaled_dot_product_attention(
                query[0][:, at].transpose(0, 1),  # (n, H, T, D)
                keys[rows, :most].transpose(1, 2),
                values[rows, :most].transpose(1, 2),
                attn_mask=mask,
                scale=scale,
                enable_gqa=grouped,
            ).transpose(1, 2)[is_own]
            for rows, most, at, is_own, mask in self._runs
        ]
        return torch.cat(outs)[None]

    def _run(
        self, rows: slice, lengths: Sequence[int], counts: Sequence[int]
    ) -> tuple[slice, int, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the rows, how many keys are read, where each row's tokens are, (n, T), whether they are its
        own and not padding, and a mask to add to the scores, (n, 1, T, keys).
        """
        most = min(-(-max(lengths[rows]) // ROUND_TO) * ROUND_TO, self._cache.plan.slot_tokens)
        device = self._cache.lengths.device
        steps = torch.arange(max(counts[rows]), device=device)
        last = torch.tensor(counts[rows], device=device)[:, None] - 1
        at = self.starts[rows, None] + torch.minimum(steps, last)
        held = self._cache.lengths[rows, None] + torch.minimum(steps, last) + 1  # (n, T)
        beyond = torch.arange(most, device=device) >= held[:, :, None]
        mask = torch.zeros(beyond.shape, dtype=self._cache.shape.dtype, device=device)
        return rows, most, at, steps <= last, mask.masked_fill_(beyond, -torch.inf)[:, None]
