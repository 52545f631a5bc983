"""Rendered training pages: from seeds, with targets that match the print."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_pages import FULL, SMALL, needs_font, page_renderer, word_list

from app.output.markdown import to_markdown
from training.batches import CLASS_OF, IGNORED, Targets, targets, to_batch
from training.layout import Family
from training.render import CELLS_PER_PATCH, PageRenderer, PageStyle, cell_targets
from training.text import TextSource
from training.vocabulary import EOS

STYLES = pytest.mark.parametrize("style", [SMALL, FULL, replace(FULL, degraded=1.0)])


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return word_list(tmp_path)


@pytest.fixture
def renderer(words: Path) -> PageRenderer:
    return page_renderer(words)


@needs_font
@STYLES
def test_a_seed_gives_one_page(renderer: PageRenderer, style: PageStyle) -> None:
    first, again, other = (renderer.page(seed, style) for seed in (7, 7, 8))
    assert (first.pixels == again.pixels).all()
    assert first.grounded == again.grounded
    assert first.text != other.text


@needs_font
@STYLES
def test_every_printed_character_is_read_once_and_in_place(renderer: PageRenderer, style: PageStyle) -> None:
    for seed in range(15):
        page = renderer.page(seed, style)
        for answer in (page.plain, page.markdown):
            marks = [mark for _, mark in answer if mark >= 0]
            assert sorted(marks) == list(range(len(page.marks))), "nothing is left out or read twice"
        assert all(page.marks[mark][2] == piece for piece, mark in page.plain if mark >= 0)
        unlike = {(piece, page.marks[mark][2]) for piece, mark in page.markdown if mark >= 0}
        assert {piece for piece, printed in unlike if piece != printed} <= {"-"}, (
            "bullets alone are rewritten"
        )


@needs_font
@STYLES
def test_ink_stands_where_the_marks_are(renderer: PageRenderer, style: PageStyle) -> None:
    """Around a mark it is darker than the page's paper; a target shifted by a row would not be."""
    for seed in range(12):
        page = renderer.page(seed, style)
        side = len(page.pixels)
        if not page.marks:
            continue
        paper = np.median(np.asarray(page.native))
        inside = [(x, y) for x, y, _ in page.marks if 0 <= x < side and 0 <= y < side]
        around = [
            page.pixels[max(0, int(y) - 12) : int(y) + 12, max(0, int(x) - 8) : int(x) + 8] for x, y in inside
        ]
        assert np.mean([patch.min() < paper - 30 for patch in around]) > 0.95


@needs_font
def test_the_markdown_of_a_page_is_what_the_service_makes_of_it(renderer: PageRenderer) -> None:
    kinds = set()
    for seed in range(30):
        page = renderer.page(seed, FULL)
        rendered = to_markdown(page.grounded)
        kinds |= {block.type for block in rendered.blocks}
        assert "<|" not in rendered.markdown
        assert len(rendered.blocks) == page.grounded.count("<|ref|>")
        for block in rendered.blocks:
            assert block.text
            assert (block.type == "title") == block.text.startswith("# ")
            assert (block.type == "sub_title") == block.text.startswith("## ")
            assert (block.type == "table") == block.text.startswith("<table>")
            assert block.text.count("<td>") == block.text.count("</td>")
    assert kinds >= {"title", "sub_title", "text", "table"}


@needs_font
@STYLES
def test_cell_targets_hold_the_marked_characters(renderer: PageRenderer, style: PageStyle) -> None:
    page = renderer.page(3, style)
    target = cell_targets(page, CLASS_OF)
    assert target.shape == ((style.view_px // 64) ** 2, CELLS_PER_PATCH)
    assert set(target[target > 0].tolist()) <= {CLASS_OF[c] for _, _, c in page.marks}
    assert (target > 0).sum() > 0.9 * len(page.marks), "two letters seldom share a cell"


@needs_font
def test_a_page_and_its_marks_are_padded_alike(renderer: PageRenderer) -> None:
    """Gray bars stand beside the page, and no mark lies on them."""
    for seed in range(10):
        page = renderer.page(seed, FULL)
        width, height = page.native.size
        bars = (1280 - 1280 * min(width, height) / max(width, height)) / 2
        across = [(x, y)[width > height] for x, y, _ in page.marks]
        assert all(bars - 1 <= at <= 1280 - bars + 1 for at in across)
        if bars > 2:
            edge = page.pixels[:, : int(bars)] if height > width else page.pixels[: int(bars)]
            assert (edge == 127).all()


def test_last_read_is_the_nearest_patch_before() -> None:
    unknown = IGNORED
    patches = torch.tensor([[unknown, 3, 3, unknown, unknown, 5, 6, unknown]])
    group = Targets(torch.tensor([0]), torch.zeros_like(patches), patches)
    assert group.last_read().tolist() == [[unknown, unknown, 3, 3, 3, 3, 5, 6]]


@needs_font
@pytest.mark.parametrize("grounded", [True, False])
def test_targets_name_the_patch_a_character_is_printed_on(renderer: PageRenderer, grounded: bool) -> None:
    pages = [renderer.page(seed, FULL) for seed in range(6)]
    batch = to_batch(pages)
    seen = []
    for group in targets(batch, tagged=grounded):
        for row, ids, patches in zip(group.rows.tolist(), group.ids, group.patches, strict=True):
            seen.append(row)
            answer = pages[row].markdown if grounded else pages[row].plain
            assert ids[len(answer)] == EOS
            assert (ids >= 0).sum() == len(answer) + 1
            for (_, mark), patch in zip(answer, patches.tolist(), strict=False):
                if mark < 0:
                    assert patch == IGNORED
                else:
                    x, y, _ = pages[row].marks[mark]
                    assert (patch // batch.side, patch % batch.side) == (y // 64, x // 64)
    assert sorted(seen) == list(range(6))


def test_a_missing_font_is_named(words: Path) -> None:
    nowhere = Path("/nowhere.ttf")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ttf"):
        PageRenderer(TextSource(words), [Family(nowhere, nowhere)])
