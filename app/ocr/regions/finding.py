"""Lines of print, found on a page by its white."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from app.ocr.regions.ink import Ink
from app.ocr.regions.lines import Line, cut_at, gaps_in, is_stacked, joined
from app.ocr.regions.masks import Mask, long_runs
from app.ocr.regions.stretches import stretches_of

MIN_LINE_PX = 6
LINE_OF_X, LINE_OF_CAPITAL = 1.75, 1.27
"""A line's height, in those of its small letters and of its capitals."""
MAX_LETTER_EM, MAX_LINE_EM = 6.0, 8.0
"""What is higher and no stroke is a picture, letters that begin a chapter are not; and a line higher than the
other is no print."""
MAX_LINES, MAX_MARKS, MAX_LARGE = 1000, 2000, 50
"""Of a page; a newspaper's has some 600 lines. More is no print, and ordering it would take minutes. Large
lines, whose dots are as high as small letters, are few.
"""
TALL_EM, BESIDE_EM, AS_HIGH = 2.5, 0.35, 0.4
"""Height of what may be no line alone, in heights of a line; white in it that may part it; the share of their
height that words of a line have in common."""
PARTED_EM, SIGN_EM, SIGN_HEIGHT_EM = 0.2, 1.0, 1.5
"""White between pieces of one sign, its width and its height, at most."""
MARK_EM, SMALL_EM, PAD_EM, LOWER_EM = 0.45, 0.62, 0.3, 0.2
"""What is lower is no letter; what is as low and as narrow may be a bullet, which stands higher than the
letters beside it; and what is added below that, and above and below a mark, to be found beside them.
"""
MARK_SHARE = 0.25
"""Of large letters' height, that their dots and commas are high and wide at most."""
AS_HIGH_AS = 1.5
"""Heights of one line: what is higher than others by more is several lines that touch."""
OWN_INK = 0.2
"""Of two lines' ink, that each has in letters which do not reach into the other."""


def find_lines(ink: Ink) -> list[Line]:
    """Stretches of print, in no order."""
    letters = _letters(ink.mask)
    if letters is None:
        return []
    em, mask = letters
    # letters and words of a line run together, lines and columns do not
    reach = max(3, round(0.75 * em))
    # nor does print close to the page's edge with that
    smeared = ~long_runs(np.pad(~mask, ((0, 0), (reach, reach)), constant_values=True), reach)
    smeared = smeared[:, reach:-reach]
    smeared &= ~ink.rules  # nor what a ruled line stands between
    found: list[Line] = []
    labels, _ = ndimage.label(smeared, np.ones((3, 3), int))
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        line = Line(columns.start, rows.start, columns.stop, rows.stop)
        if line.height > TALL_EM * em:
            found += _beside(line, mask[rows, columns] & (labels[rows, columns] == number), em)
        else:
            found.append(line)
    large = _largest([line for line in found if line.height > 2 * em], MAX_LARGE)
    is_mark = [line.height < MARK_EM * em or any(_is_mark_of(line, one) for one in large) for line in found]
    whole = _largest([line for line, mark in zip(found, is_mark, strict=True) if not mark], MAX_LINES)
    parts = (part for line in whole for part in _apart(_split(line, mask, em), whole, mask))
    lines = [part for part in parts if part.height <= MAX_LINE_EM * em]
    marks = _largest([line for line, mark in zip(found, is_mark, strict=True) if mark], MAX_MARKS)
    lines, marks = _with_whole_signs(lines, marks, em)
    return stretches_of(_with_marks(lines, marks, em), ink, em)


def _beside(line: Line, mask: Mask, em: int) -> list[Line]:
    """A line, and what stands beside it and is far higher or lower, apart: a picture's edge, a binding.

    ``mask``: (H, W), ink of the line alone.
    """
    cut = cut_at(line, gaps_in(mask, line.left, BESIDE_EM * em))
    pieces = [tight for piece in cut if (tight := _tight(piece, line, mask)) is not None]
    parted: list[list[Line]] = []
    for piece in pieces:
        if parted and _is_as_high(joined(parted[-1]), piece):
            parted[-1].append(piece)
        else:
            parted.append([piece])
    return [joined(group) for group in parted]


def _tight(piece: Line, line: Line, mask: Mask) -> Line | None:
    """``None`` for white, as a rule that was cut out leaves."""
    ink = mask[:, piece.left - line.left : piece.right - line.left].any(axis=1)
    rows = line.top + np.flatnonzero(ink)
    return None if not len(rows) else Line(piece.left, int(rows[0]), piece.right, int(rows[-1]) + 1)


def _is_as_high(one: Line, other: Line) -> bool:
    shared = min(one.bottom, other.bottom) - max(one.top, other.top)
    return shared > AS_HIGH * max(one.height, other.height)


def _is_mark_of(line: Line, large: Line) -> bool:
    """A dot of large letters, as high as small ones are."""
    most = MARK_SHARE * large.height
    return (
        max(line.width, line.height) < most
        and large.left <= line.left
        and line.right <= large.right
        and large.top - 2 * most < line.middle < large.bottom + most
    )


