"""Compare RTPrune with methods that prune inside the decoder: FastV, PyramidDrop and SparseVLM.

    python -m benchmarks.pruners.inside --documents FOLDER --pages 2

Runs offline, outside the engine. Each view is read unpruned and by every method, and each reading is compared
with the unpruned one. A token that is dropped before a layer is masked from that layer on: the other tokens
compute exactly what they would if it were removed and positions stayed the same. All methods keep as many
patch tokens as RTPrune, on average over layers. No rule against loops is applied. The last line of stdout is
one JSON document.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app.ocr.models.model import OcrModel
from app.pocket.layout.page import cut_page
from app.pocket.opening import load_pocket
from benchmarks.accuracy.pages import DOCUMENTS, documents
from benchmarks.pruners.watched import MAX_STEPS, prompts_of, write
from benchmarks.report import publish
from rtprune import RTPruneConfig, VisualTokens, prune_tokens, text_density
from rtprune.baselines import select_by_norm
from training.errors_in_text import character_error_rate
from training.vocabulary import PLAIN_PROMPT

PAGES, VIEWS_AT_ONCE = 2, 64
ENGLISH = "english"
FASTV_LAYER = 1
"""Layers before FastV drops tokens: 1 of 3 here. FastV itself uses 2 of 32, because there the first layer
alone is too shallow for its attention to guide the choice.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a rule is given of one layer's prefill.

    ``shares``: (B, T, T) attention, mean over heads. ``raters``: (B, T) bool, text tokens whose attention
    SparseVLM uses.
    """

    shares: torch.Tensor
    raters: torch.Tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """How a method drops tokens from layer to layer.

    ``counts``: (number of patches, number wanted on average, number of layers) -> patches in each layer.
    ``rank``: what is seen of a layer -> (B, T) scores; the tokens with the highest stay.
    """

    counts: Callable[[int, float, int], list[float]]
    rank: Callable[[Seen], torch.Tensor]


def after_one_layer(num_patches: int, wanted: float, num_layers: int) -> list[float]:
    """Keep all patches in the first ``FASTV_LAYER`` layers and one smaller number in every later layer."""
    later = (num_layers * wanted - FASTV_LAYER * num_patches) / max(1, num_layers - FASTV_LAYER)
    return [float(num_patches)] * FASTV_LAYER + [max(1.0, later)] * (num_layers - FASTV_LAYER)


def evenly_fewer(num_patches: int, wanted: float, num_layers: int) -> list[float]:
    """Keep all patches in the first layer and drop the same number before each later layer."""
    drop = 2 * (num_patches - wanted) / max(1, num_layers - 1)
    return [max(1.0, num_patches - drop * layer) for layer in range(num_layers)]


RULES = {
    # attention of the last prompt token
    "fastv": Rule(after_one_layer, lambda seen: seen.shares[:, -1]),
    "pyramiddrop": Rule(evenly_fewer, lambda seen: seen.shares[:, -1]),
    # attention of the text tokens most similar to the page; recycles no tokens, as SparseVLM's second version
    "sparsevlm": Rule(
        evenly_fewer,
        lambda seen: (seen.shares * seen.raters[..., None]).sum(1) / seen.raters.sum(1, keepdim=True),
    ),
}
BEFORE = ("norm", "rtprune")
NONE = "none"


class LayeredAttention:
    """Attention in which each row and layer has its own prompt tokens.

    ``alive``: (layers, B, T) bool, prompt tokens that are not dropped.
    """

    def __init__(
        self, alive: torch.Tensor, is_patch: torch.Tensor, wanted: torch.Tensor, raters: torch.Tensor,
        rule: Rule | None,
    ) -> None:  # fmt: skip
        self.alive = alive
        self.is_writing = torch.ones(alive.shape[1], dtype=torch.bool, device=alive.device)
        self._is_patch, self._wanted, self._raters, self._rule = is_patch, wanted, raters, rule
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend to the living prompt tokens and all written ones. (B, H, T, D) -> (B, T, H, D)."""
        is_prefill = layer not in self._held
        if not is_prefill:
            keys, values = self._held[layer]
            key, value = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        self._held[layer] = key, value
        groups = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query.float() @ keys.float().mT * scale  # (B, H, T, S)
        scores = scores.masked_fill(
            ~self._may_look(layer, *scores.shape[2:], is_prefill=is_prefill), -torch.inf
        )
        shares = scores.softmax(-1)
        if is_prefill and self._rule is not None and layer + 1 < len(self.alive):
            self._drop(layer, self._rule, Seen(shares.mean(1), self._raters))
        return (shares.to(values.dtype) @ values).transpose(1, 2)

    def _may_look(self, layer: int, length: int, width: int, *, is_prefill: bool) -> torch.Tensor:
        """Return which keys a query may attend to: (B, 1, T, S) bool, or (B, 1, 1, S) while writing.

        These are the living prompt tokens and all written ones. In a prefill later tokens are masked, and
        each token sees itself.
        """
        of_prompt = self.alive[layer]
        written = of_prompt.new_ones(len(of_prompt), width - of_prompt.shape[1])
        columns = torch.cat((of_prompt, written), dim=1)[:, None, None]
        if not is_prefill:
            return columns
        square = torch.ones(length, width, dtype=torch.bool, device=columns.device)
        return (columns & square.tril()) | torch.eye(length, dtype=torch.bool, device=columns.device)

    def _drop(self, layer: int, rule: Rule, seen: Seen) -> None:
        """Choose which of this layer's patches the next layer keeps, and set its ``alive``."""
        num_patches, num_layers = int(self._is_patch.sum()), len(self.alive)
        counts = [rule.counts(num_patches, wanted, num_layers)[layer + 1] for wanted in self._wanted.tolist()]
        candidates = self.alive[layer] & self._is_patch
        scores = rule.rank(seen).masked_fill(~candidates, -torch.inf)
        order = scores.sort(dim=1, descending=True, stable=True).indices
        chosen = torch.arange(scores.shape[1]) < torch.tensor(counts).round()[:, None]
        stays = torch.zeros_like(candidates).scatter(1, order, chosen.to(order.device)) & candidates
        self.alive[layer + 1] = stays | ~self._is_patch


