"""Find where each patch token lies on the page and what became of it, for ``tokens=detail``."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.document import FARTHEST, Box, ViewPatches
from app.ocr.models.model import PageViews
from rtprune import Folds

PATCH_PX = 64
"""Side of the square of a view's pixels that one patch token covers."""
MIN_FOLDED_SHARE = 0.5
"""Share of a pruned token that must have gone into kept tokens for it to count as folded rather than
dropped.
"""
WHOLE_PAGE: Box = (0, 0, FARTHEST, FARTHEST)


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of patch tokens that follow each other in the sequence, and the part of the page under them."""

    columns: int
    rows: int
    bbox: Box

    @property
    def num_patches(self) -> int:
        return self.columns * self.rows


def grids_of(views: PageViews, size: tuple[int, int]) -> tuple[Grid, ...]:
    """List the grids of a page in the order of its tokens. ``size``: its width and height in pixels."""
    *tiled, whole = sides_of(views)
    bbox = _padded(size) if views.mode.pad else WHOLE_PAGE
    return (*(Grid(*sides, WHOLE_PAGE) for sides in tiled), Grid(*whole, bbox))


def sides_of(views: PageViews) -> list[tuple[int, int]]:
    """List the columns and rows of each grid, in the order of its tokens: the tiles' if any, the view's.

    Needs no pixels.
    """
    side = views.mode.view_px // PATCH_PX
    sides = [(side, side)]
    if views.tile_columns:
        tile = (views.mode.tile_px or 0) // PATCH_PX
        sides.insert(0, (views.tile_columns * tile, views.tile_rows * tile))
    return sides


def _padded(size: tuple[int, int]) -> Box:
    """Return the square that padding makes of the page, as a box that extends beyond two of its sides."""
    side = max(size)
    across, down = (round((side - own) / 2 / own * FARTHEST) for own in size)
    return -across, -down, FARTHEST + across, FARTHEST + down


def view_patches(
    grids: Sequence[Grid], patch_positions: Sequence[int], kept: Sequence[int], folds: Folds | None
) -> tuple[ViewPatches, ...]:
    """List, for each view, its kept and folded patches.

    ``patch_positions``: positions of the patch tokens in the sequence. ``kept``: positions of the tokens that
    were kept. Raise ``ValueError`` if the grids do not have as many patches as the sequence.
    """
    if sum(grid.num_patches for grid in grids) != len(patch_positions):
        raise ValueError(f"{len(patch_positions)} patch tokens do not fill {grids}")
    places = [(view, patch) for view, grid in enumerate(grids) for patch in range(grid.num_patches)]
    at = dict(zip(patch_positions, places, strict=True))
    kept_patches: list[list[int]] = [[] for _ in grids]
    for position in kept:
        if position in at:
            view, patch = at[position]
            kept_patches[view].append(patch)
    folded: list[list[tuple[int, int, int]]] = [[] for _ in grids]
    for pruned, into, share in _read(folds):
        if share > MIN_FOLDED_SHARE:
            view, patch = at[pruned]
            folded[view].append((patch, *at[into]))
    return tuple(
        ViewPatches(grid.bbox, WHOLE_PAGE, grid.columns, grid.rows, tuple(stay), tuple(gone))
        for grid, stay, gone in zip(grids, kept_patches, folded, strict=True)
    )


def _read(folds: Folds | None) -> list[tuple[int, int, float]]:
    if folds is None:
        return []
    return list(zip(folds.pruned.tolist(), folds.into.tolist(), folds.share.tolist(), strict=True))
