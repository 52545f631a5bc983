"""Lines of print as the service shows them: pages are drawn, worn, and cut by the service's own code.

The text of a view follows from the marks that lie in its rows.
"""

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy import ndimage

from app.pocket.layout.finding import find_lines
from app.pocket.layout.ink import Ink, find_ink
from app.pocket.layout.lines import Line
from app.pocket.layout.views import Row, draw_view, line_rows
from training.layout import Family, Layout, LayoutStyle
from training.printed import Mark, Piece, PrintedPage
from training.render import BICUBIC, RenderedPage, degrade, draw_page
from training.text import TextSource

WIDTH_EM, HEIGHT_EM, STRUCTURED_HEIGHT_EM = (14.0, 44.0), (5.0, 13.0), (15.0, 24.0)
VIEWS_A_PAGE = 5
"""Most views taken from one page, so that a batch has print of several kinds."""
TRACKED_SHARE, TRACKING_EM = 0.2, (-0.03, 0.14)
LIGATURES_SHARE = 0.4
"""Share of pages with ligatures. Typesetters and most PDFs use them, word processors mostly do not."""
STRETCH = (0.6, 1.6)
DOTTED_SHARE, DOTS_AN_EM = 0.3, (13.0, 26.0)
"""Share of worn copies whose print is made of dots, as on receipts, and the dots in an em."""


@dataclass(frozen=True, slots=True)
class LineStyle:
    """Sizes and chances of the pages that lines are cut from.

    ``em_px``: range of the body text's size on the page as uploaded. ``degraded`` and ``worn``: chances of
    scan damage and of one-bit or low-resolution copies. ``structured``: as in a page's style. ``stretched``:
    chance of print narrower or wider than its font.
    """

    em_px: tuple[float, float]
    structured: float
    degraded: float
    worn: float
    stretched: float = 0.0


@dataclass(frozen=True, slots=True)
class Placed:
    """A character on the straightened page: its centre, and whether a space or the line's start is before
    it.
    """

    x: float
    y: float
    character: str
    begins_word: bool


class LineRenderer:
    """Renders views of lines. The same ``rng`` and style give the same views."""

    def __init__(self, text: TextSource, families: Sequence[Family]) -> None:
        self._text, self._families = text, families

    def views(self, rng: random.Random, style: LineStyle, count: int) -> list[RenderedPage]:
        made: list[RenderedPage] = []
        while len(made) < count:
            page = self._page_views(rng, style)
            made += _drawn(rng, page, min(VIEWS_A_PAGE, count - len(made)))
        return made

    def _page_views(self, rng: random.Random, style: LineStyle) -> list[RenderedPage]:
        em = style.em_px[0] * (style.em_px[1] / style.em_px[0]) ** rng.random()
        drawn = rng.choice([1.0, 1.5, 2.0])
        is_structured = rng.random() < style.structured
        heights = STRUCTURED_HEIGHT_EM if is_structured else HEIGHT_EM
        width, height = (em * rng.uniform(*sides) for sides in (WIDTH_EM, heights))
        tracking = rng.uniform(*TRACKING_EM) if rng.random() < TRACKED_SHARE else 0.0
        stretch = 1.0
        if rng.random() < style.stretched:
            stretch = STRETCH[0] * (STRETCH[1] / STRETCH[0]) ** rng.random()
        layout = LayoutStyle(
            width * drawn / stretch,
            height * drawn,
            em * drawn,
            float(is_structured),
            max_characters=1500,
            tracking=tracking,
            ligatures=rng.random() < LIGATURES_SHARE,
        )
        page = Layout(rng, self._text, self._families, layout).fill()
        image = draw_page(rng, page).resize((round(width), round(height)), BICUBIC)
        shares = [(x / page.width, y / page.height, character) for x, y, character in page.marks]
        if rng.random() < style.worn:
            image = worn(rng, image, em)
        if rng.random() < style.degraded:
            image, shares = degrade(rng, image, shares)
        ink = find_ink(image)
        return [] if ink is None else list(_shown(ink, placed_marks(ink, page, image.size, shares)))


def _drawn(rng: random.Random, views: Sequence[RenderedPage], most: int) -> list[RenderedPage]:
    """Choose at most ``most`` views at random, preferring fuller ones: a view with a word or two costs as
    much to read.
    """
    order = sorted(views, key=lambda view: rng.random() ** (1 / (2 + len(view.marks))))
    return order[-most:]


