"""Score what was read against what is printed: characters and structure."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from app.output.html import unescaped
from training.errors_in_text import character_error_rate, edit_distance

HEADING = re.compile(r"(#{1,6})\s+(.*)")
ITEM = re.compile(r"(?:(?P<bullet>[-*+•])|[0-9]{1,3}[.)])\s+\S")
PAGE_NUMBER = re.compile(r"-\s*[0-9]{1,4}\s*-")
"""A page number between dashes. It is no list, though Markdown takes it for one."""
MAX_HEADING_EDITS = 0.2
"""Most edits, as a share of a heading's characters, for it to count as the same."""


@dataclass(frozen=True, slots=True)
class Structure:
    """Structure of a page, in reading order.

    ``headings``: (level, text). ``lists``: (numbered, items). ``tables``: (rows, most cells in a row).
    """

    headings: tuple[tuple[int, str], ...] = ()
    lists: tuple[tuple[bool, int], ...] = ()
    tables: tuple[tuple[int, int], ...] = ()


def structure_of(markdown: str) -> Structure:
    """Find the structure of clean Markdown from how its blocks begin; an empty line ends a block."""
    headings, lists, tables = [], [], []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = block.strip().split("\n")
        if PAGE_NUMBER.fullmatch(block.strip()):
            continue
        items = [match for line in lines if (match := ITEM.match(line))]
        if heading := HEADING.fullmatch(lines[0]):
            headings.append((len(heading[1]), heading[2].strip()))
        elif block.lstrip().startswith("<table"):
            rows = [row.count("<td") + row.count("<th>") for row in block.split("<tr")[1:]]
            tables.append((len(rows), max(rows, default=0)))
        elif items:
            lists.append((items[0]["bullet"] is None, len(items)))
    return Structure(tuple(headings), tuple(lists), tuple(tables))


def same_headings(read: Structure, truth: Structure) -> bool:
    return len(read.headings) == len(truth.headings) and all(
        level == true_level and edit_distance(text, true_text) <= MAX_HEADING_EDITS * len(true_text)
        for (level, text), (true_level, true_text) in zip(read.headings, truth.headings, strict=True)
    )


PARTS: dict[str, Callable[[Structure, Structure], bool]] = {
    "headings": same_headings,
    "lists": lambda read, truth: read.lists == truth.lists,
    "tables": lambda read, truth: read.tables == truth.tables,
}


def structure_scores(read: Sequence[str], truth: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """Return for each part the share of pages that have it right, and for "all" those with every part right.

    A part counts pages that have it or were read as having it; "all" counts every page.
    """
    pairs = [(structure_of(left), structure_of(right)) for left, right in zip(read, truth, strict=True)]
    scores = {
        part: _share([is_right(*pair) for pair in pairs if any(getattr(one, part) for one in pair)])
        for part, is_right in PARTS.items()
    }
    return scores | {"all": _share([all(is_right(*pair) for is_right in PARTS.values()) for pair in pairs])}


def without_escapes(markdowns: Sequence[str]) -> list[str]:
    """Undo Markdown's escapes, so that characters count as they are printed."""
    return [unescaped(markdown) for markdown in markdowns]


def _share(right: Sequence[bool]) -> dict[str, float | int | None]:
    return {"pages": len(right), "right": round(fmean(right), 4) if right else None}


def _words_read(read: Sequence[str], truth: Sequence[str]) -> float:
    true_words = [Counter(text.split()) for text in truth]
    common = [Counter(text.split()) & words for text, words in zip(read, true_words, strict=True)]
    return sum(words.total() for words in common) / max(1, sum(words.total() for words in true_words))


def page_errors(read: Sequence[str], truth: Sequence[str]) -> list[float]:
    return [character_error_rate([left], [right]) for left, right in zip(read, truth, strict=True)]


def character_scores(
    read: Sequence[str], truth: Sequence[str], *, ignores_case: bool = False
) -> dict[str, float | int]:
    """Score characters: error over all of them, mean and median of the pages' own errors, and words read.

    ``words_read`` is the share of all true words that were read, in any order. It tells misread letters from
    a wrong reading order.
    """
    if ignores_case:
        read, truth = [text.casefold() for text in read], [text.casefold() for text in truth]
    by_page = page_errors(read, truth)
    return {
        "pages": len(truth),
        "characters": sum(len(" ".join(text.split())) for text in truth),
        "character_error_rate": round(character_error_rate(read, truth), 4),
        "mean_of_pages": round(fmean(by_page), 4),
        "median_of_pages": round(median(by_page), 4),
        "words_read": round(_words_read(read, truth), 4),
    }
