"""A small head that scores patch tokens, trained on a checkpoint whose own weights stay as they are.

It mixes the outputs of several encoder depths, after LayoutLite (arXiv 2607.22200), and adds what is known of
each patch without training. ``python -m benchmarks.pruners.scorer`` collects its lessons, trains and measures
it; nothing here serves pages.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).parent / "scorer.safetensors"
"""The scorer of the pocket checkpoint."""
HIDDEN = 32
NUM_SIGNALS = 6
MAX_BYTES = 1 << 20
"""Largest file that is read: a scorer is small."""
MAX_DEPTHS = 4
"""Most outputs of the encoder that are used, its input among them; the projected token comes on top."""
TINY = 1e-6
MASKS = 5
"""Masks drawn of each view in a step of the policy gradient."""
DROPPED_WEIGHT, DROPPED_POWER = 5.0, 1.5

Reward = Callable[[Tensor, Tensor], Tensor]
"""A function that reads views through masks: (b,) int64 views, (b, MASKS, N) bool kept -> (b, MASKS) quality
of the readings in [0, 1].
"""


class ScorerError(ValueError):
    """A file is no scorer, or a scorer was given features of other widths than it was trained on."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the scorer sees of B views with N patches each.

    ``depths``: (B, N, C) float32 each, outputs of the encoder from early to late, then the projected tokens.
    ``signals``: (B, N, NUM_SIGNALS) float32, see ``signals_of``.
    """

    depths: tuple[Tensor, ...]
    signals: Tensor

    def __len__(self) -> int:
        return len(self.signals)

    @property
    def widths(self) -> tuple[int, ...]:
        """C of each depth."""
        return tuple(depth.shape[-1] for depth in self.depths)

    def __getitem__(self, views: Tensor) -> "Features":
        return Features(tuple(depth[views] for depth in self.depths), self.signals[views])


class Scorer(nn.Module):
    """Scores the patches of a view, each in the light of the view's mean: ``Features`` -> (B, N) float32.

    ``widths``: C of each depth. A depth is normalised and projected, and the projections are added up: where
    LayoutLite convolves over depths at full width, this takes a small width at once.
    """

    def __init__(self, widths: Sequence[int], hidden: int = HIDDEN) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.depths = nn.ModuleList(nn.Linear(width, hidden, bias=False) for width in widths)
        self.signals = nn.Linear(NUM_SIGNALS, hidden)
        self.context = nn.Linear(hidden, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, features: Features) -> Tensor:
        if features.widths != self.widths:
            raise ScorerError(f"the scorer was trained on widths {self.widths}, got {features.widths}")
        mixed = self.signals(features.signals)
        for project, depth in zip(self.depths, features.depths, strict=True):
            mixed = mixed + project(functional.layer_norm(depth, depth.shape[-1:]))
        mixed = mixed + self.context(mixed.mean(1, keepdim=True))  # (B, N, hidden)
        scores: Tensor = self.score(functional.gelu(self.norm(mixed)))[..., 0]
        return scores


def save_scorer(scorer: Scorer, path: Path) -> None:
    """Write a scorer as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in scorer.state_dict().items()}, path)