def _largest(lines: list[Line], most: int) -> list[Line]:
    return lines if len(lines) <= most else sorted(lines, key=lambda one: -one.width * one.height)[:most]


def _letters(mask: Mask) -> tuple[int, Mask] | None:
    """(height of a line of print, ink without what is too large for print: pictures, frames).

    Most letters are as high as an x is, or all are capitals.
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
    """Two lines whose letters touch, at the whitest row between them."""
    if line.height < 1.7 * em:
        return [line]
    profile = mask[line.top : line.bottom, line.left : line.right].sum(axis=1).astype(float)
    smooth = ndimage.uniform_filter1d(profile, max(1, em // 8))
    first, last = round(0.6 * em), line.height - round(0.6 * em)
    if last <= first:
        return [line]
    cut = first + int(np.argmin(smooth[first:last]))
    if smooth[cut] > 0.35 * smooth.max() or _is_crossed(
        mask[line.top : line.bottom, line.left : line.right], cut
    ):
        return [line]
    upper = Line(line.left, line.top, line.right, line.top + cut)
    lower = Line(line.left, line.top + cut, line.right, line.bottom)
    return [*_split(upper, mask, em), *_split(lower, mask, em)]


def _apart(parts: list[Line], lines: Sequence[Line], mask: Mask) -> list[Line]:
    """Of lines that touched, without what stands beside them and did not touch."""
    if len(parts) == 1:
        return parts
    found: list[Line] = []
    for part in parts:
        left, right = part.left, part.right
        for line in lines:
            if line in parts or not line.is_beside(part) or line.height > AS_HIGH_AS * part.height:
                continue
            if part.left <= line.left <= part.left + 1 and line.right < part.right:
                left = max(left, line.right)
            elif part.right - 1 <= line.right <= part.right and part.left < line.left:
                right = min(right, line.left)
        inked = left + np.flatnonzero(mask[part.top : part.bottom, left:right].any(axis=0))
        found.append(replace(part, left=int(inked[0]), right=int(inked[-1]) + 1) if len(inked) else part)
    return found


def _is_crossed(mask: Mask, row: int) -> bool:
    """Little stands wholly above or wholly below the row: it goes through one line of large letters."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    spans = [rows for rows, _ in ndimage.find_objects(labels)]
    above = sum(int(areas[at]) for at, rows in enumerate(spans, 1) if rows.stop <= row + 2)
    below = sum(int(areas[at]) for at, rows in enumerate(spans, 1) if rows.start >= row - 2)
    return min(above, below) < OWN_INK * float(areas[1:].sum())


def _with_marks(lines: list[Line], marks: list[Line], em: int) -> list[Line]:
    """Dots, accents and bullets join the line they belong to; specks belong to none."""
    boxes = np.array([(line.left, line.top, line.right, line.bottom) for line in lines]).reshape(-1, 4)
    alone: list[Line] = []
    near_px = round(0.4 * em)
    for mark in marks:
        area = mark.height * mark.width / em**2
        if area < 0.005:
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
        elif gap <= 2.6 * em and (area >= 0.012 or mark.width >= 0.2 * em):  # a bullet, a dash
            alone.append(mark)
    pad = round(PAD_EM * em)
    signs = [
        Line(mark.left, max(0, mark.top - pad), mark.right, mark.bottom + pad)
        for mark in _whole_marks(alone, PARTED_EM * em, SIGN_HEIGHT_EM * em)
    ]
    whole = [Line(*box) for box in boxes.tolist()]
    lowered = [
        replace(line, bottom=line.bottom + round(LOWER_EM * em))
        if max(line.height, line.width) < SMALL_EM * em
        else line
        for line in whole
    ]
    return [*lowered, *signs]


def _with_whole_signs(lines: Sequence[Line], marks: Sequence[Line], em: int) -> tuple[list[Line], list[Line]]:
    """Lines and marks anew: pieces that thinned strokes of one sign left under each other are one line."""
    wide = [line for line in lines if line.width > SIGN_EM * em]
    narrow = [line for line in lines if line.width <= SIGN_EM * em]
    whole = _whole_marks([*narrow, *marks], 1, SIGN_HEIGHT_EM * em)
    are_marks = set(marks)
    is_low = [one in are_marks or one.height < MARK_EM * em for one in whole]
    letters = [one for one, low in zip(whole, is_low, strict=True) if not low]
    return [*wide, *letters], [one for one, low in zip(whole, is_low, strict=True) if low]


def _whole_marks(marks: Sequence[Line], near: float, highest: float) -> list[Line]:
    """Pieces of one sign, whose thin strokes were lost, as one. ``near``: pixels between them, and
    ``highest``: height of the sign, at most.
    """
    whole: list[Line] = []
    near_signs: list[Line] = []
    for mark in sorted(marks, key=lambda one: one.top):
        whole += [one for one in near_signs if mark.top - one.bottom > near]
        near_signs = [one for one in near_signs if mark.top - one.bottom <= near]
        fitting = (one for one in near_signs if is_stacked(one, mark) and mark.bottom - one.top <= highest)
        piece = next(fitting, None)
        if piece is not None:
            near_signs.remove(piece)
        near_signs.append(mark if piece is None else joined([piece, mark]))
    return [*whole, *near_signs]
