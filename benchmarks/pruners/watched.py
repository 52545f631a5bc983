"""What the decoder looks at while it writes a page that was not pruned."""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from app.ocr.engine.decoder import NativeDecoder
from app.ocr.models.model import DecoderLayers, OcrModel
from rtprune import VisualTokens

MAX_STEPS = 160
"""As many tokens as a view of the pocket reader may have."""


class WatchedAttention:
    """The engine's ``Step`` for pages of one length, in plain tensors; sums up what new tokens attend to.

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
        """(B, H, T, D) -> (B, T, H, D)."""
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


@torch.inference_mode()
def decode_attention(
    model: OcrModel, pages: Sequence[VisualTokens], prompt: str, max_steps: int = MAX_STEPS
) -> list[torch.Tensor]:
    """(N,) a page: attention that its own output paid to each patch token, read greedily and not pruned.

    Pages must be of one length. What the prompt looks at does not count: tokens that were written do.
    """
    layers = _layers(model)
    ids = torch.tensor([model.bos_id, *model.prompt_ids(prompt)], device=model.device)
    text = model.embed(ids)
    embeds = torch.stack([
        torch.cat((text[:1], page.embeds.to(text.dtype), text[1:])) for page in pages
    ])  # fmt: skip
    num_rows, length = embeds.shape[:2]
    watched = WatchedAttention(num_rows, length, model.device)
    positions = torch.arange(length, device=model.device).expand(num_rows, -1)
    hidden = layers(embeds, positions, watched)[:, -1:]
    for step in range(max_steps):
        tokens = layers.head(hidden)[:, -1].argmax(-1)
        watched.is_writing &= tokens != model.eos_id
        if not watched.is_writing.any():
            break
        at = torch.full((num_rows, 1), length + step, device=model.device)
        hidden = layers(model.embed(tokens[:, None]), at, watched)
    visual = slice(1, 1 + len(pages[0].embeds))
    return [mass[visual][page.is_patch] for mass, page in zip(watched.mass, pages, strict=True)]


def _layers(model: OcrModel) -> DecoderLayers:
    if model.decoder_layers is not None:
        return model.decoder_layers
    network = model.network
    return NativeDecoder(network.model.language_model, network.lm_head)  # type: ignore[union-attr]
