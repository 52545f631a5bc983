"""Measure how often each sign is misread: digits, letters, and each of ``& § < > = + # / { }`` and more.

    python -m benchmarks.signs [--before FOLDER] [--pages 10] [--out benchmarks/results/signs.json]

Pages are A4 at 150 dpi. Their text has far more signs than a book, each where documents have it. Some are
drawn in fonts that training never uses, clean and degraded; others are PDF pages in usual typefaces. The
sentences are this file's own, not training's. Pages are read as the service reads them, with the plain
prompt, and aligned with what was printed; white space is left out. ``--before`` reads the same pages with an
earlier checkpoint in the same run, such as ``git show COMMIT:app/pocket/weights/model.safetensors`` beside
the other files of its folder.
"""

import argparse
import asyncio
import random
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from app.documents.raster.poppler import describe_page, render
from app.open_reader import open_reader
from benchmarks.accuracy.pages import A4_PX, DPI, damaged
from benchmarks.accuracy.reading import PLAIN, options_of, read_all
from benchmarks.report import publish
from training.errors_in_text import character_error_rate
from training.layout import Family
from training.printed import Face, PrintedPage
from training.render import draw_page
from training.settings import Settings, load_settings

SIGNS = "&§<>=+#/\\{}[]()%@*|~^_$€£°"
SEED = 20261129
DRAWN, DEGRADED, PDF = "held-out fonts", "degraded", "pdf"
KINDS = (DRAWN, DEGRADED, PDF)
BODY_PT, LEADING, MARGIN_PX = (9.0, 12.0), 1.4, 120
PDF_FACES = (
    "liberation/LiberationSans-Regular.ttf",
    "liberation/LiberationSerif-Regular.ttf",
    "dejavu/DejaVuSans.ttf",
    "dejavu/DejaVuSerif.ttf",
    "liberation/LiberationMono-Regular.ttf",
)
PT_AN_INCH, PDF_MARGIN_PT = 72, 58
MOST_CONFUSIONS = 3
Makers = Sequence[Callable[[], str]]
_WORDS = """
account address amount answer appendix article balance board bridge building button card chapter charge city
client column company contract copy corner cost council country court cover customer date deposit device
district draft engine entry estate factory farm field figure filter floor form garden glass harbour heading
holiday house industry island journal kitchen letter library licence machine manager margin market member
message mirror model month motor museum number office order owner package paper paragraph parish payment
picture port price printer product project quarter railway reader receipt record region report river road
sample school season section service sheet signal station street student supply surface system table teacher
ticket timber tower town trade valley version village volume wagon water weather window winter worker year
""".split()
_JOINTS = "the of and to in for with from by under after before between without and the of in".split()


