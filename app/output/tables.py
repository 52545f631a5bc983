"""Read and rewrite tables in Markdown: HTML in the form that ``app.output.html`` leaves."""

import re
from collections.abc import Callable

CELL = re.compile(r"<t[dh](?: [^<>]*)?>")
COLSPAN = re.compile(r'colspan="([0-9]{1,3})"')
END = "</tr>"
TABLE_END = "</table>"


def with_tables(text: str, rewrite: Callable[[str], str]) -> str:
    """Rewrite every whole table in a text."""
    pieces: list[str] = []
    done = 0
    while (start := text.find("<table>", done)) >= 0 and (end := text.find(TABLE_END, start)) >= 0:
        end += len(TABLE_END)
        pieces += [text[done:start], rewrite(text[start:end])]
        done = end
    return "".join([*pieces, text[done:]])


def rows_of(html: str) -> list[str]:
    """Return the rows of a table, without ``<tr>``."""
    return [row.partition(END)[0] for row in html.partition(TABLE_END)[0].split("<tr>")[1:]]


def cells_of(row: str) -> list[str]:
    """Return the contents of a row's cells."""
    return [re.split(r"</t[dh]>", cell, maxsplit=1)[0] for cell in CELL.split(row)[1:]]


def num_columns(rows: list[str]) -> int:
    """Return the number of columns of the widest row."""
    return max((sum(map(_width, CELL.findall(row))) for row in rows), default=0)


def _width(tag: str) -> int:
    match = COLSPAN.search(tag)
    return max(1, int(match[1])) if match else 1
