"""Batches of rendered pages, one for each optimiser step. Step n of a run is the same on every machine."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from app.pocket.layout.views import VIEW_PX
from training.lines import LineRenderer, LineStyle
from training.printed import Piece
from training.render import PATCH_PX, PageRenderer, PageStyle, RenderedPage, cell_targets, patch_of
from training.vocabulary import CHARACTERS, EOS, ID_OF

Ids = npt.NDArray[np.int64]
IGNORED = -100
CLASS_OF = {character: index for index, character in enumerate(CHARACTERS)}
"""Class of each character in the dense head. Class 0, the space's, means "no character"."""
_LONGER = 1.3
"""Pages up to this many times as long as the shortest share a pass through the decoder."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The text that one page is to be read as.

    ``ids``: (T,) int64 tokens, the end token last. ``patches``: (T,) int64, the row-major patch that each
    token is printed on, or ``IGNORED``.

    These are arrays, not tensors, because each tensor passed between processes holds a file open: 1,000 a
    batch.
    """

    ids: Ids
    patches: Ids


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of one view size.

    ``views``: (B, V, V) uint8 gray. ``cells``: (B, N, 32) classes of the patches' cells, patches row-major.
    """

    views: torch.Tensor
    cells: torch.Tensor
    plain: tuple[Answer, ...]
    markdown: tuple[Answer, ...]

    def __len__(self) -> int:
        return len(self.views)

    @property
    def side(self) -> int:
        """Number of patch tokens in a row."""
        return self.views.shape[-1] // PATCH_PX

    def answers(self, *, tagged: bool) -> tuple[Answer, ...]:
        return self.markdown if tagged else self.plain


@dataclass(frozen=True, slots=True)
class Targets:
    """Answers of some pages of a batch, padded with ``IGNORED``: (B', T) each.

    ``rows``: the pages' positions in the batch.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    patches: torch.Tensor

    def last_read(self) -> torch.Tensor:
        """Return (B', T): the patch of the last printed character before each token, or ``IGNORED``."""
        before = self.patches.roll(1, dims=1)
        before[:, 0] = IGNORED
        places = torch.arange(before.shape[1]).expand_as(before)
        latest = torch.where(before != IGNORED, places, 0).cummax(dim=1).values
        return before.gather(1, latest)


def to_batch(pages: Sequence[RenderedPage]) -> Batch:
    views = torch.from_numpy(np.stack([page.pixels for page in pages]))
    cells = torch.from_numpy(np.stack([cell_targets(page, CLASS_OF) for page in pages]))
    plain = tuple(_answer(page, page.plain) for page in pages)
    return Batch(views, cells, plain, tuple(_answer(page, page.markdown) for page in pages))


def _answer(page: RenderedPage, pieces: Sequence[Piece]) -> Answer:
    ids = np.array([*(ID_OF[token] for token, _ in pieces), EOS], np.int64)
    patches = np.full(len(ids), IGNORED, np.int64)
    for position, (_, mark) in enumerate(pieces):
        if mark >= 0:
            x, y, _ = page.marks[mark]
            patch = patch_of(x, y, page.pixels.shape[0])
            patches[position] = patch if patch >= 0 else IGNORED
    return Answer(ids, patches)


Style = PageStyle | LineStyle


@dataclass(frozen=True, slots=True)
class Renderers:
    """Renderers of whole pages and of lines as the service shows them."""

    pages: PageRenderer
    lines: LineRenderer

    def views(self, rng: random.Random, style: Style, pixels: float) -> list[RenderedPage]:
        """Render views of one style until they have ``pixels`` pixels together; at least one view."""
        view_px = VIEW_PX if isinstance(style, LineStyle) else style.view_px
        count = max(1, int(pixels // view_px**2))
        if isinstance(style, LineStyle):
            return self.lines.views(rng, style, count)
        return [self.pages.page(rng.getrandbits(48), style) for _ in range(count)]


class Steps(Dataset[Batch]):
    """Data set of batches by step; the views of a batch share one of the styles."""

    def __init__(self, renderers: Renderers, styles: Sequence[Style], pixels: float, seed: int) -> None:
        self._renderers, self._styles, self._pixels, self._seed = renderers, styles, pixels, seed

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self._seed}/{step}")
        return to_batch(self._renderers.views(rng, rng.choice(self._styles), self._pixels))


def batches(steps: Steps, first: int, end: int, processes: int) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) from ``first`` to before ``end``.

    ``processes`` render ahead; with 0, this process renders.
    """
    loader: DataLoader[Batch] = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, end),
        num_workers=processes,
        prefetch_factor=4 if processes else None,
    )
    yield from enumerate(loader, first)


def targets(batch: Batch, *, tagged: bool) -> list[Targets]:
    """Group pages of similar length, so that little of a pass is padding."""
    answers = batch.answers(tagged=tagged)
    order = sorted(range(len(answers)), key=lambda index: len(answers[index].ids))
    groups: list[list[int]] = []
    for index in order:
        if groups and len(answers[index].ids) <= len(answers[groups[-1][0]].ids) * _LONGER + 16:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [
        Targets(
            torch.tensor(group),
            _filled([answers[row].ids for row in group]),
            _filled([answers[row].patches for row in group]),
        )
        for group in groups
    ]


def _filled(rows: Sequence[Ids]) -> torch.Tensor:
    tensors = [torch.from_numpy(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IGNORED)
