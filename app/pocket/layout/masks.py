"""Fast operations on masks and gray pages: long runs of set pixels, their neighbourhood, percentiles.

Each does what a library's filter or partition does, ten times faster on a page.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def long_runs(mask: Mask, length: int, axis: int = 1) -> Mask:
    """Keep runs of at least ``length`` set pixels in each row (``axis`` 1) or column (0).

    (H, W) -> (H, W).
    """
    runs = np.zeros_like(mask)
    if length > mask.shape[axis]:
        return runs
    begins, reach = mask, 1  # where a run of ``reach`` begins
    while reach < length:
        step = min(reach, length - reach)
        begins = _cut(begins, axis, 0, -step) & _cut(begins, axis, step, None)
        reach += step
    _cut(runs, axis, 0, begins.shape[axis])[...] = begins
    return after(runs, length, axis)


def after(mask: Mask, count: int, axis: int) -> Mask:
    """Spread a mask by fewer than ``count`` pixels to the right, or down (``axis`` 0)."""
    reached, reach = mask.copy(), 1
    while reach < count:
        step = min(reach, count - reach)
        shifted = _cut(reached, axis, 0, -step).copy()
        _cut(reached, axis, step, None)[...] |= shifted
        reach += step
    return reached


def near(mask: Mask, reach: int, axis: int) -> Mask:
    """Spread a mask by at most ``reach`` pixels along an axis."""
    padded = np.zeros([size + 2 * reach * (at == axis) for at, size in enumerate(mask.shape)], bool)
    length = mask.shape[axis]
    _cut(padded, axis, 0, length)[...] = mask
    return _cut(after(padded, 2 * reach + 1, axis), axis, reach, reach + length)


def _cut(mask: Mask, axis: int, start: int, stop: int | None) -> Mask:
    """Return a view of the pixels from ``start`` to ``stop`` along an axis."""
    return mask[start:stop] if axis == 0 else mask[:, start:stop]


def percentile(gray: Gray, share: float) -> float:
    """Return the percentile of all pixels. ``share``: 0 to 100; interpolates as ``np.percentile`` does."""
    return _percentile(np.arange(256.0), _counts(gray), share)


def deviation(gray: Gray) -> float:
    """Return the median absolute deviation of pixels from their median."""
    apart = np.abs(np.arange(256.0) - percentile(gray, 50))
    order = np.argsort(apart, kind="stable")
    return _percentile(apart[order], _counts(gray)[order], 50)


def _counts(gray: Gray) -> npt.NDArray[np.int64]:
    """Count the pixels of each shade, (256,)."""
    return np.array(Image.fromarray(gray).histogram())  # five times as fast as numpy's


def _percentile(values: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], share: float) -> float:
    """Return the percentile of (N,) sorted ``values``, each occurring ``counts`` times.

    ``share``: 0 to 100.
    """
    reached = np.cumsum(counts)
    place = (reached[-1] - 1) * share / 100
    lower, upper = values[np.searchsorted(reached, [np.floor(place), np.ceil(place)], side="right")]
    return float(lower + (upper - lower) * (place - np.floor(place)))
