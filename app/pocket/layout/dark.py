"""Dark areas of a page: print in white on them becomes black on white; pictures, and what a scanner shows
beside the paper, become paper.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.pocket.layout.masks import Gray, Mask

STEP = 2  # pixels and rows from one that is looked at to the next
DARK = 0.5  # of the paper's shade; black print on what is lighter can be read as it is
DARK_PAGE = 100  # gray level that half of a page printed in white is below
LETTER = 1 / 250  # of the page's longer side; smaller holes in dark areas are filled: white letters
SOLID = 1 / 100  # of the page's longer side, least side of an area then
MIN_FILLED = 0.6  # of an area, that is dark in itself; lines of fat black letters, filled in, are lighter
MIN_EDGE = 0.85  # of an area's edge, that is dark
PICTURE = 0.06  # of the page's longer side, least sides of a picture; smaller ones may be letters
LIGHT = (0.004, 0.45)  # of an area, that white print in it covers, at least and at most
MIN_CONTRAST = 60  # gray levels between an area and the print in it
TALLEST = 0.06  # of the page's longer side, height of white letters at most
MIN_LETTER_PX = 5  # height of white letters
PAGE = 0.4  # of the page's area, above which it is printed in white as a whole
IN_LINES = 0.7  # of what is light in an area, that stands in lines
LETTERS = (0.7, 0.3)  # of what is light, that is as high as letters: in an area, in a page
CLEAR_ROWS = 0.15  # of an area's rows, that are above, between and below lines of print
CLEAR = 0.003  # of such a row, that may be light


@dataclass(frozen=True, slots=True)
class _Area:
    """``rows``, ``columns``: its box on the page; ``inside``: of the box's pixels, its own."""

    rows: slice
    columns: slice
    inside: Mask


def without_dark_areas(gray: Gray) -> Gray:
    """(H, W) of a page; the same array where nothing is dark."""
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
    # odd, so that nothing is shifted
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
    """In the page's own pixels, its soft edge taken in."""
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
    """White print stands in rows no taller than a line, with nothing between them; a picture's light parts do
    not.
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
    """Erode a mask; beyond the page's edge everything counts as dark where the edge is dark."""
    eroded: Mask = ndimage.minimum_filter1d(ndimage.minimum_filter1d(mask, size, axis=0), size, axis=1)
    return eroded
