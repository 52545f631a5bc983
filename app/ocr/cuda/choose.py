"""Choose between our CUDA kernels and the library's modules.

A kernel is used only if it runs here and agrees with the module that it replaces: cards and versions of
Triton differ in what they accept.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from app.ocr.engine.attention import NO_MASK, Step
from app.ocr.engine.decode_state import DecodeState
from app.ocr.engine.kv_cache import KvCache, KvPlan, KvShape
from app.ocr.engine.loops import LoopRule, RepeatState
from app.ocr.engine.packed_attention import PackedDecode, PackedPrefill

try:
    from app.ocr.cuda import decoder, sam
except ImportError:  # no Triton: only torch's CUDA builds bring it
    HAS_KERNELS = False
else:
    HAS_KERNELS = True

logger = logging.getLogger(__name__)
DTYPES = (torch.bfloat16, torch.float16)
TOLERANCE = 0.1
"""Largest relative error of a whole decoder in bfloat16. Two correct implementations differ by 0.025; a wrong
one differs by more than 1.
"""
TRIED = ([3, 7], [2] * 6, [200], [600])
"""Trials: each inner list has the length in tokens of every prompt in the batch."""
SAM_TOLERANCE = 0.02
"""Largest relative error of one SAM layer."""


class Fused(Protocol):
    """Interface of ``FusedDecoder``. That class itself can only be imported where Triton is installed."""

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """Run prompts through all layers and the last norm. (1, T, D), (1, T) int64 -> (1, T, D)."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits. (..., D) -> (..., V)."""

    def logits(self, rows: DecodeState, num_rows: int) -> torch.Tensor:
        """Return (n, V) logits that follow the rows' last tokens."""

    def step(self, rows: DecodeState, num_rows: int) -> torch.Tensor:
        """Choose a token for each row. Returns (4, n) float64, the fields of ``Choice`` in order."""


def decoder_for(language_model: Any, head: nn.Linear, shape: KvShape) -> "Fused | None":
    """Return a decoder on our kernels, or ``None`` where they cannot be used.

    That is without Triton, without CUDA, for another kind of decoder, and if the kernels fail on this device
    or disagree with the library's modules.
    """
    if not HAS_KERNELS or head.weight.device.type != "cuda" or not fits_decoder(language_model, head):
        return None
    try:
        fused = decoder.FusedDecoder(language_model, head)
        # from a step of few rows to a long prompt: each size takes other kernels, which may need more
        if all(decoder_agrees(fused, language_model, head, shape, lengths) for lengths in TRIED):
            return fused
        logger.warning("the decoder's kernels compute something else on this device and are not used")
    except Exception:  # whatever the error, the library's modules still work
        logger.warning("no kernels for the decoder on this device", exc_info=True)
    return None


def fits_decoder(language_model: Any, head: nn.Linear) -> bool:
    """Tell whether the kernels are written for this kind of decoder, DeepSeek-OCR's."""
    text = language_model.config
    sizes = (text.hidden_size, text.moe_intermediate_size, text.head_dim)
    linears = [module for module in language_model.modules() if isinstance(module, nn.Linear)]
    return (
        head.weight.dtype in DTYPES
        and text.num_attention_heads == text.num_key_value_heads
        and text.hidden_act == "silu"
        and text.topk_method == "greedy"
        and language_model.rotary_emb.rope_type == "default"
        and text.head_dim & (text.head_dim - 1) == 0
        and all(size % 16 == 0 for size in sizes)
        and all(linear.bias is None for linear in (head, *linears))
    )


@torch.inference_mode()
def decoder_agrees(
    fused: "Fused", language_model: Any, head: nn.Linear, shape: KvShape, lengths: Sequence[int]
) -> bool:
    """Compare the kernels with the library's layers on prompts of ``lengths`` tokens and one more token."""
    device, vocab = head.weight.device, language_model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (sum(lengths) + len(lengths),), generator=generator).to(device)
    embeds = language_model.embed_tokens(ids)[None]
    prompt, more = embeds[:, : sum(lengths)], embeds[0, sum(lengths) :, None]
    positions = torch.cat([torch.arange(length, device=device) + 1 for length in lengths])[None]
    after = torch.tensor(lengths, device=device) + 2
    found = []
    for layers in (fused, None):
        cache = KvCache(KvPlan(len(lengths), max(lengths) + 1), shape, device)
        rows = DecodeState.of(cache, RepeatState(len(lengths), LoopRule(), 1, (), vocab, device))
        step = PackedPrefill(cache, lengths)
        hidden = (
            native(language_model, prompt, positions, step)
            if layers is None
            else layers(prompt, positions, step)
        )
        cache.admit(lengths)
        rows.tokens.copy_(ids[sum(lengths) :])
        rows.positions.copy_(after)
        if layers is None:
            last = native(language_model, more, after[:, None], PackedDecode(cache, len(lengths)).begin())
            logits = head(last[:, 0])
        else:
            logits = layers.logits(rows, len(lengths))
        found.append(torch.cat((head(hidden[0]), logits)).float())
    return bool((found[0] - found[1]).norm() < TOLERANCE * found[1].norm())


def native(language_model: Any, embeds: torch.Tensor, positions: torch.Tensor, step: Any) -> torch.Tensor:
    """Run the library's own modules and the last norm. (B, T, D), (B, T) int64 -> (B, T, D)."""
    output = language_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=NO_MASK, use_cache=False, step=step
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def fuse_sam_layers(network: Any) -> bool:
    """Replace every SAM layer of ``network`` by a ``FusedSamLayer``; return whether that was possible.

    Only instances are replaced; no class is changed.
    """
    layers = network.model.vision_tower.sam_encoder.layers
    if not HAS_KERNELS or network.device.type != "cuda" or not all(map(fits_sam, layers)):
        return False
    try:
        works = all(map(sam_agrees, {layer.window_size: layer for layer in layers}.values()))
    except Exception:  # whatever the error, the library's layers still work
        logger.warning("no kernels for SAM's attention on this device", exc_info=True)
        return False
    for i, layer in enumerate(layers):
        if works:
            layers[i] = sam.FusedSamLayer(layer)
    return works


def fits_sam(layer: Any) -> bool:
    """Tell whether the kernels are written for this kind of layer."""
    attention = layer.attn
    dim = attention.qkv.in_features // attention.num_attention_heads
    is_known = bool(attention.use_rel_pos) and attention.qkv.bias is not None
    return is_known and dim in (16, 32, 64, 128) and attention.qkv.weight.dtype in DTYPES


@torch.inference_mode()
def sam_agrees(layer: Any) -> bool:
    """Compare the kernels with the library's layer on a grid whose size is no multiple of the window."""
    weight, side = layer.attn.qkv.weight, layer.window_size + 2
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, side, side, weight.shape[1], generator=generator).to(weight)
    wanted, found = layer(hidden), sam.FusedSamLayer(layer)(hidden)
    return bool((found - wanted).float().norm() < SAM_TOLERANCE * wanted.float().norm())
