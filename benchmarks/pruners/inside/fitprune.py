"""FitPrune: a table, fitted once, of how many patches leave in each layer; and the rule that follows it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from benchmarks.pruners.inside.layers import Rule, Seen
from benchmarks.pruners.inside.rules import best

WIDTH = 0.01
"""Width of the interval of alpha at which the bisection ends."""


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of a view's patches in all layers.

    ``width``: the decoder's. ``mlps``: width of each layer's MLP, of a mixture the shared and the chosen
    experts together. ``others``: tokens of the prompt that are not patches.
    """

    width: int
    mlps: tuple[int, ...]
    others: int

    def of(self, patches: Sequence[float]) -> float:
        """Return the FLOPs where so many patches enter each layer.

        Patches that leave in a layer do so before its output projection; they count as whole here.
        """
        width = self.width
        return sum(
            count * (4 * width**2 + 2 * (count + self.others) * width + 3 * width * mlp)
            for count, mlp in zip(patches, self.mlps, strict=True)
        )


def looks(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure the layer below: mean attention of text tokens, and of living patches, to every token.

    Attention is the largest over heads. Returns (B, T) float64 each.
    """
    shares = seen.shares[-1].amax(1).double()  # (B, T, T)
    of_text = shares[:, seen.prompts.is_text].mean(1)
    living = seen.candidates.double()
    of_patches = (living[:, None] @ shares)[:, 0] / living.sum(1, keepdim=True).clamp(min=1)
    return of_text, of_patches


def removable(looks: torch.Tensor, candidates: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Mark the least looked-at candidates that may leave: the longest run of them, in ascending order, after
    which at least ``allowed`` (B,) of the sum of looks is left, less its last one. (B, T) -> (B, T) bool.
    """
    order = looks.masked_fill(~candidates, torch.inf).sort(dim=1, stable=True)
    gone = order.values.masked_fill(order.values.isinf(), 0).cumsum(1)
    left = (looks * candidates).sum(1, keepdim=True) - gone
    is_living = torch.arange(looks.shape[1], device=looks.device) < candidates.sum(1, keepdim=True)
    run = ((left >= allowed[:, None]) & is_living).sum(1) - 1
    return best(-looks, candidates, run.clamp(min=0))


@dataclass(slots=True)
class Sums:
    """A rule that drops nothing and records the sums of ``looks`` in each layer of a dense run."""

    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Record one layer; everything stays."""
        of_text, of_patches = looks(seen)
        self.layers.append(((of_text * seen.candidates).sum(1), (of_patches * seen.candidates).sum(1)))
        return seen.candidates


@dataclass(slots=True)
class Deleting:
    """A rule that drops what both looks can spare at the level ``alpha``, until the cost is ``most``.

    ``counts``: filled with (B,) patches that enter each layer from the second on.
    """

    alpha: float
    dense: Sums
    cost: Cost
    most: float
    counts: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Drop in one layer."""
        of_text, of_patches = looks(seen)
        sums = self.dense.layers[seen.layer - 1]
        leaves = seen.candidates
        for values, dense in zip((of_text, of_patches), sums, strict=True):
            leaves = leaves & removable(values, seen.candidates, (1 - self.alpha) * dense)
        leaves &= ~self._is_enough(seen)[:, None]
        stays = seen.candidates & ~leaves
        self.counts.append(stays.sum(1))
        return stays

    def _is_enough(self, seen: Seen) -> torch.Tensor:
        """Tell which views cost little enough if nothing more leaves. (B,) bool."""
        before = [torch.full((len(seen.candidates),), seen.prompts.num_patches), *self.counts]
        rest = seen.num_layers - len(before)
        rows = torch.stack([count.cpu() for count in before]).T.tolist()
        enough = [self.cost.of([*row, *[row[-1]] * rest]) <= self.most for row in rows]
        return torch.tensor(enough, device=seen.candidates.device)


def fit_table(run: Callable[[Rule], None], num_patches: int, cost: Cost, target: float) -> list[int]:
    """Fit how many patches leave before each layer from the second on, so that FLOPs fall by ``target``.

    ``run`` reads the sample prompts once by a rule. Bisects alpha, the share of attention that may be lost in
    a layer, down to ``WIDTH``. Raise ``ValueError`` when no level saves so much.
    """
    dense = Sums()
    run(dense)
    num_layers = len(dense.layers) + 1
    most = (1 - target) * cost.of([num_patches] * num_layers)

    def table_at(alpha: float) -> list[int]:
        deleting = Deleting(alpha, dense, cost, most)
        run(deleting)
        entering = [float(num_patches), *(float(count.double().mean()) for count in deleting.counts)]
        # the sum of floats may end a hair below a whole number
        return [math.floor(before - now + 1e-9) for before, now in pairwise(entering)]

    def saves(table: Sequence[int]) -> bool:
        entering = [num_patches]
        for count in table:
            entering.append(entering[-1] - count)
        return cost.of(entering) <= most

    low, high = 0.0, 1.0
    if not saves(table_at(high)):
        raise ValueError(f"no level of FitPrune saves {target:.0%} of the FLOPs")
    while high - low > WIDTH:
        middle = (low + high) / 2
        low, high = (low, middle) if saves(table_at(middle)) else (middle, high)
    return table_at(high)


def follow(table: Sequence[int]) -> Rule:
    """Make the rule of a table: before each layer the patches of smallest product of both looks leave."""

    def rule(seen: Seen) -> torch.Tensor:
        of_text, of_patches = looks(seen)
        stay = seen.candidates.sum(1) - table[seen.layer - 1]
        return best(of_text * of_patches, seen.candidates, stay.clamp(min=1))

    return rule
