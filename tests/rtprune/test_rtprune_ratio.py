"""Stage 0: text density, diversity, keep ratio."""

import pytest
import rtprune_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rtprune_pages import Grid, grids, page, seeds

from rtprune import VisualTokens, prune_batch, prune_tokens, text_densities, text_density
from rtprune.ratio import keep_ratio


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_a_blank_page_has_the_density_of_its_patch_borders(value: float) -> None:
    density = text_density(torch.full((3, 1024, 1024), value), 16, 16)
    assert density == (4 * 64 - 4) / 64**2
    assert round(density, 4) == 0.0615


def test_gray_page_has_no_edges() -> None:
    assert text_density(torch.zeros(3, 64, 64), 2, 2) == 0


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    seed=seeds,
)
def test_density_agrees_with_the_formula(rows: int, columns: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(3, rows * height, columns * width, generator=generator) * 2 - 1
    pixels *= torch.rand(1, generator=generator)  # so that gradients lie on both sides of the threshold
    assert text_density(pixels, rows, columns) == pytest.approx(
        oracle.density(pixels.double().numpy(), rows, columns), abs=1e-12
    )


def test_density_of_each_page_alone_and_unchanged_input() -> None:
    pixels = torch.rand(3, 3, 32, 48) * torch.tensor([0.1, 0.3, 1.0])[:, None, None, None]
    before = pixels.clone()
    together = text_densities(pixels, 2, 3)
    assert together.dtype == torch.float64
    assert together.tolist() == [text_density(one, 2, 3) for one in pixels]
    assert 0 < together[0] < together[2]
    assert torch.equal(pixels, before)


def test_density_of_half_precision_pixels_is_computed_in_float32() -> None:
    pixels = (torch.rand(3, 32, 32) - 0.5).bfloat16()
    assert text_density(pixels, 2, 2) == text_density(pixels.float(), 2, 2)


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "dtype"),
    [
        ((3, 32, 32), 3, 2, torch.float32),
        ((3, 32, 32), 2, 0, torch.float32),
        ((1, 32, 32), 2, 2, torch.float32),
        ((32, 32), 2, 2, torch.float32),
        ((3, 0, 32), 2, 2, torch.float32),
        ((3, 32, 32), 2, 2, torch.uint8),
    ],
)
def test_density_refuses(shape: tuple[int, ...], rows: int, columns: int, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="pixels"):
        text_density(torch.zeros(shape, dtype=dtype), rows, columns)


@settings(max_examples=40, deadline=None)
@given(grids=grids, seed=seeds, density=st.floats(0, 1))
def test_diversity_agrees_with_the_formula(grids: tuple[Grid, ...], seed: int, density: float) -> None:
    tokens = page(grids, seed=seed)
    right = oracle.diversity(tokens.embeds[tokens.is_patch].double().numpy())
    assert prune_tokens(tokens, density).diversity == pytest.approx(right, abs=1e-7)


def test_diversity_at_its_limits() -> None:
    assert prune_tokens(page(((1, 1),)), 0).diversity == 1
    is_patch = torch.tensor([True] * 4 + [False] * 2)
    orthogonal = prune_tokens(VisualTokens(torch.eye(6), is_patch), 0)
    assert (orthogonal.diversity, orthogonal.num_kept_patches) == (1, 4)
    alike = prune_tokens(VisualTokens(torch.ones(6, 5), is_patch), 0)
    assert alike.diversity == pytest.approx(0, abs=1e-6)
    assert alike.num_kept_patches == 1, "at least one stays"


@given(density=st.floats(0, 1), diversity=st.floats(0, 1))
def test_keep_ratio_is_pythons_arithmetic(density: float, diversity: float) -> None:
    ratio = keep_ratio(*(torch.tensor([value], dtype=torch.float64) for value in (density, diversity)))
    assert ratio.item() == min(1.0, density + diversity - density * diversity)


def test_diversity_is_bit_for_bit_the_same_in_any_batch() -> None:
    tokens = [page(((8, 8),), seed=1), page(((5, 3),), seed=2), page(((9, 9), (2, 2)), seed=3)]
    together = [pruned.diversity for pruned in prune_batch(tokens, [0.1, 0.2, 0.3])]
    assert together == [prune_tokens(one, 0.5).diversity for one in tokens]
