"""A page's ink: paper of any shade evened out, skew taken back, ruled lines told from letters."""

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from app.pocket.layout.dark import without_dark_areas
from app.pocket.layout.masks import Gray, Mask, after, deviation, long_runs, near, percentile

MAX_SIDE_PX = 2600  # larger pages are scaled down to it: 11 pt at 220 dpi
PAPER_BLOCK_PX = 24
MIN_CONTRAST = 48  # gray levels between paper and the darkest ink; below it a page is blank
INK_SHARE = 0.4  # of that contrast, below the paper around: ink
PALE = 0.7  # of that contrast; paler print is made darker
SHINES = 0.28  # of that contrast; what is paler shines through from the back
PALEST = 0.12  # of that contrast; what is paler is paper
CRISP = 0.5  # share of what is darker than that, that is ink where print is as dark as anything
NOISE = 5.0  # deviations of paper, that print is darker by
DARKER = 0.75  # of the area of all letters, that paler ones have
MIN_PRINT_PX = 6  # height of letters
MAX_PRINT_PX = 80  # height and width of letters that touch
FEW_LETTERS = 40  # that say nothing of a page
FAINT_SHARE = 0.22  # of that contrast, of a stroke thinner than a pixel
HAIR_PX = 2  # rows that such a stroke grays, at most
MIN_HAIR_PX = 6  # length of such a stroke, at least
MAX_HAIR_PX = 40  # the same, at most
MAX_SKEW_DEGREES = 2.0
MIN_SKEW_DEGREES = 0.12
RULE_SHARE = 0.035  # of the page's longer side; an unbroken straight stroke this long is no letter
LEVEL = 1.5  # times that, length of a level rule
UPRIGHT = 2.0  # times that, length of an upright one; those of a table of two short columns are hardly longer
MIN_STROKE_PX = 20  # length of a cell's side
MAX_STROKE_PX = 6  # its thickness
REACH_PX = 6  # from its end to the rule it ends at
HALO_PX = 2  # gray beside a ruled line


@dataclass(frozen=True, slots=True)
class Ink:
    """``gray``: (H, W), paper at 255, without ruled lines. ``mask``: (H, W), where ink is.

    ``rules``: (H, W), where lines were ruled. ``scale``, ``degrees``: how the page was made smaller, and then
    turned counter-clockwise around its middle.
    """

    gray: Gray
    mask: Mask
    rules: Mask
    scale: float = 1.0
    degrees: float = 0.0

    def placed(self, x: float, y: float) -> tuple[float, float]:
        """A point of the page -> where its ink is, both in their own pixels."""
        height, width = self.mask.shape
        dx, dy = x * self.scale - width / 2, y * self.scale - height / 2
        cosine, sine = cos(radians(self.degrees)), sin(radians(self.degrees))
        return width / 2 + dx * cosine + dy * sine, height / 2 + dy * cosine - dx * sine


def find_ink(image: Image.Image) -> Ink | None:
    """An upright RGB or gray page -> its ink; ``None`` for a page without any."""
    gray_image = image.convert("L")
    scale = min(1.0, MAX_SIDE_PX / max(gray_image.size))
    if scale < 1:
        size = (max(1, round(gray_image.width * scale)), max(1, round(gray_image.height * scale)))
        gray_image = gray_image.resize(size, Image.Resampling.LANCZOS)
    gray = without_dark_areas(np.asarray(gray_image))
    contrast = _contrast(gray)
    if contrast < MIN_CONTRAST:
        return None
    paper_around = _paper(gray)
    degrees = _skew(gray < paper_around - INK_SHARE * contrast)
    if abs(degrees) < MIN_SKEW_DEGREES:
        degrees = 0.0
    else:
        paper = int(percentile(gray, 50))
        turned = Image.fromarray(gray).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=paper)
        gray = np.asarray(turned)
        paper_around = _paper(gray)
    lift = 255.0 - paper_around
    even = np.clip(gray + lift, 0, 255).astype(np.uint8)
    darkness = _darkness_of_print(even, contrast)
    if SHINES * contrast < darkness < PALE * contrast:  # what is black is a stain, an edge or a stamp
        even = (255 - np.clip((255.0 - even) * (contrast / darkness), 0, 255)).astype(np.uint8)
    mask = even < 255 - INK_SHARE * contrast
    mask |= _hairs(even < 255 - FAINT_SHARE * contrast, mask)
    rules = _rules(mask)
    if rules.any():
        rules |= _strokes_between(mask, rules)
        erased = _erased(mask, rules)
        mask &= ~erased
        even = np.where(erased, 255, even).astype(np.uint8)
    return Ink(even, mask, rules, scale, degrees) if mask.any() else None


def _darkness_of_print(even: Gray, contrast: float) -> float:
    """Measure the gray levels between paper and most letters.

    ``contrast`` where print is as dark as anything, or no darker than the paper's noise.
    """
    ink = 255 - even
    least = max(PALEST * contrast, NOISE * 1.4826 * deviation(ink))
    shown = ink > least
    if (ink > INK_SHARE * contrast).sum() >= CRISP * shown.sum():
        return contrast
    labels, count = ndimage.label(shown, np.ones((3, 3), int))
    boxes = ndimage.find_objects(labels)
    heights = np.array([rows.stop - rows.start for rows, _ in boxes])
    widths = np.array([columns.stop - columns.start for _, columns in boxes])
    numbers = 1 + np.flatnonzero((heights >= MIN_PRINT_PX) & (np.maximum(heights, widths) <= MAX_PRINT_PX))
    if len(numbers) < FEW_LETTERS:
        return contrast
    peaks = ndimage.maximum(ink, labels, numbers)
    order, areas = np.argsort(peaks), np.bincount(labels.ravel(), minlength=count + 1)[numbers]
    reached = np.cumsum(areas[order])
    return float(peaks[order][np.searchsorted(reached, DARKER * reached[-1])])


