"""Choose how much of a page to keep (RTPrune, stage 0): text density, diversity, keep ratio, count."""

import torch
from torch import Tensor

from rtprune.precision import product, product_dtype
from rtprune.tokens import TokenBatch

EDGE_THRESHOLD = 0.2


def text_density(pixels: Tensor, rows: int, columns: int) -> float:
    """Measure text density: (3, H, W) pixels in [-1, 1] of the global view -> share of edge pixels in [0, 1].

    Each of the ``rows`` x ``columns`` patches is zero-padded and searched alone, so its border counts as
    edges: a white page has a small density, not 0. Waits for the device. Raise ``ValueError`` as
    ``text_densities`` does.

    >>> round(text_density(torch.ones(3, 1024, 1024), rows=16, columns=16), 4)
    0.0615
    """
    if pixels.ndim != 3:
        raise ValueError(f"pixels must be (3, H, W), got {tuple(pixels.shape)}")
    return float(text_densities(pixels[None], rows, columns))


@torch.no_grad()
def text_densities(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Measure text densities: (B, 3, H, W) float pixels in [-1, 1] -> (B,) float64 on their device.

    A density is the share of pixels whose Sobel gradient magnitude exceeds 0.2, averaged over equal patches.
    Does not wait for the device. Raise ``ValueError`` for another shape, an integer dtype, or a height or
    width that ``rows`` or ``columns`` does not divide.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or pixels.numel() == 0:
        raise ValueError(f"pixels must be float (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    height, width = pixels.shape[2:]
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(f"{height} x {width} pixels do not divide into {rows} x {columns} patches")
    # (B, 3, rows, h, columns, w)
    patches = pixels.reshape(-1, 3, rows, height // rows, columns, width // columns)
    # on a CPU, one row of patches at a time stays in the cache: several times as fast as all at once
    num_pages, num_rows = (1, 1) if pixels.device.type == "cpu" else (len(pixels), rows)
    lines = _blank_lines(patches[:num_pages, :, :num_rows])
    counts = [
        torch.stack([_edge_pixels(slab, lines) for slab in torch.split(page, num_rows, dim=2)]).sum(0)
        for page in torch.split(patches, num_pages)
    ]
    return torch.cat(counts) / (height * width)


def _blank_lines(patches: Tensor) -> Tensor:
    """Allocate zeros for gray patches: (B, 3, rows, h, columns, w) -> (B, rows, h + 3, columns, w + 2).

    Each patch has a border of zeros and one more line, so that the farthest shift stays inside.
    """
    num_pages, _, rows, height, columns, width = patches.shape
    return torch.zeros((num_pages, rows, height + 3, columns, width + 2), device=patches.device)


def _edge_pixels(patches: Tensor, lines: Tensor) -> Tensor:
    """Count edge pixels: (B, 3, rows, h, columns, w) -> (B,) float64. Overwrites the inside of ``lines`` (see
    ``_blank_lines``).

    Let q be the sums over 2 x 2 pixels, and a, b the differences of q along the two diagonals. The Sobel pair
    is then (a + b, a - b), and its squared magnitude is 2 (a^2 + b^2). Lines lie end to end, so a shift in
    any direction is a slice of one long axis. All is elementwise, because cuDNN would convolve in TF32.
    """
    height, columns, width = patches.shape[3:]
    red, green, blue = patches.float().unbind(1)
    gray = (red * 0.299).add_(green, alpha=0.587)  # (B, rows, h, columns, w)
    torch.add(gray, blue, alpha=0.114, out=lines[:, :, 1:-2, :, 1:-1])
    flat, line = lines.flatten(2), columns * (width + 2)  # (B, rows, (h + 3) * line)
    upright = flat[..., :-line] + flat[..., line:]
    boxes = upright[..., :-1] + upright[..., 1:]
    count = height * line
    falling = boxes[..., line + 1 : line + 1 + count] - boxes[..., :count]
    rising = boxes[..., 1 : 1 + count] - boxes[..., line : line + count]
    squared = falling.mul_(falling).addcmul_(rising, rising)  # (B, rows, h * line)
    # 0 or 1 as floats: their sums over one line are exact, and bool sums are five times as slow on a CPU
    edges = squared.gt_(EDGE_THRESHOLD**2 / 2).view(*gray.shape[:4], width + 2)
    edges[..., width:] = 0  # windows that reach into the next patch
    return edges.sum((3, 4)).double().sum((1, 2))


@torch.no_grad()
def diversities(batch: TokenBatch) -> Tensor:
    """Compute the diversity of B pages: (B,) float64 in [0, 1].

    Diversity is 1 - mean squared cosine over ordered pairs of different patch tokens. It is 1 for a single
    patch. A token of norm 0 has cosine 0 with every other.
    """
    # dividing by infinity turns every other token into a zero row, which adds nothing
    divisors = torch.where(batch.is_patch & (batch.norms > 0), batch.norms, torch.inf)[..., None]  # (B, L, 1)
    squared = [
        _squared_cosines(part.embeds, divisors[part.pages, : part.embeds.shape[1]]) for part in batch.parts
    ]
    num_patches = batch.is_patch.sum(1)
    pairs = (num_patches * (num_patches - 1)).clamp(min=1)
    return (1 - torch.cat(squared) / pairs).clamp(0, 1)


def _squared_cosines(embeds: Tensor, divisors: Tensor) -> Tensor:
    """Sum squared cosines over ordered pairs of different tokens: (B, L, D), (B, L, 1) -> (B,) float64."""
    dtype = product_dtype(embeds)
    units = embeds.to(dtype) / divisors.to(dtype)
    # symmetric: a CPU computes block rows from the diagonal on and counts what is beyond their diagonal
    # block twice; a GPU prefers one product
    step = -(-units.shape[1] // 4) if units.device.type == "cpu" else units.shape[1]
    total = torch.zeros(len(units), dtype=torch.float64, device=units.device)
    for start in range(0, units.shape[1], step):
        cosines = product(units[:, start : start + step], units[:, start:])  # (B, step, L - start)
        block = cosines[..., :step]
        total += 2 * _square_sum(cosines, (1, 2)) - _square_sum(block, (1, 2))
        total -= _square_sum(block.diagonal(dim1=1, dim2=2), (1,))
    return total


def _square_sum(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values, dim=dims, dtype=torch.float64)
    return norms.square()


def keep_ratio(density: Tensor, diversity: Tensor) -> Tensor:
    """Compute the keep ratio: density + diversity - density * diversity. (B,) float64 each -> same."""
    # keep the formula's order of operations: count_kept truncates, so the last bit matters
    return (density + diversity - density * diversity).clamp(max=1)


def count_kept(num_patches: Tensor, ratio: Tensor) -> Tensor:
    """Count patches to keep, as Python's ``max(1, int(num_patches * ratio))`` does.

    (B,) counts and float64 ratios -> (B,) int64.
    """
    return (num_patches * ratio).long().clamp(min=1)
