"""DeepSeek-OCR-2's visual sequence: which views it can be shown, and how their tokens follow each other.

Its second encoder reads a view's squares and then as many learned queries, of which each sees all squares
and the queries before it. What the queries hold are the visual tokens. So a view has as many tokens as
squares, but a token stands for whatever its query was trained to read next, not for one square.
"""

from collections.abc import Collection, Sequence

import torch

from app.ocr.models.checkpoint import CheckpointError
from app.ocr.models.model import Mode
from rtprune import VisualTokens

NUM_QUERIES = {768: 144, 1024: 256}
"""Tokens of a view, by its side in pixels. There are learned queries for no other side."""


def require_known_sides(modes: Collection[Mode]) -> None:
    """Raise ``CheckpointError`` for a mode with views for which there are no queries."""
    for mode in modes:
        for side in (mode.view_px, mode.tile_px):
            if side is not None and side not in NUM_QUERIES:
                known = " or ".join(map(str, NUM_QUERIES))
                raise CheckpointError(f"mode {mode.name}: views of {side} px, where this model has {known}")


def in_sequence(views: Sequence[torch.Tensor], separator: torch.Tensor) -> VisualTokens:
    """Join a page's views, (rows, columns, D) each, and the (D,) separator, without row breaks.

    Tiles come first, each whole before the next begins; the global view is last.
    """
    patches = torch.cat([view.flatten(0, 1) for view in views])  # (N, D)
    is_patch = torch.ones(len(patches) + 1, dtype=torch.bool, device=patches.device)
    is_patch[-1] = False
    return VisualTokens(embeds=torch.cat([patches, separator[None]]), is_patch=is_patch)