def worn(rng: random.Random, image: Image.Image, em: float) -> Image.Image:
    """Make the image look like a copy of a copy: strokes thicker or thinner, dots, coarse pixels, one bit."""
    if rng.random() < DOTTED_SHARE:
        image = _dotted(rng, image, em)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(em * rng.uniform(0.01, 0.035)))
    if rng.random() < 0.3:  # printed or scanned coarsely
        share = max(0.35, min(1.0, rng.uniform(11, 20) / em))
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        image = image.resize(size, BICUBIC).resize(image.size, BICUBIC)
    pixels = np.asarray(image, dtype=np.float32)
    grain = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape, dtype=np.float32)
    if rng.random() < 0.5:
        grain = ndimage.gaussian_filter(grain, rng.uniform(0.5, 1.2))
    pixels = pixels + grain * rng.uniform(0, 35)
    if rng.random() < 0.7:
        paper, black = float(np.percentile(pixels, 90)), float(np.percentile(pixels, 0.5))
        pressure = _pressure(rng, pixels.shape, em)
        pixels = np.where(pixels > black + (rng.uniform(0.3, 0.75) + pressure) * (paper - black), 255.0, 0.0)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        coded = io.BytesIO()
        image.save(coded, "JPEG", quality=rng.randint(40, 90))
        image = Image.open(coded).convert("L")
    return image


def _pressure(rng: random.Random, shape: tuple[int, ...], em: float) -> npt.NDArray[np.float32]:
    """Draw the uneven pressure of type on paper, (H, W) around 0. Where it is light, hairlines are lost."""
    field = np.random.default_rng(rng.getrandbits(32)).standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(field, em * rng.uniform(0.1, 0.5))
    return np.asarray(smooth / max(1e-6, float(smooth.std())) * rng.uniform(0.0, 0.18), np.float32)


def _dotted(rng: random.Random, image: Image.Image, em: float) -> Image.Image:
    """Print the image as pins or a thermal head do: in black or white dots with soft edges, some faint."""
    share = rng.uniform(*DOTS_AN_EM) / em
    if share >= 1:
        return image
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    small = np.asarray(image.resize(size, BICUBIC), dtype=np.float32)
    paper, black = float(np.percentile(small, 90)), float(np.percentile(small, 0.5))
    dots = small < paper - rng.uniform(0.3, 0.5) * (paper - black)
    strength = np.ones_like(small)
    if rng.random() < 0.5:
        generator = np.random.default_rng(rng.getrandbits(32))
        strength = generator.uniform(rng.uniform(0.3, 1.0), 1.0, small.shape).astype(np.float32)
    printed = np.where(dots, paper + (black - paper) * strength, paper)
    large = Image.fromarray(np.clip(printed, 0, 255).astype(np.uint8)).resize(
        image.size, Image.Resampling.NEAREST
    )
    return large.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6) / share))


def placed_marks(ink: Ink, page: PrintedPage, size: tuple[int, int], shares: Sequence[Mark]) -> list[Placed]:
    begins = _word_begins(page)
    placed = []
    for number, (x, y, character) in enumerate(shares):
        across, down = ink.placed(x * size[0], y * size[1])
        placed.append(Placed(across, down, character, begins[number]))
    return placed


def _word_begins(page: PrintedPage) -> list[bool]:
    """Tell for each mark whether a space stands before it."""
    begins = [True] * len(page.marks)
    for block in page.blocks:
        before = -1
        for _, mark in block.plain:
            if mark >= 0:
                begins[mark] = before < 0
            before = mark
    return begins


def _shown(ink: Ink, placed: Sequence[Placed]) -> Iterator[RenderedPage]:
    lines = find_lines(ink)
    typical = float(np.median([line.height for line in lines])) if lines else 0.0
    for line in lines:
        printed = [one for one in placed if _is_on(one, line, lines)]
        for rows in line_rows(ink, line, typical):
            yield _view(ink, rows, printed)


def _is_on(one: Placed, line: Line, lines: Sequence[Line]) -> bool:
    """Tell whether a character lies in the line's box and in no other box whose middle is nearer."""

    def reach(other: Line) -> float:
        inside = other.left <= one.x < other.right and other.top <= one.y < other.bottom
        return abs(other.middle - one.y) if inside else np.inf

    own = reach(line)
    return own < np.inf and own == min(reach(other) for other in lines)


def _view(ink: Ink, rows: Sequence[Row], printed: Sequence[Placed]) -> RenderedPage:
    image = draw_view(ink.gray, rows)
    marks: list[Mark] = []
    pieces: list[Piece] = []
    for row in rows:
        pieces += [("\n", -1)] if pieces else []
        shown = [(row.in_view(one.x, one.y), one) for one in printed]
        inside = sorted(((at, one) for at, one in shown if at is not None), key=lambda pair: pair[0])
        for number, (at, one) in enumerate(inside):
            pieces += [(" ", -1)] if number and one.begins_word else []
            pieces.append((one.character, len(marks)))
            marks.append((*at, one.character))
    return RenderedPage(image, np.asarray(image), tuple(marks), tuple(pieces), tuple(pieces))
