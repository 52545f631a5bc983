"""Losses that teach the pocket checkpoint, besides that of the next token."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import apply_rotary_pos_emb

from training.batches import IGNORED

GUIDED_HEADS = 2
GUIDED_POSITIONS = 512


def dense_loss(logits: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Compute the cross-entropy of cells, and the share of characters named right.

    Shapes: (..., 32, classes) logits, (..., 32) classes. Most cells hold no character. Of these, a random
    sample as large as the others takes part (at least 64), and it makes up a third of the loss.
    """
    flat, target = logits.flatten(0, -2), cells.flatten()
    printed = target.nonzero().squeeze(1)
    blank = (target == 0).nonzero().squeeze(1)
    blank = blank[torch.randperm(len(blank), device=blank.device)[: max(64, len(printed))]]
    loss = functional.cross_entropy(flat[blank].float(), target[blank]) / 3
    if len(printed) == 0:
        return loss, 1.0
    named = flat[printed].float()
    right = (named.argmax(-1) == target[printed]).float().mean().item()
    return loss + functional.cross_entropy(named, target[printed]) * 2 / 3, right


def norm_loss(patches: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Compute a hinge that pushes the norm of each patch with text 15 % above the largest norm without.

    (B, N, D) patches, (B, N, 32) cells -> scalar. RTPrune keeps tokens of large norm. In a large model norms
    tell text from paper by themselves; a small one has to be taught.
    """
    has_text = (cells > 0).any(-1)  # (B, N)
    log_norms = patches.norm(dim=-1).log()
    paper = log_norms.masked_fill(has_text, -torch.inf).amax(1, keepdim=True)  # -inf where all is text
    hinge = functional.relu(math.log(1.15) + paper - log_norms)
    return hinge[has_text].mean() if has_text.any() else hinge.sum() * 0


class Guide:
    """Teaches some attention heads of one decoder layer where to look.

    A decoder this small takes very long to find out by itself that it must read line by line. Two heads of a
    layer are taught, by a cross-entropy over the visual tokens, to look at the patch of the last character
    that was read. Two heads of the next layer are taught to look at the patch of the character to name.
    Nothing of this remains in the shipped model. (Guided attention, as in speech synthesis: Tachibana et al.
    2017, arXiv:1710.08969.)
    """

    def __init__(self, attention: Any) -> None:
        """Watch ``attention``, the layer's own module, which has ``q_proj`` and ``k_proj``."""
        self._attention = attention
        self._seen: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None = None
        attention.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._seen = (hidden, kwargs["position_embeddings"])  # type: ignore[assignment]

    def loss(self, visual: slice, first_text: int, target: torch.Tensor) -> torch.Tensor:
        """Compute the cross-entropy between where the guided heads looked and where they should look.

        ``visual``: positions of the visual tokens in the last forward's sequence. ``first_text``: the
        position that predicts the first token. ``target``: (B, T), the visual token that each text position
        should look at, or ``IGNORED``. ``GUIDED_POSITIONS`` random positions take part, the same in every
        row. Raise ``RuntimeError`` without a forward before.
        """
        if self._seen is None:
            raise RuntimeError("no forward before the loss")
        hidden, (cos, sin) = self._seen
        self._seen = None
        chosen = torch.randperm(target.shape[1], device=target.device)[:GUIDED_POSITIONS]
        target, text = target[:, chosen], first_text + chosen
        attention = self._attention
        query = self._heads(hidden[:, text], attention.q_proj.weight)
        key = self._heads(hidden[:, visual], attention.k_proj.weight)
        query, _ = apply_rotary_pos_emb(query, query, cos[:, text], sin[:, text])
        key, _ = apply_rotary_pos_emb(key, key, cos[:, visual], sin[:, visual])
        scores: torch.Tensor = (
            query @ key.transpose(-1, -2) * attention.scaling
        ).float()  # (B, heads, T', L)
        if not (target != IGNORED).any():
            return scores.sum() * 0
        repeated = target[:, None].expand(-1, GUIDED_HEADS, -1)
        return functional.cross_entropy(scores.flatten(0, 2), repeated.flatten(), ignore_index=IGNORED)

    def _heads(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Project hidden states to the guided heads. (B, T, D) -> (B, heads, T, d)."""
        dim: int = self._attention.head_dim
        projected = functional.linear(hidden, weight[: GUIDED_HEADS * dim])
        return projected.view(len(hidden), -1, GUIDED_HEADS, dim).transpose(1, 2)
