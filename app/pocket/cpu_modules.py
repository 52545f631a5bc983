"""The same network for a CPU, in fewer and larger operations, with its weights laid out for oneDNN.

One decode step of a small checkpoint is a few hundred operations of a few microseconds each. Here the
projections of query, key and value are one matrix product, and those of gate and up another. All experts of a
mixture are one wide MLP whose unchosen parts are multiplied by zero. A rotation is one complex product with a
row of a table. The decoder layers are transformers' own, copied shallowly; only their children are replaced
by modules made of the same weights. No module of the network is changed.

torch's float32 ``linear`` uses another library than oneDNN. On this kind of processor (AMD, AVX-512, one
core) it takes 76 us for (16, 256) x (256, 768) where oneDNN takes 39, and 4.2 ms against 1.8 for 1,200 rows.
For a single row a plain product with the transposed weight is faster, 12 us against 19, and is used. Each
weight is held up to three times, so this is for small checkpoints.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import (
    UnlimitedOcrTextAttention,
    UnlimitedOcrTextMLP,
    UnlimitedOcrTextMoe,
    UnlimitedOcrTextRMSNorm,
)

from app.ocr.engine.attention import Step

MAX_MIB = 256
"""Most MiB of weights for which holding them three times is worth it."""
LAYOUT_ROWS = 64
"""Number of rows that oneDNN lays weights out for. At 2 to 300 rows no other number gave a faster layout."""
MAX_EXPERTS = 8
"""Most experts for which computing all of them costs less than sorting tokens by expert."""


class PackedLinear(nn.Module):
    """Linear layer through oneDNN, with an (O, I) weight. (..., I) -> (..., O)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self._bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), LAYOUT_ROWS)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self._packed, self._bias, "none", [], ""
        )
        return output


