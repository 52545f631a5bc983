"""Read views by every method that prunes inside the decoder, and by RTPrune and its norm before it.

Runs outside the engine. Each view is read unpruned and by every method, and each reading is compared with the
unpruned one. A token that left is masked: the others compute exactly what they would if it were gone and
positions stayed the same. All methods keep as many patch tokens as RTPrune, on average over layers; FitPrune
saves that share of the FLOPs instead. No rule against loops is applied.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from app.ocr.models.model import OcrModel
from app.pocket.layout.page import cut_page
from benchmarks.accuracy.pages import Kind
from benchmarks.pruners.inside.fitprune import Cost, fit_table, follow
from benchmarks.pruners.inside.layers import LayerByLayer, LayeredAttention, Prompts, Rule
from benchmarks.pruners.inside.lazy import LazyAttention
from benchmarks.pruners.inside.rules import RULES
from benchmarks.pruners.watched import MAX_STEPS, prompts_of, write
from rtprune import VisualTokens, prune_tokens, text_density
from rtprune.baselines import select_by_norm
from training.errors_in_text import character_error_rate
from training.vocabulary import PLAIN_PROMPT

VIEWS_AT_ONCE = 64
NONE = "none"
BEFORE_THE_DECODER = ("norm", "rtprune")
FITPRUNE, LAZYLLM = "fitprune", "lazyllm"
INSIDE = (*RULES, FITPRUNE, LAZYLLM)
Figures = dict[str, object]


@dataclass(frozen=True, slots=True)
class View:
    """One encoded view. ``wanted``: number of patch tokens that RTPrune keeps of it."""

    tokens: VisualTokens
    wanted: int
    density: float


@dataclass(frozen=True, slots=True)
class Read:
    """What one method made of some views.

    ``ids``: each view's tokens. ``held``, ``read``: share of the patches' keys and values that the cache
    holds, and that a written token attends to, over all layers. ``cut_off``: views that did not end.
    """

    ids: list[list[int]]
    held: float
    read: float
    cut_off: int


def views_of(model: OcrModel, kind: Kind) -> list[View]:
    """Cut pages into views as the pocket reader does, and encode them."""
    views = []
    for sample in kind.samples:
        for line_view in cut_page(sample.image).views:
            prepared = model.preprocess(line_view.image.convert("RGB"), model.default_mode)
            [tokens] = model.encode([prepared])
            density = text_density(prepared.view, 1, 1)
            views.append(View(tokens, prune_tokens(tokens, density).num_kept_patches, density))
    return views


class Offline:
    """A checkpoint whose decoder is run layer by layer. ``sample``: views that FitPrune is fitted on."""

    def __init__(self, model: OcrModel, sample: Sequence[View] = ()) -> None:
        self._model, self._sample = model, sample[:VIEWS_AT_ONCE]
        self._layers = LayerByLayer(model)
        self._num_layers: int = self._layers.config.num_hidden_layers
        self._table: list[int] | None = None

    @torch.inference_mode()
    def read(self, views: Sequence[View], method: str, max_steps: int = MAX_STEPS) -> Read:
        """Read views of one shape by ``NONE`` or a method of ``BEFORE_THE_DECODER`` or ``INSIDE``."""
        prompts = self._prompts(views, method)
        attention = self._attention(prompts, views, method)
        ids = write(self._model, prompts.embeds, attention, max_steps, self._layers)
        return Read(ids, attention.share_held, attention.share_read, int(attention.is_writing.sum()))

    def measure(self, views: Sequence[View], method: str, right: Sequence[str] = ()) -> Figures:
        """Read all views by one method. ``right``: their unpruned readings; none where the method is that."""
        readings = [(len(group), self.read(group, method)) for group in groups(views)]
        texts = [self._model.decode_text(ids) for _, one in readings for ids in one.ids]
        return {
            "method": method,
            "error_to_unpruned": round(character_error_rate(texts, right or texts), 4),
            "kv_held": round(sum(size * one.held for size, one in readings) / len(views), 4),
            "kv_read": round(sum(size * one.read for size, one in readings) / len(views), 4),
            "views_cut_off": sum(one.cut_off for _, one in readings),
        }

    def texts(self, views: Sequence[View]) -> list[str]:
        """Read all views unpruned."""
        ids = [one for group in groups(views) for one in self.read(group, NONE).ids]
        return [self._model.decode_text(one) for one in ids]

    def table(self) -> list[int]:
        """Return FitPrune's table: how many patches leave before each layer from the second on."""
        if self._table is None:
            if not self._sample:
                raise ValueError("FitPrune is fitted on views of a sample page, and none was given")
            prompts = self._prompts(self._sample, FITPRUNE)
            target = 1 - float(prompts.wanted.mean()) / prompts.num_patches
            run: Callable[[Rule], None] = lambda rule: self._pass(prompts, rule)  # noqa: E731
            cost = Cost(*self._widths(), others=prompts.embeds.shape[1] - prompts.num_patches)
            self._table = fit_table(run, prompts.num_patches, cost, target)
        return self._table

    def _prompts(self, views: Sequence[View], method: str) -> Prompts:
        tokens = [folded(view) if method == "rtprune" else view.tokens for view in views]
        embeds = prompts_of(self._model, tokens, PLAIN_PROMPT)
        num_visual = len(views[0].tokens.embeds)
        is_patch = torch.zeros(embeds.shape[1], dtype=torch.bool, device=embeds.device)
        is_patch[1 : 1 + num_visual] = views[0].tokens.is_patch
        is_text = torch.zeros_like(is_patch)
        is_text[1 + num_visual :] = True
        wanted = torch.tensor([float(view.wanted) for view in views], device=embeds.device)
        return Prompts(embeds, is_patch, is_text, raters_of(embeds, is_patch, is_text), wanted)

    def _attention(
        self, prompts: Prompts, views: Sequence[View], method: str
    ) -> LayeredAttention | LazyAttention:
        if method == LAZYLLM:
            return LazyAttention(prompts, self._num_layers)
        alive = self._everything(prompts)
        if method in BEFORE_THE_DECODER:
            for row, view in enumerate(views):
                alive[:, row, prompts.is_patch] = kept(view, method)[view.tokens.is_patch]
        rule = follow(self.table()) if method == FITPRUNE else RULES.get(method)
        return LayeredAttention(prompts, alive, rule, self._layers.norm)

    @torch.inference_mode()
    def _pass(self, prompts: Prompts, rule: Rule) -> None:
        places = torch.arange(prompts.embeds.shape[1], device=prompts.embeds.device)
        attention = LayeredAttention(prompts, self._everything(prompts), rule, self._layers.norm)
        self._layers(prompts.embeds, places.expand(len(prompts.embeds), -1), attention)

    def _everything(self, prompts: Prompts) -> torch.Tensor:
        shape = (self._num_layers, *prompts.embeds.shape[:2])
        return torch.ones(shape, dtype=torch.bool, device=prompts.embeds.device)

    def _widths(self) -> tuple[int, tuple[int, ...]]:
        text = self._layers.config
        of_mixture = (text.n_shared_experts + text.num_experts_per_tok) * text.moe_intermediate_size
        mlps = [text.intermediate_size if kind == "dense" else of_mixture for kind in text.mlp_layer_types]
        return text.hidden_size, tuple(mlps)


