"""How much of a page to keep (RTPrune, stage 0): text density, diversity, keep ratio, count."""

import torch
from torch import Tensor

from rtprune.precision import product_dtype
from rtprune.tokens import TokenBatch

EDGE_THRESHOLD = 0.2


def text_density(pixels: Tensor, rows: int, columns: int) -> float:
    """(3, H, W) pixels in [-1, 1] of the global view -> share of edge pixels in [0, 1]. Waits for the device.

    Each of the ``rows`` x ``columns`` patches is zero padded and searched alone, so its border counts too:
    a white page has a small density, not 0. Raises ``ValueError`` like ``text_densities``.

    >>> round(text_density(torch.ones(3, 1024, 1024), rows=16, columns=16), 4)
    0.0615
    """
    if pixels.ndim != 3:
        raise ValueError(f"pixels must be (3, H, W), got {tuple(pixels.shape)}")
    return float(text_densities(pixels[None], rows, columns))


@torch.no_grad()
def text_densities(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """(B, 3, H, W) float pixels in [-1, 1] -> (B,) float64 densities on their device, without waiting for it.

    Share of pixels whose Sobel gradient magnitude exceeds 0.2, averaged over equal patches. Raises
    ``ValueError`` for another shape, an integer dtype, or a height or width that ``rows`` or ``columns``
    does not divide.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or pixels.numel() == 0:
        raise ValueError(f"pixels must be float (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    height, width = pixels.shape[2:]
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(f"{height} x {width} pixels do not divide into {rows} x {columns} patches")
    # (B, 3, rows, h, columns, w)
    patches = pixels.reshape(-1, 3, rows, height // rows, columns, width // columns)
    if pixels.device.type == "cpu":
        # one row of patches at a time stays in the cache: several times as fast as all at once
        slabs = [
            [_edge_pixels(slab) for slab in torch.split(page, 1, dim=2)] for page in torch.split(patches, 1)
        ]
        counts = torch.cat([torch.stack(page).sum(0) for page in slabs])
    else:
        counts = _edge_pixels(patches)
    return counts / (height * width)


def _edge_pixels(patches: Tensor) -> Tensor:
    """(B, 3, rows, h, columns, w) -> (B,) float64. Elementwise throughout: cuDNN would convolve in TF32."""
    red, green, blue = patches.float().unbind(1)
    gray = (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)  # (B, rows, h, columns, w)
    padded = torch.nn.functional.pad(gray.transpose(2, 3), (1, 1, 1, 1))  # (B, rows, columns, h + 2, w + 2)
    down = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)  # 1, 2, 1
    along = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    gradient_x = down[..., 2:] - down[..., :-2]
    gradient_y = along[..., 2:, :] - along[..., :-2, :]
    squared = gradient_x.mul_(gradient_x).addcmul_(gradient_y, gradient_y)
    # 0 or 1 as floats, exact in sums over one patch: bool sums are five times as slow on a CPU
    edges = squared.gt_(EDGE_THRESHOLD**2).sum((3, 4))  # (B, rows, columns)
    return edges.double().sum((1, 2))


@torch.no_grad()
def diversities(batch: TokenBatch) -> Tensor:
    """B pages -> (B,) float64 in [0, 1]: 1 - mean squared cosine of ordered pairs of different patch tokens.

    1 for a single patch. A token of norm 0 has cosine 0 with every other.
    """
    # dividing by infinity makes what is no patch a zero row, which adds nothing
    divisors = torch.where(batch.is_patch & (batch.norms > 0), batch.norms, torch.inf)[..., None]  # (B, L, 1)
    if batch.embeds.device.type == "cpu":
        # page by page at its own length: stays in the cache, and is bit for bit the single page's answer
        ends = enumerate(batch.lengths)
        pages = [
            _squared_cosines(batch.embeds[b : b + 1, :end], divisors[b : b + 1, :end]) for b, end in ends
        ]
        squared = torch.cat(pages)
    else:
        squared = _squared_cosines(batch.embeds, divisors)
    num_patches = batch.is_patch.sum(1)
    pairs = (num_patches * (num_patches - 1)).clamp(min=1)
    return (1 - squared / pairs).clamp(0, 1)


def _squared_cosines(embeds: Tensor, divisors: Tensor) -> Tensor:
    """(B, L, D), (B, L, 1) -> (B,) float64: sum of squared cosines over ordered pairs of different tokens."""
    dtype = product_dtype(embeds)
    units = embeds.to(dtype) / divisors.to(dtype)
    # symmetric: block rows from the diagonal on, the rest counted twice. A GPU prefers one product
    step = -(-units.shape[1] // 4) if units.device.type == "cpu" else units.shape[1]
    total = torch.zeros(len(units), dtype=torch.float64, device=units.device)
    for start in range(0, units.shape[1], step):
        cosines = units[:, start : start + step] @ units[:, start:].mT  # (B, step, L - start)
        block = cosines[..., :step]
        total += 2 * _square_sum(cosines, (1, 2)) - _square_sum(block, (1, 2))
        total -= _square_sum(block.diagonal(dim1=1, dim2=2), (1,))
    return total


def _square_sum(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values, dim=dims, dtype=torch.float64)
    return norms.square()


def keep_ratio(density: Tensor, diversity: Tensor) -> Tensor:
    """(B,) float64 each -> (B,) float64: density + diversity - density * diversity."""
    # the formula's own order of operations: num_kept truncates, so the last bit counts
    return (density + diversity - density * diversity).clamp(max=1)


def count_kept(num_patches: Tensor, ratio: Tensor) -> Tensor:
    """(B,) counts and float64 ratios -> (B,) int64: Python's ``max(1, int(num_patches * ratio))``."""
    return (num_patches * ratio).long().clamp(min=1)
