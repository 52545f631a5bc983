"""Make one document of pages: drop heads and feet, join text that continues, mark what is missing.

Each page keeps its own Markdown. Heads and feet are recognised only when all pages are there, so this runs
for every answer, and its result is not stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.document import AnswerOptions, PageResult
from app.output.flow import is_float, joined, may_grow
from app.output.math import with_dollars
from app.output.parts import Part, parts_of
from app.output.plain import to_plain
from app.output.running import find_furniture
from app.output.spans import closed

MAX_FLOATS = 16
"""Most figures and captions on one side of a page break that text may continue across."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A note in the text that a page is missing or incomplete. ``index``: 0-based."""

    index: int
    code: str
    was_read: bool

    @property
    def sentence(self) -> str:
        what = "is incomplete" if self.was_read else "was not read"
        return f"page {self.index + 1} {what}: {self.code}"


@dataclass(frozen=True, slots=True)
class Rule:
    """The end of a page."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A joined document. ``pages``: the blocks of running heads and feet have those types."""

    pages: tuple[PageResult, ...]
    entries: tuple[Part | Gap | Rule, ...]

    def markdown(self, *, dollars: bool) -> str:
        return "\n\n".join(self._markdown(entry, dollars=dollars) for entry in self.entries)

    def plain(self) -> str:
        return "\n\n".join(text for entry in self.entries if (text := self._plain(entry)))

    @staticmethod
    def _markdown(entry: Part | Gap | Rule, *, dollars: bool) -> str:
        match entry:
            case Gap():
                return f"<!-- {entry.sentence} -->"
            case Rule():
                return "---"
        return closed(with_dollars(entry.markdown) if dollars else entry.markdown)

    @staticmethod
    def _plain(entry: Part | Gap | Rule) -> str:
        match entry:
            case Gap():
                return f"[{entry.sentence}]"
            case Rule():
                return "---"
        return to_plain(entry.markdown)


def join_pages(pages: Sequence[PageResult], options: AnswerOptions) -> Joined:
    """Join pages, in order, into one document."""
    parts = [() if page.failure else tuple(parts_of(page)) for page in pages]
    furniture = find_furniture([(page.index, own) for page, own in zip(pages, parts, strict=True)])
    marked: list[PageResult] = []
    entries: list[Part | Gap | Rule] = []
    above: PageResult | None = None
    for page, own, types in zip(pages, parts, furniture, strict=True):
        typed = [replace(part, type=types.get(number, part.type)) for number, part in enumerate(own)]
        marked.append(_with_types(page, typed) if types else page)
        kept = [part for number, part in enumerate(typed) if options.headers == "keep" or number not in types]
        if options.page_marks == "rule" and entries and (kept or page.shortfall):
            entries.append(Rule())
        elif options.join_pages and _goes_on(above, page):
            _join(entries, kept)
        entries += kept
        if page.shortfall is not None and options.page_marks != "none":
            entries.append(Gap(page.index, page.shortfall, was_read=page.failure is None))
        above = page
    return Joined(tuple(marked), tuple(entries))


def _join(entries: list[Part | Gap | Rule], kept: list[Part]) -> None:
    """Join the text that ends one page and begins the next, across figures between them."""
    near = range(max(0, len(entries) - MAX_FLOATS), len(entries))
    above = next((at for at in reversed(near) if not _floats(entries[at])), None)
    below = next((at for at, part in enumerate(kept[:MAX_FLOATS]) if not is_float(part)), None)
    if above is None or below is None:
        return
    last = entries[above]
    if isinstance(last, Part) and may_grow(last):
        whole = joined(last, kept[below])
        if whole is not None:
            entries[above] = whole
            del kept[below]


def _floats(entry: Part | Gap | Rule) -> bool:
    return isinstance(entry, Part) and is_float(entry)


def _with_types(page: PageResult, parts: Sequence[Part]) -> PageResult:
    blocks = list(page.blocks)
    for part in parts:
        if part.number is not None and part.type is not None:
            blocks[part.number] = replace(blocks[part.number], type=part.type)
    return replace(page, blocks=tuple(blocks))


def _goes_on(above: PageResult | None, page: PageResult) -> bool:
    """Tell whether two pages are adjacent and both complete."""
    return (
        above is not None
        and page.index == above.index + 1
        and above.shortfall is None
        and page.shortfall is None
    )
