"""Which lines are headings, and of which level.

Boosted trees weigh how a line is printed, where it stands and what it says (``traits.py``): none of these
tells alone. ``training/headings.py`` fits them.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from app.ocr.regions.letters import Alike
from app.ocr.regions.lines import Line
from app.ocr.regions.prints import PageLines
from app.ocr.regions.traits import Floats, traits_of

WEIGHTS = Path(__file__).with_name("headings.safetensors")
KINDS = ("text", "title", "sub_title")


@dataclass(frozen=True, slots=True)
class Trees:
    """R rounds of a tree for each of ``KINDS``, of at most I inner nodes and I + 1 leaves, as gradient
    boosting fits them (Friedman 2001). An inner node sends what is at most its threshold to the left; node 0
    is the root, a negative number n means leaf -1 - n.

    ``traits``: (R, 3, I) int16, number of the trait an inner node looks at; ``thresholds``: (R, 3, I)
    float64; ``left``, ``right``: (R, 3, I) int16; ``leaves``: (R, 3, I + 1) float32, summed over the rounds.
    """

    traits: npt.NDArray[np.int16]
    thresholds: npt.NDArray[np.float64]
    left: npt.NDArray[np.int16]
    right: npt.NDArray[np.int16]
    leaves: Floats

    def chances(self, traits: Floats) -> Floats:
        """(N, T) -> (N, 3), rows sum to one."""
        rounds, kinds, inner = self.traits.shape
        first = np.arange(rounds * kinds) * inner  # of the trees' nodes
        row = np.arange(len(traits))[:, None] * traits.shape[1]
        node = np.zeros((len(traits), len(first)), np.int64)
        for _ in range(inner):  # no tree is deeper
            is_inner = node >= 0
            if not is_inner.any():
                break
            at = first + np.maximum(node, 0)  # (N, R * 3)
            goes_left = traits.take(row + self.traits.take(at)) <= self.thresholds.take(at)
            node = np.where(is_inner, np.where(goes_left, self.left.take(at), self.right.take(at)), node)
        reached = self.leaves.take(np.arange(rounds * kinds) * (inner + 1) - 1 - node)
        logits = reached.reshape(len(traits), rounds, kinds).sum(axis=1)
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances: Floats = grown / grown.sum(axis=1, keepdims=True)
        return chances


def load(path: Path) -> Trees:
    return Trees(**load_file(path))


@cache
def fitted() -> Trees:
    return load(WEIGHTS)


def heading_chances(page: PageLines, texts: dict[Line, str], alike: dict[Line, Alike]) -> dict[Line, Floats]:
    """Of every line outside tables, (3,): of being each of ``KINDS``. ``alike``: by ``beside_the_same``."""
    lines, traits = traits_of(page, texts, alike)
    return dict(zip(lines, fitted().chances(traits), strict=True)) if lines else {}
