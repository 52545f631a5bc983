"""Shapes of letters, whatever their size: a heading in another font of the body's size has other ones."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from statistics import median

import numpy as np
import numpy.typing as npt

from app.ocr.regions.lines import Line

Floats = npt.NDArray[np.float64]
Shape = npt.NDArray[np.float32]
"""(SIDE * SIDE,), rows of cells from top to bottom: how dark each is, in the darkest of the letter."""

SIDE = 10
"""Rows and columns of a shape."""
LEAST_SPREAD = 0.002
"""Variance of a letter's shapes, as rounding to gray levels and pixels leaves at least."""
POOLED = 3.0
"""Letters that the variance of all letters counts for, beside that of the same ones."""
MIN_SAME = 2
"""Letters that say what the usual shape is, at least."""


@dataclass(frozen=True, slots=True)
class Unlike:
    """How a line's letters differ in shape from the same ones elsewhere, medians over them: ``ratio``, in
    what these differ among each other by, as a logarithm; ``distance``, in the darkest ink, of a cell;
    ``count``: of letters.
    """

    ratio: float = 0.0
    distance: float = 0.0
    count: int = 0


def shapes_of(darkness: Floats, boxes: Floats, peaks: Floats) -> Shape:
    """``darkness``: (H, W); ``boxes``: (N, 4), left, top, right, bottom in pixels and parts of them;
    ``peaks``: (N,), darkest of each -> (N, SIDE * SIDE), the shape of each.
    """
    height, width = darkness.shape
    summed = np.zeros((height + 1, width + 1))
    summed[1:, 1:] = darkness.cumsum(axis=0).cumsum(axis=1)
    steps = np.linspace(0, 1, SIDE + 1)
    x = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * steps  # (N, SIDE + 1)
    y = boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * steps
    left, top = np.minimum(x.astype(np.int64), width - 1), np.minimum(y.astype(np.int64), height - 1)
    across, down = (x - left)[:, None, :], (y - top)[:, :, None]
    rows, columns = top[:, :, None], left[:, None, :]
    upper = summed[rows, columns] * (1 - across) + summed[rows, columns + 1] * across
    lower = summed[rows + 1, columns] * (1 - across) + summed[rows + 1, columns + 1] * across
    corners = upper * (1 - down) + lower * down  # (N, SIDE + 1, SIDE + 1)
    cells = np.diff(np.diff(corners, axis=1), axis=2)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = np.maximum(areas, 1.0) / SIDE**2  # what is smaller is no letter
    shapes: Shape = (cells.reshape(len(boxes), SIDE**2) / (areas * peaks)[:, None]).astype(np.float32)
    return shapes


@dataclass(slots=True)
class _Shapes:
    """Of one letter: sums over all of them, and those of every line."""

    count: int = 0
    total: Floats = field(default_factory=lambda: np.zeros(SIDE**2))
    squares: float = 0.0
    own: dict[Line, list[Shape]] = field(default_factory=lambda: defaultdict(list))

    def add(self, line: Line, shape: Shape) -> None:
        self.count += 1
        self.total += shape
        self.squares += float(shape @ shape)
        self.own[line].append(shape)

    def elsewhere(self, line: Line) -> tuple[int, Floats, float]:
        """How many, their mean, and their variance together, of other lines."""
        own = self.own.get(line, [])
        count = self.count - len(own)
        if not count:
            return 0, self.total, 0.0
        mean = (self.total - sum(own)) / count
        squares = self.squares - sum(float(one @ one) for one in own)
        return count, mean, max(0.0, squares - count * float(mean @ mean))


def unlike_of(
    named: Mapping[Line, Sequence[tuple[str, Shape]]], among: Collection[Line] | None = None
) -> dict[Line, Unlike]:
    """Letters and their shapes, of every line; beside others ``among`` these lines, or any."""
    shapes: dict[str, _Shapes] = defaultdict(_Shapes)
    for line, pairs in named.items():
        if among is None or line in among:
            for name, shape in pairs:
                shapes[name].add(line, shape)
    spread = sum(one.squares - float(one.total @ one.total) / one.count for one in shapes.values())
    usual = spread / max(1, sum(one.count - 1 for one in shapes.values()))
    return {line: _unlike(line, pairs, shapes, usual) for line, pairs in named.items()}


def _unlike(
    line: Line, pairs: Sequence[tuple[str, Shape]], shapes: Mapping[str, _Shapes], usual: float
) -> Unlike:
    ratios: list[float] = []
    distances: list[float] = []
    elsewhere: dict[str, tuple[int, Floats, float]] = {}
    for name, shape in pairs:
        if name not in shapes:
            continue
        if name not in elsewhere:
            elsewhere[name] = shapes[name].elsewhere(line)
        count, mean, spread = elsewhere[name]
        if count < MIN_SAME:
            continue
        variance = (spread + POOLED * usual) / (count - 1 + POOLED)
        least = LEAST_SPREAD * SIDE**2
        distance = float((shape - mean) @ (shape - mean)) / (1 + 1 / count)
        ratios.append(log((distance + least) / (variance + least)) / 2)
        distances.append((distance / SIDE**2) ** 0.5)
    return Unlike(median(ratios), median(distances), len(ratios)) if ratios else Unlike()