class StepLinear(nn.Module):
    """``PackedLinear`` without a bias, for decode steps: one row of float32 takes a plain product."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self._packed = PackedLinear(weight)
        # (I, O), read in order: in its own layout one row waits for memory twice as long
        self._turned = weight.detach().t().contiguous() if weight.dtype == torch.float32 else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._turned is not None and hidden.numel() == hidden.shape[-1]:
            return hidden @ self._turned
        output: torch.Tensor = self._packed(hidden)
        return output


class PackedNorm(nn.Module):
    """RMS norm as one operation of torch."""

    def __init__(self, norm: UnlimitedOcrTextRMSNorm) -> None:
        super().__init__()
        self._weight, self._eps = norm.weight, norm.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, self._weight.shape, self._weight, self._eps)


class PackedMlp(nn.Module):
    """MLP whose gate and up projections are one product."""

    def __init__(self, mlp: UnlimitedOcrTextMLP) -> None:
        super().__init__()
        self._act = mlp.act_fn
        self._gate_up = StepLinear(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)))
        self._down = StepLinear(mlp.down_proj.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate_up(hidden).chunk(2, dim=-1)
        down: torch.Tensor = self._down(self._act(gate) * up)
        return down


class PackedMixture(nn.Module):
    """All experts, the shared ones first, computed for every token.

    The result is exact: experts that the router did not choose have weight zero.
    """

    def __init__(self, mixture: UnlimitedOcrTextMoe) -> None:
        super().__init__()
        experts, shared = mixture.experts, mixture.shared_experts
        self._router, self._act = mixture.gate, experts.act_fn
        self._num_experts, self._num_shared = experts.num_experts, shared.intermediate_size
        gates, ups = experts.gate_up_proj.chunk(2, dim=1)  # (E, I, D) each
        wide = (shared.gate_proj.weight, *gates, shared.up_proj.weight, *ups)
        self._gate_up = StepLinear(torch.cat(wide))
        narrow = (shared.down_proj.weight, *experts.down_proj)  # (D, I) each
        self._down = StepLinear(torch.cat(narrow, dim=1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        _, weights, chosen = self._router(hidden)  # (N, k) each
        shares = weights.new_zeros(len(weights), self._num_experts).scatter_(1, chosen, weights)
        gate, up = self._gate_up(hidden).chunk(2, dim=-1)
        mixed = self._act(gate) * up  # (..., shared + E * I)
        routed = mixed[..., self._num_shared :].unflatten(-1, (self._num_experts, -1))
        routed.mul_(shares.view(*routed.shape[:-1], 1))
        down: torch.Tensor = self._down(mixed)
        return down


class PackedAttention(nn.Module):
    """Attention in which the two halves of a head that are rotated together are stored as complex numbers.

    Queries and keys are reordered alike, so their products stay the same. The keys that ``step`` stores are
    in this order.
    """

    def __init__(self, attention: UnlimitedOcrTextAttention) -> None:
        super().__init__()
        self._layer, self._scale = int(attention.layer_idx), attention.scaling
        self._dim = attention.head_dim
        turned = [self._side_by_side(linear.weight) for linear in (attention.q_proj, attention.k_proj)]
        self._num_queries, self._num_keys = (len(weight) // self._dim for weight in turned)
        self._qkv = StepLinear(torch.cat((*turned, attention.v_proj.weight)))
        self._output = StepLinear(attention.o_proj.weight)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: torch.Tensor, step: Step, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """Attend through ``step``. ``position_embeddings``: (B, T, 1, head_dim / 2) complex64."""
        num_rows, length = hidden_states.shape[:2]
        states = self._qkv(hidden_states).view(num_rows, length, -1, self._dim)  # (B, T, H + 2 Hkv, D)
        num_turned = self._num_queries + self._num_keys
        pairs = states[:, :, :num_turned].float().unflatten(3, (-1, 2))
        turned = torch.view_as_real(torch.view_as_complex(pairs) * position_embeddings).flatten(3)
        heads = turned.to(states.dtype).transpose(1, 2)  # (B, H + Hkv, T, D)
        queries, keys = heads[:, : self._num_queries], heads[:, self._num_queries :]
        values = states[:, :, num_turned:].transpose(1, 2)
        mixed = step.attend(self._layer, queries, keys, values, self._scale)
        return self._output(mixed.flatten(2)), None

    def _side_by_side(self, weight: torch.Tensor) -> torch.Tensor:
        """Reorder an (O, I) weight so that rows i and i + D / 2 of every head are neighbours."""
        heads = weight.reshape(-1, 2, self._dim // 2, weight.shape[1])  # (H, 2, D / 2, I)
        return heads.transpose(1, 2).flatten(0, 2)


class PackedDecoder:
    """A language model's layers, its last norm and its linear head, made of packed modules."""

    def __init__(self, language_model: Any, head: nn.Linear) -> None:
        self._layers: Sequence[Any] = [_packed(layer) for layer in language_model.layers]
        self._norm = _packed(language_model.norm)
        self._turns = _turns(language_model)
        self._head = StepLinear(head.weight)

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """Run all layers and the last norm. (B, T, D), (B, T) int64 -> (B, T, D)."""
        turns = self._turns[positions]
        hidden = embeds
        for layer in self._layers:
            hidden = layer(hidden, position_embeddings=turns, step=step)
        normed: torch.Tensor = self._norm(hidden)
        return normed

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits. (..., D) -> (..., V)."""
        logits: torch.Tensor = self._head(hidden)
        return logits


def is_worth_packing(language_model: Any) -> bool:
    """Tell whether to pack a decoder: it is on a CPU, small, of the known kind, and torch has oneDNN."""
    weights = list(language_model.layers.parameters())
    is_known = all(_is_laid_out(weight.dtype) for weight in weights) and not any(
        isinstance(module, nn.Linear) and module.bias is not None for module in language_model.modules()
    )
    is_tabled = language_model.rotary_emb.rope_type == "default"  # other types change with the length
    return _is_small_on_cpu(weights) and is_known and is_tabled


def with_packed_linears(module: Any) -> Any:
    """Return a copy of a vision module that multiplies through oneDNN.

    Returns ``module`` itself if that is not worth it. In bfloat16 torch uses oneDNN by itself.
    """
    weights = list(module.parameters())
    if not _is_small_on_cpu(weights) or any(weight.dtype != torch.float32 for weight in weights):
        return module
    return _with_packed_linears(module)


def _with_packed_linears(module: Any) -> Any:
    if type(module) is nn.Linear:
        return PackedLinear(module.weight, module.bias)
    clone = copy.copy(module)
    clone._modules = {name: _with_packed_linears(child) for name, child in module.named_children()}
    return clone


def _is_laid_out(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN takes this dtype. It refuses bfloat16 without AVX-512 (or AVX-NE-CONVERT)."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _is_small_on_cpu(weights: Sequence[torch.Tensor]) -> bool:
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    is_small = sum(weight.nbytes for weight in weights) <= MAX_MIB * 2**20
    return has_onednn and is_small and all(weight.device.type == "cpu" for weight in weights)


def _packed(module: Any) -> Any:
    """Return a faster module with the same result, a copy with packed children, or ``module`` itself."""
    match module:
        case UnlimitedOcrTextRMSNorm():
            return PackedNorm(module)
        case UnlimitedOcrTextMLP():
            return PackedMlp(module)
        case UnlimitedOcrTextMoe() if module.experts.num_experts <= MAX_EXPERTS:
            return PackedMixture(module)
        case UnlimitedOcrTextAttention():
            return PackedAttention(module)
    clone = copy.copy(module)
    clone._modules = {name: _packed(child) for name, child in module.named_children()}
    return clone


def _turns(language_model: Any) -> torch.Tensor:
    """Return (P, 1, head_dim / 2) complex64, each position's rotation of a pair.

    The library's equal halves are merged.
    """
    num_positions = language_model.config.max_position_embeddings
    positions = torch.arange(num_positions)[None]
    cos, sin = language_model.rotary_emb(torch.zeros(1, dtype=torch.float32), position_ids=positions)
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
