"""RTPrune once more, from the formulas: float64 loops, no batching, nothing shared with the library."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def density(pixels: Matrix, rows: int, columns: int) -> float:
    """(3, H, W) -> mean over patches of the share of pixels with a gradient above 0.2."""
    gray = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    height, width = gray.shape[0] // rows, gray.shape[1] // columns
    shares: list[float] = []
    for row in range(rows):
        for column in range(columns):
            patch = np.pad(gray[row * height :, column * width :][:height, :width], 1)
            edges = 0
            for y in range(1, height + 1):
                for x in range(1, width + 1):
                    window = patch[y - 1 : y + 2, x - 1 : x + 2]
                    gradient_x = window[:, 2] @ [1, 2, 1] - window[:, 0] @ [1, 2, 1]
                    gradient_y = window[2] @ [1, 2, 1] - window[0] @ [1, 2, 1]
                    edges += math.hypot(gradient_x, gradient_y) > 0.2
            shares.append(edges / (height * width))
    return sum(shares) / len(shares)


def cosine(left: Matrix, right: Matrix) -> float:
    norms: float = math.sqrt(left @ left) * math.sqrt(right @ right)
    return float(left @ right) / norms if norms else 0.0


def diversity(patches: Matrix) -> float:
    pairs = [(i, j) for i in range(len(patches)) for j in range(len(patches)) if i != j]
    return 1 - sum(cosine(patches[i], patches[j]) ** 2 for i, j in pairs) / len(pairs) if pairs else 1.0


def plan(scores: Matrix, dustbin: float = 0.2, iterations: int = 1000) -> Matrix:
    """(M, P) -> (M, P), in the log domain, run to the end."""
    num_rows, num_columns = scores.shape
    if scores.size == 0:
        return scores
    padded = np.pad(scores, ((0, 1), (0, 1)), constant_values=dustbin)
    log_rows = np.log([1.0] * num_rows + [num_columns]) - math.log(num_rows + num_columns)
    log_columns = np.log([1.0] * num_columns + [num_rows]) - math.log(num_rows + num_columns)
    u, v = np.zeros(num_rows + 1), np.zeros(num_columns + 1)
    for _ in range(iterations):
        u = log_rows - np.logaddexp.reduce(padded + v, axis=1)
        v = log_columns - np.logaddexp.reduce(padded + u[:, None], axis=0)
    whole: Matrix = np.exp(padded + u[:, None] + v) * (num_rows + num_columns)
    return whole[:-1, :-1]


@dataclass(frozen=True)
class Pruned:
    kept: list[int]
    embeds: Matrix
    keep_ratio: float
    num_kept_patches: int


def prune(embeds: Matrix, is_patch: list[bool], page_density: float, fixed: float | None) -> Pruned:
    patches = [i for i, patch in enumerate(is_patch) if patch]
    spread = diversity(embeds[patches])
    ratio = fixed if fixed is not None else page_density + spread - page_density * spread
    count = max(1, int(len(patches) * ratio))
    ranked = sorted(patches, key=lambda i: (-math.sqrt(embeds[i] @ embeds[i]), i))
    chosen, pruned = sorted(ranked[:count]), sorted(ranked[count:])
    scores = np.array([[cosine(embeds[i], embeds[j]) for j in pruned] for i in chosen]).reshape(
        len(chosen), -1
    )
    folded = embeds.copy()
    folded[chosen] += 0.1 * plan(scores) @ embeds[pruned]
    kept = (
        _without_repeated_breaks(len(embeds), is_patch, set(chosen)) if pruned else list(range(len(embeds)))
    )
    return Pruned(kept, folded[kept], ratio, count)


def _without_repeated_breaks(length: int, is_patch: list[bool], chosen: set[int]) -> list[int]:
    kept: list[int] = []
    for i in range(length):
        if is_patch[i]:
            kept += [i] if i in chosen else []
        elif i == length - 1 or not kept or is_patch[kept[-1]]:
            kept.append(i)
    return kept
