"""Recognise headings and their level by the size and weight of their print and the white around them."""

from collections.abc import Mapping

from app.pocket.layout.lines import Line, Part
from app.pocket.layout.prints import PageLines, Print

TITLE = "title"
SUB_TITLE = "sub_title"
LARGE = 1.04  # body sizes, least size of a heading with white above and below
VERY_LARGE = 1.25  # body sizes, least size of a heading whatever stands around it
TITLE_SIZE = 1.37  # body sizes, least size of a title that is a page's first heading
LATER_TITLE_SIZE = 1.5  # body sizes, least size of a title below another heading
HEAVY = 1.2  # body strokes, least thickness of bold print
HEAVY_SIZE = 0.9  # body sizes, least size of a bold heading
APART = 1.12  # usual steps between lines, least step above or below a heading
SAME_SIZE = 0.14  # share by which the sizes of one heading's lines differ at most
MAX_CHARACTERS = 100  # in a line of a heading
MAX_LINES = 3  # of a heading; more are a paragraph in large or bold print


def heading_lines(page: PageLines, texts: Mapping[Line, str]) -> dict[Line, str]:
    """Find the lines that are headings, with the kind of each.

    ``texts``: the recognised text of every line.
    """
    found: dict[Line, str] = {}
    around = zip([None, *page.parts], page.parts, [*page.parts[1:], None], strict=False)
    run: list[Line] = []  # headings that stand right below each other
    for above, part, below in around:
        if not isinstance(part, Line) or not _may_be(page, part, texts[part]):
            run = []
            continue
        goes_on = bool(run) and above is run[-1] and _goes_on(page, run[-1], part)
        if goes_on or _stands_out(page, above, part, below, texts[part]):
            run = [*run, part] if goes_on else [part]
            least = TITLE_SIZE if len(run) == len(found) + 1 else LATER_TITLE_SIZE
            found[part] = TITLE if size_of(page.prints[part]) >= least else SUB_TITLE
        if len(run) > MAX_LINES:
            for line in run:
                found.pop(line, None)
    return found


def size_of(own: Print) -> float:
    """Return a line's size relative to the body's.

    It is the smaller of two measures, because capitals may be taken for small letters.
    """
    return own.size if own.lower is None else min(own.size, own.lower)


def are_of_one_size(one: Print, other: Print) -> bool:
    return abs(size_of(one) / size_of(other) - 1) <= SAME_SIZE


def _may_be(page: PageLines, line: Line, text: str) -> bool:
    lead = page.leads.get(line)
    is_item = lead is not None and lead.is_bullet
    is_short = len(text) <= MAX_CHARACTERS and sum(map(str.isalpha, text)) > 1
    return is_short and not is_item and not text.endswith((",", ";"))


def _goes_on(page: PageLines, above: Line, line: Line) -> bool:
    """Tell whether a line continues the heading above it: as near as text, as large and as bold."""
    upper, lower = page.prints[above], page.prints[line]
    is_near = page.is_below(above, line) and page.step(above, line) <= 1.5 * page.em * size_of(lower)
    is_as_heavy = (upper.stroke >= HEAVY) == (lower.stroke >= HEAVY)
    is_apart = size_of(lower) >= LARGE or lower.stroke >= HEAVY
    return is_near and is_as_heavy and is_apart and are_of_one_size(upper, lower)


def _stands_out(page: PageLines, above: Part | None, line: Line, below: Part | None, text: str) -> bool:
    own = page.prints[line]
    size, is_heavy = size_of(own), own.stroke >= HEAVY
    if size >= VERY_LARGE:
        return True
    if text.endswith(".") or not _is_apart(page, above, line):
        return False
    return (is_heavy and size > HEAVY_SIZE) or (size >= LARGE and _is_apart(page, line, below))


def _is_apart(page: PageLines, above: Part | None, below: Part | None) -> bool:
    """Tell whether there is more white between two parts than between lines of a paragraph."""
    if not isinstance(above, Line) or not isinstance(below, Line) or not page.is_below(above, below):
        return True
    return page.step(above, below) > APART * page.pitch
