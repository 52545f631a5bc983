"""Clean up the dark areas of a page.

White print on them becomes black on white. Pictures, and what a scanner shows beside the paper, become paper.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.pocket.layout.masks import Gray, Mask

STEP = 2  # only every second row and column is looked at
DARK = 0.5  # share of the paper's shade; black print on lighter areas can be read as it is
DARK_PAGE = 100  # gray level; if half of a page is darker, it is printed in white
LETTER = 1 / 250  # of the page's longer side; smaller holes in dark areas are filled: white letters
SOLID = 1 / 100  # of the page's longer side, least side of a dark area
MIN_FILLED = 0.6  # least dark share of a filled area; bold black letters, filled in, have less
MIN_EDGE = 0.85  # least dark share of an area's edge
PICTURE = 0.06  # of the page's longer side, least side of a picture; smaller areas may be letters
LIGHT = (0.004, 0.45)  # least and greatest share of an area that white print covers
MIN_CONTRAST = 60  # gray levels between an area and the print in it
TALLEST = 0.06  # of the page's longer side, greatest height of white letters
MIN_LETTER_PX = 5  # least height of white letters
PAGE = 0.4  # of the page's area; a larger dark area means that the page is printed in white
IN_LINES = 0.7  # least share of an area's light pixels that stand in lines
LETTERS = (0.7, 0.3)  # least share of light pixels in pieces as high as letters: in an area, in a whole page
CLEAR_ROWS = 0.15  # least share of an area's rows that are clear: above, between and below lines of print
CLEAR = 0.003  # greatest light share of a clear row


@dataclass(frozen=True, slots=True)
class _Area:
    """A dark area.

    ``rows``, ``columns``: its box on the page. ``inside``: which of the box's pixels belong to it.
    """

    rows: slice
    columns: slice
    inside: Mask


def without_dark_areas(gray: Gray) -> Gray:
    """Clean up the dark areas of a page. (H, W) -> (H, W); returns the same array if nothing is dark."""
    paper = float(np.percentile(gray[::4, ::4], 90))
    if np.mean(gray[::4, ::4] < DARK_PAGE) > 0.5:  # its brightest tenth may be dark as well
        paper = 255.0
    areas = _areas(gray, DARK * paper)
    if not areas:
        return gray
    page = gray.copy()
    for area in areas:
        shown = page[area.rows, area.columns]
        is_page = bool(area.inside.sum() > PAGE * gray.size)
        printed = _printed_in(shown, area.inside, max(gray.shape), paper, is_page=is_page)
        if printed is not None:
            shown[area.inside] = printed[area.inside]
        elif _is_picture(area, gray.shape):
            shown[area.inside] = round(paper)
    return page


def _areas(gray: Gray, darkest: float) -> list[_Area]:
    longer = max(gray.shape)
    # odd sizes, so that filters shift nothing
    letter, solid = (max(3, round(longer * share / STEP)) | 1 for share in (LETTER, SOLID))
    dark = gray[::STEP, ::STEP] < darkest
    if dark.mean() < SOLID**2:
        return []
    filled = _eroded(_grown(dark, letter), letter)
    areas = _grown(_eroded(filled, solid), solid)
    labels, _ = ndimage.label(areas)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = ndimage.binary_fill_holes(labels[rows, columns] == number)
        own = dark[rows, columns]
        edge = inside & ~ndimage.binary_erosion(inside, iterations=2)
        if np.mean(own[inside]) >= MIN_FILLED and np.mean(own[edge]) >= MIN_EDGE:
            found.append(_full(inside, rows, columns, gray.shape))
    return found


def _full(inside: Mask, rows: slice, columns: slice, shape: tuple[int, ...]) -> _Area:
    """Scale an area to the page's own pixels and include its soft edge."""
    edge = 2
    wide = _grown(np.pad(np.kron(inside, np.ones((STEP, STEP), bool)), edge), 2 * edge + 1)
    top, left = STEP * rows.start - edge, STEP * columns.start - edge
    cut_top, cut_left = max(0, -top), max(0, -left)
    wide = wide[cut_top : shape[0] - top, cut_left : shape[1] - left]
    top, left = max(0, top), max(0, left)
    return _Area(slice(top, top + wide.shape[0]), slice(left, left + wide.shape[1]), wide)


def _printed_in(
    shown: Gray, inside: Mask, longer: int, paper: float, *, is_page: bool
) -> npt.NDArray[np.float64] | None:
    """Turn white print in an area into black on white; ``None`` if it does not look like print.

    ``is_page``: the area is most of a page, which may have pictures beside the print.
    """
    core = ndimage.binary_erosion(inside, iterations=4)
    if not core.any():
        return None
    shades = shown[core]
    ground, white = float(np.median(shades)), float(np.percentile(shades, 99.7))
    if white - ground < MIN_CONTRAST:
        return None
    light = core & (shown > (ground + white) / 2)
    share = light.sum() / core.sum()
    if not LIGHT[0] <= share <= LIGHT[1] or not (is_page or _has_lines(light, core, TALLEST * longer)):
        return None
    labels, _ = ndimage.label(light, np.ones((3, 3)))
    heights = np.array([rows.stop - rows.start for rows, _ in ndimage.find_objects(labels)])
    sizes = np.bincount(labels.ravel())[1:]
    is_letter = (heights >= MIN_LETTER_PX) & (heights <= max(TALLEST * longer, 3 * MIN_LETTER_PX))
    if sizes[is_letter].sum() < LETTERS[is_page] * sizes.sum():
        return None
    strength = np.clip((shown - ground) / (white - ground), 0.0, 1.0)
    printed: npt.NDArray[np.float64] = np.round(paper * (1 - strength))
    return printed


def _has_lines(light: Mask, core: Mask, tallest: float) -> bool:
    """Tell whether white print stands in rows no taller than a line, with clear rows between.

    The light parts of a picture do not.
    """
    width = core.sum(axis=1)
    is_whole = width > 0.5 * width.max()
    lit = light.sum(axis=1)
    is_clear = lit <= CLEAR * width
    if is_clear[is_whole].mean() < CLEAR_ROWS:
        return False
    edges = np.flatnonzero(np.diff(np.concatenate(([True], is_clear, [True])).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    low = sum(int(lit[start:stop].sum()) for start, stop in runs if stop - start <= tallest)
    return bool(low >= IN_LINES * lit.sum())


def _is_picture(area: _Area, shape: tuple[int, ...]) -> bool:
    height, width = area.inside.shape
    least = PICTURE * max(shape)
    at_edge = (
        area.rows.start == 0
        or area.columns.start == 0
        or area.rows.stop == shape[0]
        or area.columns.stop == shape[1]
    )
    return min(height, width) >= least or bool(at_edge and max(height, width) >= least)


def _grown(mask: Mask, size: int) -> Mask:
    grown: Mask = ndimage.maximum_filter1d(ndimage.maximum_filter1d(mask, size, axis=0), size, axis=1)
    return grown


def _eroded(mask: Mask, size: int) -> Mask:
    """Erode a mask. Beyond the page's edge counts as dark where the edge is dark."""
    eroded: Mask = ndimage.minimum_filter1d(ndimage.minimum_filter1d(mask, size, axis=0), size, axis=1)
    return eroded
