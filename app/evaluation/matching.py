"""Match the parts of a page's truth to the parts read, which may be split into paragraphs differently."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from scipy.optimize import linear_sum_assignment

MAX_DISTANCE = 0.7
"""Normalised edit distance above which two parts are not a pair."""
MAX_IGNORED_DISTANCE = 0.25
"""The same limit for headers, captions and the like, which are matched first and take their readings."""
MIN_SAVED_SHARE = 0.5
"""Edits that joining a part to a neighbour must save, as a share of the part's characters."""


@dataclass(slots=True)
class Match:
    """Indices of true parts and of read parts that belong together, in order. One list may be empty."""

    truth: list[int]
    read: list[int]


def pair_up(
    truth: Sequence[str], read: Sequence[str], max_distance: float = MAX_DISTANCE
) -> list[tuple[int, int]]:
    """Pair texts at the least total normalised edit distance, then drop pairs above ``max_distance``."""
    if not truth or not read:
        return []
    distances = cdist(truth, read, scorer=Levenshtein.normalized_distance, dtype=np.float64)
    rows, columns = linear_sum_assignment(distances)
    return [
        (int(row), int(column))
        for row, column in zip(rows, columns, strict=True)
        if distances[row, column] <= max_distance
    ]


def match_parts(truth: Sequence[str], read: Sequence[str]) -> list[Match]:
    """Match every part exactly once: in pairs, then as split or joined parts, then alone.

    A part without a partner joins the pair of a neighbour if that saves at least ``MIN_SAVED_SHARE`` of its
    edits.
    """
    pairs = pair_up(truth, read)
    matches = [Match([row], [column]) for row, column in pairs]
    lone_truth = set(range(len(truth))) - {row for row, _ in pairs}
    lone_read = set(range(len(read))) - {column for _, column in pairs}
    _join(matches, truth, read, lone_truth, lone_read)
    matches += [Match([row], []) for row in sorted(lone_truth)]
    matches += [Match([], [column]) for column in sorted(lone_read)]
    return matches


def _join(
    matches: list[Match],
    truth: Sequence[str],
    read: Sequence[str],
    lone_truth: set[int],
    lone_read: set[int],
) -> None:
    has_changed = True
    while has_changed:
        has_changed = False
        for match in matches:
            for mine, texts, lone in ((match.read, read, lone_read), (match.truth, truth, lone_truth)):
                for part in (min(mine) - 1, max(mine) + 1):
                    if part in lone and _saves(match, mine, part, truth, read, len(texts[part])):
                        mine.append(part)
                        mine.sort()
                        lone.discard(part)
                        has_changed = True


def _saves(
    match: Match, mine: list[int], part: int, truth: Sequence[str], read: Sequence[str], length: int
) -> bool:
    apart = edits(match.truth, match.read, truth, read) + length
    wider = sorted([*mine, part])
    together = (
        edits(match.truth, wider, truth, read)
        if mine is match.read
        else edits(wider, match.read, truth, read)
    )
    return length > 0 and apart - together >= MIN_SAVED_SHARE * length


def edits(rows: Sequence[int], columns: Sequence[int], truth: Sequence[str], read: Sequence[str]) -> int:
    """Compute the edit distance between the joined ``truth`` at ``rows`` and ``read`` at ``columns``."""
    return Levenshtein.distance(
        "".join(truth[row] for row in rows), "".join(read[column] for column in columns)
    )
