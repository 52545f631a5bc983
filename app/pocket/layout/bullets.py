"""Recognise the bullets of a list by their shape alone."""

import numpy as np
from scipy import ndimage

from app.pocket.layout.masks import Mask

DISC = "•"
SQUARE = "▪"
RING = "◦"
STAR = "*"
HYPHEN = "-"
DASH = "–"  # noqa: RUF001
LIKE_DISC = frozenset((DISC, SQUARE, RING))
MAX_BULLET_EM = 0.85  # line heights, greatest width of a bullet
TALLEST_EM = 0.62  # line heights, greatest height of a bullet
APART_EM = 0.4  # line heights of white after a mark of any form that may be a bullet
SPACE_EM = 0.15  # line heights of white after a low disc, square or ring that may be a bullet
NEAR_EM = 0.06  # line heights of white; a mark with less after it is no bullet
ROUND = 1.4  # greatest ratio of width and height of a low disc, square or ring, either way
NEAR_TALLEST_EM = 0.48  # line heights, greatest height of a low disc, square or ring
NEAR_HIGHEST_EM = 0.4  # line heights, greatest height above the base of a disc, square or ring
HIGHEST_EM = 0.5  # line heights above the base, at most, of any bullet; accents and quotes are higher
SOLID = 0.72  # least share of its box that a disc or square fills; no letter does
FLAT_EM = 0.17  # line heights, greatest height of a dash
DASH_EM = 0.42  # line heights, least width of a dash; a hyphen is narrower
WITH_SPECKS = 1.15  # greatest area of a bullet with the specks around it, in bullet areas
DOT = 0.05  # bullet areas; a larger speck may be the dot after a digit
SLENDER = 0.45  # least width over height; a quotation mark has less
UPRIGHT = 1.6  # height over width; a disc, a square or a ring has less
FULL = 0.95  # share of its box that a square fills; a disc fills less
HOLLOW = 0.1  # least share of its box that is white inside a ring
THIN = 0.66  # share of its box; a star fills less, a disc more


def bullet_of(mark: Mask, base: float, em: float, white: float) -> str | None:
    """Classify a mark at the start of a line. Returns its sign, or None if it cannot be a bullet.

    ``mark``: (H, W) bool; ``base``: row that the line's letters stand on; ``em``: height of a line in pixels;
    ``white``: line heights of white after the mark. A bullet is one low piece that stands above the base, as
    no letter does, or a solid one.
    """
    labels, count = ndimage.label(mark, np.ones((3, 3)))
    if count == 0 or mark.shape[1] > MAX_BULLET_EM * em or white < NEAR_EM:
        return None
    areas = np.bincount(labels.ravel())[1:]
    largest, boxes = int(areas.argmax()), ndimage.find_objects(labels)
    rows, columns = boxes[largest]
    has_dot = any(
        area > DOT * areas.max() and x.start >= columns.stop
        for area, (_, x) in zip(areas, boxes, strict=True)
    )
    if has_dot or areas.sum() > WITH_SPECKS * areas.max():
        return None
    height, width = rows.stop - rows.start, columns.stop - columns.start
    sign = _sign(labels[rows, columns] == largest + 1, em)
    above = base - rows.stop
    is_quotation = sign in LIKE_DISC and (above > NEAR_HIGHEST_EM * em or height > UPRIGHT * width)
    is_accent = above > HIGHEST_EM * em
    if height > TALLEST_EM * em or width < SLENDER * height or is_accent or is_quotation:
        return None
    is_solid = areas.max() > SOLID * height * width and 0.2 * em < height < UPRIGHT * width < 3 * height
    is_above = is_solid or above >= 0.07 * em
    is_low = height <= NEAR_TALLEST_EM * em and above <= NEAR_HIGHEST_EM * em
    is_like_disc = sign in LIKE_DISC and is_low and width < ROUND * height < ROUND**2 * width
    if is_above and white >= APART_EM:
        return sign
    return sign if is_like_disc and is_above and white >= SPACE_EM else None


def _sign(piece: Mask, em: float) -> str:
    height, width = piece.shape
    if height < FLAT_EM * em:
        return DASH if width >= DASH_EM * em else HYPHEN
    box = piece.size
    if (int(ndimage.binary_fill_holes(piece).sum()) - int(piece.sum())) > HOLLOW * box:
        return RING
    filled = float(piece.sum()) / box
    if filled < THIN:
        return STAR
    return SQUARE if filled > FULL else DISC
