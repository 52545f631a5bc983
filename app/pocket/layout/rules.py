"""Find the ruled lines of a page."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from app.pocket.layout.ink import Ink
from app.pocket.layout.lines import Line
from app.pocket.layout.masks import long_runs


@dataclass(frozen=True, slots=True)
class Rules:
    """Vertical and horizontal ruled lines."""

    uprights: tuple[Line, ...] = ()
    levels: tuple[Line, ...] = ()

    def has_upright(self, left: float, right: float, top: float, bottom: float) -> bool:
        """Tell whether a vertical rule stands in the box, along most of its height."""
        return any(
            left <= rule.left
            and rule.right <= right
            and min(bottom, rule.bottom) - max(top, rule.top) > 0.6 * (bottom - top)
            for rule in self.uprights
        )

    def count_levels(self, left: float, right: float, top: float, bottom: float) -> int:
        """Count the horizontal rules in the box that run along most of its width."""
        heights = sorted(
            rule.top
            for rule in self.levels
            if top <= rule.top <= bottom
            and min(right, rule.right) - max(left, rule.left) > 0.7 * (right - left)
        )
        return sum(after - before > 4 for before, after in zip([-9, *heights], heights, strict=False))


def find_rules(ink: Ink) -> Rules:
    return Rules(tuple(_uprights(ink)), tuple(_levels(ink)))


def _uprights(ink: Ink) -> list[Line]:
    """Find vertical ruled lines."""
    labels, _ = ndimage.label(ink.rules, np.ones((3, 3), int))
    found = [Line(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    thick = [line for line in found if line.height <= 3 * line.width]
    uprights = [line for line in found if line.height > 3 * line.width]
    for line in thick:  # a grid is one piece: take its columns that are ruled from top to bottom
        filled = ink.rules[line.top : line.bottom, line.left : line.right].mean(axis=0) > 0.7
        edges = np.flatnonzero(np.diff(np.concatenate(([False], filled, [False])).astype(np.int8)))
        for start, end in edges.reshape(-1, 2).tolist():
            if end - start < 0.1 * line.width:
                uprights.append(Line(line.left + start, line.top, line.left + end, line.bottom))
    return uprights


def _levels(ink: Ink) -> list[Line]:
    """Find horizontal rules, counting each line of a grid separately."""
    length = max(40, ink.rules.shape[1] // 40)
    labels, _ = ndimage.label(long_runs(ink.rules, length))
    found = [Line(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return [line for line in found if line.width > 3 * line.height]
