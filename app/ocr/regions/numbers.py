"""Numbers that stand for a place: the page's own, and those before the items of a list."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from app.ocr.regions.lines import Line, Part
from app.ocr.regions.prints import Lead, PageLines

OF_PAGE = re.compile(
    r"(?:[-–—]\s*)?(?:page\s+)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:of|/)\s*\d{1,4})?(?:\s*[-–—.])?",  # noqa: RUF001
    re.IGNORECASE,
)
BETWEEN_DASHES = re.compile(r"([-–—])\s*(\d{1,4})\s*[-–—.]")  # noqa: RUF001
OF_ITEM = re.compile(r"(\d{1,3})\s?([.)])\s+(?=\S)")
READ_AS = re.compile(r"(\S{1,3}?)\s?([.),:;])\s*(?=[^\s\d])")
"""What an item's number and its dot may be read as, together with the item's first letters."""
WITH_DIGIT = re.compile(r"(\S{1,3}?)([.),:;])(?=\d)")
"""Likewise where that letter was read as a digit: only numbers around tell it from a decimal."""
LOOK_ALIKE = str.maketrans("OoQIl|irtJZzASsGbTB", "0001111111224556678")
"""Letters that digits are read as."""
FAR_EM, SAME_EM = 0.6, 0.4
"""White between a page's number and its text at least; by how much items of a list are apart at their left at
most; in heights of a line."""
SAME_TEXT_EM, NUMBER_EM = 0.35, 0.8
"""Likewise the texts of items after their numbers; those numbers themselves, flush right."""
SAME_WIDTH_EM = 0.3
"""By how much two numbers of as many digits differ in width."""
MAX_ITEM_LINES, LONGEST_NUMBER = 12, 3
LONGEST_SIGN, LEAST_LETTER_EM = 2, 0.28
"""Letters that may be a number and its mark; width of a word's letters, at least."""
FIRST, ENDLESS = 1, float("inf")


def page_number(page: PageLines, texts: Mapping[Line, str]) -> Line | None:
    """The line with the page's number: alone above or below all others. "- 7 -" is no item of a list."""
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
    """A page's number as it is printed: of two dashes one is often read as a dot, or without its space."""
    match = BETWEEN_DASHES.fullmatch(text)
    return text if match is None else f"{match[1]} {match[2]} {match[1]}"


def with_leads_told(page: PageLines, texts: Mapping[Line, str]) -> PageLines:
    """Of what a mere space parts from the text, numbers alone stay: only reading tells them from words."""
    told = {
        line: _told_lead(lead, is_number=OF_ITEM.match(texts[line]) is not None)
        for line, lead in page.leads.items()
    }
    return replace(page, leads={line: lead for line, lead in told.items() if lead is not None})


def _told_lead(lead: Lead, *, is_number: bool) -> Lead | None:
    if is_number:
        return lead.near or lead
    return None if lead.is_narrow else lead


def numbered_items(page: PageLines, texts: Mapping[Line, str]) -> set[Line]:
    """Lines whose numbers follow each other, under each other, with at most hanging lines between: items of a
    list, however heavy they are printed.
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


@dataclass(slots=True)
class _Item:
    """A line that may begin an item. ``number``, ``mark``: as read, or as its neighbours tell. ``is_unread``:
    the word it begins with was read after what it begins with.
    """

    line: Line
    lead: Lead | None
    text: str
    is_unread: bool = False
    number: int | None = None
    mark: str = ""

    @property
    def is_like_numbered(self) -> bool:
        """It begins with what a number and its mark may be read as, whatever number."""
        return READ_AS.match(self.text) is not None or WITH_DIGIT.match(self.text) is not None

    @property
    def is_word(self) -> bool:
        """It begins with a word that no number is read as, or is nothing else."""
        first, _, rest = self.text.partition(" ")
        return not self.is_unread and (not rest or (len(first) > 1 and first.isalpha()))

    @property
    def may_be_text(self) -> bool:
        """It begins with a word, or with what may be a decimal: a line of text, unless numbers are around."""
        is_decimal = self.lead is None and READ_AS.match(self.text) is None
        return self.number is None and (self.is_word or is_decimal)

    def told(self, number: int, mark: str) -> None:
        self.number, self.mark = number, mark

    def may_be(self, number: int, mark: str, *, goes_on: bool = False) -> bool:
        """It was read as something that this number looks like; digits and mark are not both others.
        ``goes_on``: it stands where the item after a numbered one would.
        """
        match = READ_AS.match(self.text) or WITH_DIGIT.match(self.text)
        if match is None or (match[2] in ".)" and match[2] != mark):
            return False
        head, expected = match[1].translate(LOOK_ALIKE), str(number)
        # what looks like another number may begin another list
        stands_as_number = goes_on and self.lead is not None and not head.isdigit()
        is_other = len(head) == len(expected) and (stands_as_number or any(map(str.isdigit, match[1])))
        return head == expected or (is_other and match[2] == mark)

    def is_as_wide(self, number: int, other: "_Item", em: float) -> bool:
        """What it begins with is as wide as this number is beside another item's."""
        if self.lead is None or other.lead is None or other.number is None:
            return True
        more = len(str(number)) - len(str(other.number))
        digit = other.lead.width / (len(str(other.number)) + 0.5)  # with the mark, half as wide
        return abs(self.lead.width - other.lead.width - more * digit) <= SAME_WIDTH_EM * em


