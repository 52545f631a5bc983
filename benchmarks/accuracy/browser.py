"""Pages that no code of this project lays out: HTML in many styles, printed by WeasyPrint.

The layouts of ``training/`` may be what this project's reader expects. Here lists, cells, headings and
columns stand where browsers and their like put them. WeasyPrint is no dependency: its command is called where
it is found.
"""

import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from pdf2image import convert_from_path, pdfinfo_from_path

from benchmarks.accuracy.pages import DPI, Kind, Sample
from training.layout import Family
from training.settings import Settings
from training.text import TextSource

BROWSER = "browser"
FIRST_SEED = 1 << 50
PAGE_SECONDS = 60
COMMON = 0.8
"""Share of paragraphs in which common words are as frequent as in ordinary English."""
BULLETS = {"disc": "•", "circle": "◦", "square": "▪", '"– "': "–"}  # noqa: RUF001
RULES = {
    "grid": "td,th{border:1px solid #000}",
    "between": "tr{border-bottom:1px solid #444}table{border-top:1px solid #444}",
    "head": "table{border-top:2px solid;border-bottom:2px solid}th{border-bottom:1px solid}",
    "shaded": "th{background:#ddd}tr:nth-child(odd) td{background:#f2f2f2}",
    "none": "",
}


class WeasyPrintMissing(Exception):
    """The command of WeasyPrint cannot be run."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page. ``tag``: its HTML tag. ``parts``: a text, items of a list, or rows of a table."""

    tag: str
    parts: tuple[tuple[str, ...], ...]

    @property
    def html(self) -> str:
        if self.tag == "table":
            head, *others = self.parts
            rows = [_row(head, "th"), *(_row(cells, "td") for cells in others)]
            return f"<table>{''.join(rows)}</table>"
        if self.tag in ("ul", "ol"):
            return f"<{self.tag}>{''.join(f'<li>{escape(item)}' for (item,) in self.parts)}</{self.tag}>"
        return f"<{self.tag}>{escape(self.parts[0][0])}</{self.tag}>"

    @property
    def markdown(self) -> str:
        if self.tag == "table":
            rows = ("".join(f"<td>{escape(cell, quote=False)}</td>" for cell in row) for row in self.parts)
            return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
        marks = {"h1": "# ", "h2": "## ", "p": "", "ul": "- "}
        return "\n".join(
            f"{marks.get(self.tag, f'{number}. ')}{text}" for number, (text,) in enumerate(self.parts, 1)
        )

    def text(self, bullet: str) -> str:
        if self.tag == "table":
            return "\n".join(" ".join(row) for row in self.parts)
        marks = {"h1": "", "h2": "", "p": "", "ul": f"{bullet} "}
        return "\n".join(
            f"{marks.get(self.tag, f'{number}. ')}{text}" for number, (text,) in enumerate(self.parts, 1)
        )


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(_cell(cell, tag) for cell in cells)}</tr>"


def _cell(cell: str, tag: str) -> str:
    kind = " class=number" if tag == "td" and cell[:1].isdigit() else ""
    return f"<{tag}{kind}>{escape(cell)}</{tag}>"


def browser_pages(settings: Settings, command: str) -> "BrowserPages":
    """Make the source of browser pages, in the fonts that training never draws."""
    render = settings.render
    text = TextSource(render.words, common=COMMON)
    return BrowserPages(command, text, render.families(held_out=True))


