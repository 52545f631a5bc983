"""Join text that continues on the next page: a paragraph, a word, a table."""

import re
from collections.abc import Sequence
from dataclasses import replace

from app.output.figures import CAPTION, PICTURE_TYPES
from app.output.html import unescaped
from app.output.hyphens import flowed
from app.output.parts import Part
from app.output.spans import spans_of
from app.output.tables import cells_of, num_columns, rows_of

FLOWING = frozenset({None, "text", "paragraph", "plain_text", "list", "list_item"})
"""Types of blocks whose text may continue on the next page."""
SENTENCE_END = re.compile(r"[.!?:;…。！？]['\"”’»)\]*_]*$")  # noqa: RUF001 - ends of sentences in other scripts
NUMERIC = re.compile(r"[-+(]?[^\w\s]?\s?[0-9][0-9.,\s]*\s?[%)\w]{0,3}")
MAX_TABLE_SHIFT = 80
"""Largest difference between the sides of a table on two pages, in thousandths of the page."""
MAX_TEXT_CHARS = 20_000
MAX_TABLE_CHARS = 200_000
"""Text or tables beyond these sizes are not joined any further.

The whole text is searched again for each page that is joined to it, so the cost would be quadratic.
"""
TABLE_ENDS = ("</tbody></table>", "</table>")


def joined(last: Part, first: Part) -> Part | None:
    """Join a page's last part with the next page's first part.

    Return ``None`` if they are not one paragraph or table.
    """
    if _is_table(last.markdown) and _is_table(first.markdown):
        table = _joined_tables(last, first)
        return None if table is None else replace(last, markdown=table)
    if not (breaks_off(last) and begins_in_a_sentence(first)):
        return None
    return replace(last, markdown=flowed((last.markdown, first.markdown)))


def is_float(part: Part) -> bool:
    """Tell whether text may continue past a part as if it were not there: a figure, a caption."""
    kind = "" if part.type is None else part.type
    return kind.casefold() in PICTURE_TYPES or CAPTION.search(kind) is not None


def may_grow(part: Part) -> bool:
    """Tell whether a part is small enough for more pages to be joined to it."""
    return len(part.markdown) < (MAX_TABLE_CHARS if _is_table(part.markdown) else MAX_TEXT_CHARS)


def breaks_off(part: Part) -> bool:
    line = part.markdown.rsplit("\n", 1)[-1]
    return (
        _flows(part)
        and not line.startswith(("#", "|"))
        and spans_of(part.markdown)[-1].kind in ("text", "code", "math")
        and not part.markdown.endswith(("\\]", "$$"))
        and SENTENCE_END.search(unescaped(line)) is None
    )


def begins_in_a_sentence(part: Part) -> bool:
    # joined to other text, a code span may stop being one, and its "<" become a tag
    has_tag_in_code = "`" in part.markdown and "<" in part.markdown
    return _flows(part) and part.markdown[:1].islower() and not has_tag_in_code


def _flows(part: Part) -> bool:
    return part.type is None or part.type.casefold() in FLOWING


def _is_table(markdown: str) -> bool:
    is_one = markdown.startswith("<table>") and markdown.endswith("</table>")
    return is_one and markdown.count("<table>") == markdown.count("</table>") == 1


def _joined_tables(last: Part, first: Part) -> str | None:
    above, below = rows_of(last.markdown), rows_of(first.markdown)
    if not above or not below or num_columns(above) != num_columns(below) or not _are_aligned(last, first):
        return None
    if _words(below[0]) == _words(above[0]):
        below = below[1:]
    elif _has_own_head(below):
        return None
    end = next(end for end in TABLE_ENDS if last.markdown.endswith(end))
    rows = "".join(f"<tr>{row}</tr>" for row in below)
    return f"{last.markdown.removesuffix(end)}{rows}{end}"


def _are_aligned(last: Part, first: Part) -> bool:
    if last.box is None or first.box is None:
        return True
    sides = zip(last.box[::2], first.box[::2], strict=True)
    return all(abs(one - other) <= MAX_TABLE_SHIFT for one, other in sides)


def _words(row: str) -> list[list[str]]:
    return [unescaped(cell).casefold().split() for cell in cells_of(row)]


def _has_own_head(below: Sequence[str]) -> bool:
    """Tell whether the first row is a head, so that these rows are another table.

    A head has head cells, or words above columns of numbers.
    """
    if "<th" in below[0]:
        return True
    head, *others = (cells_of(row) for row in below)
    if not others or not head:
        return False
    columns = [[row[at] for row in others if at < len(row)] for at in range(len(head))]
    return any(
        not NUMERIC.fullmatch(title.strip()) and title.strip() and column and all(map(_is_number, column))
        for title, column in zip(head, columns, strict=True)
    )


def _is_number(cell: str) -> bool:
    return NUMERIC.fullmatch(cell.strip()) is not None
