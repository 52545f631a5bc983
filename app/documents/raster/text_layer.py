"""Read the words of a PDF page's text layer, and judge whether they can be what is printed."""

import re
import unicodedata
from collections import Counter

MIN_WORDS = 3
"""Fewer words, such as a page number or a stamp, do not count as a text layer."""
MAX_WORDS = 20_000
MAX_WORD_CHARS = 200
MAX_WORDS_CHARS = 256 * 1024

NO_TEXT = frozenset({"Cc", "Co", "Cn", "Cs"})
"""Unicode categories that no text has: control, private, unassigned characters, and surrogates."""
UNMAPPED = re.compile(r"\(cid:[0-9]+\)")
LEADERS = frozenset("._-\N{HORIZONTAL ELLIPSIS}\N{MIDDLE DOT}")
VOWELS = frozenset("aeiouy")
MAX_NO_TEXT_SHARE = 0.15
MIN_ALPHANUMERIC_SHARE = 0.35
MAX_SHARE_OF_ONE = 0.6
MIN_VOWEL_SHARE = 0.2
"""Least share of vowels in Latin letters.

Languages have 0.3 to 0.5; text whose font codes are shifted by 29 places has 0.14.
"""
ENOUGH_CHARS, ENOUGH_LETTERS = 20, 100
"""With fewer characters or letters, shares tell nothing."""


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text layer in its order; none if there are too few, the first ones if there
    are many."""
    words: list[str] = []
    num_chars = 0
    for word in text.split():
        num_chars += min(len(word), MAX_WORD_CHARS)
        if len(words) == MAX_WORDS or num_chars > MAX_WORDS_CHARS:
            break
        words.append(word[:MAX_WORD_CHARS])
    return tuple(words) if len(words) >= MIN_WORDS else ()


def is_garbage(words: tuple[str, ...]) -> bool:
    """Tell whether the words cannot be the page's text, such as font codes that do not map to its letters.

    Leaders are left aside, because a table of contents may be mostly dots.
    """
    text = "".join(words)
    chars = [char for char in text if char not in LEADERS]
    if not chars:
        return False
    unmapped = sum(len(match[0]) for match in UNMAPPED.finditer(text))
    no_text = sum(
        char == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(char) in NO_TEXT for char in chars
    )
    if unmapped + no_text > MAX_NO_TEXT_SHARE * len(chars):
        return True
    if len(chars) < ENOUGH_CHARS:
        return False
    letters = [char for char in chars if char.isalnum()]
    if len(letters) < MIN_ALPHANUMERIC_SHARE * len(chars) or _share_of_one(letters) > MAX_SHARE_OF_ONE:
        return True
    latin = [char for char in unicodedata.normalize("NFD", "".join(letters)).lower() if "a" <= char <= "z"]
    num_vowels = sum(char in VOWELS for char in latin)
    return len(latin) >= ENOUGH_LETTERS and num_vowels < MIN_VOWEL_SHARE * len(latin)


def _share_of_one(letters: list[str]) -> float:
    return Counter(letters).most_common(1)[0][1] / len(letters) if letters else 0.0


def has_cjk(words: tuple[str, ...]) -> bool:
    """Tell whether Chinese, Japanese or Korean characters are among the words."""
    return any(
        "\u2e80" <= char <= "\u9fff"
        or "\uac00" <= char <= "\ud7af"
        or "\uf900" <= char <= "\ufaff"
        or char >= "\U00020000"
        for word in words
        for char in word
    )
