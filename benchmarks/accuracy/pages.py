"""Pages that accuracy is measured on, each with its truth: rendered A4 and small ones, real ones, blank ones.

No rendered page here was trained on: training draws its seeds from 48 bits, and these lie above them.
"""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from app.output.markdown import to_markdown
from training.layout import Layout, LayoutStyle
from training.printed import Mark, Piece, PrintedPage
from training.render import PageRenderer, PageStyle, degrade, draw_page
from training.settings import Settings
from training.text import TextSource

FIRST_SEED = 1 << 48
SEEDS_A_KIND = 1 << 20
DPI = 150
A4_PX = (1240, 1754)
BODY_PT = (9.0, 14.0)
FILLED = 1_800
"""Printed characters after which no block is begun; the last block may make it up to ``MOST``."""
FEWEST, MOST = 200, 2_500
"""Range of an A4 page's text in characters; a page outside it is drawn anew."""
SMALL_EM_PX, SMALL_CHARACTERS = (24.0, 44.0), 150

CLEAN, DEGRADED, SEEN_FONTS, SMALL, BLANK = "clean", "degraded", "seen fonts", "small", "blank"
A4_KINDS = (CLEAN, DEGRADED, SEEN_FONTS)
RENDERED = (*A4_KINDS, SMALL)
DOCUMENTS = {
    "english": ".150.png",
    "old_books": ".png",
    "receipts": ".jpg",
    "scans": ".tif",
}
"""Kinds of real pages -> how the names of their images end; the truth lies beside them as .txt."""
UPPER_CASED = frozenset({"receipts"})
OUT_OF_SCOPE = {
    "chinese": "the pocket checkpoint's vocabulary is Latin-1 and typographic signs: it cannot write Chinese",
    "formulas": "the pocket checkpoint was never shown a formula",
    "tables": "crops of tables whose truth is HTML: rendered pages measure tables",
    "bench_tests": "unit tests of olmOCR-bench, which are not a character error",
}
Paper = Callable[[random.Random], Image.Image]


@dataclass(frozen=True, slots=True)
class Sample:
    """A page with its truth.

    ``image``: as it would be uploaded. ``text``: the true text. ``markdown``: the same as clean Markdown,
    ``None`` when it is not known.
    """

    name: str
    image: Image.Image
    text: str
    markdown: str | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """Pages that share a row of figures."""

    name: str
    samples: tuple[Sample, ...]
    ignores_case: bool = False


@dataclass(frozen=True, slots=True)
class DrawnPage:
    """A page and its print. ``marks``: centre in pixels of the image and character, of every mark of
    ``printed``.
    """

    sample: Sample
    printed: PrintedPage
    marks: tuple[Mark, ...]


class RenderedPages:
    """Source of rendered pages. Raises ``FileNotFoundError`` that names the fonts which are not installed."""

    def __init__(self, settings: Settings) -> None:
        self._text = TextSource(settings.render.words)
        self._families = {
            kind: settings.render.families(held_out=kind != SEEN_FONTS) for kind in (*A4_KINDS, SMALL)
        }
        self._small = PageRenderer(self._text, self._families[SMALL])
        PageRenderer(self._text, self._families[SEEN_FONTS])  # fails now if fonts are missing
        self._view_px = settings.model.view_px

    def kind(self, name: str, count: int) -> Kind:
        """Return ``count`` pages of one of ``RENDERED``, the same ones in every run."""
        if name != SMALL:
            return Kind(name, tuple(page.sample for page in self.drawn_pages(name, count)))
        first = FIRST_SEED + RENDERED.index(name) * SEEDS_A_KIND
        pages = (self._small_page(seed) for seed in range(first, first + SEEDS_A_KIND))
        return Kind(name, tuple(islice((page for page in pages if page is not None), count)))

    def drawn(self, seed: int, kind: str) -> "DrawnPage | None":
        """Draw the A4 page of a seed; ``None`` when its text is too short or too long."""
        rng = random.Random(seed)  # noqa: S311 - draws pages, not secrets
        em = rng.uniform(*BODY_PT) * DPI / 72
        style = LayoutStyle(*A4_PX, em=em, structured=1.0, max_characters=FILLED)
        page = Layout(rng, self._text, self._families[kind], style).fill()
        text = _joined([block.plain for block in page.blocks])
        if not FEWEST <= len(text) <= MOST:
            return None
        image, marks = draw_page(rng, page), page.marks
        if kind == DEGRADED:
            image, marks = damaged(rng, image, marks)
        else:
            image = ImageOps.autocontrast(image)  # makes the paper white
        markdown = to_markdown(_joined([block.markdown for block in page.blocks])).markdown
        sample = Sample(f"{kind} {seed - FIRST_SEED}", _upload(image), text, markdown)
        return DrawnPage(sample, page, tuple(marks))

    def drawn_pages(self, kind: str, count: int, skip: int = 0) -> list["DrawnPage"]:
        """Return ``count`` A4 pages, the same ones in every run. Skip ``skip`` seeds to get other pages."""
        first = FIRST_SEED + RENDERED.index(kind) * SEEDS_A_KIND + skip
        pages = (self.drawn(seed, kind) for seed in range(first, first + SEEDS_A_KIND - skip))
        return list(islice((page for page in pages if page is not None), count))

    def _small_page(self, seed: int) -> Sample | None:
        style = PageStyle(self._view_px, SMALL_EM_PX, (1.0, 1.0), 0.0, 0.0, SMALL_CHARACTERS)
        page = self._small.page(seed, style)
        if not page.text:
            return None
        markdown = to_markdown(page.grounded).markdown
        image = page.native.convert("RGB")
        return Sample(f"small {seed - FIRST_SEED}", image, page.text, markdown)


