"""Which headings of a page are its titles: larger ones or those across it, as those of a level are alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.ocr.regions.masks import Mask
from app.ocr.regions.traits import Floats

AS_LARGE, OTHER_SIZE = 0.04, 0.12
"""By how much sizes of one level are apart, and of two at least, as logarithms."""
UNEVEN = 2.0
"""Logarithm of how much less likely titles are as small as other headings, or of two sizes."""
LARGER, FAR_LARGER, EVEN = 0.1, 0.3, 0.06
STANDS_OUT, ALONE_ACROSS = 2.0, 6.0
"""By how much the first heading of a page is larger than all others, where those are even and where they are
not, and by how much these differ, as logarithms; and of how much more likely it is a title then, or where it
alone is centred or across columns."""


@dataclass(frozen=True, slots=True)
class Heading:
    """``size``: in the body's, as a logarithm. ``chances``: (2,), of being a title and of another level, as
    logarithms. ``is_across``: centred on the page, or across its columns.
    """

    size: float
    chances: Floats
    is_across: bool = False


def are_titles(headings: Sequence[Heading]) -> list[bool]:
    """Of the headings of a page, in order, by the likeliest way to part them."""
    if not headings:
        return []
    sizes = np.array([heading.size for heading in headings])
    chances = np.array([heading.chances for heading in headings])  # (H, 2)
    is_first = np.arange(len(headings)) == 0
    ways = [chances[:, 0] > chances[:, 1], np.zeros(len(sizes), bool), is_first]
    ways += [sizes >= one for one in sizes]
    across = np.array([heading.is_across for heading in headings])
    best = max(ways, key=lambda way: _likelihood(sizes, across, chances, way))
    return [bool(one) for one in best]


def _likelihood(sizes: Floats, across: Mask, chances: Floats, are_titles: Mask) -> float:
    """``sizes``: (H,); ``across``, ``are_titles``: (H,) bool; ``chances``: (H, 2). As a logarithm."""
    alone = float(np.where(are_titles, chances[:, 0], chances[:, 1]).sum())
    titles, others = sizes[are_titles], sizes[~are_titles]
    if not len(titles):
        return alone
    if titles.max() - titles.min() > OTHER_SIZE:
        alone -= UNEVEN
    if not len(others):
        return alone
    is_apart = bool(across[are_titles].all() and not across[~are_titles].any())
    if titles.min() < others.max() + AS_LARGE and not is_apart:
        alone -= UNEVEN
    least = LARGER if others.max() - others.min() < EVEN else FAR_LARGER
    is_larger = titles.min() > others.max() + least
    if are_titles[0] and (is_apart or is_larger):
        alone += ALONE_ACROSS if is_apart else STANDS_OUT
    return alone
