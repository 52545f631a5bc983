"""Rendered pages as tensors for one optimiser step. Step n of a run is the same wherever it is made."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.layout import Piece
from training.render import PATCH_PX, PageRenderer, PageStyle, RenderedPage, cell_targets, patch_of
from training.vocabulary import CHARACTERS, EOS, ID_OF

IGNORED = -100
CLASS_OF = {character: index for index, character in enumerate(CHARACTERS)}
"""Classes of the dense head; 0, the space's, is no character."""
_LONGER = 1.3
"""Pages up to this much longer than the shortest share a pass through the decoder."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of one view size. ``views``: (B, V, V) uint8 gray. ``cells``: (B, N, 32) classes of the patches,
    row-major.
    """

    views: torch.Tensor
    cells: torch.Tensor
    pages: tuple[RenderedPage, ...]

    @property
    def side(self) -> int:
        """Patch tokens in a row."""
        return self.views.shape[-1] // PATCH_PX


@dataclass(frozen=True, slots=True)
class Targets:
    """What some pages of a batch are to answer. ``rows``: which. ``ids``: (B', T) tokens with the end token,
    then ``IGNORED``. ``patches``: (B', T) row-major patch each token is printed on, or ``IGNORED``.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    patches: torch.Tensor

    def last_read(self) -> torch.Tensor:
        """(B, T) patch of the last printed character before each token, or ``IGNORED``."""
        before = self.patches.roll(1, dims=1)
        before[:, 0] = IGNORED
        places = torch.arange(before.shape[1]).expand_as(before)
        latest = torch.where(before != IGNORED, places, 0).cummax(dim=1).values
        return before.gather(1, latest)

    def one_by_one(self) -> list["Targets"]:
        places = [slice(index, index + 1) for index in range(len(self.rows))]
        return [Targets(self.rows[at], self.ids[at], self.patches[at]) for at in places]


def to_batch(pages: Sequence[RenderedPage]) -> Batch:
    views = torch.from_numpy(np.stack([page.pixels for page in pages]))
    cells = torch.from_numpy(np.stack([cell_targets(page, CLASS_OF) for page in pages]))
    return Batch(views, cells, tuple(pages))


def batches(
    renderer: PageRenderer, styles: Sequence[PageStyle], pixels: float, seed: int, first_step: int
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) without end: each of one of the styles, with as many pages as ``pixels`` make, or one."""
    step = first_step
    while True:
        rng = random.Random(f"{seed}/{step}")
        style = rng.choice(styles)
        size = max(1, int(pixels // style.view_px**2))
        yield step, to_batch([renderer.page(rng.getrandbits(48), style) for _ in range(size)])
        step += 1


def targets(batch: Batch, *, grounded: bool) -> list[Targets]:
    """Pages of similar length together, so that little of a pass is padding."""
    answers = [page.markdown if grounded else page.plain for page in batch.pages]
    order = sorted(range(len(answers)), key=lambda index: len(answers[index]))
    groups: list[list[int]] = []
    for index in order:
        if groups and len(answers[index]) <= len(answers[groups[-1][0]]) * _LONGER + 16:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [_targets(batch, answers, group) for group in groups]


def _targets(batch: Batch, answers: Sequence[Sequence[Piece]], rows: list[int]) -> Targets:
    longest = max(len(answers[row]) for row in rows) + 1
    ids = torch.full((len(rows), longest), IGNORED)
    patches = torch.full((len(rows), longest), IGNORED)
    for index, row in enumerate(rows):
        page, answer = batch.pages[row], answers[row]
        ids[index, : len(answer) + 1] = torch.tensor([*(ID_OF[token] for token, _ in answer), EOS])
        for position, (_, mark) in enumerate(answer):
            if mark >= 0:
                x, y, _ = page.marks[mark]
                patch = patch_of(x, y, page.pixels.shape[0])
                patches[index, position] = patch if patch >= 0 else IGNORED
    return Targets(torch.tensor(rows), ids, patches)
