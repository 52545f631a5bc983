"""Attend to few patch tokens at each decode step: ``fixation``, the idea of FastOCR (arXiv 2605.17447).

A few *focal* layers attend to every key. The patch tokens they look at most are those that the layers after
them attend to; layers before the first focal one take the step before's, and their neighbours on the page.
Beginning of sequence, row breaks, separators and all text are always attended to, and nothing is evicted: the
cache is the same as without. At share 1 the tokens are those of plain decoding.

Only that paper's abstract is public, so the details here are ours. This is masking: keys are read and then
not used, so it saves no time. docs/engine.md says what it was measured for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from app.ocr.engine.attention import Run, RunsDecode
from app.ocr.engine.kv_cache import KvCache


@dataclass(frozen=True, slots=True)
class FixationPlan:
    """How a checkpoint fixates. ``focal_layers`` are calibrated; the rest are constants of the method."""

    focal_layers: tuple[int, ...]
    min_patches: int = 32
    """Fewest patch tokens chosen, however small the share."""
    reuse: float = 0.5
    """How many of the step before's are kept beside the chosen ones, as a share of their number."""
    dilation: int = 1
    """How many patches around the step before's the layers before the first focal one also attend to."""
    refresh_steps: int = 16
    """Every step of this number attends to everything, in all layers."""
    warm_up_steps: int = 4
    """As many first steps attend to everything."""
    min_probability: float = 0.9
    """A step attends to everything if the token before it was less probable than this."""

    def __post_init__(self) -> None:
        layers = self.focal_layers
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ValueError(f"focal_layers must be layers in ascending order, got {layers}")
        counts = {"min_patches": 1, "dilation": 0, "refresh_steps": 1, "warm_up_steps": 1}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("reuse", "min_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """The patch tokens of a prompt, of which a ``share`` is attended to.

    ``columns``: (N,) int64, where they stand in the prompt. ``places``: (N, 3) int64, view, row and column.
    """

    share: float
    columns: torch.Tensor
    places: torch.Tensor


class FixedRow:
    """Which patch tokens a running page attends to.

    ``attended``: (N,) bool, those of the layers that are not focal, now. ``chosen``: (N,) bool, the choice of
    the last focal layer.
    """

    def __init__(self, patches: Patches, plan: FixationPlan) -> None:
        num_patches = len(patches.columns)
        self.columns = patches.columns
        self.num_chosen = min(num_patches, max(plan.min_patches, math.ceil(patches.share * num_patches)))
        self.num_reused = int(plan.reuse * self.num_chosen)
        self.chosen = torch.zeros(num_patches, dtype=torch.bool)
        self.attended = self.chosen
        self.is_dense = True
        """Whether all layers attend to everything in this step."""
        self._plan, self._near = plan, _near(patches.places, plan.dilation)
        self._scores = torch.zeros(num_patches)
        self._before, self._scores_before = self.chosen, self._scores
        self._step, self._is_sure, self._logprob_sum = -1, False, 0.0
        self._num_attended = self._num_calls = 0

    @property
    def mean_attended(self) -> float | None:
        """Patch tokens attended to, mean over steps and layers; ``None`` before the first step."""
        return self._num_attended / self._num_calls if self._num_calls else None

    def begin(self, step: int, logprob_sum: float) -> None:
        """Begin step ``step`` of the page, counted from 0. ``logprob_sum``: over the tokens before it.

        A step that is taken again after it failed begins the same.
        """
        if step != self._step:
            self._before, self._scores_before, self._step = self.chosen, self._scores, step
            # NaN is not sure
            self._is_sure = logprob_sum - self._logprob_sum >= math.log(max(self._plan.min_probability, 1e-9))
            self._logprob_sum = logprob_sum
        is_due = step < self._plan.warm_up_steps or step % self._plan.refresh_steps == 0
        self.is_dense = is_due or not self._is_sure
        self.attended = (self._near & self._before).any(1)

    def choose(self, shares: torch.Tensor) -> None:
        """Choose by a focal layer's attention. ``shares``: (H, T), softmax over all keys.

        The largest of the heads counts: few heads read, and a mean would dilute them.
        """
        self._scores = shares[:, self.columns].amax(0)
        reused = self._scores_before.masked_fill(~self._before, -torch.inf)
        self.chosen = _first(self._scores, self.num_chosen) | (_first(reused, self.num_reused) & self._before)
        self.attended = self.chosen

    def count(self, *, sees_all: bool) -> None:
        """Count a layer's call."""
        self._num_attended += len(self.columns) if sees_all else int(self.attended.sum())
        self._num_calls += 1


def _near(places: torch.Tensor, radius: int) -> torch.Tensor:
    """Return which patches of one view lie within ``radius`` rows and columns. (N, 3) -> (N, N) bool."""
    apart = (places[:, None] - places[None]).abs()
    return (apart[..., 0] == 0) & (apart[..., 1:] <= radius).all(-1)


def _first(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return (N,) bool: the ``count`` largest of (N,) scores; of equal ones the earlier."""
    largest = torch.zeros(len(scores), dtype=torch.bool)
    largest[scores.argsort(descending=True, stable=True)[:count]] = True
    return largest


Watch = Callable[[int, FixedRow, torch.Tensor], None]


class Fixations:
    """The rows of a decoder that fixate, in its order; ``None`` for a row that does not."""

    watch: ClassVar["staticmethod[[int, FixedRow, torch.Tensor], None] | None"] = None
    """What benchmarks put here is called with layer, row and (H, T) attention over all keys, which is then
    computed once more, before a focal layer chooses.
    """

    def __init__(self, plan: FixationPlan | None) -> None:
        self.plan = plan
        self.rows: list[FixedRow | None] = []

    @property
    def is_on(self) -> bool:
        """Whether a row fixates. No drafts are verified then: that pass has an attention of its own."""
        return any(self.rows)

    def admit(self, prompts: Sequence[Patches | None]) -> None:
        """Add the next rows. Raise ``ValueError`` for patches without a plan."""
        for patches in prompts:
            if patches is not None and self.plan is None:
                raise ValueError("a checkpoint without a plan cannot fixate")
            self.rows.append(None if patches is None or self.plan is None else FixedRow(patches, self.plan))

    def release(self, row: int) -> None:
        """Free a row and move the last row into its place."""
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    def attention(self, cache: KvCache, logprob_sums: torch.Tensor) -> RunsDecode:
        """Return the attention of the rows' steps: the plain one unless a row fixates."""
        if self.plan is None or not self.is_on:
            return RunsDecode(cache)
        return FixationDecode(cache, logprob_sums, self.rows, self.plan, self.watch)


class FixationDecode(RunsDecode):
    """``RunsDecode`` in which layers that are not focal do not see the patch tokens that were not chosen.

    ``logprob_sums``: (S,) float32, over each row's tokens so far.
    """

    def __init__(
        self,
        cache: KvCache,
        logprob_sums: torch.Tensor,
        rows: Sequence[FixedRow | None],
        plan: FixationPlan,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(cache)
        self._sums, self._plan, self._watch = logprob_sums, plan, watch
        self._fixed = [(i, row) for i, row in enumerate(rows) if row is not None]
        self._lengths: list[int] = []
        self._masked: list[Run] | None = None

    def begin(self) -> "FixationDecode":
        super().begin()
        self._lengths, self._masked = self._cache.host_held(more=1), None
        sums = self._sums.tolist()
        for i, row in self._fixed:
            row.begin(self._cache.host_lengths[i] - self._cache.host_prompts[i], sums[i])
        return self

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        self.store(layer, key, value)
        is_focal = layer in self._plan.focal_layers
        mixed = self.mix(layer, query, self._runs if is_focal else self._masked_runs(), scale)
        for i, row in self._fixed:
            row.count(sees_all=is_focal or row.is_dense)
            if not is_focal and self._watch is None:
                continue
            shares = self._shares(layer, query[i, :, 0], i, scale)
            if self._watch is not None:
                self._watch(layer, row, shares)
            if is_focal:
                row.choose(shares)
                self._masked = None
        return mixed

    def _shares(self, layer: int, query: torch.Tensor, row: int, scale: float) -> torch.Tensor:
        """Return the attention of a row's new token to all its keys. (H, D) -> (H, T) float32.

        Each row by itself, so that its choice does not depend on the rows beside it.
        """
        keys = self._cache.keys[layer][row, : self._lengths[row]].float()  # (T, Hkv, D)
        grouped = query.float().view(keys.shape[1], -1, keys.shape[2])  # (Hkv, G, D)
        scores: torch.Tensor = grouped @ keys.permute(1, 2, 0) * scale  # (Hkv, G, T)
        return scores.softmax(-1).flatten(0, 1)

    def _masked_runs(self) -> list[Run]:
        """Return the step's runs with the patch tokens masked that their rows do not attend to."""
        if self._masked is None:
            self._masked = [self._masked_run(*run) for run in self._runs]
        return self._masked

    def _masked_run(self, rows: slice, most: int, mask: torch.Tensor | None) -> Run:
        sparse = [(i, row) for i, row in self._fixed if rows.start <= i < rows.stop and not row.is_dense]
        if not sparse:
            return rows, most, mask
        if mask is None:
            mask = torch.zeros(rows.stop - rows.start, 1, 1, most, dtype=self._cache.shape.dtype)
        mask = mask.clone()
        for i, row in sparse:
            mask[i - rows.start, 0, 0, row.columns[~row.attended]] = -torch.inf
        return rows, most, mask
