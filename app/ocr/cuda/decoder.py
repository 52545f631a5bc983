"""A decoder for CUDA that launches about eight kernels a layer; the library's modules launch about a hundred.

With one page, a step reads 1.1 GB of weights, 0.27 ms on an H200, and each launch costs 1 to 2 us even in a
captured graph. With many pages, sorting and gathering around grouped products and four copies of the logits
cost as much as the experts. Therefore everything between the large matrix products runs in ``kernels``.

No module of the network is changed. Weights that must lie side by side are copied: 0.4 GB of the full-size
model's 6.7 GB.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from app.ocr.cuda import kernels
from app.ocr.cuda.experts import FEW_ROWS, Experts, Scratch, add_norm, dividing, power_of_two
from app.ocr.engine.attention import Step
from app.ocr.engine.decode_state import DecodeState

SPARE = 8
"""Positions beyond the last one that a page may have; see ``Turns``."""
# tile of attention in a step; measured on an H200 with 1 to 256 rows of 775 keys: fastest or within 6 %
KEYS_AT_ONCE = 64
WARPS = 4
STAGES = 2


def num_splits(num_rows: int, num_heads: int) -> int:
    """Return into how many ranges to split a row's keys.

    With few rows there are more ranges, so that they fill a card's ~130 processors.
    """
    return max(1, min(16, 1 << (512 // (num_rows * num_heads)).bit_length() >> 1))


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """Rotary embedding tables, (P, dim / 2) float32 each: cosine and sine per position and pair of columns.

    The tables cover ``SPARE`` extra positions: steps launched before a page is known to have ended go a few
    positions beyond the last.
    """

    cosines: torch.Tensor
    sines: torch.Tensor

    @classmethod
    def of(cls, language_model: Any) -> "Turns":
        rotary, device = language_model.rotary_emb, language_model.norm.weight.device
        positions = torch.arange(language_model.config.max_position_embeddings + SPARE, device=device)
        angles = positions[:, None].float() * rotary.inv_freq.to(device).float()
        factor = rotary.attention_scaling
        return cls(angles.cos() * factor, angles.sin() * factor)


class Mixer(Protocol):
    """Attention of one pass: maps (n, 3 H dim) queries, keys and values of a layer to (n, H dim)."""

    def __call__(self, layer: "Layer", qkv: torch.Tensor) -> torch.Tensor: ...


class Layer:
    """One decoder layer on our kernels."""

    def __init__(self, layer: Any, inner: int) -> None:
        attention = layer.self_attn
        self.index = int(attention.layer_idx)
        self.scale = float(attention.scaling)
        self.dim = int(attention.head_dim)
        self._before, self._after = layer.input_layernorm, layer.post_attention_layernorm
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._qkv = torch.cat([linear.weight for linear in projections])
        self._output = attention.o_proj.weight
        self.experts = Experts(layer.mlp, inner)

    def __call__(
        self, hidden: torch.Tensor, parts: torch.Tensor | None, mix: Mixer, scratch: Scratch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one layer. Takes and returns (n, D) hidden states and the parts still to be added to them."""
        hidden, states = add_norm(hidden, parts, self._before)
        mixed = mix(self, project(states, self._qkv))
        return self.experts(hidden, project(mixed, self._output), self._after, scratch)


