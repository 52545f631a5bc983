"""Report what became of the patch tokens of a page that was read in views, by their place on the page.

In each row of its patch tokens a view shows a row of words from anywhere on the page. So each of its rows
becomes a grid of its own.
"""

from collections.abc import Sequence

import numpy as np

from app.document import FARTHEST, Box, ViewPatches
from app.pocket.layout.composed import turned_back
from app.pocket.layout.page import CutPage
from app.pocket.layout.prints import PageLines
from app.pocket.layout.views import ROW_PX, ROWS, VIEW_PX, Row


def page_patches(
    cut: CutPage, views: Sequence[tuple[ViewPatches, ...]], turns: int
) -> tuple[ViewPatches, ...]:
    """Return one grid for every row of every view.

    ``views``: for each view of the page that was read, its one grid. ``turns``: see ``turned_back``. Empty if
    a view does not have exactly one grid.
    """
    rows: list[ViewPatches] = []
    for number, grids in enumerate(views):
        if len(grids) != 1:
            return ()
        shown = cut.views[number].rows if number < len(cut.views) else ()
        rows += _rows_of(grids[0], cut.page, shown, first=number * ROWS)
    return tuple(turned(row, turns) for row in rows)


def _rows_of(
    view: ViewPatches, page: PageLines | None, shown: Sequence[Row], *, first: int
) -> list[ViewPatches]:
    """Split a view's grid into one grid per row.

    ``first``: index of the view's first row among those of the page.
    """
    columns = view.columns
    kept = [[patch % columns for patch in view.kept if patch // columns == row] for row in range(view.rows)]
    folded = [
        [
            (patch % columns, first + into // columns, into % columns)
            for patch, _, into in view.folded
            if patch // columns == row
        ]
        for row in range(view.rows)
    ]
    places: list[tuple[Box | None, Box | None]] = [(None, None)] * view.rows
    if page is not None:
        for number, row in enumerate(shown):
            places[number] = _band(row, number, page), _in_page(row.source, page)
    return [
        ViewPatches(bbox, part, columns, 1, tuple(stay), tuple(gone))
        for (bbox, part), stay, gone in zip(places, kept, folded, strict=True)
    ]


def _band(row: Row, number: int, page: PageLines) -> Box:
    """Return the part of the page that a whole row of the view would cover, margins included."""
    left, top, right, bottom = row.source
    across, down = (right - left) / row.size[0], (bottom - top) / row.size[1]
    x, y = left - row.place[0] * across, top - (row.place[1] - number * ROW_PX) * down
    return _in_page((x, y, x + VIEW_PX * across, y + ROW_PX * down), page)


def _in_page(box: tuple[float, float, float, float], page: PageLines) -> Box:
    left, top, right, bottom = box
    across, down = FARTHEST / page.width, FARTHEST / page.height
    return round(left * across), round(top * down), round(right * across), round(bottom * down)


def turned(view: ViewPatches, turns: int) -> ViewPatches:
    """Map a grid of a page that was turned counter-clockwise to the page as it came."""
    if turns == 0:
        return view
    grid = np.rot90(np.arange(view.columns * view.rows).reshape(view.rows, view.columns), -turns)
    now = {int(before): after for after, before in enumerate(grid.flat)}
    return ViewPatches(
        None if view.bbox is None else turned_back(view.bbox, turns),
        None if view.shown is None else turned_back(view.shown, turns),
        grid.shape[1],
        grid.shape[0],
        tuple(sorted(now[patch] for patch in view.kept)),
        # all grids of a page have one size, so partners turn the same way
        tuple((now[patch], other, now[into]) for patch, other, into in view.folded),
    )