class Sentences:
    """Sentences of words, of figures, or about signs; reproducible from ``rng``."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def paragraph(self, count: int) -> list[str]:
        """Return the words of ``count`` sentences, about a third of each sort."""
        makers: Makers = (self._plain, self._figures, self._signs)
        return [word for _ in range(count) for word in self._rng.choice(makers)().split()]

    def _word(self) -> str:
        return self._rng.choice(_WORDS)

    def _name(self) -> str:
        return self._word().capitalize()

    def _digits(self, fewest: int, most: int | None = None) -> str:
        count = self._rng.randint(fewest, most or fewest)
        return "".join(self._rng.choices(string.digits, k=count))

    def _phrase(self) -> str:
        words = (f"{self._rng.choice(_JOINTS)} {self._word()}" for _ in range(self._rng.randint(2, 4)))
        return " ".join(words)

    def _plain(self) -> str:
        mark = self._rng.choice([", ", "; ", ", ", " "])
        return f"The {self._word()} {self._phrase()}{mark}{self._word()} {self._phrase()}."

    def _figures(self) -> str:
        d = self._digits
        makers: Makers = (
            lambda: f"on {d(2)}.{d(2)}.{d(4)} and {d(4)}-{d(2)}-{d(2)}, or {d(1, 2)}/{d(1, 2)}/{d(2)}",
            lambda: f"for {d(1, 3)}.{d(2)}, {d(1, 3)},{d(3)}.{d(2)} and {d(1, 2)}.{d(3)},{d(2)}",
            lambda: f"at +{d(2)} {d(3)} {d(5, 8)} or ({d(3)}) {d(3)}-{d(4)}",
            lambda: f"under no. {d(5, 9)}, {self._name()[:2].upper()}{d(4, 6)} and {d(2)}-{d(4)}-{d(1)}",
            lambda: f"{d(1, 3)}; {d(2, 4)}; {d(1, 5)}; {d(3)}; {d(1)}; {d(6)}",
            lambda: f"from {d(2)}:{d(2)} to {d(2)}:{d(2)}, pp. {d(2, 3)}-{d(3)}",
            lambda: f"weighing {d(1, 4)} kg, {d(1)}.{d(1, 3)} m and {d(2)} mm",
        )
        return f"The {self._word()} {self._rng.choice(makers)()} {self._phrase()}."

    def _signs(self) -> str:
        word, name, d = self._word, self._name, self._digits
        makers: Makers = (
            lambda: f"{name()} & {name()} and the {word()} & {word()} of {name()}, {name()} & Co",
            lambda: f"the R&D of AT&T, {word()} & {word()}, Q&A",
            lambda: f"see § {d(1, 3)} or §§ {d(1, 2)}-{d(2)} of the {word()}",
            lambda: f"under §{d(2)}a, § {d(2)} ({d(1)}) and § {d(1)} no. {d(1)}",
            lambda: f"if a < b and n > {d(1, 2)}, p < 0.{d(2)}, then x >= y",
            lambda: f"<{word()}> is in <{word()}> and </{word()}>",
            lambda: f"x = y + z and {d(1)} + {d(1)} = {d(2)}, n += {d(1)}, a == b",
            lambda: f"the {word()} #{d(1, 3)} or # {d(2)} in C# and F#",
            lambda: f"{word()}/{word()} and/or km/h, n/a, /usr/{word()}/{word()}",
            lambda: f"in C:\\{word()}\\{word()} or \\{word()} and \\{word()}",
            lambda: f"the set {{a, {word()}, c}} of {{{word()}}} and {{ {d(1)} }}",
            lambda: f"[{d(1, 2)}], {word()}[{d(1)}] and [{word()}]",
            lambda: f"|{word()}| or a | b, ~{d(2)} and ~/{word()}, x^{d(1)} and e^x",
            lambda: f"{word()}_{word()}, {d(1)} * {d(2)}, *{word()}* and {word()}@{word()}.org",
            lambda: f"{d(2)} % or {d(1, 2)}%, {d(2)} °C and {d(1)}° ({word()})",
            lambda: f"for $ {d(1, 3)}, ${d(1, 3)}.{d(2)}, €{d(2)}, £{d(2, 3)} and £ {d(1)}",
        )
        return f"The {self._word()} {self._rng.choice(makers)()} {self._rng.choice(_JOINTS)} {self._word()}."


@dataclass(frozen=True, slots=True)
class Printed:
    """A page as it is uploaded, and the text printed on it."""

    image: Image.Image
    text: str


def drawn_page(rng: random.Random, families: Sequence[Family], *, is_degraded: bool) -> Printed:
    """Draw wrapped sentences of one size in one font; leave out characters that the font lacks."""
    face = Face(rng.choice(families).regular, rng.uniform(*BODY_PT) * DPI / PT_AN_INCH)
    page = PrintedPage(*A4_PX)
    baseline, lines = MARGIN_PX + face.size, list[str]()
    for words in _paragraphs(rng):
        for line in _wrapped([face.fit(word) for word in words], face, A4_PX[0] - 2 * MARGIN_PX):
            if baseline > A4_PX[1] - MARGIN_PX:
                break
            page.print_line(line, MARGIN_PX, baseline, face)
            lines.append(" ".join(line))
            baseline += face.size * LEADING
        baseline += face.size
    image = draw_page(rng, page)
    image = damaged(rng, image)[0] if is_degraded else ImageOps.autocontrast(image)
    return Printed(_upload(image), "\n".join(lines))


def _paragraphs(rng: random.Random) -> list[list[str]]:
    """Return more paragraphs than fit on a page."""
    sentences = Sentences(rng)
    return [sentences.paragraph(rng.randint(3, 8)) for _ in range(16)]


def _wrapped(words: Sequence[str], face: Face, width: float) -> Iterator[list[str]]:
    line: list[str] = []
    for word in words:
        if line and face.width(" ".join([*line, word])) > width:
            yield line
            line = []
        line.append(word)
    yield line


def _upload(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.info["dpi"] = (DPI, DPI)
    return image


def pdf_pages(rng: random.Random, faces: Sequence[Path], count: int) -> list[Printed]:
    """Make a PDF with a typeface and size for each page, and rasterize it as an upload is."""
    from fpdf import FPDF  # noqa: PLC0415 - the rest needs it not

    pdf = FPDF(unit="pt", format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_margin(PDF_MARGIN_PT)
    texts: list[str] = []
    for number in range(count):
        font = faces[number % len(faces)]
        size = rng.uniform(*BODY_PT)
        pdf.add_font(f"face{number}", fname=font)
        pdf.add_page()
        pdf.set_font(f"face{number}", size=size)
        face, height, lines = Face(font, 100), size * LEADING, list[str]()
        width = (pdf.w - 2 * PDF_MARGIN_PT) * face.size / size
        for words in _paragraphs(rng):
            for line in _wrapped([face.fit(word) for word in words], face, width):
                if pdf.get_y() + height > pdf.h - PDF_MARGIN_PT:
                    break
                pdf.cell(h=height, text=" ".join(line), new_x="LMARGIN", new_y="NEXT")
                lines.append(" ".join(line))
            pdf.ln(height)
        texts.append("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signs.pdf"
        pdf.output(str(path))
        pages = [describe_page(str(path), number + 1) for number in range(count)]
        images = [render(page, A4_PX[1])[0] for page in pages]
    return [Printed(_upload(image), text) for image, text in zip(images, texts, strict=True)]


def pages_of(kind: str, settings: Settings, count: int) -> list[Printed]:
    """Return the pages of a kind, the same ones in every run."""
    rng = random.Random(f"{SEED} {kind}")  # noqa: S311 - draws pages, not secrets
    if kind == PDF:
        return pdf_pages(rng, [settings.render.folders[0] / face for face in PDF_FACES], count)
    families = settings.render.families(held_out=True)
    return [drawn_page(rng, families, is_degraded=kind == DEGRADED) for _ in range(count)]


@dataclass(slots=True)
class Tally:
    """Counts of characters printed, of those misread and as what, and of those invented."""

    printed: Counter[str] = field(default_factory=Counter)
    misread: Counter[tuple[str, str]] = field(default_factory=Counter)
    invented: int = 0

    def add(self, read: str, truth: str) -> None:
        left, right = "".join(truth.split()), "".join(read.split())
        self.printed.update(left)
        for printed, as_read in aligned(left, right):
            if not printed:
                self.invented += 1
            elif printed != as_read:
                self.misread[printed, as_read] += 1

    def figures(self) -> dict[str, Any]:
        """Return errors of digits together, of letters together, and of every sign alone."""
        signs = {sign: self._of(sign) for sign in SIGNS}
        return {
            "digits": self._of(string.digits),
            "letters": self._of(string.ascii_letters),
            "signs_together": self._of(SIGNS),
            "signs": {sign: figures for sign, figures in signs.items() if figures["printed"]},
            "invented": self.invented,
        }

    def _of(self, characters: str) -> dict[str, Any]:
        printed = sum(self.printed[character] for character in characters)
        wrong = Counter({pair: count for pair, count in self.misread.items() if pair[0] in characters})
        return {
            "printed": printed,
            "misread": wrong.total(),
            "error": round(wrong.total() / max(1, printed), 4),
            "read_as": [[*pair, count] for pair, count in wrong.most_common(MOST_CONFUSIONS)],
        }


def aligned(left: str, right: str) -> list[tuple[str, str]]:
    """Align two texts with the fewest edits. Return pairs of characters; an empty string stands for none."""
    steps = _distances(left, right)
    pairs: list[tuple[str, str]] = []
    row, column = len(left), len(right)
    while row or column:
        here = steps[row, column]
        both = row and column
        if both and here == steps[row - 1, column - 1] + (left[row - 1] != right[column - 1]):
            row, column = row - 1, column - 1
            pairs.append((left[row], right[column]))
        elif row and here == steps[row - 1, column] + 1:
            row -= 1
            pairs.append((left[row], ""))
        else:
            column -= 1
            pairs.append(("", right[column]))
    return pairs[::-1]


def _distances(left: str, right: str) -> npt.NDArray[np.int32]:
    """Compute Levenshtein's table, (L + 1, R + 1)."""
    codes = np.array([ord(character) for character in right], np.int32)
    across = np.arange(len(right) + 1, dtype=np.int32)
    table = np.empty((len(left) + 1, len(right) + 1), np.int32)
    table[0] = across
    for row, character in enumerate(left, 1):
        above, now = table[row - 1], table[row]
        now[0] = row
        now[1:] = np.minimum(above[1:] + 1, above[:-1] + (codes != ord(character)))
        # then insertions, any number in a row
        now[:] = np.minimum.accumulate(now - across) + across
    return table


