"""What the pocket's answer says of each patch token, in parts of the page."""

import asyncio

import pytest
from printed_pages import lines_box, printed

from app.document import Page, Reading, ReadOptions, ViewPatches
from app.open_reader import open_reader
from app.pocket.patches import turned


@pytest.fixture(scope="module")
def readings() -> tuple[Reading, Reading]:
    """The same page with and without detail."""

    async def read() -> tuple[Reading, Reading]:
        reader = open_reader("pocket", "cpu")
        page = Page(0, printed(lines=2))
        try:
            detailed, plain = (
                reader.submit(page, options, document_id=str(number))
                for number, options in enumerate(
                    (ReadOptions(keep_ratio=0.6, tokens="detail"), ReadOptions(keep_ratio=0.6))
                )
            )
            return await detailed.result(), await plain.result()
        finally:
            await reader.close()

    return asyncio.run(read())


def test_detail_counts_every_patch_token_once_and_only_where_it_is_asked_for(
    readings: tuple[Reading, Reading],
) -> None:
    detailed, plain = readings
    assert plain.views == ()
    assert detailed.text == plain.text
    assert sum(view.columns * view.rows for view in detailed.views) == detailed.tokens.patches
    assert sum(len(view.kept) for view in detailed.views) == detailed.tokens.kept_patches
    for view in detailed.views:
        folded = {patch for patch, _, _ in view.folded}
        assert not folded & set(view.kept)
        assert all(into in detailed.views[other].kept for _, other, into in view.folded)


def test_rows_of_views_lie_on_the_lines_that_they_show(readings: tuple[Reading, Reading]) -> None:
    _, top, _, bottom = lines_box(0, 2)
    shown = [view.shown for view in readings[0].views if view.shown is not None]
    assert shown, "a grid without a place shows nothing of the page"
    assert all(top <= box[1] < box[3] <= bottom for box in shown)
    for view in readings[0].views:
        if view.bbox is not None and view.shown is not None:
            assert view.bbox[0] <= view.shown[0] < view.shown[2] <= view.bbox[2] + 1


def test_a_grid_of_a_turned_page_is_turned_back() -> None:
    """Four turns, of which each moves the grid's first patch to the next corner, are none."""
    view = ViewPatches((0, 0, 999, 500), (10, 20, 900, 400), 3, 2, (0, 4), ((5, 1, 0),))
    once = turned(view, 1)
    assert (once.columns, once.rows) == (2, 3)
    assert once.kept == (1, 2), "clockwise: the first row is the last column"
    back = view
    for _ in range(4):
        back = turned(back, 1)
    assert back == view
    assert turned(view, 3) == turned(turned(once, 1), 1)
