"""Split the Markdown of any tool into text blocks, formulas and tables, in reading order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from app.evaluation.html_tables import Table, is_dash_line, parse_html_table, parse_pipe_table
from app.evaluation.latex_tables import parse_tabular

Kind = Literal["text", "formula", "table"]

_FENCE_AROUND_ALL = re.compile(r"\A\s*```(?:markdown|md)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_IMAGE = re.compile(r"!\[[^\]\n]{0,500}\]\([^)\n]{0,2000}\)|<img\b[^>]{0,2000}>|<!--.{0,2000}?-->", re.DOTALL)
# bounded: in a text with many openings and no closing, each opening would be searched to the end of the text
_PIECE = re.compile(
    r"(?P<table><table\b.*?(?:</table\s*>|\Z))"
    r"|(?P<tabular>\\begin\{tabular.*?(?:\\end\{tabular[x*]?\}|\Z))"
    r"|\$\$(?P<dollars>.{0,4000}?)\$\$"
    r"|\\\[(?P<brackets>.{0,4000}?)\\\]"
    r"|(?P<environment>\\begin\{(?P<name>equation|align|gather|multline|eqnarray)\*?\}.{0,4000}?\\end\{(?P=name)\*?\})"
    r"|^```[^\n]*\n(?P<code>.{0,20000}?)^```",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Part:
    """One block of a page. ``content``: text, a formula's TeX without delimiters, or all text of a table."""

    kind: Kind
    content: str
    table: Table | None = None


def split_markdown(markdown: str) -> list[Part]:
    """Return all parts, in order. Leave out pictures and comments; treat code as text."""
    around_all = _FENCE_AROUND_ALL.match(markdown)
    text = _IMAGE.sub("", around_all[1] if around_all else markdown)
    parts: list[Part] = []
    start = 0
    for piece in _PIECE.finditer(text):
        parts += _blocks(text[start : piece.start()])
        parts.append(_special(piece))
        start = piece.end()
    parts += _blocks(text[start:])
    return [part for part in parts if part.content.strip() or part.table is not None]


def _special(piece: re.Match[str]) -> Part:
    if piece["table"] is not None:
        table = parse_html_table(piece["table"])
        return Part("table", table.text, table)
    if piece["tabular"] is not None:
        table = parse_tabular(piece["tabular"])
        return Part("table", table.text, table)
    if piece["code"] is not None:
        return Part("text", piece["code"])
    formulas = (piece["dollars"], piece["brackets"], piece["environment"])
    return Part("formula", next(formula for formula in formulas if formula is not None))


def _blocks(text: str) -> Iterator[Part]:
    """Yield the paragraphs, which empty lines separate, and the pipe tables of a text."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = paragraph.strip().split("\n")
        first = next((y - 1 for y in range(1, len(lines)) if is_dash_line(lines[y])), None)
        if first is None or "|" not in lines[first]:
            yield Part("text", paragraph.strip())
            continue
        end = next((y for y in range(first, len(lines)) if "|" not in lines[y]), len(lines))
        yield Part("text", "\n".join(lines[:first]))
        table = parse_pipe_table(lines[first:end])
        yield Part("table", table.text, table)
        yield Part("text", "\n".join(lines[end:]))
