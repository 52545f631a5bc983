"""Make docs/sample.pdf, the document of `make demo`: two ordinary A4 pages.

python -m training.sample docs/sample.pdf      (needs the `training` extra)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MM_PER_PT = 25.4 / 72
LEADING = 1.35


@dataclass(frozen=True, slots=True)
class Part:
    """A region of a page. ``lines``: the only text of a heading or paragraph, items, or a table's rows."""

    kind: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text as printed."""
        return "\n".join(line.replace("|", " ") for line in self.lines)


@dataclass(frozen=True, slots=True)
class SamplePage:
    font: str
    bold: str
    size_pt: float
    parts: Sequence[Part]

    @property
    def text(self) -> str:
        return "\n\n".join(part.text for part in self.parts)


PAGES = (
    SamplePage(
        "liberation/LiberationSerif-Regular.ttf",
        "liberation/LiberationSerif-Bold.ttf",
        12,
        (
            Part("title", ("Reading a page",)),
            Part(
                "text",
                (
                    "A page of print is mostly paper. The letters cover a tenth of it, and the rest is "
                    "margin, space between the lines, and the white inside every word. A reader who spends "
                    "the same time on each square inch wastes most of it.",
                ),
            ),
            Part(
                "text",
                (
                    "This service cuts the page into squares and turns each of them into a token. Tokens "
                    "that carry little are dropped or folded into their neighbours before the text is "
                    "written down. What is left is shorter, and says nearly the same.",
                ),
            ),
            Part("sub_title", ("What happens to a document",)),
            Part(
                "list",
                (
                    "It is stored, and its number is given back.",
                    "Every page becomes an image of 150 dots per inch.",
                    "The image becomes tokens, and some of them are pruned.",
                    "The text of each page is kept until somebody asks for it.",
                ),
            ),
            Part(
                "text",
                (
                    "Nothing that was accepted is lost when a machine stops. Another one takes the pages "
                    "that were not finished, and reads them again.",
                ),
            ),
        ),
    ),
    SamplePage(
        "open-sans/OpenSans-Regular.ttf",
        "open-sans/OpenSans-Bold.ttf",
        11,
        (
            Part("title", ("Stock of the paper room",)),
            Part(
                "text",
                (
                    "Counted on the first Monday of March by the two of us. Sheets that were damp are not "
                    "in the list; they are drying on the second floor and will be counted next month.",
                ),
            ),
            Part(
                "table",
                (
                    "Paper|Weight|Sheets",
                    "Plain white|80 g|12500",
                    "Cream, laid|120 g|2300",
                    "Card, blue|240 g|610",
                    "Envelope, long|90 g|4480",
                ),
            ),
            Part(
                "text",
                (
                    "The cream paper is for letters alone. Whoever takes the last ream of a kind writes it "
                    "on the board beside the door, with the day and a name.",
                ),
            ),
        ),
    ),
)


def make_sample(target: Path, font_folder: Path) -> None:
    from fpdf import FPDF  # noqa: PLC0415 - needed to make the file, not to know its text

    pdf = FPDF(unit="mm", format="A4")
    pdf.set_margin(25)
    pdf.set_auto_page_break(False)
    for index, page in enumerate(PAGES):
        pdf.add_font(f"face{index}", fname=font_folder / page.font)
        pdf.add_font(f"face{index}", style="B", fname=font_folder / page.bold)
        pdf.add_page()
        for part in page.parts:
            _print(pdf, f"face{index}", page.size_pt, part)
    pdf.set_title("Sample for the pocket checkpoint")
    pdf.output(str(target))


def _print(pdf: Any, face: str, size_pt: float, part: Part) -> None:
    scale = {"title": 1.7, "sub_title": 1.25}.get(part.kind, 1.0)
    pdf.set_font(face, style="B" if scale > 1 else "", size=size_pt * scale)
    height = size_pt * scale * MM_PER_PT * LEADING
    if part.kind == "table":
        for row in part.lines:
            for cell in row.split("|"):
                pdf.cell(w=45, h=height * 1.3, text=cell, border=1)
            pdf.ln()
    for line in part.lines if part.kind != "table" else ():
        if part.kind == "list":
            pdf.set_x(30)
            pdf.cell(w=6, h=height, text="•")
        pdf.multi_cell(w=0, h=height, text=line, align="L", new_x="LMARGIN", new_y="NEXT")
    pdf.ln(height * 0.7)


if __name__ == "__main__":
    make_sample(Path(sys.argv[1]), Path("/usr/share/fonts/truetype"))
