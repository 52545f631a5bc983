"""Fit the network that tells headings from text (app/ocr/regions/headings.py).

    python -m training.headings --out app/ocr/regions/headings.safetensors

Pages are drawn in training's fonts, half of them worn by scanning, and cut by the service's own code; their
lines are read with as many errors as the pocket checkpoint makes. The same arguments give the same weights.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import ImageOps
from safetensors.numpy import save_file

from app.ocr.regions.headings import KINDS, SPREAD, Network
from app.ocr.regions.ink import find_ink
from app.ocr.regions.lines import Line
from app.ocr.regions.page import find_print
from app.ocr.regions.prints import PageLines
from app.ocr.regions.traits import Floats, alike_of, beside_body, traits_of
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
WHOLE = 0.3
"""Share of whole pages: parts of them have a title as often, and cost less."""
MIN_CHARACTERS, MAX_CHARACTERS = 100, 1800
DEGRADED = 0.5
EVEN = 0.5
"""Share of pages on which headings of a level are of one size; on the others each has its own."""
SUB_TITLE, TITLE = (1.0, 1.5), (1.12, 1.7)
"""Those sizes, in the body's and in the second level's."""
MISREAD = 0.02
HIDDEN, NETWORKS, STEPS, DECAY = 24, 4, 250, 1e-4
"""Units of a network, networks whose logits are averaged (they are written as one), steps, weight decay."""
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
    lines, traits = traits_of(page, texts, alike_of(page, texts))
    numbers = np.array([labels[line] for line in lines], np.int64)
    if not 0 < np.count_nonzero(numbers) < len(lines):
        return [(traits, numbers)] if lines else []
    headings = {line for line, number in zip(lines, numbers, strict=True) if number}
    beside, alike = beside_body(page, texts, [line for line in page.lines if line not in headings])
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


def fit(traits: Floats, labels: Labels) -> Network:
    """(N, T), (N) -> networks that were fitted from different beginnings, as one."""
    mean, scale = traits.mean(axis=0), traits.std(axis=0) + 1e-3
    even = torch.tensor((traits - mean) / scale).clamp(-SPREAD, SPREAD)
    fitted = [_fitted(seed, even, torch.tensor(labels)) for seed in range(NETWORKS)]
    inner, outer = (
        [np.vstack([layer.weight.T.detach(), layer.bias.detach()[None]]) for layer in layers]
        for layers in zip(*fitted, strict=True)
    )
    outer_weights = np.vstack([matrix[:-1] for matrix in outer]) / NETWORKS
    outer_bias = np.mean([matrix[-1] for matrix in outer], axis=0)
    return Network(mean, scale, np.hstack(inner), np.vstack([outer_weights, outer_bias]).astype(np.float32))


def _fitted(seed: int, even: torch.Tensor, labels: torch.Tensor) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(seed)
    inner, outer = torch.nn.Linear(even.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, len(KINDS))
    weights = [*inner.parameters(), *outer.parameters()]
    optimiser = torch.optim.LBFGS(weights, max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        errors = torch.nn.functional.cross_entropy(outer(torch.tanh(inner(even))), labels)
        total = errors + DECAY * torch.stack([weight.square().sum() for weight in weights]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return inner, outer


def save(network: Network, path: Path) -> None:
    tensors = {name: getattr(network, name) for name in Network.__dataclass_fields__}
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
    network = fit(traits, labels)
    save(network, arguments.out)
    wrong = network.chances(traits).argmax(axis=1) != labels
    print(f"{len(labels)} lines, {int((labels > 0).sum())} of headings, {int(wrong.sum())} told wrong")


if __name__ == "__main__":
    main()
