"""Make docs/sample.pdf, the document of `make demo`: pages of the kind the pocket checkpoint reads.

python -m training.sample docs/sample.pdf      (needs the `training` extra)
"""

import sys
from pathlib import Path

PAGE_MM = 90
PAGES = [
    (
        "liberation/LiberationSerif-Regular.ttf",
        27,
        "Reading a page\nstarts with light.\nWhat is dark may\nbe a letter, what\nis white is paper.",
    ),
    (
        "dejavu/DejaVuSans.ttf",
        24,
        "A page of 256 px\nbecomes sixteen\npatch tokens.\nThose that carry\n"
        "little are folded\ninto the others.",
    ),
    (
        "lato/Lato-Regular.ttf",
        26,
        "Invoice 20481\nDate: 14/03/2026\nTotal: $349.50",
    ),
]


def make_sample(target: Path, font_folder: Path) -> None:
    from fpdf import FPDF  # noqa: PLC0415 - needed to make the file, not to know its text

    pdf = FPDF(unit="mm", format=(PAGE_MM, PAGE_MM))
    pdf.set_margin(5)
    pdf.set_auto_page_break(False)
    for index, (font, size_pt, text) in enumerate(PAGES):
        pdf.add_font(f"face{index}", fname=font_folder / font)
        pdf.set_font(f"face{index}", size=size_pt)
        pdf.add_page()
        pdf.multi_cell(w=0, h=size_pt * 0.3528 * 1.25, text=text, align="L")
    pdf.set_title("Sample for the pocket checkpoint")
    pdf.output(str(target))


if __name__ == "__main__":
    make_sample(Path(sys.argv[1]), Path("/usr/share/fonts/truetype"))
