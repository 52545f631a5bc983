"""Where patch tokens lie on a page, and what is said of each."""

import pytest
import torch
from rtprune_pages import layout, page

from app.ocr.engine.patches import WHOLE_PAGE, grids_of, view_patches
from app.ocr.models.model import Mode, PageViews
from rtprune import RTPruneConfig, prune_tokens

BASE = Mode("base", 1024, pad=True)
GUNDAM = Mode("gundam", 1024, pad=True, tile_px=640)


def views(mode: Mode, columns: int = 0, rows: int = 0) -> PageViews:
    tiles = torch.zeros(columns * rows, 3, 640, 640) if columns else None
    return PageViews(mode, torch.zeros(3, mode.view_px, mode.view_px), tiles, columns, rows)


def test_a_padded_view_reaches_as_far_beyond_the_page_on_both_sides() -> None:
    [grid] = grids_of(views(BASE), (500, 1000))
    left, top, right, bottom = grid.bbox
    assert (grid.columns, grid.rows, top, bottom) == (16, 16, 0, 999)
    assert -left == right - 999 > 0
    assert right - left == pytest.approx(2 * 999, abs=2), "the page is half as wide as its view"


def test_every_patch_of_every_view_is_kept_folded_or_dropped_and_never_two_of_them() -> None:
    grids = grids_of(views(GUNDAM, 2, 3), (1000, 1500))
    assert [(grid.columns, grid.rows) for grid in grids] == [(20, 30), (16, 16)], "tiles first, as decoded"
    assert grids[0].bbox == WHOLE_PAGE
    tokens = page(((30, 20), (16, 16)))
    pruned = prune_tokens(tokens, 0.2, RTPruneConfig(keep_ratio=0.6, trace=True))
    positions = tokens.is_patch.nonzero()[:, 0].tolist()
    told = view_patches(grids, positions, pruned.kept.tolist(), pruned.folds)
    assert sum(len(view.kept) for view in told) == pruned.num_kept_patches
    for view in told:
        folded = {patch for patch, _, _ in view.folded}
        assert not folded & set(view.kept)
        assert folded | set(view.kept) <= set(range(view.columns * view.rows))
        assert all(into in told[other].kept for _, other, into in view.folded), "partners stay"


def test_grids_of_another_size_than_the_sequence_are_refused() -> None:
    positions = layout((3, 3)).nonzero()[:, 0].tolist()
    with pytest.raises(ValueError, match="9 patch tokens"):
        view_patches(grids_of(views(BASE), (1, 1)), positions, [], None)
