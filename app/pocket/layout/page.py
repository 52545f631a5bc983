"""Cut a page's print into lines in reading order, each with the views that show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from app.pocket.layout.finding import find_lines
from app.pocket.layout.ink import Ink, find_ink
from app.pocket.layout.lines import Line, Part, lines_of
from app.pocket.layout.order import in_order
from app.pocket.layout.prints import Lead, PageLines, Print, lead_of, prints_of
from app.pocket.layout.ruled import ruled_tables
from app.pocket.layout.rules import find_rules
from app.pocket.layout.views import LineView, line_views


@dataclass(frozen=True, slots=True)
class CutPage:
    """A page that was cut into views.

    ``page``: its lines, ``None`` if blank. ``views``: those of every line, in order. ``counts``: number of
    views of each line.
    """

    page: PageLines | None
    views: tuple[LineView, ...]
    counts: tuple[int, ...]


def cut_page(image: Image.Image) -> CutPage:
    """Cut everything printed on an upright page."""
    ink = find_ink(image)
    page = None if ink is None else find_print(ink)
    if ink is None or page is None:
        return CutPage(None, (), ())
    made = [line_views(ink, line, page.em) for line in page.lines]
    return CutPage(page, tuple(view for views in made for view in views), tuple(map(len, made)))


def find_print(ink: Ink) -> PageLines | None:
    """Find a page's lines and tables; ``None`` if there is no line."""
    found, rules = find_lines(ink), find_rules(ink)
    parts = in_order(found, rules, ruled_tables(ink.mask, found, rules))
    return measured(ink, parts) if parts else None


def measured(ink: Ink, parts: Sequence[Part]) -> PageLines:
    """Measure how lines in reading order are printed, and separate bullets from them."""
    lines = [line for part in parts for line in lines_of(part)]
    em = float(np.median([line.height for line in lines]))
    prints = prints_of(ink, lines)
    leads: dict[Line, Lead] = {}
    texts: list[Part] = []
    for part in parts:
        text = part
        if isinstance(part, Line):
            own = prints[part]
            lead = lead_of(ink, part, own.base, em * max(1.0, own.size))
            if lead is not None:
                text = _without_bullet(part, lead, prints)
                leads[text] = lead
        texts.append(text)
    height, width = ink.mask.shape
    return PageLines(tuple(texts), prints, leads, em, _usual_pitch(texts, prints, em), width, height)


def _without_bullet(line: Line, lead: Lead, prints: dict[Line, Print]) -> Line:
    if not lead.is_bullet:
        return line
    text = Line(lead.text_left, line.top, line.right, line.bottom)
    prints[text] = prints[line]
    return text


def _usual_pitch(parts: Sequence[Part], prints: dict[Line, Print], em: float) -> float:
    """Return the usual distance between lines of running text, in pixels."""
    steps = [
        prints[below].base - prints[above].base
        for above, below in pairwise(parts)
        if isinstance(above, Line) and isinstance(below, Line)
    ]
    near = [step for step in steps if 0.8 * em < step < 2.6 * em]
    return float(np.percentile(near, 35)) if near else 1.4 * em