def groups(views: Sequence[View]) -> Iterator[Sequence[View]]:
    """Yield views in groups that are read together."""
    for start in range(0, len(views), VIEWS_AT_ONCE):
        yield views[start : start + VIEWS_AT_ONCE]


def kept(view: View, method: str) -> torch.Tensor:
    """Mark the visual tokens that a method before the decoder keeps. (L,) bool."""
    choose = select_by_norm if method == "norm" else prune_tokens
    mask = torch.zeros(len(view.tokens.embeds), dtype=torch.bool)
    mask[choose(view.tokens, view.density).kept.cpu()] = True
    return mask.to(view.tokens.embeds.device)


def folded(view: View) -> VisualTokens:
    """Return the view with what RTPrune folds into the tokens that it keeps."""
    pruned = prune_tokens(view.tokens, view.density)
    embeds = view.tokens.embeds.clone()
    embeds[pruned.kept] = pruned.embeds
    return VisualTokens(embeds, view.tokens.is_patch)


def raters_of(embeds: torch.Tensor, is_patch: torch.Tensor, is_text: torch.Tensor) -> torch.Tensor:
    """Select the text tokens most similar to the patches, by SparseVLM's softmax over the text.

    (B, T, D) -> (B, T) bool.
    """
    looks = (embeds[:, is_patch].float() @ embeds[:, is_text].float().mT).softmax(-1).mean(1)  # (B, text)
    raters = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    raters[:, is_text] = looks >= looks.mean(1, keepdim=True)
    return raters