@dataclass(frozen=True, slots=True)
class View:
    """One encoded view. ``wanted``: number of patch tokens that RTPrune keeps of it."""

    tokens: VisualTokens
    wanted: int
    density: float


def views_of(model: OcrModel, folder: Path, num_pages: int) -> list[View]:
    """Cut pages into views as the pocket reader does, and encode them."""
    views = []
    for sample in documents(folder, num_pages, {ENGLISH: DOCUMENTS[ENGLISH]})[0].samples:
        for line_view in cut_page(sample.image).views:
            prepared = model.preprocess(line_view.image.convert("RGB"), model.default_mode)
            [tokens] = model.encode([prepared])
            density = text_density(prepared.view, 1, 1)
            views.append(View(tokens, prune_tokens(tokens, density).num_kept_patches, density))
    return views


@torch.inference_mode()
def read(
    model: OcrModel, views: Sequence[View], method: str, max_steps: int = MAX_STEPS
) -> tuple[list[list[int]], float]:
    """Read views by one method. Return each view's token ids and the share of patch keys and values kept.

    The share is over all layers. All views must have the same number of visual tokens.
    """
    tokens = [_before(view, method) for view in views]
    embeds = prompts_of(model, tokens, PLAIN_PROMPT)
    num_layers = _num_layers(model)
    visual = slice(1, 1 + len(views[0].tokens.embeds))
    is_patch = torch.zeros(embeds.shape[1], dtype=torch.bool, device=model.device)
    is_patch[visual] = views[0].tokens.is_patch
    alive = torch.ones(num_layers, len(views), embeds.shape[1], dtype=torch.bool, device=model.device)
    if method in BEFORE:
        for row, view in enumerate(views):
            alive[:, row, visual] = _kept(view, method) | ~view.tokens.is_patch
    wanted = torch.tensor([float(view.wanted) for view in views])
    attention = LayeredAttention(alive, is_patch, wanted, _raters(embeds, is_patch), RULES.get(method))
    ids = write(model, embeds, attention, max_steps)
    return ids, float(attention.alive[:, :, is_patch].double().mean())


def _num_layers(model: OcrModel) -> int:
    count: int = model.network.config.text_config.num_hidden_layers  # type: ignore[union-attr,assignment]
    return count


def _kept(view: View, method: str) -> torch.Tensor:
    choose = select_by_norm if method == "norm" else prune_tokens
    kept = torch.zeros(len(view.tokens.embeds), dtype=torch.bool)
    kept[choose(view.tokens, view.density, RTPruneConfig()).kept.cpu()] = True
    return kept.to(view.tokens.embeds.device)


def _before(view: View, method: str) -> VisualTokens:
    """Return the view with the tokens that RTPrune folded into its kept ones; row breaks keep their places.

    Return the view unchanged for other methods.
    """
    if method != "rtprune":
        return view.tokens
    pruned = prune_tokens(view.tokens, view.density)
    embeds = view.tokens.embeds.clone()
    embeds[pruned.kept] = pruned.embeds
    return VisualTokens(embeds, view.tokens.is_patch)


def _raters(embeds: torch.Tensor, is_patch: torch.Tensor) -> torch.Tensor:
    """Select the text tokens most similar to the visual ones, by SparseVLM's softmax over the text.

    (B, T, D) -> (B, T) bool.
    """
    last_visual = int(is_patch.nonzero()[-1, 0]) + 1
    text = embeds[:, last_visual + 1 :].float()  # after the separator
    looks = (embeds[:, is_patch].float() @ text.mT).softmax(-1).mean(1)  # (B, text)
    raters = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    raters[:, last_visual + 1 :] = looks >= looks.mean(1, keepdim=True)
    return raters


def measure(model: OcrModel, views: Sequence[View], max_steps: int = MAX_STEPS) -> list[dict[str, object]]:
    """Measure each method: the error of its readings against the unpruned ones, and the share of KV kept."""
    groups = [views[start : start + VIEWS_AT_ONCE] for start in range(0, len(views), VIEWS_AT_ONCE)]
    rows: list[dict[str, object]] = []
    right: list[str] = []
    for method in (NONE, *BEFORE, *RULES):
        read_groups = [(group, *read(model, group, method, max_steps)) for group in groups]
        texts = [model.decode_text(ids) for _, written, _ in read_groups for ids in written]
        right = right or texts
        kept = sum(share * len(group) for group, _, share in read_groups) / len(views)
        error = character_error_rate(texts, right)
        rows.append({"method": method, "error_to_unpruned": round(error, 4), "kv_kept": round(kept, 4)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure all methods on the pocket checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruners.inside",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=Path, required=True, help="a folder with real pages in english/")
    parser.add_argument("--pages", type=int, default=PAGES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    model = load_pocket()
    views = views_of(model, asked.documents, asked.pages)
    rows = measure(model, views)
    publish({"pages": asked.pages, "views": len(views), "rows": rows}, model.device, asked.out)


if __name__ == "__main__":
    main()
