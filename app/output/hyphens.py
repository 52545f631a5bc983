"""Rejoin words that a typesetter broke at the end of a line, as readers and search expect."""

import re
from collections.abc import Sequence

_BROKEN = re.compile(r"(\S*\w)[-\u2010\u00ad]")


def flowed(lines: Sequence[str]) -> str:
    """Join the lines of one paragraph into one line."""
    text = ""
    for line in filter(None, lines):
        begun = _going_on(text, line)
        text = begun + line if begun is not None else f"{text} {line}" if text else line
    return text


def unbroken(lines: Sequence[str]) -> list[str]:
    """Keep the lines of a paragraph, but put a broken word whole at the end of its first line."""
    whole: list[str] = []
    for line in lines:
        begun = _going_on(whole[-1], line) if whole else None
        if begun is None:
            whole.append(line)
            continue
        rest, _, others = line.partition(" ")
        whole[-1] = begun + rest
        whole += [others] if others else []
    return whole


def _going_on(before: str, after: str) -> str | None:
    """Return ``before``, ready for ``after`` to be appended, if its last word continues there; else ``None``.

    The hyphen stays where it may be part of the word: in compounds of several parts, before capitals and
    digits.
    """
    match = _BROKEN.fullmatch("" if before[-1:].isspace() else before.rsplit(None, 1)[-1]) if before else None
    if match is None or not after[0].isalnum():
        return None
    part = match[1]
    is_word = part[-2:].isalpha() and "-" not in part
    same_case = after[0].islower() or (len(part) > 1 and part.isupper() and after[:2].isupper())
    return before[:-1] if is_word and same_case else before
