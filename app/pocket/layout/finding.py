"""Find the lines of print on a page by the white around them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from app.pocket.layout.ink import Ink
from app.pocket.layout.lines import Line, cut_at, gaps_in, joined
from app.pocket.layout.masks import Mask, long_runs
from app.pocket.layout.stretches import stretches_of

MIN_LINE_PX = 6
LINE_OF_X = 1.75  # a line's height, in heights of its small letters
LINE_OF_CAPITAL = 1.27  # a line's height, in heights of its capitals
REACH_EM = 0.75  # line heights of white that are bridged within a line
MAX_LETTER_EM = (
    6.0  # line heights; anything higher, unless it is a stroke, is a picture and not a chapter's first letter
)
MAX_LINE_EM = 8.0  # line heights; higher things among the lines are no print
MAX_LINES = 1000  # per page; a newspaper page has some 600, and ordering more would take minutes
MAX_MARKS = 2000  # per page
TALL_EM = 2.5  # line heights; higher things may be a line with something beside it
BESIDE_GAP_EM = 0.35  # line heights of white at which these may be separated
MIN_SHARED_HEIGHT = 0.4  # share of the higher word's height that words of one line have in common
MARK_EM = 0.45  # line heights; lower things are no letters
SMALL_EM = 0.62  # line heights; lower and narrower things may be bullets
PAD_EM = 0.3  # line heights added above and below a mark, so that it is found beside letters
LOWER_EM = 0.2  # line heights added below a bullet, which stands higher than the letters beside it
MIN_SPECK = 0.005  # squared line heights; smaller marks belong to no line
MIN_SIGN = 0.012  # squared line heights; smaller marks are no bullets, unless they are wide
MIN_SIGN_EM = 0.2  # line heights, least width of a dash
MAX_SIGN_GAP_EM = 2.6  # line heights of white, at most, between a bullet and its line
MARK_GAP_EM = 0.4  # line heights of white, at most, between a mark and its line
TWO_LINES_EM = 1.7  # line heights; higher things may be two lines whose letters touch
ONE_HEIGHT = 1.5  # heights of a line; higher things are several lines that touch
ONE_LINE_EM = 0.6  # line heights, least height of each part when touching lines are separated
MAX_INK_BETWEEN = 0.35  # of the densest row's ink, in the row where touching lines are separated
MIN_OWN_INK = 0.2  # of two lines' ink, least share of each in letters that do not reach into the other


def find_lines(ink: Ink) -> list[Line]:
    """Find the stretches of print, in no particular order."""
    letters = _letters(ink.mask)
    if letters is None:
        return []
    em, mask = letters
    # join the letters and words of a line, but not lines or columns
    reach = max(3, round(REACH_EM * em))
    # padded, so that print is not joined to the page's edge
    smeared = ~long_runs(np.pad(~mask, ((0, 0), (reach, reach)), constant_values=True), reach)
    smeared = smeared[:, reach:-reach]
    smeared &= ~ink.rules  # a ruled line separates what is on its sides
    labels, _ = ndimage.label(smeared, np.ones((3, 3), int))
    found: list[Line] = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        line = Line(columns.start, rows.start, columns.stop, rows.stop)
        if line.height > TALL_EM * em:
            found += _beside(line, mask[rows, columns] & (labels[rows, columns] == number), em)
        else:
            found.append(line)
    whole = _largest([line for line in found if line.height >= MARK_EM * em], MAX_LINES)
    parts = (part for line in whole for part in _apart(_split(line, mask, em), whole, mask))
    lines = [part for part in parts if part.height <= MAX_LINE_EM * em]
    marks = _largest([line for line in found if line.height < MARK_EM * em], MAX_MARKS)
    return stretches_of(_with_marks(lines, marks, em), ink, em)


def _beside(line: Line, mask: Mask, em: int) -> list[Line]:
    """Separate a line from much higher or lower things beside it, such as a picture's edge or a binding.

    ``mask``: (H, W), ink of the line alone.
    """
    cut = cut_at(line, gaps_in(mask, line.left, BESIDE_GAP_EM * em))
    pieces = [tight for piece in cut if (tight := _tight(piece, line, mask)) is not None]
    parted: list[list[Line]] = []
    for piece in pieces:
        if parted and _is_as_high(joined(parted[-1]), piece):
            parted[-1].append(piece)
        else:
            parted.append([piece])
    return [joined(group) for group in parted]


def _tight(piece: Line, line: Line, mask: Mask) -> Line | None:
    """Shrink a piece to the height of its ink.

    Returns None for white, which a rule that was cut out leaves.
    """
    ink = mask[:, piece.left - line.left : piece.right - line.left].any(axis=1)
    rows = line.top + np.flatnonzero(ink)
    return None if not len(rows) else Line(piece.left, int(rows[0]), piece.right, int(rows[-1]) + 1)


def _is_as_high(one: Line, other: Line) -> bool:
    shared = min(one.bottom, other.bottom) - max(one.top, other.top)
    return shared > MIN_SHARED_HEIGHT * max(one.height, other.height)


def _largest(lines: list[Line], most: int) -> list[Line]:
    return lines if len(lines) <= most else sorted(lines, key=lambda one: -one.width * one.height)[:most]


def _letters(mask: Mask) -> tuple[int, Mask] | None:
    """Estimate the height of a line of print; return it and the ink without large things: pictures, frames.

    Most letters are as high as an x, or all are capitals.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3), int))
    if count == 0:
        return None
    boxes = ndimage.find_objects(labels)
    heights = np.array([rows.stop - rows.start for rows, _ in boxes])
    widths = np.array([columns.stop - columns.start for _, columns in boxes])
    letters = heights[(heights >= MIN_LINE_PX) & (heights < 0.1 * max(mask.shape)) & (widths < 4 * heights)]
    if len(letters) == 0:
        return None
    height = min(LINE_OF_X * float(np.median(letters)), LINE_OF_CAPITAL * float(np.percentile(letters, 80)))
    em = max(MIN_LINE_PX + 2, round(height))
    print_mask = mask
    for at in np.flatnonzero((heights > MAX_LETTER_EM * em) & (widths > em)):
        print_mask = mask.copy() if print_mask is mask else print_mask
        print_mask[boxes[at]] &= labels[boxes[at]] != at + 1
    return em, print_mask


