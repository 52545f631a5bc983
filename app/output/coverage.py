"""Measure the share of a page's print that was read, in ink, from the image alone.

Print is whatever differs from the background around it, light on dark as well as dark on light, in pieces of
the size of letters or words. Rules, frames, solid areas, specks and pieces that touch the page's edge do not
count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in 0..999 of the page."""
SIDE_PX = 900
"""Longer side to which larger pages are reduced, roughly. Letters of 10 pt on A4 are then 10 pixels high."""
GROUND_PX = 16
"""Side of the blocks whose median gray level is the background.

A second median over 5 x 5 blocks bridges large letters.
"""
MIN_CONTRAST = 20
"""Least difference of gray levels between background and print.

Print also has at least ``CONTRAST_SHARE`` of the page's strongest contrast.
"""
CONTRAST_SHARE = 0.25
NOISE = 5.0
"""Least difference between print and background, in standard deviations of the paper's grain."""
MIN_PIECE_PX = 4
"""Least size of a letter: the larger of its height and width."""
MIN_PIECE_AREA_PX = 6
MAX_HEIGHT = 0.08
"""Largest height of a letter, as a share of the page's longer side."""
MAX_WIDTH = 0.35
"""Largest width of letters that touch, as a share of the page's width."""
RULE_PX = 2
"""Largest thickness of a rule or a dash.

No letter is lower, and none as narrow is ``MIN_UPRIGHT_RULE_PX`` high.
"""
MIN_UPRIGHT_RULE_PX = 24
MIN_AREA_SIDE_PX = 14
"""Least sides of a frame or a solid area.

Letters fill more than ``FRAME_FILL`` and less than ``SOLID_FILL``.
"""
FRAME_FILL = 0.15
SOLID_FILL = 0.75
MARGIN = 6
"""How far a read area extends beyond its box, in thousandths of the page."""
TONES = (0.25, 1.6)
"""Range of halftones, as multiples of the least difference of print. Photographs are full of them."""
TONES_PX = 31
MIN_TONES = 0.5
"""Least share of halftone pixels in a square of ``TONES_PX`` around a piece of a picture.

Around letters it is below 0.25.
"""
MIN_PIECES = 2
"""Least number of pieces of print on a page that is not blank. A single piece is a stain."""

MIN_BLANK_LEVEL = 128
"""Least median level of blank paper. A black page is full of ink."""
MIN_BLANK_PX = 64
"""Least side of a blank page: on a smaller image nothing tells paper from print."""
SAME_LEVEL = 1
"""Largest difference of levels that is rounding, wherever it occurs."""
MAX_BLANK_SPAN = 100
"""Largest difference of levels on a blank page: grain and shade have less, and nearly all print has more."""
MAX_BLANK_STEP = 2.0
"""Largest difference of the background's levels within twice ``GROUND_PX``. Shade changes more slowly than
the edge of a pale picture or of large pale letters.
"""
MAX_BLANK_GRAIN = 4.0
"""Largest standard deviation of means of 2 x 2 pixels. In coarser grain, pale print cannot be ruled out."""
MIN_BLANK_GRAIN = 0.1
"""Least standard deviation that is assumed, because levels are rounded."""
SPARSE_PX = 3
"""Distance of the pixels by which grain and lightness are judged."""
BLANK_NOISE = 7.0
"""Least difference that is print, in standard deviations. Grain reaches it on few of a million pages."""
BLANK_SIZES = ((1, 1), (2, 2), (4, 4), (4, 32), (32, 4))
"""Heights and widths, in units of 2 x 2 pixels, over which differences are averaged: a point, a stroke, a
letter, a word across and one upwards.
"""


@dataclass(frozen=True, slots=True)
class Print:
    """Pieces of print on a page. ``centres``: (N, 2), x and y in 0..1000. ``ink``: (N,) pixels.

    ``in_picture``: (N,), True for pieces in a photograph or the like, which seldom are letters.
    """

    centres: npt.NDArray[np.float64]
    ink: npt.NDArray[np.int64]
    in_picture: npt.NDArray[np.bool_]

    @property
    def is_visible(self) -> bool:
        return len(self.ink) >= MIN_PIECES

    def share_outside(self, read: Iterable[Box], left_out: Iterable[Box] = ()) -> float:
        """Return the share of the ink in no box of ``read``, or in one of ``left_out``; 0 for a page without
        print.

        Pictures do not count, unless nothing was read: what seems to be one may be worn print.
        """
        if not self.is_visible:
            return 0.0
        in_boxes = self._inside(read, MARGIN)
        is_read = in_boxes & ~self._inside(left_out, 0)
        counts = ~self.in_picture if in_boxes.any() else np.ones(len(self.ink), bool)
        return float(self.ink[counts & ~is_read].sum() / max(1, self.ink[counts].sum()))

    def _inside(self, boxes: Iterable[Box], margin: int) -> npt.NDArray[np.bool_]:
        x, y = self.centres.T
        inside = np.zeros(len(self.ink), bool)
        for left, top, right, bottom in boxes:
            across = (left - margin <= x) & (x <= right + 1 + margin)
            inside |= across & (top - margin <= y) & (y <= bottom + 1 + margin)
        return inside


NOTHING = Print(np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, bool))


