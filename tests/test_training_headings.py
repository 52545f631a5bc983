"""Headings: what decides over a line, and the trees that are fitted to it."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from app.ocr.regions.headings import KINDS, Trees, fitted, heading_chances, load
from app.ocr.regions.letters import beside_the_same
from app.ocr.regions.page import cut_page
from app.ocr.regions.prints import PageLines
from app.ocr.regions.traits import named_of, traits_of
from training.layout import Family
from training.text import TextSource

try:
    from training.headings import drawn, fit, misread, save
except OSError as error:
    pytest.skip(f"LightGBM needs the Debian package libgomp1: {error}", allow_module_level=True)

FONTS = Path("/usr/share/fonts/truetype/dejavu")
FAMILY = Family(FONTS / "DejaVuSans.ttf", FONTS / "DejaVuSans-Bold.ttf")
needs_font = pytest.mark.skipif(
    not FAMILY.bold.is_file(), reason="needs the Debian package fonts-dejavu-core"
)
PROSE = "the quick brown fox jumps over the lazy dog and then it rests for a while"


def page_with(middle: str, font: Path, size: int, *, white: int) -> tuple[PageLines, list[str]]:
    """Three lines of prose, one line with more white around it, three lines of prose."""
    image = Image.new("L", (1240, 700), 255)
    draw = ImageDraw.Draw(image)
    body = ImageFont.truetype(FAMILY.regular, 24)
    texts = [PROSE] * 3 + [middle] + [PROSE] * 3
    y = 60
    for at, text in enumerate(texts):
        y += white if at in (3, 4) else 0
        draw.text((100, y), text, font=ImageFont.truetype(font, size) if at == 3 else body)
        y += 34
    page = cut_page(image).page
    assert page is not None
    return page, texts


def chances_of_middle(page: PageLines, texts: list[str]) -> "np.typing.NDArray[np.float32]":
    named = dict(zip(page.lines, texts, strict=True))
    return list(heading_chances(page, named, beside_the_same(named_of(page, named))).values())[3]


def named_traits(page: PageLines, texts: list[str]) -> "np.typing.NDArray[np.float32]":
    named = dict(zip(page.lines, texts, strict=True))
    return traits_of(page, named, beside_the_same(named_of(page, named)))[1]


@needs_font
@pytest.mark.parametrize("font", [FAMILY.bold, FAMILY.regular])
def test_a_line_apart_is_a_heading_and_one_of_a_paragraph_is_not(font: Path) -> None:
    apart = chances_of_middle(*page_with("Rivers of the North", font, 29, white=20))
    within = chances_of_middle(*page_with(PROSE, FAMILY.regular, 24, white=0))
    assert apart[KINDS.index("sub_title")] > 0.5
    assert within[0] > 0.95


@needs_font
def test_widths_of_letters_tell_the_size_whatever_is_written() -> None:
    for words in ("rivers of the northern plains", "some words on this and that"):
        page, texts = page_with(words, FAMILY.regular, 30, white=10)
        traits = named_traits(page, texts)
        assert np.exp(traits[3, 4]) == pytest.approx(30 / 24, abs=0.09)
        assert np.exp(traits[[0, 1, 5], 4]) == pytest.approx(1, abs=0.03)


@needs_font
def test_traits_do_not_hang_on_where_the_page_begins() -> None:
    page, texts = page_with("Rivers", FAMILY.bold, 26, white=12)
    here = named_traits(page, texts)
    moved = {line: replace(line, left=line.left + 50, right=line.right + 50) for line in page.lines}
    prints = {moved[line]: page.prints[line] for line in page.lines}
    leads = {moved[line]: lead for line, lead in page.leads.items()}
    there = replace(page, parts=tuple(moved.values()), prints=prints, leads=leads)
    same = named_traits(there, texts)
    assert np.allclose(here, same)


def walked(trees: Trees, row: "np.typing.NDArray[np.float32]") -> "np.typing.NDArray[np.float64]":
    """Chances of one line, one node after the other."""
    logits = np.zeros(len(KINDS))
    for number, kind in np.ndindex(trees.traits.shape[:2]):
        node = 0
        while node >= 0:
            trait, threshold = trees.traits[number, kind, node], trees.thresholds[number, kind, node]
            sides = trees.left if row[trait] <= threshold else trees.right
            node = int(sides[number, kind, node])
        logits[kind] += trees.leaves[number, kind, -1 - node]
    grown = np.exp(logits - logits.max())
    chances: np.typing.NDArray[np.float64] = grown / grown.sum()
    return chances


def test_chances_are_those_of_every_tree_and_sum_to_one() -> None:
    trees = fitted()
    rows = np.random.default_rng(0).normal(0, 1, (20, int(trees.traits.max()) + 1)).astype(np.float32)
    chances = trees.chances(rows)
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-5)
    for at in (0, 7, 19):
        assert np.allclose(chances[at], walked(trees, rows[at]), atol=1e-5)
    assert trees.chances(rows[:0]).shape == (0, len(KINDS))


@pytest.mark.parametrize("count", [600, 20])
def test_what_is_fitted_is_found_again_when_loaded(tmp_path: Path, count: int) -> None:
    """Of few lines, nothing is told."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, count)
    traits = (rng.normal(0, 0.3, (count, 4)) + np.eye(4)[labels]).astype(np.float32)
    trees = fit(traits, labels)
    right = (trees.chances(traits).argmax(axis=1) == labels).mean()
    assert right > 0.95 if count == 600 else right < 0.7
    save(trees, tmp_path / "headings.safetensors")
    again = load(tmp_path / "headings.safetensors")
    for name in Trees.__dataclass_fields__:
        assert np.array_equal(getattr(again, name), getattr(trees, name)), name
        assert np.array_equal(getattr(fit(traits, labels), name), getattr(trees, name)), name
    for row in traits[:5]:
        assert np.allclose(trees.chances(row[None])[0], walked(trees, row), atol=1e-5)


@needs_font
def test_examples_are_the_same_again_and_have_headings(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("page letter fold dustbin margin quartz sphinx", encoding="utf-8")
    text = TextSource(words)
    pages = [drawn(seed, text, [FAMILY]) for seed in range(4)]
    again = [drawn(seed, text, [FAMILY]) for seed in range(4)]
    labels = []
    for one, other in zip(pages, again, strict=True):
        assert len(one) == len(other)
        for (traits, kinds), (same, _) in zip(one, other, strict=True):
            assert (traits == same).all()
            assert traits.shape[0] == len(kinds)
            assert traits.shape[1] > fitted().traits.max()
            labels.append(kinds)
    assert (np.concatenate(labels) > 0).any()


def test_a_misread_text_keeps_its_words() -> None:
    text = PROSE * 20
    read = misread(random.Random(3), text)
    assert [len(word) for word in read.split(" ")] == [len(word) for word in text.split(" ")]
    wrong = sum(one != other for one, other in zip(read, text, strict=True))
    assert 0 < wrong < 0.05 * len(text)
