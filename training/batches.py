"""Rendered pages as tensors for one optimiser step. Step n of a run is the same wherever it is made."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from training.render import PageRenderer, PageStyle, RenderedPage, cell_targets
from training.text import PRINTABLE
from training.vocabulary import ASCII, EOS, FIRST_CHARACTER

IGNORED = -100
_BATCHES_PER_CHUNK = 8
CLASS_OF = {character: index + 1 for index, character in enumerate(PRINTABLE)}
_ID_OF = {character: FIRST_CHARACTER + index for index, character in enumerate(ASCII)}


@dataclass(frozen=True, slots=True)
class Batch:
    """``pixels``: (B, 3, V, V) float32 in [-1, 1]. ``cells``: (B, N, 32) classes.

    ``text_ids``: (B, T), each text and its end token, then ``IGNORED``.
    """

    pixels: torch.Tensor
    cells: torch.Tensor
    text_ids: torch.Tensor
    texts: tuple[str, ...]


def to_batch(pages: list[RenderedPage], view_px: int) -> Batch:
    gray = torch.from_numpy(np.stack([page.pixels for page in pages])).float()  # (B, V, V)
    cells = np.stack([cell_targets(page, view_px, CLASS_OF) for page in pages])
    longest = max(len(page.text) for page in pages) + 1
    text_ids = torch.full((len(pages), longest), IGNORED)
    for row, page in enumerate(pages):
        ids = [*(_ID_OF[character] for character in page.text), EOS]
        text_ids[row, : len(ids)] = torch.tensor(ids)
    pixels = (gray / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)
    return Batch(pixels, torch.from_numpy(cells), text_ids, tuple(page.text for page in pages))


def batches(
    renderer: PageRenderer, style: PageStyle, seed: int, size: int, first_step: int
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) without end. Pages of similar length share a batch, so little of it is padding."""
    chunk = first_step // _BATCHES_PER_CHUNK
    while True:
        first_page = seed + chunk * size * _BATCHES_PER_CHUNK
        pages = [renderer.page(first_page + index, style) for index in range(size * _BATCHES_PER_CHUNK)]
        pages.sort(key=lambda page: len(page.text))
        order = list(range(_BATCHES_PER_CHUNK))
        random.Random(first_page).shuffle(order)
        for position, index in enumerate(order):
            step = chunk * _BATCHES_PER_CHUNK + position
            if step >= first_step:
                yield step, to_batch(pages[index * size : (index + 1) * size], style.view_px)
        chunk += 1
