"""A page's print: cut into lines in reading order, each with the views that show it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from PIL import Image

from app.ocr.regions.bullets import APART_EM, DASHES
from app.ocr.regions.finding import find_lines
from app.ocr.regions.ink import Ink, find_ink
from app.ocr.regions.lines import Line, Part, lines_of
from app.ocr.regions.order import in_order
from app.ocr.regions.prints import Lead, PageLines, Print, lead_of, prints_of
from app.ocr.regions.ruled import ruled_tables
from app.ocr.regions.rules import find_rules
from app.ocr.regions.views import LineView, line_views

FULL_EM, SAME_EM, NEXT_EM, INDENT_EM = 3.0, 0.5, 2.4, 3.5
"""White at a line's end that a word would have fit in; how far apart lines of a paragraph begin, and stand
below each other, and how far its first one is indented, at most; in heights of a line."""
UNDER_EM, AS_LARGE_EM = 0.2, 0.1
"""By how much bullets of a list are apart at their left, and differ in size."""


@dataclass(frozen=True, slots=True)
class CutPage:
    """``page``: ``None`` if blank. ``views``: for every line in order. ``counts``: of views, a line."""

    page: PageLines | None
    views: tuple[LineView, ...]
    counts: tuple[int, ...]


def cut_page(image: Image.Image) -> CutPage:
    """Everything printed on an upright page."""
    ink = find_ink(image)
    page = None if ink is None else find_print(ink)
    if ink is None or page is None:
        return CutPage(None, (), ())
    made = [line_views(ink, line, page.em) for line in page.lines]
    return CutPage(page, tuple(view for views in made for view in views), tuple(map(len, made)))


def find_print(ink: Ink) -> PageLines | None:
    """``None`` where no line is."""
    found, rules = find_lines(ink), find_rules(ink)
    parts = in_order(found, rules, ruled_tables(ink.mask, found, rules))
    return measured(ink, parts) if parts else None


def measured(ink: Ink, parts: Sequence[Part]) -> PageLines:
    """How lines in reading order are printed; bullets taken off them."""
    lines = [line for part in parts for line in lines_of(part)]
    em = float(np.median([line.height for line in lines]))
    prints = prints_of(ink, lines)
    found: dict[Line, Lead] = {}
    for part in parts:
        if isinstance(part, Line):
            own = prints[part]
            lead = lead_of(ink, part, own.base, em * max(1.0, own.size))
            if lead is not None:
                found[part] = lead
    found = {line: lead for line, lead in found.items() if lead.is_sure or _has_like(line, found, em)}
    leads: dict[Line, Lead] = {}
    texts: list[Part] = []
    for above, part, below in zip([None, *parts], parts, [*parts[1:], None], strict=False):
        text = part
        if isinstance(part, Line) and part in found and not _is_running((above, part, below), found, em):
            text = _without_bullet(part, found[part], prints)
            leads[text] = found[part]
        texts.append(text)
    height, width = ink.mask.shape
    return PageLines(tuple(texts), prints, leads, em, _usual_pitch(texts, prints, em), width, height)


def _has_like(line: Line, leads: dict[Line, Lead], em: float) -> bool:
    """Another line begins below or above it with the same sign; one like a letter, where that is a bullet or
    text stands apart from it.
    """
    own = leads[line]
    others = [
        lead
        for other, lead in leads.items()
        if other is not line
        and lead.bullet == own.bullet
        and abs(lead.left - own.left) <= UNDER_EM * em
        and abs(lead.text_left - own.text_left) <= UNDER_EM * em
        and abs(lead.width - own.width) <= AS_LARGE_EM * em
        and abs(lead.height - own.height) <= AS_LARGE_EM * em
    ]
    is_apart = own.text_left - own.left - own.width >= APART_EM * em
    return any(is_apart or lead.is_sure or lead.bullet in DASHES for lead in others)


def _is_running(around: tuple[Part | None, Line, Part | None], leads: dict[Line, Lead], em: float) -> bool:
    """A dash between words of a paragraph or an item, or another sign like a bullet, that came to stand at a
    line's begin: the lines above and below begin there too, or no other such sign does, and the one above is
    full.
    """
    above, line, below = around
    if not leads[line].is_bullet or not isinstance(above, Line):
        return False
    parts = [part for part in (above, below) if isinstance(part, Line)]
    if any(_is_bulleted(part, leads) and abs(part.left - line.left) < SAME_EM * em for part in parts):
        return False
    is_below = 0 < line.bottom - above.bottom < NEXT_EM * em
    if not is_below or above.right < line.right - FULL_EM * em or _hangs(below, line, leads[line], em):
        return False
    goes_on = (
        below in parts and _begins_at(below, line, leads, em) and below.bottom - line.bottom <= NEXT_EM * em
    )
    indent = _text_left(above, leads) - line.left
    if not _begins_at(above, line, leads, em):
        is_first = SAME_EM * em < indent < INDENT_EM * em and not _is_bulleted(above, leads)
        return goes_on and is_first and not _has_like(line, leads, em)
    if leads[line].bullet not in DASHES:
        return goes_on and not _has_like(line, leads, em)
    is_last = line.width < above.right - _text_left(above, leads) - FULL_EM * em
    return goes_on or is_last or not _has_like(line, leads, em)


def _hangs(below: Part | None, line: Line, lead: Lead, em: float) -> bool:
    """It goes on under the text of an item."""
    if not isinstance(below, Line) or not 0 < below.bottom - line.bottom < NEXT_EM * em:
        return False
    return abs(below.left - lead.text_left) < UNDER_EM * em


def _begins_at(part: Part | None, line: Line, leads: dict[Line, Lead], em: float) -> bool:
    if not isinstance(part, Line):
        return False
    edges = (_text_left(part, leads), leads[part].text_left if part in leads else part.left)
    return any(abs(edge - line.left) < SAME_EM * em for edge in edges)


def _is_bulleted(line: Line, leads: dict[Line, Lead]) -> bool:
    return line in leads and leads[line].is_bullet


def _text_left(line: Line, leads: dict[Line, Lead]) -> int:
    """After the bullet."""
    return leads[line].text_left if _is_bulleted(line, leads) else line.left


def _without_bullet(line: Line, lead: Lead, prints: dict[Line, Print]) -> Line:
    if not lead.is_bullet:
        return line
    text = Line(lead.text_left, line.top, line.right, line.bottom)
    own = prints[line]
    cuts = tuple(tuple(one for one in cut if one.left >= text.left) for cut in own.letters.cuts)
    prints[text] = replace(own, gaps=own.gaps[1:], letters=replace(own.letters, cuts=cuts))
    return text


def _usual_pitch(parts: Sequence[Part], prints: dict[Line, Print], em: float) -> float:
    """From line to line of running text, pixels."""
    steps = [
        prints[below].base - prints[above].base
        for above, below in pairwise(parts)
        if isinstance(above, Line) and isinstance(below, Line)
    ]
    near = [step for step in steps if 0.8 * em < step < 2.6 * em]
    return float(np.percentile(near, 35)) if near else 1.4 * em