class StepMixer:
    """Attention of a decode step: one new token for each of the first n rows.

    The token attends to what its row holds; its key and value are stored there.
    """

    def __init__(self, turns: Turns, rows: DecodeState, arrived: torch.Tensor) -> None:
        self._turns, self._rows, self._arrived = turns, rows, arrived

    def __call__(self, layer: Layer, qkv: torch.Tensor) -> torch.Tensor:
        num_rows, device, cache = len(qkv), qkv.device, self._rows.cache
        keys, values = cache.keys[layer.index], cache.values[layer.index]
        num_heads = keys.shape[2]
        splits = num_splits(num_rows, num_heads)
        out = qkv.new_empty((num_rows, num_heads * layer.dim))
        sizes = (num_rows, num_heads, splits)
        partial = torch.empty((*sizes, layer.dim if splits > 1 else 0), dtype=torch.float32, device=device)
        tops, sums = torch.empty((2, *sizes), dtype=torch.float32, device=device)
        kernels.attend[sizes](
            qkv, keys, values, cache.lengths, cache.prompts, self._rows.positions, self._turns.cosines,
            self._turns.sines, out, partial, tops, sums, self._arrived, layer.scale, cache.window or 1,
            *keys.stride()[:3], HEADS=num_heads, DIM=layer.dim, SPLITS=splits, BLOCK=KEYS_AT_ONCE,
            SLIDES=cache.window is not None, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
        return out


class PromptMixer:
    """Attention of packed prompts: each page attends to itself only.

    ``step`` knows where each page begins.
    """

    def __init__(self, turns: Turns, positions: torch.Tensor, step: Step) -> None:
        self._turns, self._positions, self._step = turns, positions, step

    def __call__(self, layer: Layer, qkv: torch.Tensor) -> torch.Tensor:
        num_heads = qkv.shape[1] // 3 // layer.dim
        kernels.rotate[(len(qkv), 2 * num_heads)](
            qkv, self._positions, self._turns.cosines, self._turns.sines, HEADS=num_heads, DIM=layer.dim,
            num_warps=1,
        )  # fmt: skip
        query, key, value = qkv.view(-1, 3, num_heads, layer.dim).permute(1, 2, 0, 3)[:, None].unbind()
        return self._step.attend(layer.index, query, key, value, layer.scale)[0].flatten(1)  # (T, H dim)


class FusedDecoder:
    """A language model's layers, its head and the choice of the next token, on our kernels."""

    def __init__(self, language_model: Any, head: nn.Linear) -> None:
        self._embeddings = language_model.embed_tokens.weight
        inner = int(language_model.config.moe_intermediate_size)
        self._layers = [Layer(layer, inner) for layer in language_model.layers]
        self._norm, self._head = language_model.norm, head.weight
        self._turns = Turns.of(language_model)
        self._num_experts = max(layer.experts.num_experts for layer in self._layers)
        # between kernels it is zero, so one serves every step, captured or not
        self._arrived = torch.zeros(0, dtype=torch.int32, device=head.weight.device)

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """Run packed prompts through all layers and the last norm. (1, T, D), (1, T) int64 -> (1, T, D)."""
        arrived = torch.zeros(embeds.shape[1], dtype=torch.int32, device=embeds.device)
        mix = PromptMixer(self._turns, positions[0], step)
        return self._through(embeds[0], mix, arrived)[None]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits. (..., D) -> (..., V)."""
        return functional.linear(hidden, self._head)

    def step(self, rows: DecodeState, num_rows: int) -> torch.Tensor:
        """Choose a token for the first ``num_rows`` rows and advance their state by it.

        Returns (4, n) float64, the fields of ``Choice`` in order.
        """
        return chosen(self.logits(rows, num_rows), rows)

    def logits(self, rows: DecodeState, num_rows: int) -> torch.Tensor:
        """Run the rows' last tokens through all layers and store their keys and values. Returns (n, V)."""
        slots, _, num_heads, _ = rows.cache.keys[0].shape
        if len(self._arrived) < slots * num_heads:
            self._arrived = self._arrived.new_zeros(slots * num_heads)
        hidden = functional.embedding(rows.tokens[:num_rows], self._embeddings)  # (n, D)
        mix = StepMixer(self._turns, rows, self._arrived)
        return self.head(self._through(hidden, mix, self._arrived))

    def _through(self, hidden: torch.Tensor, mix: Mixer, arrived: torch.Tensor) -> torch.Tensor:
        """Run all layers and the last norm. (n, D) -> (n, D)."""
        scratch = Scratch(arrived, len(self._layers), self._num_experts, len(hidden))
        parts: torch.Tensor | None = None
        for layer in self._layers:
            hidden, parts = layer(hidden, parts, mix, scratch)
        return add_norm(hidden, parts, self._norm)[1]


def chosen(logits: torch.Tensor, rows: DecodeState) -> torch.Tensor:
    """Choose a token for each row and advance the row's state by it. (n, V) -> (4, n) float64."""
    repeats, device = rows.repeats, logits.device
    num_rows, vocab = logits.shape
    block = scan_ids(num_rows)
    splits = -(-vocab // block)
    tops, totals, allowed = torch.empty((3, num_rows, splits), dtype=torch.float32, device=device)
    wanted, taken = torch.empty((2, num_rows, splits), dtype=torch.int32, device=device)
    span, reach = repeats.history.shape[1], repeats.run_needed.shape[1]
    kernels.scan[(num_rows, splits)](
        logits, repeats.history, repeats.runs, repeats.run_needed, repeats.is_exempt, tops, totals, wanted,
        allowed, taken, vocab, span, reach, SPLITS=splits, BLOCK=block, REACH=power_of_two(reach),
        num_warps=4,
    )  # fmt: skip
    choices = torch.empty((4, num_rows), dtype=torch.float64, device=device)
    kernels.choose[(num_rows,)](
        tops, totals, wanted, allowed, taken, repeats.history, repeats.runs, repeats.loop_needed, rows.tokens,
        rows.positions, rows.cache.lengths, rows.logprob_sums, rows.is_running, choices, num_rows, vocab,
        span, len(repeats.loop_needed), SPLITS=splits, BLOCK=power_of_two(splits), SPAN=power_of_two(span),
        num_warps=4,
    )  # fmt: skip
    return choices


def project(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply ``states`` by the transposed weight. (n, I), (O, I) -> (n, O)."""
    num_rows, (outer, inner) = len(states), weight.shape
    if num_rows > FEW_ROWS:
        return functional.linear(states, weight)
    out = states.new_empty((num_rows, outer))
    block = dividing(4, outer)
    kernels.project[(outer // block, num_rows)](
        states, weight, out, INNER=inner, OUTER=outer, BLOCK_O=block, BLOCK=dividing(256, inner), num_warps=4
    )
    return out


def scan_ids(num_rows: int) -> int:
    """Return how many logits of a row one program scans."""
    return 2048 if num_rows <= 16 else 8192
