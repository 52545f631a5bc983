"""Pages to prune: layouts of the five modes, and tokens drawn at random."""

import torch
from hypothesis import strategies as st

from rtprune import Evidence, VisualTokens

Grid = tuple[int, int]
MODES: dict[str, tuple[tuple[Grid, ...], int]] = {
    "tiny": (((8, 8),), 73),
    "small": (((10, 10),), 111),
    "base": (((16, 16),), 273),
    "large": (((20, 20),), 421),
    "gundam 2 x 3": (((20, 30), (16, 16)), 893),
}
"""Name -> grids as (rows, columns), tiles first, and the length L of the sequence."""


def layout(*grids: Grid) -> torch.Tensor:
    """(L,) bool: each grid's rows of patches, each followed by a row break; one separator."""
    rows = [[True] * columns + [False] for count, columns in grids for _ in range(count)]
    return torch.tensor([*(patch for row in rows for patch in row), False])


def page(
    grids: tuple[Grid, ...], *, hidden: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32
) -> VisualTokens:
    is_patch = layout(*grids)
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(is_patch), hidden, generator=generator)
    shared = torch.rand(1, hidden, generator=generator)
    scale = torch.rand(len(is_patch), 1, generator=generator) + 0.1
    return VisualTokens(((embeds + shared) * scale).to(dtype), is_patch)


def evidence(tokens: VisualTokens, seed: int = 0) -> Evidence:
    """All that any method asks for, drawn at random."""
    num_patches, generator = int(tokens.is_patch.sum()), torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    return Evidence(
        class_attention=draw(num_patches),
        features=draw(num_patches, 6) - 0.5,
        hidden=draw(num_patches, 6) - 0.5,
        text=draw(3, tokens.embeds.shape[1]) - 0.5,
        ink=draw(num_patches),
        decode_attention=draw(num_patches),
        trained=draw(num_patches),
    )


sides = st.integers(1, 6)
grids = st.lists(st.tuples(sides, sides), min_size=1, max_size=2).map(tuple)
seeds = st.integers(0, 2**31)
densities = st.floats(0, 1)
fixed_ratios = st.floats(0, 1, exclude_min=True)
ratios = st.none() | fixed_ratios