def with_numbers_told(page: PageLines, texts: Sequence[str]) -> list[str]:
    """``texts``: of all lines in order. An item's number that was misread is told by where it stands and by
    the numbers above and below.
    """
    by_line = dict(zip(page.lines, texts, strict=True))
    for items in _runs(page, by_line):
        read = [item.number for item in items]
        _tell(items, page.em)
        for item, number in zip(items, read, strict=True):
            if item.number is not None and item.number != number:
                by_line[item.line] = f"{item.number}{item.mark} {_unnumbered(item, number)}"
    return [by_line[line] for line in page.lines]


def _runs(page: PageLines, texts: Mapping[Line, str]) -> list[list[_Item]]:
    """Lines under each other that may begin the items of one list; other lists may stand inside it."""
    runs: list[list[_Item]] = []
    open_runs: list[list[_Item]] = []  # from the outermost to the innermost
    above: Part | None = None
    num_lines = 0  # since the last item
    for line in page.parts:
        if not page.is_below(above, line) or num_lines > MAX_ITEM_LINES:
            open_runs = []
        above, num_lines = line, num_lines + 1
        if not isinstance(line, Line):
            continue
        open_runs = [run for run in open_runs if line.left - run[-1].line.left > -NUMBER_EM * page.em]
        item = _item(page, line, texts[line])
        if item.lead is None and item.number is None and not item.is_like_numbered:
            continue
        num_lines = 0
        fitting = [at for at, run in enumerate(open_runs) if _are_of_list(page, run[-1], item)]
        if item.may_be_text:
            fitting = [at for at in fitting if open_runs[at][-1].number is not None]
            if not fitting:
                continue
        num_lines = 0
        depth = min(fitting, key=lambda at: _distance(open_runs[at][-1], item), default=None)
        if depth is None:
            open_runs.append([item])
            runs.append(open_runs[-1])
        else:
            open_runs = open_runs[: depth + 1]
            open_runs[depth].append(item)
    return [run for run in runs if any(item.number is not None for item in run)]


def _item(page: PageLines, line: Line, text: str) -> _Item:
    lead, match = page.leads.get(line), OF_ITEM.match(text)
    item = _Item(line, None, text)
    if lead is not None and not lead.is_bullet:
        item.lead = _told_lead(lead, is_number=match is not None or item.is_like_numbered)
        first = text.partition(" ")[0]
        is_longer = first.isalpha() and len(first) > LONGEST_SIGN
        item.is_unread = is_longer and lead.width < LEAST_LETTER_EM * len(first) * page.em
    if match is not None:
        item.told(int(match[1]), match[2])
    return item


def _are_of_list(page: PageLines, one: _Item, other: _Item) -> bool:
    shift = abs(one.line.left - other.line.left)
    if one.lead is None or other.lead is None:
        return shift < SAME_EM * page.em and other.is_like_numbered
    text_shift = abs(one.lead.text_left - other.lead.text_left)
    return shift < NUMBER_EM * page.em and text_shift < SAME_TEXT_EM * page.em


def _distance(one: _Item, other: _Item) -> float:
    """How far apart they and their texts begin."""
    if one.lead is None or other.lead is None:
        return ENDLESS
    return abs(one.line.left - other.line.left) + abs(one.lead.text_left - other.lead.text_left)


def _tell(items: Sequence[_Item], em: float) -> None:
    """Number those that the numbers around leave no doubt about, or whose misread number looks like it."""
    for above, item, below in zip(items, items[1:], items[2:], strict=False):
        if above.number is not None and below.number == above.number + 2:
            item.told(above.number + 1, above.mark)
    for at, (item, below) in enumerate(pairwise(items)):
        earlier = items[at - 1].number if at else None
        goes_on = earlier is not None and item.number == earlier + 1
        if item.number is not None and below.number == FIRST + 1 and not goes_on:
            item.told(FIRST, below.mark)  # no list begins with its second item
    known = [at for at, item in enumerate(items) if item.number is not None]
    for upper, lower in pairwise([-1, *known]):
        _tell_between(items[upper] if upper >= 0 else None, items[upper + 1 : lower], items[lower], em)
    for before, item in pairwise(items):
        if item.number is not None or before.number is None:
            continue
        if item.may_be(before.number + 1, before.mark, goes_on=True):
            item.told(before.number + 1, before.mark)


def _tell_between(above: _Item | None, items: Sequence[_Item], below: _Item, em: float) -> None:
    """Those between two numbers, or before the first."""
    number, mark = below.number or 0, below.mark
    goes_on = above is not None and number == (above.number or 0) + len(items) + 1
    begins = number == len(items) + 1 and all(
        item.lead is not None and not item.is_word and item.is_as_wide(at, below, em)
        for at, item in enumerate(items, 1)
    )
    for item in reversed(items):
        number -= 1
        if number < 1 or not (goes_on or begins or item.may_be(number, mark)):
            return
        item.told(number, mark)


def _unnumbered(item: _Item, number: int | None) -> str:
    """The text without what its number was read as."""
    if item.is_unread:
        return item.text
    patterns = (READ_AS, WITH_DIGIT) if number is None else (OF_ITEM,)
    if match := next((match for one in patterns if (match := one.match(item.text))), None):
        return item.text[match.end() :]
    first, _, rest = item.text.partition(" ")
    return rest if rest and len(first) <= LONGEST_NUMBER else item.text