def _split(line: Line, mask: Mask, em: int) -> list[Line]:
    """Separate lines whose letters touch, at the whitest row between them."""
    if line.height < TWO_LINES_EM * em:
        return [line]
    profile = mask[line.top : line.bottom, line.left : line.right].sum(axis=1).astype(float)
    smooth = ndimage.uniform_filter1d(profile, max(1, em // 8))
    first, last = round(ONE_LINE_EM * em), line.height - round(ONE_LINE_EM * em)
    if last <= first:
        return [line]
    cut = first + int(np.argmin(smooth[first:last]))
    if smooth[cut] > MAX_INK_BETWEEN * smooth.max() or _is_crossed(
        mask[line.top : line.bottom, line.left : line.right], cut
    ):
        return [line]
    upper = Line(line.left, line.top, line.right, line.top + cut)
    lower = Line(line.left, line.top + cut, line.right, line.bottom)
    return [*_split(upper, mask, em), *_split(lower, mask, em)]


def _apart(parts: list[Line], lines: Sequence[Line], mask: Mask) -> list[Line]:
    """Narrow the parts of touching lines so that they do not cover a line that stands beside them."""
    if len(parts) == 1:
        return parts
    found: list[Line] = []
    for part in parts:
        left, right = part.left, part.right
        for line in lines:
            if line in parts or not line.is_beside(part) or line.height > ONE_HEIGHT * part.height:
                continue
            if part.left <= line.left <= part.left + 1 and line.right < part.right:
                left = max(left, line.right)
            elif part.right - 1 <= line.right <= part.right and part.left < line.left:
                right = min(right, line.left)
        inked = left + np.flatnonzero(mask[part.top : part.bottom, left:right].any(axis=0))
        found.append(replace(part, left=int(inked[0]), right=int(inked[-1]) + 1) if len(inked) else part)
    return found


def _is_crossed(mask: Mask, row: int) -> bool:
    """Tell whether the row cuts through one line of large letters: little ink is wholly above or below it."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    spans = [rows for rows, _ in ndimage.find_objects(labels)]
    above = sum(int(areas[at]) for at, rows in enumerate(spans, 1) if rows.stop <= row + 2)
    below = sum(int(areas[at]) for at, rows in enumerate(spans, 1) if rows.start >= row - 2)
    return min(above, below) < MIN_OWN_INK * float(areas[1:].sum())


def _with_marks(lines: list[Line], marks: list[Line], em: int) -> list[Line]:
    """Join dots, accents and bullets to the line they belong to, and drop specks."""
    boxes = np.array([(line.left, line.top, line.right, line.bottom) for line in lines]).reshape(-1, 4)
    alone: list[Line] = []
    near_px = round(MARK_GAP_EM * em)
    for mark in marks:
        area = mark.height * mark.width / em**2
        if area < MIN_SPECK:
            continue
        left, top, right, bottom = boxes.T  # (L,) each
        # a large letter's dot stands farther above it
        above = np.maximum(0.35 * em, 0.5 * (bottom - top))
        beside = np.flatnonzero((top - above <= mark.middle) & (mark.middle <= bottom + 0.25 * em))
        gaps = np.maximum(left[beside] - mark.right, mark.left - right[beside]) - near_px
        gap = max(0, gaps.min(initial=9 * em))
        if gap == 0:
            touched = beside[gaps <= 0]
            nearest = touched[np.abs((top + bottom)[touched] / 2 - mark.middle).argmin()]
            boxes[nearest] = (
                min(left[nearest], mark.left), min(top[nearest], mark.top),
                max(right[nearest], mark.right), max(bottom[nearest], mark.bottom),
            )  # fmt: skip
        elif gap <= MAX_SIGN_GAP_EM * em and (
            area >= MIN_SIGN or mark.width >= MIN_SIGN_EM * em
        ):  # a bullet or a dash
            alone.append(mark)
    pad = round(PAD_EM * em)
    signs = [Line(mark.left, max(0, mark.top - pad), mark.right, mark.bottom + pad) for mark in alone]
    whole = [Line(*box) for box in boxes.tolist()]
    lowered = [
        replace(line, bottom=line.bottom + round(LOWER_EM * em))
        if max(line.height, line.width) < SMALL_EM * em
        else line
        for line in whole
    ]
    return [*lowered, *signs]
