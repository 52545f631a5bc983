"""Fit the trees that tell headings from text (app/ocr/regions/headings.py).

    python -m training.headings --out app/ocr/regions/headings.safetensors

Pages are drawn in training's fonts, half of them worn by scanning, and cut by the service's own code; their
lines are read with as many errors as the pocket checkpoint makes. The same arguments give the same weights.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
from PIL import ImageOps
from safetensors.numpy import save_file

from app.ocr.regions.headings import KINDS, Trees
from app.ocr.regions.ink import find_ink
from app.ocr.regions.letters import beside_the_same
from app.ocr.regions.lines import Line
from app.ocr.regions.page import find_print
from app.ocr.regions.prints import PageLines
from app.ocr.regions.traits import Floats, beside_body, named_of, traits_of
from training.layout import Family, Layout, LayoutStyle
from training.lines import Placed, placed_marks
from training.printed import PrintedPage
from training.render import degrade, draw_page
from training.settings import load_settings
from training.text import TextSource
from training.vocabulary import CHARACTERS

SERIES, PAGES_A_SERIES = 24, 100
"""A page's seed is 100,000 times its series, and its number there."""
BODY_PT, DPI = (9.0, 14.0), 150
WHOLE_PX, PART_PX = (1240, 1754), ((700, 1240), (500, 1200))
WHOLE = 0.6
"""Share of whole pages; parts of them cost less, but what stands alone on one is a title more often."""
MIN_CHARACTERS, MAX_CHARACTERS = 100, 1800
DEGRADED = 0.5
EVEN = 0.5
"""Share of pages on which headings of a level are of one size; on the others each has its own."""
SUB_TITLE, TITLE = (1.0, 1.5), (1.12, 1.7)
"""Those sizes, in the body's and in the second level's."""
MISREAD = 0.02
ROUNDS, LEAVES = 300, 6
BOOSTING = {
    "num_leaves": LEAVES, "learning_rate": 0.08, "lambda_l2": 1.0, "feature_fraction": 0.3,
    "min_data_in_leaf": 20, "num_threads": 1, "deterministic": True, "force_row_wise": True, "seed": 0,
    "verbose": -1,
}  # fmt: skip
"""LightGBM's: small trees, each of which sees a third of the traits."""
Labels = npt.NDArray[np.int64]
Examples = tuple[Floats, Labels]
"""Traits (N, T) and numbers of ``KINDS`` (N) of the lines of a page."""


def drawn(seed: int, text: TextSource, families: Sequence[Family]) -> list[Examples]:
    """Of a page, measured in all its lines and in those of its body, as the service does one after the other;
    none where the page has next to no text, or tables alone.
    """
    rng = random.Random(seed)
    em = rng.uniform(*BODY_PT) * DPI / 72
    width, height = WHOLE_PX if rng.random() < WHOLE else (rng.uniform(*side) for side in PART_PX)
    style = LayoutStyle(round(width), round(height), em, 1.0, MAX_CHARACTERS)
    if rng.random() < EVEN:
        sub_title = rng.uniform(*SUB_TITLE)
        style = replace(style, levels=(sub_title * rng.uniform(*TITLE), sub_title))
    page = Layout(rng, text, families, style).fill()
    if page.characters < MIN_CHARACTERS:
        return []
    image = draw_page(rng, page)
    shares = [(x / page.width, y / page.height, character) for x, y, character in page.marks]
    if rng.random() < DEGRADED:
        clean, placed = image, shares
        while image is clean:  # one in ten is left as it is
            image, shares = degrade(rng, clean, placed)
    else:
        image = ImageOps.autocontrast(image)  # white paper
    ink = find_ink(image)
    cut = None if ink is None else find_print(ink)
    if ink is None or cut is None:
        return []
    rng = random.Random(seed)  # what is misread does not hang on the drawing
    marks, kinds = placed_marks(ink, page, image.size, shares), _kinds(page)
    at = np.array([(mark.x, mark.y) for mark in marks]).reshape(-1, 2)  # (M, 2)
    texts: dict[Line, str] = {}
    labels: dict[Line, int] = {}
    for line in cut.lines:
        x, y = at.T
        inside = np.flatnonzero((line.left <= x) & (x < line.right) & (line.top <= y) & (y < line.bottom))
        inside = inside[np.argsort(x[inside], kind="stable")]
        texts[line] = misread(rng, "".join(_spelled(marks[index]) for index in inside).strip())
        labels[line] = int(np.bincount(kinds[inside], minlength=len(KINDS)).argmax())
    return _measured(cut, texts, labels)


