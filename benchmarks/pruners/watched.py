"""Measure what the decoder attends to while it writes a page that was not pruned."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from app.ocr.engine.decoder import NativeDecoder
from app.ocr.models.model import DecoderLayers, OcrModel
from rtprune import VisualTokens

MAX_STEPS = 160
"""Most tokens that a view of the pocket reader may produce."""


class WatchedAttention:
    """The engine's ``Step`` in plain tensors, for pages of one length. It sums up new tokens' attention.

    ``mass``: (B, T) float64 attention to each of the prompt's T tokens, over steps, layers and heads.
    ``is_writing``: (B,) bool, rows whose attention counts.
    """

    def __init__(self, num_rows: int, prompt_tokens: int, device: torch.device) -> None:
        self.mass = torch.zeros(num_rows, prompt_tokens, dtype=torch.float64, device=device)
        self.is_writing = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend to all tokens so far, and add the attention of written tokens to ``mass``.

        (B, H, T, D) -> (B, T, H, D).
        """
        is_prefill = layer not in self._held
        if not is_prefill:
            keys, values = self._held[layer]
            key, value = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        self._held[layer] = key, value
        groups = query.shape[1] // key.shape[1]
        keys = key.repeat_interleave(groups, dim=1)
        if not is_prefill:
            shares = (query.float() @ keys.float().mT * scale).softmax(-1)  # (B, H, 1, T)
            of_prompt = shares[:, :, 0, : self.mass.shape[1]].double().sum(1)
            self.mass += of_prompt * self.is_writing[:, None]
        mixed = scaled_dot_product_attention(
            query, keys, value.repeat_interleave(groups, dim=1), is_causal=is_prefill, scale=scale
        )
        return mixed.transpose(1, 2)


class Writing(Protocol):
    """Attention over pages of one length that are being written."""

    is_writing: torch.Tensor

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend to the tokens so far, including the new ones. (B, H, T, D) -> (B, T, H, D)."""


@torch.inference_mode()
def write(
    model: OcrModel,
    embeds: torch.Tensor,
    attention: Writing,
    max_steps: int,
    layers: DecoderLayers | None = None,
) -> list[list[int]]:
    """Decode greedily after prompts of shape (B, T, D). Return each row's new ids without the end token.

    ``attention.is_writing`` is true for the rows that have not reached the end token. ``layers``: ``None``
    takes the engine's.
    """
    layers = layers or layers_of(model)
    num_rows, length = embeds.shape[:2]
    positions = torch.arange(length, device=model.device).expand(num_rows, -1)
    hidden = layers(embeds, positions, attention)[:, -1:]
    written: list[list[int]] = [[] for _ in range(num_rows)]
    for step in range(max_steps):
        tokens = layers.head(hidden)[:, -1].argmax(-1)
        attention.is_writing &= tokens != model.eos_id
        if not attention.is_writing.any():
            break
        for ids, token, goes_on in zip(written, tokens.tolist(), attention.is_writing.tolist(), strict=True):
            if goes_on:
                ids.append(token)
        at = torch.full((num_rows, 1), length + step, device=model.device)
        hidden = layers(model.embed(tokens[:, None]), at, attention)
    return written


def prompts_of(model: OcrModel, pages: Sequence[VisualTokens], prompt: str) -> torch.Tensor:
    """Build unpruned prompts (B, T, D): bos, the page, the text prompt. All pages must have one length."""
    ids = torch.tensor([model.bos_id, *model.prompt_ids(prompt)], device=model.device)
    text = model.embed(ids)
    rows = [torch.cat((text[:1], page.embeds.to(text.dtype), text[1:])) for page in pages]
    return torch.stack(rows)


@torch.inference_mode()
def decode_attention(
    model: OcrModel, pages: Sequence[VisualTokens], prompt: str, max_steps: int = MAX_STEPS
) -> list[torch.Tensor]:
    """Sum the attention that each page's own output pays to its patch tokens. Returns (N,) for each page.

    The page is read greedily and not pruned. Only written tokens count, not the prompt's attention. All pages
    must have one length.
    """
    embeds = prompts_of(model, pages, prompt)
    watched = WatchedAttention(len(pages), embeds.shape[1], model.device)
    write(model, embeds, watched, max_steps)
    visual = slice(1, 1 + len(pages[0].embeds))
    return [mass[visual][page.is_patch] for mass, page in zip(watched.mass, pages, strict=True)]


def layers_of(model: OcrModel) -> DecoderLayers:
    """Return the decoder's layers: the checkpoint's faster ones, or the network's own."""
    if model.decoder_layers is not None:
        return model.decoder_layers
    network = model.network
    return NativeDecoder(network.model.language_model, network.lm_head)  # type: ignore[union-attr]