class BrowserPages:
    """Source of browser pages. ``command``: WeasyPrint's. ``families``: fonts the pages are set in."""

    def __init__(self, command: str, text: TextSource, families: Sequence[Family]) -> None:
        self._command, self._text, self._families = command, text, families

    def kind(self, count: int) -> Kind:
        """Print ``count`` pages, the same ones in every run. Raise ``WeasyPrintMissing``."""
        return Kind(BROWSER, tuple(self._page(FIRST_SEED + number) for number in range(count)))

    def _page(self, seed: int) -> Sample:
        """Print a page of as many blocks as fit on it."""
        rng = random.Random(seed)  # noqa: S311 - draws pages, not secrets
        in_two = rng.random() < 0.3
        blocks = self.blocks(rng, max_columns=3 if in_two else 5)
        style, bullet, is_numbered = self._style(rng, in_two=in_two)
        with TemporaryDirectory() as folder:
            pdf = Path(folder) / "page.pdf"
            while True:
                self._print(f"<style>{style}</style>{''.join(block.html for block in blocks)}", pdf)
                if pdfinfo_from_path(str(pdf))["Pages"] == 1 and blocks[-1].tag not in ("h1", "h2"):
                    break
                blocks.pop()
            (image,) = convert_from_path(str(pdf), dpi=DPI)
        image.info["dpi"] = (DPI, DPI)
        number = ["1"] if is_numbered else []
        text = "\n\n".join([*(block.text(bullet) for block in blocks), *number])
        markdown = "\n\n".join([*(block.markdown for block in blocks), *number])
        return Sample(f"browser {seed - FIRST_SEED}", image, text, markdown)

    def _print(self, html: str, pdf: Path) -> None:
        source = pdf.with_suffix(".html")
        source.write_text(f"<html lang=en><meta charset=utf-8>{html}", encoding="utf-8")
        command = [self._command, "--quiet", str(source), str(pdf)]
        try:
            subprocess.run(command, check=True, timeout=PAGE_SECONDS, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise WeasyPrintMissing(f"{self._command}: {error} (pip install weasyprint)") from error

    def blocks(self, rng: random.Random, *, max_columns: int) -> list[Block]:
        blocks = [Block("h1", ((self._title(rng),),)), self._paragraph(rng)]
        for _ in range(rng.randint(2, 4)):
            if rng.random() < 0.85:
                blocks += [Block("h2", ((self._title(rng),),)), self._paragraph(rng)]
            for _ in range(rng.randint(0, 2)):
                kind = rng.choice(["ul", "ol", "table", "p"])
                if kind == "table":
                    blocks.append(self._table(rng, max_columns))
                elif kind != "p":
                    count, longest = rng.randint(2, 6), rng.choice([5, 5, 18])
                    items = (self._sentence(rng, rng.randint(2, longest)) for _ in range(count))
                    blocks.append(Block(kind, tuple((item,) for item in items)))
                blocks.append(self._paragraph(rng))
        return blocks

    def _paragraph(self, rng: random.Random) -> Block:
        return Block("p", ((self._sentence(rng, rng.randint(12, 60)),),))

    def _sentence(self, rng: random.Random, num_words: int) -> str:
        words = self._text.paragraph(rng, num_words)
        # text that begins like a list item would be one in the true Markdown
        return " ".join(words).lstrip("-*+#0123456789.) ") or "None"

    def _title(self, rng: random.Random) -> str:
        words = [word for word in self._sentence(rng, rng.randint(1, 6)).split() if word.isalpha()]
        return " ".join(word.capitalize() for word in words) or "Untitled"

    def _table(self, rng: random.Random, max_columns: int) -> Block:
        rows, columns = rng.randint(3, 6), rng.randint(2, max_columns)
        numbers = [column > 0 and rng.random() < 0.5 for column in range(columns)]
        head = tuple(" ".join(self._title(rng).split()[:2]) for _ in numbers)
        body = (tuple(self._entry(rng, is_number=number) for number in numbers) for _ in range(rows - 1))
        return Block("table", (head, *body))

    def _entry(self, rng: random.Random, *, is_number: bool) -> str:
        if is_number:
            return rng.choice(
                [f"{rng.uniform(0, 999):.2f}", f"{rng.randrange(99999):,}", f"{rng.randrange(100)}%"]
            )
        return " ".join(self._title(rng).split()[:3])

    def _style(self, rng: random.Random, *, in_two: bool) -> tuple[str, str, bool]:
        """Draw a style: (CSS, bullet, whether the page has a number)."""
        body = rng.choice(self._families)
        heading = body if rng.random() < 0.6 else rng.choice(self._families)
        is_numbered, bullet = rng.random() < 0.5, rng.choice([*BULLETS])
        margin = f"{rng.uniform(15, 28):.0f}mm {rng.uniform(15, 28):.0f}mm"
        title, sub_title = rng.uniform(1.5, 2.2), rng.uniform(1.15, 1.45)
        rules = [
            _faces("body", body) + _faces("heading", heading),
            f"@page{{size:A4;margin:{margin}}}",
            "@page{@bottom-center{content:counter(page)}}" if is_numbered else "",
            f"body{{font:{rng.uniform(9, 13):.2f}pt/{rng.uniform(1.15, 1.6):.2f} body;",
            rng.choice(["text-align:justify;hyphens:auto;", ""]) + ("columns:2;" if in_two else "") + "}",
            "h1,h2{font-family:heading;line-height:1.2;text-align:left;hyphens:none;break-after:avoid}",
            f"h1{{font-size:{title:.2f}em;text-align:{rng.choice(['left', 'center'])}}}",
            f"h2{{font-size:{sub_title:.2f}em;font-weight:{rng.choice(['bold', 'bold', 'normal'])}}}",
            f"p{{margin:{rng.uniform(0.3, 1):.2f}em 0;{'text-indent:1.5em' if rng.random() < 0.2 else ''}}}",
            f"li{{margin:{rng.choice([0, 0, 0.2, 0.5])}em 0}}ul{{list-style-type:{bullet}}}",
            f"ul,ol{{padding-left:{rng.uniform(1.2, 2.5):.1f}em}}table,ul,ol,li{{break-inside:avoid}}",
            f"table{{margin:1em {rng.choice(['0', 'auto'])};{'width:100%' if rng.random() < 0.4 else ''}}}",
            "table{border-collapse:collapse;text-align:left;hyphens:none}",
            f"td,th{{padding:{rng.uniform(0.15, 0.5):.2f}em {rng.uniform(0.4, 1):.2f}em;",
            f"text-align:{rng.choice(['left', 'left', 'center'])}}}",
            "td.number{text-align:right}" if rng.random() < 0.5 else "",
            RULES[rng.choice([*RULES])],
        ]
        return "".join(rules), BULLETS[bullet], is_numbered


def _faces(name: str, family: Family) -> str:
    return "".join(
        f"@font-face{{font-family:{name};font-weight:{weight};src:url({path.as_uri()})}}"
        for weight, path in (("normal", family.regular), ("bold", family.bold))
    )
