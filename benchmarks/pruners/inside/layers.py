"""Decode with the network's own layers, one at a time, so that tokens can leave between two layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from app.ocr.engine.attention import install
from app.ocr.models.model import OcrModel


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompts of B views of one shape, T tokens each: bos, the view, the text.

    ``embeds``: (B, T, D). ``is_patch``, ``is_text``: (T,) bool; text is what follows the view. ``raters``:
    (B, T) bool, text tokens by which SparseVLM ranks. ``wanted``: (B,) float, patches to keep of each view on
    average over the layers.
    """

    embeds: torch.Tensor
    is_patch: torch.Tensor
    is_text: torch.Tensor
    raters: torch.Tensor
    wanted: torch.Tensor

    @property
    def num_patches(self) -> int:
        return int(self.is_patch.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a rule knows when the prompts are about to enter ``layer``; layers are counted from 0.

    ``candidates``: (B, T) bool, patches that have not left. ``shares``: (B, H, T, T) attention of each layer
    before. ``keys``: (B, H, T, K) rotated keys of each layer before. ``hidden``: (B, T, D) states that enter
    the layer, after the decoder's last norm.
    """

    layer: int
    num_layers: int
    prompts: Prompts
    candidates: torch.Tensor
    shares: Sequence[torch.Tensor]
    keys: Sequence[torch.Tensor]
    hidden: torch.Tensor


Rule = Callable[[Seen], torch.Tensor]
"""A function that says which candidates enter the layer: (B, T) bool."""


class Passing(Protocol):
    """What goes on in a pass through the decoder, beside its layers."""

    is_writing: torch.Tensor

    def begin(self, embeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin a pass. (B, T, D), (B, T) -> what enters the first layer, and its positions."""

    def enter(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the (B, T, D) states that enter a layer, given those that the layer below gave."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend within one layer. (B, H, T, K) -> (B, T, H, K)."""


class LayerByLayer:
    """``DecoderLayers`` of transformers' own modules, for a step that is a ``Passing``."""

    def __init__(self, model: OcrModel) -> None:
        network: Any = model.network
        install(network)
        self._decoder, self._head = network.model.language_model, network.lm_head
        self.config: Any = network.config.text_config

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, step: Any) -> torch.Tensor:
        """Run all layers and the last norm. (B, T, D), (B, T) int64 -> (B, T', D), T' as ``begin`` says."""
        hidden, positions = step.begin(embeds, positions)
        turned = self._decoder.rotary_emb(hidden, position_ids=positions)
        for index, layer in enumerate(self._decoder.layers):
            hidden = layer(step.enter(index, hidden), position_embeddings=turned, step=step)
        return self.norm(hidden)

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self._decoder.norm(hidden)
        return normed

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._head(hidden)
        return logits


def look(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, may_look: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend where ``may_look`` (broadcast to (B, H, T, S)) says. Returns (B, T, H, K) and the shares,
    (B, H, T, S) float32.
    """
    groups = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scores = query.float() @ keys.float().mT * scale
    shares = scores.masked_fill(~may_look, -torch.inf).softmax(-1)
    return (shares.to(values.dtype) @ values).transpose(1, 2), shares


def in_order(stays: torch.Tensor) -> torch.Tensor:
    """Say which prompt tokens a prompt token may attend to. (B, T) bool -> (B, 1, T, T).

    These are the earlier ones that stay, and itself: a row without any would have no finite attention.
    """
    square = torch.ones(stays.shape[1], stays.shape[1], dtype=torch.bool, device=stays.device)
    eye = torch.eye(stays.shape[1], dtype=torch.bool, device=stays.device)
    return (stays[:, None, None] & square.tril()) | eye


class LayeredAttention:
    """Attention of prompts whose tokens leave for good while the prompt is read.

    A token that left before a layer is masked from that layer on: the others compute what they would if it
    were gone and positions stayed. ``alive``: (layers, B, T) bool. ``rule``: ``None``: nobody leaves but who
    is missing from ``alive`` from the start.
    """

    def __init__(
        self, prompts: Prompts, alive: torch.Tensor, rule: Rule | None = None,
        norm: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden,
    ) -> None:  # fmt: skip
        self.alive = alive
        self.is_writing = torch.ones(alive.shape[1], dtype=torch.bool, device=alive.device)
        self._prompts, self._rule, self._norm = prompts, rule, norm
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._shares: list[torch.Tensor] = []

    @property
    def share_held(self) -> float:
        """Share of the patches' keys and values that are in the cache."""
        return float(self.alive[:, :, self._prompts.is_patch].double().mean())

    @property
    def share_read(self) -> float:
        """Share of them that a written token attends to."""
        return self.share_held

    def begin(self, embeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin a pass; nothing is added to what comes."""
        return embeds, positions

    def enter(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Let the rule say who stays, while the prompt is read."""
        if layer == len(self._held) and layer and self._rule is not None:
            is_patch = self._prompts.is_patch
            candidates = self.alive[layer - 1] & is_patch
            keys = [key for key, _ in self._held]
            seen = Seen(
                layer, len(self.alive), self._prompts, candidates, self._shares, keys, self._norm(hidden)
            )
            self.alive[layer] = (self._rule(seen) & candidates) | ~is_patch
        return hidden

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend to the living prompt tokens and all written ones."""
        alive = self.alive[layer]
        if layer == len(self._held):
            self._held.append((key, value))
            mixed, shares = look(query, key, value, scale, in_order(alive))
            self._shares.append(shares)
            return mixed
        keys, values = self._held[layer]
        keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        self._held[layer] = keys, values
        written = alive.new_ones(len(alive), keys.shape[2] - alive.shape[1])
        return look(query, keys, values, scale, torch.cat((alive, written), dim=1)[:, None, None])[0]
