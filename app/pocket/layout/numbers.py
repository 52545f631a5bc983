"""Recognise the page's own number and the numbers before the items of a list."""

import re
from collections.abc import Mapping
from dataclasses import replace

from app.pocket.layout.lines import Line
from app.pocket.layout.prints import PageLines

OF_PAGE = re.compile(
    r"(?:[-–—]\s*)?(?:page\s+)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:of|/)\s*\d{1,4})?(?:\s*[-–—.])?",  # noqa: RUF001
    re.IGNORECASE,
)
BETWEEN_DASHES = re.compile(r"([-–—])\s*(\d{1,4})\s*[-–—.]")  # noqa: RUF001
OF_ITEM = re.compile(r"(\d{1,3})\s?([.)])\s+(?=\S)")
FAR_EM = 0.6  # line heights of white, at least, between a page's number and its text
SAME_EM = 0.4  # line heights by which the left edges of a list's items differ at most
FIRST = 1


def page_number(page: PageLines, texts: Mapping[Line, str]) -> Line | None:
    """Find the line with the page's number: alone, above or below all others."""
    lines, far = page.lines, FAR_EM * page.em
    if len(lines) < 2:
        return None
    for line in page.parts:
        if not isinstance(line, Line) or not OF_PAGE.fullmatch(_with_bullet(page, line, texts[line])):
            continue
        others = [other for other in lines if other is not line]
        is_below = all(other.bottom + far <= line.top for other in others)
        if is_below or all(line.bottom + far <= other.top for other in others):
            return line
    return None


def shown_number(text: str) -> str:
    """Return a page's number as printed, with both dashes.

    One of them is often read as a dot or without its space.
    """
    match = BETWEEN_DASHES.fullmatch(text)
    return text if match is None else f"{match[1]} {match[2]} {match[1]}"


def with_leads_told(page: PageLines, texts: Mapping[Line, str]) -> PageLines:
    """Drop leads that only a space separates from the text, unless the text starts with a number."""
    leads = {
        line: lead
        for line, lead in page.leads.items()
        if not lead.is_narrow or OF_ITEM.match(texts[line]) is not None
    }
    return replace(page, leads=leads)


def numbered_items(page: PageLines, texts: Mapping[Line, str]) -> set[Line]:
    """Find the items of lists, however heavy their print: lines whose numbers follow each other.

    They stand under each other, with at most hanging lines between.
    """
    items: set[Line] = set()
    before: tuple[Line, int] | None = None
    for line in page.parts:
        if not isinstance(line, Line):
            before = None
            continue
        number = _item_number(page, line, texts[line])
        if number is not None:
            if before is not None and number == before[1] + 1 and _is_at(page, line, before[0].left):
                items |= {before[0], line}
            before = line, number
        elif before is not None and not _is_at(page, line, page.leads[before[0]].text_left):
            before = None
    return items


def _is_at(page: PageLines, line: Line, left: float) -> bool:
    return abs(line.left - left) < SAME_EM * page.em


def _item_number(page: PageLines, line: Line, text: str) -> int | None:
    match = OF_ITEM.match(text) if line in page.leads else None
    return int(match[1]) if match else None


def _with_bullet(page: PageLines, line: Line, text: str) -> str:
    lead = page.leads.get(line)
    return f"{lead.bullet} {text}" if lead is not None and lead.bullet is not None else text
