"""Runs, neighbourhoods and shades of pages are what filters and partitions of libraries say they are."""

import numpy as np
import pytest
from scipy import ndimage

from app.pocket.layout.masks import deviation, long_runs, near, percentile

SHAPES = [(40, 300), (7, 3), (1, 1), (0, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 3, 9, 16, 500])
def test_runs_are_what_an_opening_keeps(shape: tuple[int, int], axis: int, length: int) -> None:
    mask = np.random.default_rng(3).random(shape) < 0.85
    kept = ndimage.binary_opening(mask, np.ones((1, length) if axis else (length, 1)))
    before = mask.copy()
    assert (long_runs(mask, length, axis) == kept).all()
    assert (mask == before).all()


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reach", [1, 2, 6])
def test_what_is_near_is_what_a_filter_finds(shape: tuple[int, int], axis: int, reach: int) -> None:
    mask = np.random.default_rng(4).random(shape) < 0.05
    assert (near(mask, reach, axis) == ndimage.maximum_filter1d(mask, 2 * reach + 1, axis=axis)).all()


@pytest.mark.parametrize("size", [1, 2, 1000, 1001])
def test_shades_are_those_of_a_partition(size: int) -> None:
    gray = np.random.default_rng(size).integers(0, 256, (1, size), dtype=np.uint8)
    for share in (0, 0.05, 50, 90, 100):
        assert percentile(gray, share) == pytest.approx(np.percentile(gray, share))
    assert deviation(gray) == pytest.approx(np.median(np.abs(gray - np.median(gray))))