def load_scorer(path: Path) -> Scorer:
    """Read a scorer. Its sizes follow from its tensors.

    Raise ``ScorerError`` when the file is missing or no safetensors, or when names, shapes, dtypes or values
    are not a scorer's.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ScorerError(f"{path}: larger than {MAX_BYTES} bytes")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ScorerError(f"{path}: cannot be read ({error})") from None
    first = tensors.get("signals.weight")
    depths = [tensors.get(f"depths.{index}.weight") for index in range(len(tensors))]
    widths = [depth.shape[-1] for depth in depths if depth is not None and depth.ndim == 2]
    if first is None or first.ndim != 2 or not widths:
        raise ScorerError(f"{path}: has not the tensors of a scorer")
    if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values()):
        raise ScorerError(f"{path}: its tensors must be float32 and finite")
    scorer = Scorer(widths, len(first))
    try:
        scorer.load_state_dict(tensors)
    except RuntimeError as error:
        raise ScorerError(f"{path}: its tensors do not fit together ({error})") from None
    return scorer.eval().requires_grad_(False)


@cache
def shipped_scorer() -> Scorer | None:
    """Return the scorer of ``WEIGHTS``; ``None`` where that file is missing, as before the first training."""
    return load_scorer(WEIGHTS) if WEIGHTS.is_file() else None


def view_scores(
    network: Any, views: Tensor, class_attention: Tensor, ink: Tensor, scorer: Scorer | None = None
) -> Tensor | None:
    """Score patches of views: (B, 3, S, S), (B, N), (B, N) -> (B, N).

    ``scorer``: the shipped one by default. Return ``None`` when it was trained on an encoder of other widths.
    """
    scorer = scorer or shipped_scorer()
    features = features_of(network, views, class_attention, ink)
    if scorer is None or scorer.widths != features.widths:
        return None
    with torch.inference_mode():
        scores: Tensor = scorer(features)
    return scores


def features_of(network: Any, views: Tensor, class_attention: Tensor, ink: Tensor) -> Features:
    """Compute what the scorer sees: (B, 3, S, S), (B, N), (B, N) -> features of B views, on their device."""
    depths = encoder_depths(network, views)
    return Features(depths, signals_of(depths[-1], class_attention, ink))


@torch.inference_mode()
def encoder_depths(network: Any, views: Tensor) -> tuple[Tensor, ...]:
    """Run the encoder: (B, 3, S, S) -> (B, N, C) float32 for each depth, the projected tokens last.

    The depths are CLIP's input, which SAM made, and outputs of its layers at even distances, the last one
    among them. Patches are row by row.
    """
    tower, projector = network.model.vision_tower, network.model.multi_modal_projector
    layers = tower.vision_encoder.encoder.layers
    seen: dict[int, Tensor] = {}

    def note_input(_: object, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen[0] = given[0] if given else named["hidden_states"]

    def note(index: int) -> Callable[..., None]:
        def after(_: object, __: object, output: Any) -> None:
            seen[index] = output[0] if isinstance(output, tuple) else output

        return after

    with ExitStack() as hooks:
        hooks.callback(layers[0].register_forward_pre_hook(note_input, with_kwargs=True).remove)
        for index, layer in enumerate(layers, 1):
            hooks.callback(layer.register_forward_hook(note(index)).remove)
        projected = projector(tower(views).last_hidden_state)
    steps = range(MAX_DEPTHS)
    chosen = sorted({step * len(layers) // (MAX_DEPTHS - 1) for step in steps})
    return (*(seen[index][:, 1:].float() for index in chosen), projected.float())


def signals_of(projected: Tensor, class_attention: Tensor, ink: Tensor) -> Tensor:
    """Describe each patch by what needs no training: (B, N, D), (B, N), (B, N) -> (B, N, NUM_SIGNALS).

    These are norm, attention of CLIP's class token and edge pixels, standardised within the view; the share
    of edge pixels among all of the view; row and column in [0, 1]. N must be a square.
    """
    views, side = len(projected), round(projected.shape[1] ** 0.5)
    norms = projected.float().norm(dim=-1)
    share = ink.float() / ink.float().sum(1, keepdim=True).clamp(min=TINY)
    steps = torch.arange(side, device=projected.device) / max(1, side - 1)
    rows, columns = steps.repeat_interleave(side).expand(views, -1), steps.repeat(side).expand(views, -1)
    standard = [standardised(one.float()) for one in (norms, class_attention, ink)]
    return torch.stack((*standard, share, rows, columns), dim=-1)


def standardised(values: Tensor) -> Tensor:
    """Bring each view's values to mean 0 and deviation 1: (B, N) -> (B, N); equal values give zeros."""
    centred = values - values.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp(min=TINY)


def importance(mass: Tensor) -> Tensor:
    """Turn decode-time attention into what the scorer learns: (B, N) sums -> (B, N), logs standardised.

    Logs, because what is cut are the patches of little attention, which would be alike beside the large ones.
    """
    return standardised((mass / mass.sum(1, keepdim=True).clamp(min=TINY)).clamp(min=1e-4).log().float())


def fit_ranking(
    scorer: Scorer, features: Features, mass: Tensor, *, steps: int, views: int = 64, lr: float = 3e-3,
    seed: int = 0,
) -> None:  # fmt: skip
    """Train by regression: the scorer's scores, standardised within a view, onto ``importance(mass)``.

    ``mass``: (B, N) attention that the decoder paid to each patch. The learning rate falls to 0 along a
    cosine.
    """
    target = importance(mass)
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randperm(len(features), generator=generator)[:views]
        loss = functional.mse_loss(standardised(scorer(features[batch])), target[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def fit_policy(
    scorer: Scorer, features: Features, reward: Reward, *, dropped: float, steps: int, views: int = 16,
    lr: float = 1e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Train by policy gradient, LayoutLite's way: no truth for patches, only readings through random masks.

    A patch is kept with probability sigmoid(standardised score + logit(1 - ``dropped``)). A mask earns the
    quality of its reading less 5 |share dropped - ``dropped``|^1.5; its advantage is standardised within the
    view's ``MASKS`` masks. The loss is the negative mean of advantage times the mask's mean log-probability.
    """
    offset = torch.logit(torch.tensor(1 - dropped))
    optimiser = torch.optim.Adam(scorer.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randperm(len(features), generator=generator)[:views]
        logits = standardised(scorer(features[batch])) + offset  # (b, N)
        logits = logits[:, None].expand(-1, MASKS, -1)
        kept = torch.rand(logits.shape, generator=generator) < logits.detach().sigmoid()
        excess = ((~kept).float().mean(-1) - dropped).abs()
        earned = reward(batch, kept) - DROPPED_WEIGHT * excess**DROPPED_POWER  # (b, MASKS)
        advantage = standardised(earned)
        chances = -functional.binary_cross_entropy_with_logits(logits, kept.float(), reduction="none")
        loss = -(advantage * chances.mean(-1)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