def _joined(blocks: Sequence[Sequence[Piece]]) -> str:
    texts = ("".join(piece for piece, _ in block).strip() for block in blocks)
    return "\n\n".join(text for text in texts if text)


def _upload(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.info["dpi"] = (DPI, DPI)
    return image


def damaged(
    rng: random.Random, image: Image.Image, marks: Sequence[Mark] = ()
) -> tuple[Image.Image, list[Mark]]:
    """Degrade a page until it has changed: ``degrade`` returns one page in ten as the same object.

    ``marks`` are in pixels and move with the page.
    """
    width, height = image.size
    shares = [(x / width, y / height, character) for x, y, character in marks]
    result, moved = image, shares
    while result is image:
        result, moved = degrade(rng, image, shares)
    return result, [(x * width, y * height, character) for x, y, character in moved]


def documents(folder: Path, most: int | None, endings: Mapping[str, str] = DOCUMENTS) -> list[Kind]:
    """Return the kinds of ``endings`` that the folder has: at most ``most`` pages of each, with their truth.

    Raise ``FileNotFoundError`` when the folder has no such kind.
    """
    kinds = []
    for name, ending in endings.items():
        images = sorted(path for path in (folder / name).glob(f"*{ending}") if _truth(path, ending).is_file())
        samples = tuple(_document(path, ending) for path in images[:most])
        if samples:
            kinds.append(Kind(name, samples, ignores_case=name in UPPER_CASED))
    if not kinds:
        raise FileNotFoundError(
            f"{folder} has none of the folders {', '.join(endings)} with images and truth"
        )
    return kinds


def _document(path: Path, ending: str) -> Sample:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
        image.info.setdefault("dpi", (DPI, DPI) if ending == ".150.png" else None)
    return Sample(path.name, image, _truth(path, ending).read_text(encoding="utf-8"))


def _truth(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(ending) + ".txt")


def blank_pages(count: int) -> list[tuple[str, Image.Image]]:
    """Return (paper, page) for ``count`` blank pages, each kind of paper in turn."""
    rng = random.Random(FIRST_SEED)  # noqa: S311 - draws pages, not secrets
    names = [*PAPERS]
    return [(name, _upload(PAPERS[name](rng))) for name in (names[i % len(names)] for i in range(count))]


def _white(_: random.Random) -> Image.Image:
    return Image.new("L", A4_PX, 255)


def _gray(rng: random.Random) -> Image.Image:
    return Image.new("L", A4_PX, rng.randint(180, 245))


def _noisy(rng: random.Random) -> Image.Image:
    return _grained(rng, np.full(A4_PX[::-1], rng.randint(225, 255), dtype=np.float32), rng.uniform(2, 8))


def _scanned(rng: random.Random) -> Image.Image:
    """Draw paper under a scanner's lid: uneven light, grain, specks of dust, a dark edge, JPEG."""
    width, height = A4_PX
    light = np.linspace(0, rng.uniform(-20, -5), width, dtype=np.float32)
    pixels = np.full((height, width), rng.randint(225, 250), dtype=np.float32) + light
    for _ in range(rng.randint(3, 25)):
        x, y, side = rng.randrange(width), rng.randrange(height), rng.randint(1, 3)
        pixels[y : y + side, x : x + side] -= rng.uniform(40, 150)
    pixels[:, : rng.randint(2, 12)] -= rng.uniform(60, 180)
    coded = io.BytesIO()
    _grained(rng, pixels, rng.uniform(1, 4)).save(coded, "JPEG", quality=rng.randint(50, 85))
    return Image.open(coded)


def _grained(rng: random.Random, pixels: "np.typing.NDArray[np.float32]", strength: float) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels + noise * strength, 0, 255).astype(np.uint8))


PAPERS: dict[str, Paper] = {"white": _white, "gray": _gray, "noisy": _noisy, "scanned": _scanned}