async def read_signs(checkpoint: str, pages: dict[str, list[Printed]]) -> dict[str, Any]:
    """Read the pages; return figures of each kind of page and of all together."""
    reader = open_reader(checkpoint)
    whole = Tally()
    kinds: dict[str, Any] = {}
    try:
        for kind, printed in pages.items():
            readings = await read_all(reader, [page.image for page in printed], options_of(PLAIN, "dynamic"))
            tally, truth = Tally(), [page.text for page in printed]
            for read, text in zip(readings.texts, truth, strict=True):
                tally.add(read, text)
                whole.add(read, text)
            error = round(character_error_rate(readings.texts, truth), 4)
            kinds[kind] = {"character_error_rate": error, **tally.figures()}
            _show(checkpoint, kind, tally)
    finally:
        await reader.close()
    _show(checkpoint, "all", whole)
    return {"all": whole.figures(), "kinds": kinds}


def _show(checkpoint: str, kind: str, tally: Tally) -> None:
    figures = tally.figures()
    signs = " ".join(f"{sign} {of['error']:.3f}" for sign, of in figures["signs"].items())
    parts = (f"{name} {figures[name]['error']:.4f}" for name in ("digits", "letters", "signs_together"))
    print(f"{checkpoint}, {kind}: {', '.join(parts)}; {signs}", flush=True)


def measure(checkpoints: dict[str, str], settings: Settings, count: int) -> dict[str, Any]:
    """Measure checkpoints on the same pages. ``checkpoints``: name of the figures -> checkpoint."""
    pages = {kind: pages_of(kind, settings, count) for kind in KINDS}
    read = {name: asyncio.run(read_signs(folder, pages)) for name, folder in checkpoints.items()}
    return {"benchmark": "signs", "pages_a_kind": count, **read}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="pocket", help="name or folder (default: %(default)s)")
    parser.add_argument("--before", help="folder of an earlier one")
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    parser.add_argument("--pages", type=int, default=10, help="of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoints = {"before": arguments.before} if arguments.before else {}
    checkpoints["after"] = arguments.checkpoint
    figures = measure(checkpoints, load_settings(arguments.settings), arguments.pages)
    publish(figures, torch.device("cpu"), arguments.out)


if __name__ == "__main__":
    main()