def find_print(image: Image.Image) -> Print:
    """Find the print of an upright page. Takes about 25 ms for A4 at 150 dpi."""
    gray = image.convert("L")
    factor = max(1, round(max(gray.size) / SIDE_PX))
    levels = np.asarray(gray.reduce(factor)).astype(np.int16)
    differs = np.abs(levels - _ground(levels))
    grain = 1.4826 * float(np.median(differs))
    least = max(MIN_CONTRAST, CONTRAST_SHARE * float(np.percentile(differs, 99.9)), NOISE * grain)
    labels, count = ndimage.label(differs > least, np.ones((3, 3), int))
    if not count:
        return NOTHING
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)])
    ink = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    is_print = _are_letters(boxes, ink, levels.shape)
    height, width = levels.shape
    corners = boxes[is_print] * (1000 / np.array([width, height, width, height]))
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    columns, rows = (centres / 1000 * (width, height)).astype(np.int64).T
    is_tone = (differs > max(TONES[0] * least, 2 * grain)) & (differs < TONES[1] * least)
    tones = ndimage.uniform_filter(is_tone.astype(np.float32), TONES_PX)
    tones = ndimage.maximum_filter(
        tones, TONES_PX // 2
    )  # widened, because the edge of a picture has paper beside it
    return Print(centres, ink[is_print], tones[rows, columns] > MIN_TONES)


def is_blank(image: Image.Image) -> bool:
    """Tell whether a page is light, even paper and nothing else. In doubt it is not.

    Any print must stand out less than the paper's own grain does by chance: a point, a faint line, and faint
    print that only many pixels together tell from grain. So paper with dust, a fold, the shadow of a lid or
    print that shines through is not blank. Takes 10 ms for an A4 page at 150 dpi that has print or no grain,
    50 ms for others.
    """
    lows, highs = zip(*image.convert("RGB").getextrema(), strict=True)
    spans = [high - low for low, high in zip(lows, highs, strict=True)]
    if max(spans) > MAX_BLANK_SPAN or min(image.size) < MIN_BLANK_PX:
        return False
    pixels = np.asarray(image.convert("RGB"))
    if np.median(pixels[::SPARSE_PX, ::SPARSE_PX]) < MIN_BLANK_LEVEL:
        return False
    if max(spans) <= SAME_LEVEL:
        return True
    is_gray = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(
        pixels[..., 0], pixels[..., 2]
    )
    return all(_is_even(pixels[..., channel]) for channel in range(1 if is_gray else 3))


def _is_even(levels: npt.NDArray[np.uint8]) -> bool:
    """Tell whether (H, W) levels differ from their background by no more than grain does."""
    height, width = (side // 2 * 2 for side in levels.shape)
    quads = levels[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3), dtype=np.float32)
    ground = _ground(quads)
    blocks = ground[::GROUND_PX, ::GROUND_PX]
    steps = [np.abs(np.diff(blocks, axis=axis)).max(initial=0) for axis in (0, 1)]
    differs = quads - ground
    if max(steps) > MAX_BLANK_STEP or _grain(differs) > MAX_BLANK_GRAIN:
        return False
    for size in BLANK_SIZES:
        means = ndimage.uniform_filter(differs, size)
        if np.abs(means).max() > BLANK_NOISE * max(_grain(means), MIN_BLANK_GRAIN):
            return False
    return True


def _grain(differs: npt.NDArray[np.float32]) -> float:
    """Return the standard deviation of most of the differences, without those of print."""
    return 1.4826 * float(np.median(np.abs(differs[::SPARSE_PX, ::SPARSE_PX])))


def _ground(levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Estimate the background around each pixel. (H, W) gray levels -> (H, W) gray levels."""
    height, width = levels.shape
    padded = np.pad(levels, ((0, -height % GROUND_PX), (0, -width % GROUND_PX)), mode="edge")
    rows, columns = padded.shape[0] // GROUND_PX, padded.shape[1] // GROUND_PX
    blocks = padded.reshape(rows, GROUND_PX, columns, GROUND_PX).transpose(0, 2, 1, 3)
    middle = GROUND_PX * GROUND_PX // 2
    medians = np.partition(blocks.reshape(rows, columns, -1), middle, axis=2)[..., middle]
    smooth = ndimage.median_filter(medians, 5, mode="nearest")
    return np.kron(smooth, np.ones((GROUND_PX, GROUND_PX), levels.dtype))[:height, :width]


def _are_letters(
    boxes: npt.NDArray[np.int64], ink: npt.NDArray[np.int64], shape: tuple[Any, ...]
) -> npt.NDArray[np.bool_]:
    page_height, page_width = shape
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    fill = ink / (width * height)
    is_speck = (np.maximum(width, height) < MIN_PIECE_PX) | (ink < MIN_PIECE_AREA_PX)
    is_large = (height > MAX_HEIGHT * max(shape)) | (width > MAX_WIDTH * page_width)
    is_rule = (height <= RULE_PX) | ((width <= RULE_PX) & (height > MIN_UPRIGHT_RULE_PX))
    is_area = (np.minimum(width, height) >= MIN_AREA_SIDE_PX) & ((fill < FRAME_FILL) | (fill > SOLID_FILL))
    touches_edge = (boxes[:, :2] == 0).any(axis=1) | (boxes[:, 2:] == (page_width, page_height)).any(axis=1)
    are_letters: npt.NDArray[np.bool_] = ~(is_speck | is_large | is_rule | is_area | touches_edge)
    return are_letters
