"""Lines in a typewriter's letters, which are all as wide: white between two of them is no space there."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from app.ocr.regions.lines import Line, cut_at, gaps_of
from app.ocr.regions.masks import Mask

BESIDE_EM = 3.0
"""White between words of a printed line, in heights of a line, at most; however wide it is justified."""
LETTER_GAP_EM = 0.6
"""Between letters of a word, at most."""
FEW_STEPS = 8
"""From letter to letter, that say nothing of a line."""
SAME_STEP, SAME_STEP_PX = 0.06, 1.0
"""By how much such steps differ from the usual one: of it, and what rounding to pixels makes."""
FIXED = 0.75
"""Of a line's steps, that are the usual one; of letters as wide as they are, half are at most."""
LOW, LOWEST, MIN_LOW = 0.87, 0.5, 0.2
"""Letters lower than the tallest ones and higher than points, and their share in a line that is no row of
figures: these are as wide in every font.
"""


def printed_rows(lines: Sequence[Line], em: float) -> list[list[int]]:
    """Numbers of lines that stand beside each other, from left to right; rows from top to bottom."""
    rows: list[list[int]] = []
    for number in sorted(range(len(lines)), key=lambda one: lines[one].left):
        line = lines[number]
        near = (
            row
            for row in rows
            if line.left - lines[row[-1]].right < BESIDE_EM * em and line.is_beside(lines[row[-1]])
        )
        row = min(near, key=lambda one: abs(lines[one[-1]].middle - line.middle), default=None)
        if row is None:
            rows.append([number])
        else:
            row.append(number)
    return sorted(rows, key=lambda row: lines[row[0]].middle)


def pitches_of(lines: Sequence[Line], rows: Sequence[Sequence[int]], mask: Mask, em: float) -> list[float]:
    """From letter to letter of each line in pixels, where all are as wide; 0 for lines in other fonts.

    ``rows``: as ``printed_rows`` says; ``em``: height of a line.
    """
    found = [_pitch_of([lines[number] for number in row], mask, em) for row in rows]
    known = [pitch for pitch in found if pitch is not None]
    fixed = [pitch for pitch in known if pitch]
    are_usual = 2 * len(fixed) > len(known)
    # what is too short to tell is set as most of the page is
    usual = float(np.median(fixed)) if are_usual else 0.0
    if not are_usual:  # letters of one line may be as wide as each other by chance
        found = [pitch if pitch and _is_shared(pitch, fixed) else 0.0 for pitch in found]
    pitches = [0.0] * len(lines)
    for row, pitch in zip(rows, found, strict=True):
        for number in row:
            pitches[number] = pitch or usual
    return pitches


def _is_shared(pitch: float, pitches: Sequence[float]) -> bool:
    return sum(abs(pitch - other) <= SAME_STEP * pitch for other in pitches) > 1


def _pitch_of(row: Sequence[Line], mask: Mask, em: float) -> float | None:
    """``None``: too few letters to tell."""
    letters: list[Line] = []
    steps: list[float] = []
    for line in row:
        pieces = [piece for piece in cut_at(line, gaps_of(line, mask, 1)) if piece.width]
        letters += pieces
        steps += [
            (after.left + after.right - before.left - before.right) / 2
            for before, after in pairwise(pieces)
            if after.left - before.right < LETTER_GAP_EM * em
        ]
    if len(steps) < FEW_STEPS:
        return None
    step = float(np.median(steps))
    same = np.abs(np.array(steps) - step) <= max(SAME_STEP_PX, SAME_STEP * step)
    if same.mean() < FIXED:
        return 0.0
    heights = np.array([_height(letter, mask) for letter in letters])
    low = (heights < LOW * heights.max()) & (heights > LOWEST * heights.max())
    return step if low.mean() >= MIN_LOW else None


def _height(letter: Line, mask: Mask) -> int:
    rows = np.flatnonzero(mask[letter.top : letter.bottom, letter.left : letter.right].any(axis=1))
    return int(rows[-1] - rows[0]) + 1 if len(rows) else 0
