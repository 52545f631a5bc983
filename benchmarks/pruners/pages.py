"""Pages that need nothing but this checkout: no word list, no installed font, no folder of documents."""

import random
from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont

from benchmarks.accuracy.pages import A4_PX, DPI, Kind, Sample
from benchmarks.report import ROOT
from benchmarks.signs import Sentences

OWN = "own"
SIZES_PX = (24, 22, 26, 23)
"""Sizes of print by page, in turn: 150 px are an inch, so they are 10.6 to 12.5 pt."""
LEADING = 1.4  # sizes of print
MARGIN_PX = 130
GAP = 0.6  # white between paragraphs, in sizes of print
SENTENCES = 4
SEED = 20261129


def own_pages(count: int) -> Kind:
    """Draw A4 pages at 150 dpi in the typeface that Pillow brings, the same ones in every run.

    Even pages go on in the text of the project's licence and begin it again at its end. Odd ones have
    generated sentences, a third with figures and a third with signs. Training never used the typeface.
    """
    licence = _licence()
    pages = (_page(number, _sentences(number) if number % 2 else licence) for number in range(count))
    return Kind(OWN, tuple(pages))


def sample_page() -> Kind:
    """Draw one page more of generated sentences, for what is fitted before it is measured."""
    return Kind("sample", (_page(-1, _sentences(-1)),))


def _licence() -> Iterator[list[str]]:
    paragraphs = (ROOT / "LICENSE").read_text(encoding="utf-8").split("\n\n")
    while True:
        yield from (paragraph.split() for paragraph in paragraphs if paragraph.strip())


def _sentences(number: int) -> Iterator[list[str]]:
    sentences = Sentences(random.Random(f"{SEED} {number}"))  # noqa: S311 - draws pages, not secrets
    while True:
        # the typeface has ASCII alone
        words = (word.encode("ascii", "ignore").decode() for word in sentences.paragraph(SENTENCES))
        yield [word for word in words if word]


def _page(number: int, paragraphs: Iterator[list[str]]) -> Sample:
    """Print paragraphs until the page is full. The last one may be cut off; it is then used up."""
    size = SIZES_PX[number % len(SIZES_PX)]
    font = ImageFont.load_default(size)
    image = Image.new("L", A4_PX, 255)
    draw = ImageDraw.Draw(image)
    width, bottom = A4_PX[0] - 2 * MARGIN_PX, A4_PX[1] - MARGIN_PX - LEADING * size
    top, printed = float(MARGIN_PX), list[str]()
    for words in paragraphs:
        while words and top <= bottom:
            line = words[:1]
            while len(line) < len(words) and font.getlength(" ".join(words[: len(line) + 1])) <= width:
                line = words[: len(line) + 1]
            draw.text((MARGIN_PX, top), " ".join(line), 0, font)
            printed.append(" ".join(line))
            words = words[len(line) :]  # noqa: PLW2901 - the rest of the same paragraph
            top += LEADING * size
        top += GAP * size
        if top > bottom:
            break
    upload = image.convert("RGB")
    upload.info["dpi"] = (DPI, DPI)
    return Sample(f"{OWN} {number}", upload, "\n".join(printed))
