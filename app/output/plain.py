"""Convert Markdown to plain text: the words without the markup."""

import re
from html import unescape

from app.output.html import REFERENCE, REFERENCE_OR_ESCAPE
from app.output.spans import Span, spans_of
from app.output.tables import cells_of, rows_of, with_tables

HEADING = re.compile(r"^ {0,3}#{1,6}(?:[ \t]++|$)(?P<text>.*)$", re.MULTILINE)
DELIMITER_ROW = re.compile(r" {0,3}+\|?[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+\|?[ \t]*+")
STRONG = re.compile(r"(?<!\*)\*\*(?=[^\s*])([^*\n]*[^\s*])\*\*(?!\*)")
EMPHASIS = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?![\w*])")
TAG = re.compile(r"</?(?:sub|sup|table|thead|tbody|tr|td|th)(?: [^<>\n]*)?>")
KEPT = re.compile("\0([0-9]+)\0")


def to_plain(markdown: str) -> str:
    """Return the text of Markdown. A table row becomes a line with tabs between cells; ``<br>`` a line break.

    Marks of lists stay, and so do the delimiters of math, which is unintelligible without them.
    """
    kept: list[str] = []

    def keep(text: str) -> str:
        """Store text that is no longer markup, and return a placeholder for it."""
        kept.append(text)
        return f"\0{len(kept) - 1}\0"

    def restored(text: str) -> str:
        return KEPT.sub(lambda sign: kept[int(sign[1])], text)

    def undo(match: re.Match[str]) -> str:
        return keep(match["escaped"] or unescape(match[0]))

    def undo_reference(match: re.Match[str]) -> str:
        return keep(unescape(match[0]))

    def table(html: str) -> str:
        return keep("\n".join("\t".join(map(cell, cells_of(row))) for row in rows_of(html)))

    def cell(html: str) -> str:
        return " ".join(restored(TAG.sub("", html.replace("<br>", " "))).split())

    pieces: list[str] = []
    for span in spans_of(markdown):
        literal = _literal(markdown, span)
        if literal is None:
            text = markdown[span.start : span.end]
            is_html = span.kind == "html"
            pieces.append(
                REFERENCE.sub(undo_reference, text) if is_html else REFERENCE_OR_ESCAPE.sub(undo, text)
            )
        elif literal:
            pieces.append(keep(literal))
    text = with_tables("".join(pieces), table)
    text = TAG.sub("", text.replace("<br>", "\n"))
    text = HEADING.sub(lambda heading: _without_end(heading["text"]), text)
    text = EMPHASIS.sub(r"\1", STRONG.sub(r"\1", _with_rows(text)))
    return restored(text).strip("\n")


def _literal(markdown: str, span: Span) -> str | None:
    """Return the content of code and math; ``None`` for other text."""
    whole = markdown[span.start : span.end]
    match span.kind:
        case "fence":
            return "" if span.size else whole
        case "math":
            return whole
        case "code":
            content = whole[span.size : -span.size].replace("\n", " ")
            is_padded = content.startswith(" ") and content.endswith(" ") and content.strip()
            return content[1:-1] if is_padded else content
    return None


def _without_end(heading: str) -> str:
    """Remove the optional closing ``#`` signs of a heading."""
    text = heading.rstrip()
    bare = text.rstrip("#")
    return bare.rstrip() if bare != bare.rstrip() or not bare else text


def _with_rows(text: str) -> str:
    """Turn rows of tables with ``|`` into lines with tabs."""
    if "|" not in text:
        return text
    lines: list[str] = []
    is_table = False
    for line in text.split("\n"):
        if not is_table and "|" in line and lines and "|" in lines[-1] and DELIMITER_ROW.fullmatch(line):
            is_table = True
            lines[-1] = _row(lines[-1])
            continue
        is_table = is_table and "|" in line
        lines.append(_row(line) if is_table else line)
    return "\n".join(lines)


def _row(line: str) -> str:
    return "\t".join(cell.strip() for cell in line.strip().strip("|").split("|"))
