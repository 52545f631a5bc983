"""Character error rate."""

from collections.abc import Sequence


def edit_distance(left: str, right: str) -> int:
    """Levenshtein: insertions, deletions and substitutions, each 1."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def character_error_rate(read: Sequence[str], truth: Sequence[str]) -> float:
    """Edits over all pages by true characters over all pages; a run of whitespace counts as one space."""
    edits = length = 0
    for page_read, page_truth in zip(read, truth, strict=True):
        left, right = " ".join(page_read.split()), " ".join(page_truth.split())
        edits += edit_distance(left, right)
        length += len(right)
    return edits / max(1, length)
