"""What the pocket checkpoint is taught by, beside the next token."""

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
    """(..., 32, classes), (..., 32) -> cross-entropy, and the share of cells with a character named right.

    Most cells hold no character: of those as many take part as there are others, and all of them together
    weigh a third of the loss.
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
    """(B, N, D), (B, N, 32) -> hinge: each patch with text is to have a norm 15 % above the largest without.

    RTPrune keeps tokens of large norm. In a large model norms tell text from paper by themselves; a small one
    has to be told.
    """
    has_text = (cells > 0).any(-1)  # (B, N)
    log_norms = patches.norm(dim=-1).log()
    paper = log_norms.masked_fill(has_text, -torch.inf).amax(1, keepdim=True)  # -inf where all is text
    hinge = functional.relu(math.log(1.15) + paper - log_norms)
    return hinge[has_text].mean() if has_text.any() else hinge.sum() * 0


class Guide:
    """Shows some attention heads of one decoder layer where to look.

    Left to itself a decoder this small takes very long to find out that it must read line by line. Two heads
    of a layer are told, by a cross-entropy over the visual tokens, to look at the patch of the last character
    that was read; two of the layer after it at the patch of the one to name. Nothing of it remains in the
    model that is shipped. (Guided attention, as speech synthesis uses it: Tachibana et al. 2017,
    arXiv:1710.08969.)
    """

    def __init__(self, attention: Any) -> None:
        """``attention``: the layer's own, with ``q_proj`` and ``k_proj``."""
        self._attention = attention
        self._seen: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None = None
        attention.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._seen = (hidden, kwargs["position_embeddings"])  # type: ignore[assignment]

    def loss(self, visual: slice, first_text: int, target: torch.Tensor) -> torch.Tensor:
        """``visual``: positions in the last forward's sequence; ``first_text``: the position that predicts
        the first token. ``target``: (B, T) visual index each text position is to look at, or ``IGNORED``.

        Of every row the same ``GUIDED_POSITIONS`` at random take part.
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
        """(B, T, D) -> (B, heads, T, d) of the guided heads."""
        dim: int = self._attention.head_dim
        projected = functional.linear(hidden, weight[: GUIDED_HEADS * dim])
        return projected.view(len(hidden), -1, GUIDED_HEADS, dim).transpose(1, 2)
