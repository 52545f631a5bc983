"""Compare an answer with the page: with its print, and with the PDF's own text.

A page gets a warning for what it seems to lack, and numbers that say how much.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from app.document import FINISH_WARNINGS, Block, Page, PageWarning, Reading
from app.output.coverage import find_print

MAX_RISK = 0.5
"""Above this risk, a text is more likely than not to be wrong in many places."""
MAX_UNREAD_INK = 0.1
"""Share of a page's print that may be outside what was read: a logo, a stamp, a signature."""
MIN_LAYER_WORDS = 10
"""A text layer with fewer words says nothing of a page: a stamp, a page number."""
MIN_LAYER_RECALL = 0.75
LOCATED_SHARE = 0.5
"""Least share of the text that must be in blocks to conclude that the model said where it read."""
WORD = re.compile(r"[^\W_]+")
ALONE = re.compile("([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
"""Letters of scripts without spaces. Each counts as a word."""
MARKUP = re.compile(r"<[^<>]{0,200}>|\\[A-Za-z]+")
"""Tags of tables, and commands of LaTeX."""
HYPHENS = "-\u00ad\u2010"
SPLIT = re.compile(rf"(?<=\w)[{HYPHENS}]\s*$")


@dataclass(frozen=True, slots=True)
class Checks:
    """The results of the checks. ``unread_ink`` and ``text_layer_recall`` are as in ``PageResult``."""

    warnings: tuple[PageWarning, ...]
    unread_ink: float | None
    text_layer_recall: float | None

    @property
    def has_missed_the_layer(self) -> bool:
        """Whether the text lacks many words of a text layer that has enough to tell."""
        return any(warning.code == "text_layer_mismatch" for warning in self.warnings)


def check_page(page: Page, reading: Reading, markdown: str, blocks: Sequence[Block]) -> Checks:
    """Find what the answer lacks, as far as that shows without reading the page again.

    Takes about 25 ms of numpy for an A4 page: call it in a thread.
    """
    warnings = [FINISH_WARNINGS[reading.finish_reason]] if reading.finish_reason in FINISH_WARNINGS else []
    if markdown and reading.risk > MAX_RISK:
        warnings.append(
            PageWarning(
                "doubtful_text", f"The text is doubtful: its risk of many errors is {reading.risk:.2f}."
            )
        )
    unread_ink = _unread_ink(page, reading, markdown, blocks)
    if unread_ink is not None and unread_ink > MAX_UNREAD_INK:
        detail = f"About {unread_ink:.0%} of the print on the page is outside everything that was read."
        warnings.append(PageWarning("unread_print", detail))
    recall = None if page.words is None else word_recall(page.words, markdown)
    if recall is not None and recall < MIN_LAYER_RECALL and len(page.words or ()) >= MIN_LAYER_WORDS:
        detail = f"Only {recall:.0%} of the words of the PDF's text layer are in the text."
        warnings.append(PageWarning("text_layer_mismatch", detail))
    return Checks((*warnings, *page.warnings), unread_ink, recall)


def _unread_ink(page: Page, reading: Reading, markdown: str, blocks: Sequence[Block]) -> float | None:
    """Return the share of print that was not read; ``None`` if the model did not say where it read.

    Regions that the model took for pictures do not count as unread. But if the text is empty, all print is
    unread, whatever was grounded.
    """
    if sum(len(block.text) for block in blocks) < LOCATED_SHARE * len(markdown):
        return None
    read = [block.bbox for block in blocks] if markdown else []
    return round(find_print(page.image).share_outside(read, reading.left_out), 4)


def word_recall(words: Sequence[str], markdown: str) -> float | None:
    """Return the share of the words that are in the text, counting repetitions; ``None`` without words.

    Compare in Unicode's compatibility form (no ligatures), without case, punctuation and markup. A word
    broken at the end of a line counts as read however it was joined.
    """
    wanted = _units(" ".join(_joined(words)))
    if not wanted:
        return None
    left = Counter(_units(MARKUP.sub(" ", markdown)))
    found = 0
    for word in wanted:
        if left[word] > 0:
            left[word] -= 1
            found += 1
    return round(found / len(wanted), 4)


def _joined(words: Sequence[str]) -> list[str]:
    """Join words that were broken at the end of a line."""
    joined: list[str] = []
    for word in words:
        if joined and SPLIT.search(joined[-1]):
            joined[-1] = SPLIT.sub("", joined[-1]) + word
        else:
            joined.append(word)
    return joined


def _units(text: str) -> list[str]:
    """Split text into the units to compare: words without punctuation or hyphens, single ideographs."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(rf"(?<=\w)[{HYPHENS}](?=\w)", "", plain)
    return WORD.findall(ALONE.sub(r" \1 ", plain))
