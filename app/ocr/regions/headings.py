"""Which lines are headings, and of which level.

A small network weighs how a line is printed, where it stands and what it says (``traits.py``): none of these
tells alone. ``training/headings.py`` fits it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from app.ocr.regions.letters import Alike
from app.ocr.regions.lines import Line
from app.ocr.regions.prints import PageLines
from app.ocr.regions.traits import Floats, traits_of

WEIGHTS = Path(__file__).with_name("headings.safetensors")
KINDS = ("text", "title", "sub_title")
SPREAD = 5.0
"""Standard deviations from the mean, beyond which a trait says no more."""


@dataclass(frozen=True, slots=True)
class Network:
    """One hidden layer. ``mean``, ``scale``: (T,) of traits; ``inner``: (T + 1, H) and ``outer``: (H + 1, 3),
    whose last rows are biases.
    """

    mean: Floats
    scale: Floats
    inner: Floats
    outer: Floats

    def chances(self, traits: Floats) -> Floats:
        """(N, T) -> (N, 3), rows sum to one."""
        even = np.clip((traits - self.mean) / self.scale, -SPREAD, SPREAD)
        hidden = np.tanh(even @ self.inner[:-1] + self.inner[-1])  # (N, H)
        logits = hidden @ self.outer[:-1] + self.outer[-1]
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances: Floats = grown / grown.sum(axis=1, keepdims=True)
        return chances


def load(path: Path) -> Network:
    return Network(**load_file(path))


@cache
def fitted() -> Network:
    return load(WEIGHTS)


def heading_chances(page: PageLines, texts: dict[Line, str], alike: dict[Line, Alike]) -> dict[Line, Floats]:
    """Of every line outside tables, (3,): that it is of each of ``KINDS``. ``alike``: as ``alike_of``."""
    lines, traits = traits_of(page, texts, alike)
    return dict(zip(lines, fitted().chances(traits), strict=True)) if lines else {}
