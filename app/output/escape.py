r"""Escape printed text for Markdown. What Markdown would take for markup gets a backslash, and nothing else.

``# 12 Main Street`` -> ``\# 12 Main Street``, ``1986. A year`` -> ``1986\. A year``; ``snake_case`` stays.
"""

import re
import unicodedata

BLOCK_START = re.compile(
    r"(?P<mark>#(?=#{0,5}(?:\s|$))|[-+*](?=\s|$)|>|~(?=~~)|[-_*](?=(?:\s*[-_*]){2,}\s*$))"
    r"|(?P<number>[0-9]{1,9})(?P<point>[.)])(?=\s|$)"
)
"""Beginnings of a heading, an item, a quotation, a fence or a rule."""
REFERENCE = re.compile(r"&(?=(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]*);)")
TAG = re.compile(r"<(?=[A-Za-z/!?|\uff5c]|$)")
BACKSLASH = re.compile(r"\\(?=[!-/:-@\[-`{-~]|coloneqq|eqqcolon)")
OPERATOR = re.compile(r"\\(?=coloneqq|eqqcolon)")
LINK = re.compile(r"\](?=[(\[])")
DEFINITION = re.compile(r"\](?=:)")
HEADING_END = re.compile(r"(?:(?<=\s)|^)#(?=#*$)")
RUNS = {mark: re.compile(f"{re.escape(mark)}+") for mark in "`*_~$"}


def escaped(text: str) -> str:
    """Escape a printed line or paragraph that begins a block of Markdown."""
    text = _inline(text)
    if text.startswith("["):
        text = DEFINITION.sub(r"\]", text)
    if (match := BLOCK_START.match(text)) is None:
        return text
    if match["mark"]:
        return f"\\{text}"
    return f"{match['number']}\\{text[match.start('point') :]}"


def escaped_heading(text: str) -> str:
    """Escape print after ``# ``, where no block begins.

    Also escape ``#`` at its end, which would be dropped.
    """
    return HEADING_END.sub(r"\#", _inline(text))


def escaped_cell(text: str) -> str:
    """Escape print in an HTML cell, where Markdown has no meaning."""
    return OPERATOR.sub("&#92;", TAG.sub("&lt;", REFERENCE.sub("&amp;", text)))


def _inline(text: str) -> str:
    text = REFERENCE.sub(r"\&", BACKSLASH.sub(r"\\\\", text))
    text = TAG.sub("&lt;", text)
    if (start := text.find("[")) >= 0:
        text = text[:start] + LINK.sub(r"\]", text[start:])
    for mark, runs in RUNS.items():
        if text.count(mark) > 1:
            text = _without_pairs(text, mark, runs)
    return text


def _without_pairs(text: str, mark: str, runs: re.Pattern[str]) -> str:
    """Escape a mark where it opens or closes something. A lone one, or one between spaces, means nothing."""
    found = [run for run in runs.finditer(text) if not _is_escaped(text, run.start())]
    opening = [_opens(text, mark, run) for run in found]
    closing = [_closes(text, mark, run) for run in found]
    if mark == "`":
        is_pair = len(found) > len({len(run[0]) for run in found}) or text.startswith("```")
    else:
        first = opening.index(True) if True in opening else len(found)
        is_pair = any(closing[first + 1 :])
    if not is_pair:
        return text
    pieces: list[str] = []
    done = 0
    for run, opens, closes in zip(found, opening, closing, strict=True):
        if opens or closes:
            pieces += [text[done : run.start()], f"\\{mark}" * len(run[0])]
            done = run.end()
    return "".join([*pieces, text[done:]])


def _is_escaped(text: str, at: int) -> bool:
    start = at
    while start and text[start - 1] == "\\":
        start -= 1
    return (at - start) % 2 == 1


def _opens(text: str, mark: str, run: re.Match[str]) -> bool:
    if mark == "`" or run[0].startswith("$$"):
        return True
    after = text[run.end() : run.end() + 1]
    return bool(after.strip()) and not (mark == "_" and _is_word(text, run.start() - 1))


def _closes(text: str, mark: str, run: re.Match[str]) -> bool:
    if mark == "`" or run[0].startswith("$$"):
        return True
    if mark == "$" and text[run.end() : run.end() + 1].isdigit():
        return False
    before = text[max(run.start() - 1, 0) : run.start()]
    return bool(before.strip()) and not (mark == "_" and _is_word(text, run.end()))


def _is_word(text: str, at: int) -> bool:
    character = text[at] if 0 <= at < len(text) else " "
    return not character.isspace() and unicodedata.category(character)[0] not in "PS"
