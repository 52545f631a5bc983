"""Extract a page's ink: even out the paper's shade, undo skew, tell ruled lines from letters."""

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from app.pocket.layout.dark import without_dark_areas
from app.pocket.layout.masks import Gray, Mask, after, deviation, long_runs, near, percentile

MAX_SIDE_PX = 2600  # larger pages are scaled down to this: 11 pt at 220 dpi
PAPER_BLOCK_PX = 24
MIN_CONTRAST = 48  # gray levels between paper and the darkest ink; a page with less is blank
INK_SHARE = 0.4  # of the contrast; ink is at least this much darker than the paper around it
PALE = 0.7  # of the contrast; paler print is made darker
SHINES = 0.28  # of the contrast; anything paler shines through from the back
PALEST = 0.12  # of the contrast; anything paler is paper
CRISP = 0.5  # least share of darker pixels that are ink, if print is as dark as anything on the page
NOISE = 5.0  # deviations of the paper's shade; print is darker by more
DARKER = 0.75  # share of the area of all letters that is no darker than the measured level
MIN_PRINT_PX = 6  # least height of letters
MAX_PRINT_PX = 80  # greatest height and width of letters that touch
FEW_LETTERS = 40  # fewer letters tell nothing about a page
FAINT_SHARE = 0.22  # of the contrast, darkness of a stroke thinner than a pixel
HAIR_PX = 2  # rows, at most, that such a stroke makes gray
MIN_HAIR_PX = 6  # least length of such a stroke
MAX_HAIR_PX = 40  # greatest length of such a stroke
MAX_SKEW_DEGREES = 2.0
MIN_SKEW_DEGREES = 0.12
RULE_SHARE = 0.035  # of the page's longer side; a longer straight stroke is no letter
LEVEL = 1.5  # times that, least length of a level rule
UPRIGHT = 2.0  # times that, least length of an upright one; it is hardly longer in a table of two columns
MIN_STROKE_PX = 20  # least length of a cell's side
MAX_STROKE_PX = 6  # greatest thickness of a cell's side
REACH_PX = 6  # from its end to the rule that it meets
HALO_PX = 2  # width of the gray beside a ruled line


@dataclass(frozen=True, slots=True)
class Ink:
    """Ink of a page.

    ``gray``: (H, W), paper at 255, without ruled lines. ``mask``: (H, W), where ink is. ``rules``: (H, W),
    where ruled lines are. ``scale``, ``degrees``: the page was scaled down by this factor and then turned
    counter-clockwise around its middle.
    """

    gray: Gray
    mask: Mask
    rules: Mask
    scale: float = 1.0
    degrees: float = 0.0

    def placed(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the page to the ink, each in its own pixels."""
        height, width = self.mask.shape
        dx, dy = x * self.scale - width / 2, y * self.scale - height / 2
        cosine, sine = cos(radians(self.degrees)), sin(radians(self.degrees))
        return width / 2 + dx * cosine + dy * sine, height / 2 + dy * cosine - dx * sine


def find_ink(image: Image.Image) -> Ink | None:
    """Extract the ink of an upright RGB or gray page; ``None`` for a page without any."""
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
    if SHINES * contrast < darkness < PALE * contrast:  # black is then a stain, an edge or a stamp
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

    Returns ``contrast`` if print is as dark as anything on the page or no darker than the paper's noise.
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
    """Return the gray levels between the paper and the darkest areas. Single noisy pixels do not count."""
    smooth = ndimage.uniform_filter(gray, 3)
    return percentile(smooth, 90) - percentile(smooth, 0.05)


def _paper(gray: Gray) -> npt.NDArray[np.float32]:
    """Estimate the paper's shade around each pixel, (H, W): the bright level of blocks, smoothed."""
    height, width = gray.shape
    rows, columns = -(-height // PAPER_BLOCK_PX), -(-width // PAPER_BLOCK_PX)
    padded = np.pad(
        gray, ((0, rows * PAPER_BLOCK_PX - height), (0, columns * PAPER_BLOCK_PX - width)), mode="edge"
    )
    blocks = padded.reshape(rows, PAPER_BLOCK_PX, columns, PAPER_BLOCK_PX).transpose(0, 2, 1, 3)
    bright = np.percentile(blocks.reshape(rows, columns, -1), 85, axis=2).astype(np.float32)
    # dark pictures and bold headings are no paper: take the shade beside them
    bright = ndimage.maximum_filter(bright, 5)
    smooth = ndimage.uniform_filter(bright, 5)
    return np.kron(smooth, np.ones((PAPER_BLOCK_PX, PAPER_BLOCK_PX), np.float32))[:height, :width]


def _skew(mask: Mask) -> float:
    """Return by how many degrees lines fall to the right.

    The page is sheared by different angles; at the correct one, rows of ink separate most sharply.
    """
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
    """Find straight unbroken strokes that are longer than a letter."""
    length = max(40, round(RULE_SHARE * max(mask.shape)))
    level, upright = round(LEVEL * length), round(UPRIGHT * length)
    rules: Mask = long_runs(mask, level) | long_runs(mask, upright, axis=0)
    return rules


def _erased(mask: Mask, rules: Mask) -> Mask:
    """Return the rules with the gray beside them, except letters that stand on a level rule or cross it."""
    wide = near(near(rules, HALO_PX, axis=0), HALO_PX, axis=1)
    letters = mask & ~wide
    above, below = (_within(letters, reach=2 * HALO_PX, is_above=is_above) for is_above in (True, False))
    level = long_runs(rules, MIN_STROKE_PX)
    stands = mask & (above | below) & near(level, HALO_PX, axis=0) & ~rules
    above, below = (_within(letters, reach=MAX_STROKE_PX, is_above=is_above) for is_above in (True, False))
    erased: Mask = wide & ~stands & ~(level & above & below)
    return erased


def _within(mask: Mask, reach: int, *, is_above: bool) -> Mask:
    """Spread a mask by ``reach`` rows: down with ``is_above``, else up."""
    if is_above:
        return after(mask, reach + 1, axis=0)
    return after(mask[::-1], reach + 1, axis=0)[::-1]


def _strokes_between(mask: Mask, rules: Mask) -> Mask:
    """Find thin upright strokes from one rule to the next: sides of cells, no longer than letters are."""
    strokes = long_runs(mask, MIN_STROKE_PX, axis=0) & ~long_runs(mask, MAX_STROKE_PX + 1)
    reached = near(rules, REACH_PX, axis=0)
    labels, _ = ndimage.label(strokes & ~rules, np.ones((3, 3)))
    found = np.zeros_like(mask)
    for number, (y, x) in enumerate(ndimage.find_objects(labels), 1):
        is_thin = y.stop - y.start > 4 * (x.stop - x.start)
        if is_thin and reached[y.start, x].any() and reached[y.stop - 1, x].any():
            found[y, x] |= labels[y, x] == number
    return found
