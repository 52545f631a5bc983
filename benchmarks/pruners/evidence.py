"""Collect the evidence by which other pruners choose tokens.

It comes from the encoder and from the unpruned reading of the same pages.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from app.ocr.engine.decoder import kv_shape
from app.ocr.engine.patches import PATCH_PX
from app.ocr.models.deepseek import DeepSeekOcr
from app.ocr.models.model import OcrModel, PageViews
from benchmarks.pruners.watched import MAX_STEPS, decode_attention
from rtprune import Evidence, VisualTokens, text_densities
from training.scorer import view_scores

LAST_LAYERS = 3
"""Divisor of CLIP's number of layers: the last third is averaged for Nuewa."""


class EvidenceBook:
    """Visual tokens and evidence of every page encoded while ``collecting``.

    A page is encoded once, and its tokens are given again whenever its pixels come again: all methods prune
    the same tokens. It is then read once to its end, without pruning, to record its decoder's attention.
    """

    def __init__(self, prompt: str, max_steps: int = MAX_STEPS) -> None:
        self._prompt, self._max_steps = prompt, max_steps
        self._encoded: dict[str, VisualTokens] = {}
        self._known: dict[str, Evidence] = {}
        self.norms: list[torch.Tensor] = []
        """Norms of each known page's patch tokens, (N,) a page, in the order of ``found``."""
        self.found: list[Evidence] = []
        self.kv_bytes_a_token = 0

    def of(self, tokens: VisualTokens) -> Evidence:
        """Return the evidence of a page that was encoded before. Raise ``KeyError`` for any other page."""
        return self._known[_key(tokens.embeds)]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Encode every page of a ``DeepSeekOcr`` of this process once, inside the block.

        Raise ``ValueError`` for a page with tiles.
        """
        encode: Callable[[DeepSeekOcr, Sequence[PageViews]], list[VisualTokens]] = DeepSeekOcr.encode

        def encode_and_learn(model: DeepSeekOcr, pages: Sequence[PageViews]) -> list[VisualTokens]:
            if any(page.tiles is not None for page in pages):
                raise ValueError("evidence is collected of single views alone, not of tiles")
            keys = [_key(page.view) for page in pages]
            new = {key: page for key, page in zip(keys, pages, strict=True) if key not in self._encoded}
            if new:
                tokens = encode(model, [*new.values()])
                self._learn(model, [*new.values()], tokens)
                self._encoded |= zip(new, tokens, strict=True)
            return [self._encoded[key] for key in keys]

        with patch.object(DeepSeekOcr, "encode", encode_and_learn):
            yield

    @torch.inference_mode()
    def _learn(self, model: OcrModel, pages: Sequence[PageViews], tokens: Sequence[VisualTokens]) -> None:
        self.kv_bytes_a_token = kv_shape(model).bytes_per_token
        by_length: dict[int, list[tuple[PageViews, VisualTokens]]] = defaultdict(list)
        for page, one in zip(pages, tokens, strict=True):
            by_length[len(one.embeds)].append((page, one))
        for pairs in by_length.values():
            learned = evidence_of(model, pairs, self._prompt, self._max_steps)
            for (_, one), evidence in zip(pairs, learned, strict=True):
                self._known[_key(one.embeds)] = evidence
                self.norms.append(one.embeds[one.is_patch].norm(dim=-1))
                self.found.append(evidence)


def evidence_of(
    model: OcrModel, pages: Sequence[tuple[PageViews, VisualTokens]], prompt: str, max_steps: int = MAX_STEPS
) -> list[Evidence]:
    """Compute all fields of the evidence. Each page must be one view, and all views must have one size.

    ``trained`` stays empty when the shipped scorer does not fit the checkpoint.
    """
    views = torch.stack([page.view for page, _ in pages]).to(model.device, model.dtype)
    tokens = [one for _, one in pages]
    attention, features, hidden = _encoder_says(model.network, views)
    looked_at = decode_attention(model, tokens, prompt, max_steps)
    text = model.embed(torch.tensor(model.prompt_ids(prompt), device=model.device))
    ink = torch.stack([_ink(view) for view in views])
    trained = view_scores(model.network, views, attention, ink)
    return [
        Evidence(
            class_attention=attention[i],
            features=features[i],
            hidden=hidden[i],
            text=text,
            ink=ink[i],
            decode_attention=looked_at[i],
            trained=None if trained is None else trained[i],
        )
        for i in range(len(pages))
    ]


def _encoder_says(network: Any, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the encoder and return what it computes per patch. (B, 3, S, S) -> (B, N), (B, N, C), (B, N, C).

    The three are the class token's attention in the last layer but one, summed over heads; the last layer's
    output; and the mean output of the last third of the layers.
    """
    tower = network.model.vision_tower
    layers = tower.vision_encoder.encoder.layers
    seen: dict[int, torch.Tensor] = {}
    inputs: list[torch.Tensor] = []
    watched = layers[-2] if len(layers) > 1 else layers[-1]

    def note(index: int) -> Callable[..., None]:
        def after(_: object, __: object, output: Any) -> None:
            seen[index] = output[0] if isinstance(output, tuple) else output

        return after

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.enter_context(_removed(layer.register_forward_hook(note(index))))
        norm = watched.layer_norm1
        hooks.enter_context(_removed(norm.register_forward_hook(lambda _, __, output: inputs.append(output))))
        tower(views)
    attention = watched.self_attn
    shape = (*inputs[0].shape[:2], attention.num_heads, attention.head_dim)
    query = attention.q_proj(inputs[0][:, :1]).view(len(views), 1, *shape[2:]).transpose(1, 2)
    key = attention.k_proj(inputs[0]).view(shape).transpose(1, 2)  # (B, H, 1 + N, D)
    shares = (query.float() @ key.float().mT * attention.scale).softmax(-1)[:, :, 0]  # (B, H, 1 + N)
    last = [
        seen[index][:, 1:] for index in range(len(layers) - max(1, len(layers) // LAST_LAYERS), len(layers))
    ]
    return shares.sum(1)[:, 1:], last[-1], torch.stack(last).mean(0)


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _ink(view: torch.Tensor) -> torch.Tensor:
    """Count the edge pixels of every patch, row by row. (3, S, S) -> (N,)."""
    side = view.shape[-1] // PATCH_PX
    patches = view.float().view(3, side, PATCH_PX, side, PATCH_PX)  # (3, r, h, c, w)
    return text_densities(patches.permute(1, 3, 0, 2, 4).flatten(0, 1), 1, 1) * PATCH_PX**2


def _key(tensor: torch.Tensor) -> str:
    data = tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def rank_correlation(left: torch.Tensor, right: torch.Tensor) -> float | None:
    """Compute Spearman's rank correlation of two (N,) scores. Return ``None`` if either is constant."""
    pair = torch.stack((_ranks(left), _ranks(right)))
    if (pair.std(1) == 0).any():
        return None
    return float(torch.corrcoef(pair)[0, 1])


def _ranks(scores: torch.Tensor) -> torch.Tensor:
    """Rank scores, ties by their mean rank. (N,) -> (N,) float64."""
    _, place, counts = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: torch.Tensor = (ends - (counts - 1) / 2)[place]
    return ranks
