"""Character error rate."""

from collections.abc import Sequence


def edit_distance(left: str, right: str) -> int:
    """Compute the Levenshtein distance: insertions, deletions and substitutions, each 1.

    The algorithm is Hyyrö 2003, after Myers 1999. A column of the table is two bit vectors: the places where
    it rises and where it falls by one from row to row. Python's integers hold a column of any length.
    """
    column, across = (left, right) if len(left) >= len(right) else (right, left)
    if not across:
        return len(column)
    places: dict[str, int] = {}
    for row, character in enumerate(column):
        places[character] = places.get(character, 0) | 1 << row
    every, last = (1 << len(column)) - 1, 1 << len(column) - 1
    rises, falls, distance = every, 0, len(column)
    for character in across:
        same = places.get(character, 0)
        diagonal = ((((same & rises) + rises) ^ rises) | same | falls) & every
        rises_across = falls | (every & ~(diagonal | rises))
        falls_across = rises & diagonal
        distance += bool(rises_across & last) - bool(falls_across & last)
        rises_across = (rises_across << 1 | 1) & every
        rises = (falls_across << 1 | ~(diagonal | rises_across)) & every
        falls = rises_across & diagonal
    return distance


def character_error_rate(read: Sequence[str], truth: Sequence[str]) -> float:
    """Divide the edits of all pages by their true characters; a run of whitespace counts as one space."""
    edits = length = 0
    for page_read, page_truth in zip(read, truth, strict=True):
        left, right = " ".join(page_read.split()), " ".join(page_truth.split())
        edits += edit_distance(left, right)
        length += len(right)
    return edits / max(1, length)