def _hairs(faint: Mask, mask: Mask) -> Mask:
    """Find level strokes thinner than a pixel, such as dashes of light fonts.

    They are gray and straight, with white above and below, unlike the edges of black print. Longer ones
    belong to ruled paper.
    """
    edges = near(mask, HAIR_PX, axis=0)
    thick = long_runs(faint, HAIR_PX + 1, axis=0)
    level = faint & ~thick & ~edges
    hairs: Mask = long_runs(level, MIN_HAIR_PX) & ~long_runs(level, MAX_HAIR_PX)
    return hairs


def _contrast(gray: Gray) -> float:
    """Between the paper and the darkest things of any size; single noisy pixels do not count."""
    smooth = ndimage.uniform_filter(gray, 3)
    return percentile(smooth, 90) - percentile(smooth, 0.05)


def _paper(gray: Gray) -> npt.NDArray[np.float32]:
    """(H, W) what the paper's shade is around each pixel: bright in blocks, smoothed."""
    height, width = gray.shape
    rows, columns = -(-height // PAPER_BLOCK_PX), -(-width // PAPER_BLOCK_PX)
    padded = np.pad(
        gray, ((0, rows * PAPER_BLOCK_PX - height), (0, columns * PAPER_BLOCK_PX - width)), mode="edge"
    )
    blocks = padded.reshape(rows, PAPER_BLOCK_PX, columns, PAPER_BLOCK_PX).transpose(0, 2, 1, 3)
    bright = np.percentile(blocks.reshape(rows, columns, -1), 85, axis=2).astype(np.float32)
    # dark pictures and fat headings are no paper: take the shade beside them
    bright = ndimage.maximum_filter(bright, 5)
    smooth = ndimage.uniform_filter(bright, 5)
    return np.kron(smooth, np.ones((PAPER_BLOCK_PX, PAPER_BLOCK_PX), np.float32))[:height, :width]


def _skew(mask: Mask) -> float:
    """Degrees that the lines fall to the right, by how sharply rows of ink stand apart when sheared."""
    ys, xs = np.nonzero(mask[::2, ::2])
    if len(ys) < 200:
        return 0.0
    if len(ys) > 60_000:
        chosen = np.random.default_rng(0).choice(len(ys), 60_000, replace=False)
        ys, xs = ys[chosen], xs[chosen]
    centred = xs - xs.mean()

    def sharpness(degrees: float) -> float:
        rows = np.round(ys - centred * np.tan(np.radians(degrees))).astype(np.int64)
        profile = np.bincount(rows - rows.min()).astype(np.float64)
        return float((np.diff(profile) ** 2).sum())

    coarse = max(np.arange(-MAX_SKEW_DEGREES, MAX_SKEW_DEGREES + 0.01, 0.2), key=sharpness)
    fine = max(np.arange(coarse - 0.2, coarse + 0.21, 0.05), key=sharpness)
    return float(fine) if sharpness(float(fine)) > 1.02 * sharpness(0.0) else 0.0


def _rules(mask: Mask) -> Mask:
    """Straight unbroken strokes, longer than a letter is."""
    length = max(40, round(RULE_SHARE * max(mask.shape)))
    level, upright = round(LEVEL * length), round(UPRIGHT * length)
    rules: Mask = long_runs(mask, level) | long_runs(mask, upright, axis=0)
    return rules


def _erased(mask: Mask, rules: Mask) -> Mask:
    """Rules with the gray beside them, but for letters that stand on a level one or go through it."""
    wide = near(near(rules, HALO_PX, axis=0), HALO_PX, axis=1)
    letters = mask & ~wide
    above, below = (_within(letters, reach=2 * HALO_PX, is_above=is_above) for is_above in (True, False))
    level = long_runs(rules, MIN_STROKE_PX)
    stands = mask & (above | below) & near(level, HALO_PX, axis=0) & ~rules
    above, below = (_within(letters, reach=MAX_STROKE_PX, is_above=is_above) for is_above in (True, False))
    erased: Mask = wide & ~stands & ~(level & above & below)
    return erased


def _within(mask: Mask, reach: int, *, is_above: bool) -> Mask:
    """Spread a mask over so many rows above and below."""
    if is_above:
        return after(mask, reach + 1, axis=0)
    return after(mask[::-1], reach + 1, axis=0)[::-1]


def _strokes_between(mask: Mask, rules: Mask) -> Mask:
    """Thin upright strokes from one rule to the next: sides of cells, no longer than letters are."""
    strokes = long_runs(mask, MIN_STROKE_PX, axis=0) & ~long_runs(mask, MAX_STROKE_PX + 1)
    reached = near(rules, REACH_PX, axis=0)
    labels, _ = ndimage.label(strokes & ~rules, np.ones((3, 3)))
    found = np.zeros_like(mask)
    for number, (y, x) in enumerate(ndimage.find_objects(labels), 1):
        is_thin = y.stop - y.start > 4 * (x.stop - x.start)
        if is_thin and reached[y.start, x].any() and reached[y.stop - 1, x].any():
            found[y, x] |= labels[y, x] == number
    return found
