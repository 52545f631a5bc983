"""Which headings of a page are its titles: larger ones, as all headings of one level are of one size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.ocr.regions.headings import Floats
from app.ocr.regions.ink import Mask

AS_LARGE, OTHER_SIZE = 0.04, 0.12
"""By how much sizes of one level are apart, and of two at least, as logarithms."""
UNEVEN = 2.0
"""Logarithm of how much less likely titles are as small as other headings, or of two sizes."""


@dataclass(frozen=True, slots=True)
class Heading:
    """``size``: in the body's, as a logarithm. ``chances``: (2,), of being a title and of another level, as
    logarithms.
    """

    size: float
    chances: Floats


def are_titles(headings: Sequence[Heading]) -> list[bool]:
    """Of the headings of a page, by the likeliest way to part them."""
    if not headings:
        return []
    sizes = np.array([heading.size for heading in headings])
    chances = np.array([heading.chances for heading in headings])  # (H, 2)
    ways = [chances[:, 0] > chances[:, 1], np.zeros(len(sizes), bool), *(sizes >= one for one in sizes)]
    best = max(ways, key=lambda way: _likelihood(sizes, chances, way))
    return [bool(one) for one in best]


def _likelihood(sizes: Floats, chances: Floats, are_titles: Mask) -> float:
    """``sizes``: (H,); ``chances``: (H, 2); ``are_titles``: (H,) bool. As a logarithm."""
    titles, others = sizes[are_titles], sizes[~are_titles]
    are_small = len(titles) > 0 and len(others) > 0 and titles.min() < others.max() + AS_LARGE
    are_uneven = len(titles) > 1 and titles.max() - titles.min() > OTHER_SIZE
    alone = np.where(are_titles, chances[:, 0], chances[:, 1]).sum()
    return float(alone) - UNEVEN * (int(are_small) + int(are_uneven))