def _measured(page: PageLines, texts: dict[Line, str], labels: dict[Line, int]) -> list[Examples]:
    named = named_of(page, texts)
    lines, traits = traits_of(page, texts, beside_the_same(named))
    numbers = np.array([labels[line] for line in lines], np.int64)
    if not 0 < np.count_nonzero(numbers) < len(lines):
        return [(traits, numbers)] if lines else []
    headings = {line for line, number in zip(lines, numbers, strict=True) if number}
    beside, alike = beside_body(page, named, [line for line in page.lines if line not in headings])
    return [(traits, numbers), (traits_of(beside, texts, alike)[1], numbers)]


def _spelled(mark: Placed) -> str:
    return " " * mark.begins_word + mark.character


def _kinds(page: PrintedPage) -> Labels:
    """Of every mark, the number of its block's kind."""
    numbers = [
        KINDS.index(block.kind) if block.kind in KINDS else 0
        for block in page.blocks
        for _, mark in block.plain
        if mark >= 0
    ]
    return np.array(numbers, np.int64)


def misread(rng: random.Random, text: str) -> str:
    """With as many wrong characters as a reader of lines gives."""
    return "".join(
        rng.choice(CHARACTERS) if character != " " and rng.random() < MISREAD else character
        for character in text
    )


def fit(traits: Floats, labels: Labels) -> Trees:
    """(N, T), (N) -> trees, the same each time."""
    settings = {**BOOSTING, "objective": "multiclass", "num_class": len(KINDS)}
    data = lightgbm.Dataset(traits, labels.astype(np.float32))
    found = lightgbm.train(settings, data, num_boost_round=ROUNDS).dump_model()["tree_info"]
    inner = LEAVES - 1
    trees = [_arrays(tree["tree_structure"], inner) for tree in found]
    shape = (len(trees) // len(KINDS), len(KINDS), -1)  # it stops where nothing is left to part
    columns = (np.stack(column).reshape(shape) for column in zip(*trees, strict=True))
    return Trees(*columns)


def _arrays(root: dict[str, Any], inner: int) -> tuple[npt.NDArray[Any], ...]:
    """A tree as nodes within nodes -> its row of each of the arrays of ``Trees``."""
    numbers, thresholds = np.zeros(inner, np.int16), np.zeros(inner, np.float64)
    left, right = np.full(inner, -1, np.int16), np.full(inner, -1, np.int16)
    leaves = np.zeros(inner + 1, np.float32)
    if "leaf_value" in root:  # nothing to part: node 0 leads to the first leaf either way
        leaves[0] = root["leaf_value"]
        return numbers, thresholds, left, right, leaves
    nodes = [root]
    for node in nodes:
        at = node["split_index"]
        numbers[at], thresholds[at] = node["split_feature"], node["threshold"]
        for side, child in ((left, node["left_child"]), (right, node["right_child"])):
            if "leaf_value" in child:
                side[at] = -1 - child["leaf_index"]
                leaves[child["leaf_index"]] = child["leaf_value"]
            else:
                side[at] = child["split_index"]
                nodes.append(child)
    return numbers, thresholds, left, right, leaves


def save(trees: Trees, path: Path) -> None:
    tensors = {name: getattr(trees, name) for name in Trees.__dataclass_fields__}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(words)
    render = load_settings(arguments.settings).render
    text, families = TextSource(render.words), render.families(held_out=False)
    seeds = [100_000 * (1 + series) + number for series in range(SERIES) for number in range(PAGES_A_SERIES)]
    examples = [example for seed in seeds for example in drawn(seed, text, families)]
    traits, labels = (np.concatenate(column) for column in zip(*examples, strict=True))
    trees = fit(traits, labels)
    save(trees, arguments.out)
    wrong = trees.chances(traits).argmax(axis=1) != labels
    print(f"{len(labels)} lines, {int((labels > 0).sum())} of headings, {int(wrong.sum())} told wrong")


if __name__ == "__main__":
    main()
