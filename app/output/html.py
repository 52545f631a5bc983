"""Clean HTML in model text. Simple tables, ``<br>``, ``<sub>`` and ``<sup>`` stay; nothing else becomes HTML.

There are two steps, so that only the second has to be trusted. ``tidied`` brings the kept tags into one form
and removes formatting tags, as far as they can be told from print. ``safe`` then changes nothing but ``<``:
in code it stays, in math it stays or gets a space, and elsewhere it becomes ``&lt;``, unless it begins one of
the kept tags in that form.
"""

import html
import re

from app.output.spans import FENCE, Span, closed, spans_of

TABLE_NAMES = "table|thead|tbody|tr|td|th"
PLAIN_NAMES = "br|sub|sup"
BLOCK_NAMES = frozenset({"center", "p", "div", "nobr", "tfoot", "caption", "col", "colgroup"})
"""Tags that are always dropped.

The others are dropped only in pairs, because a single ``<b>`` may be print.
"""
INLINE_NAMES = frozenset(
    "a abbr b big cite code del dfn em font i ins kbd mark q s samp small span strike strong tt u var".split()
)
ATTRIBUTES = r"(?P<attributes>(?:\s++[A-Za-z_:-]++(?:=(?:\"[^\"<>]*+\"|'[^'<>]*+'|[\w%.#:;,-]++))?+)*+)"
LINK_ATTRIBUTES = r"(?:\s++[A-Za-z_:-]++=(?:\"[^\"<>]*+\"|'[^'<>]*+'|[^\s\"'<>=`]++))*+"
KEPT = re.compile(
    rf"<(?P<close>/?)(?P<name>{TABLE_NAMES}|{PLAIN_NAMES})(?![\w-]){ATTRIBUTES}\s*+/?>",
    re.IGNORECASE | re.ASCII,
)
DROPPED_NAMES = "|".join(sorted(BLOCK_NAMES | INLINE_NAMES))
DROPPED = re.compile(
    rf"<(?P<close>/?)(?P<name>{DROPPED_NAMES})(?![\w-]){LINK_ATTRIBUTES}\s*+/?>",
    re.IGNORECASE | re.ASCII,
)
SPAN = re.compile(r"\s(colspan|rowspan)=[\"']?([0-9]{1,3})[\"']?(?=\s|$)", re.IGNORECASE | re.ASCII)

CANONICAL = re.compile(
    rf"</?(?:{TABLE_NAMES}|{PLAIN_NAMES})>|<(?:td|th)(?: (?:colspan|rowspan)=\"[0-9]{{1,3}}\")+>"
)
TAG_START = re.compile(r"<(?=[A-Za-z/!?])")
ESCAPED_TAG_START = re.compile(r"(?P<escape>(?<!\\)(?:\\\\)*\\)?<(?=[A-Za-z/!?])")
REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
REFERENCE_OR_ESCAPE = re.compile(rf"\\(?P<escaped>[!-/:-@\[-`{{-~])|{REFERENCE.pattern}")
LIVE_IN_MATH = re.compile(
    r"<(?:[!?/]|[A-Za-z][A-Za-z0-9-]*+"
    r"(?:\s++[A-Za-z_:][\w.:-]*+(?:\s*+=\s*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z)|[^\s\"'<>=`]++))?+)*+"
    r"\s*+/?(?:>|\Z))",
    re.ASCII,
)
BLOCK_IN_MATH = re.compile(
    r"<(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|dialog|dir"
    r"|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html|iframe|legend"
    r"|li|link|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|pre|script|search|section|source|style"
    r"|summary|table|tbody|td|textarea|tfoot|th|thead|title|tr|track|ul)(?=\s|/?>|\Z)",
    re.IGNORECASE,
)
"""A line that begins with one of these is an HTML block, even if no ``>`` follows."""
ITEM = re.compile(r" *+(?P<mark>[-+*]|[0-9]{1,9}[.)]) +")
FENCE_MARKS = re.compile(r"(?:(?<=^)|(?<=^ )|(?<=^  )|(?<=^   ))(?:`{3,}|~{3,})", re.MULTILINE)
PARTED = "\0"
"""Placeholder for a dropped tag. Model text has no such character."""
BETWEEN_WORDS = re.compile(rf"(?<=[^\s>{PARTED}]){PARTED}+(?=[^\s<{PARTED}])")
MAX_OPEN_TAGS = 100
LONGEST_TAG = 400
"""Text that could still be a tag after this many characters counts as one."""
OPERATORS = re.compile(r"(?<!\\)\\(coloneqq|eqqcolon)(?![A-Za-z])")
OPERATOR_SIGNS = {"coloneqq": ":=", "eqqcolon": "=:"}
"""Replacements as in the released post-processing: renderers of math without ``mathtools`` lack these
commands."""


def tidied(text: str) -> str:
    """Bring kept tags into one form, remove others, move fences to the margin, and close tables."""
    text = _fences_at_margin(text)
    pieces: list[str] = []
    spans = spans_of(text, code_in_html=True)
    dropped = _droppable(text, spans) if "<" in text else frozenset()
    for span in spans:
        piece = text[span.start : span.end]
        if span.kind in ("text", "html", "math"):
            piece = OPERATORS.sub(lambda match: OPERATOR_SIGNS[match[1]], piece)
        if span.kind in ("text", "html") and "<" in piece:
            piece = KEPT.sub(_one_form, piece)
            piece = _without(piece, dropped)
        pieces.append(piece)
    return _with_tables_closed("".join(pieces))


def safe(text: str) -> tuple[str, str]:
    """Return Markdown that no renderer turns into HTML other than the kept tags, and the same text
    unescaped."""
    markdown: list[str] = []
    plain: list[str] = []
    for span in spans_of(text):
        piece = text[span.start : span.end]
        if span.kind in ("code", "fence"):
            markdown.append(piece)
            plain.append(piece)
        elif span.kind == "math":
            markdown.append(_safe_math(piece))
            plain.append(piece)
        elif span.kind == "html":
            markdown.append(_escaped_tags(_without_fences(piece), may_be_escaped=False))
            plain.append(markdown[-1])
        else:
            markdown.append(_escaped_tags(_without_fences(piece), may_be_escaped=True))
            plain.append(unescaped(piece))
    return "".join(markdown), "".join(plain)


def _one_form(tag: re.Match[str]) -> str:
    name = tag["name"].lower()
    if name == "br":
        return "<br>"
    if tag["close"]:
        return f"</{name}>"
    given = SPAN.findall(tag["attributes"]) if name in ("td", "th") else []
    spans = {span.lower(): int(value) for span, value in given}
    return "<" + " ".join([name, *(f'{span}="{value}"' for span, value in spans.items())]) + ">"


def _droppable(text: str, spans: list[Span]) -> frozenset[str]:
    opened: set[str] = set()
    ended: set[str] = set()
    for span in spans:
        if span.kind in ("text", "html"):
            for tag in DROPPED.finditer(text, span.start, span.end):
                (ended if tag["close"] else opened).add(tag["name"].lower())
    return BLOCK_NAMES | (opened & ended)


def _without(text: str, names: frozenset[str]) -> str:
    """Remove tags of these names. A removed block tag between two words leaves a space."""

    def drop(tag: re.Match[str]) -> str:
        name = tag["name"].lower()
        if name not in names:
            return tag[0]
        return PARTED if name in BLOCK_NAMES else ""

    text = DROPPED.sub(drop, text)
    return BETWEEN_WORDS.sub(" ", text).replace(PARTED, "")


def _with_tables_closed(text: str) -> str:
    """Close tables that were cut off, so that they do not swallow the text after them."""
    open_tags: list[str] = []
    if "<table>" not in text:
        return text
    for span in spans_of(text, code_in_html=True):
        if span.kind not in ("text", "html"):
            continue
        for tag in CANONICAL.finditer(text, span.start, span.end):
            name = tag[0].strip("</>").split(" ")[0]
            if name == "br":
                continue
            if not tag[0].startswith("</"):
                open_tags.append(name)
            elif name in open_tags[-MAX_OPEN_TAGS:]:
                while open_tags.pop() != name:
                    pass
    if "table" not in open_tags:
        return text
    inside = open_tags[open_tags.index("table") :]
    return closed(text) + "".join(f"</{name}>" for name in reversed(inside))


def _fences_at_margin(text: str) -> str:
    """Remove the indentation of fenced code, so that no list contains it."""
    if "```" not in text and "~~~" not in text:
        return text
    lines: list[str] = []
    fence, indent, has_items = "", 0, False
    for line in text.split("\n"):
        if fence:
            lines.append(line[min(indent, len(line) - len(line.lstrip(" "))) :])
            marks = lines[-1].strip(" \t")
            if marks.startswith(fence) and not marks.strip(fence[0]) and not lines[-1].startswith("    "):
                fence = ""
            continue
        item = ITEM.match(line)
        start = item.end() if item else len(line) - len(line.lstrip(" "))
        has_items = has_items or item is not None
        opening = FENCE.match(line, start) if has_items or start < 4 else None
        if opening is None:
            lines.append(line)
            continue
        fence, indent = opening["marks"], start
        lines += [*([item["mark"]] if item else []), line[indent:]]
    return "\n".join(lines)


def _without_fences(text: str) -> str:
    """Escape fence marks at line starts in text: some renderer might see a fence where another sees none."""
    if "```" not in text and "~~~" not in text:
        return text
    return FENCE_MARKS.sub(lambda marks: f"&#{ord(marks[0][0])};" * len(marks[0]), text)


def _escaped_tags(text: str, *, may_be_escaped: bool) -> str:
    if "<" not in text:
        return text

    def escape(start: re.Match[str]) -> str:
        if may_be_escaped and start["escape"]:
            return start["escape"][:-1] + "&lt;"
        return "<" if CANONICAL.match(text, start.start()) else "&lt;"

    return (ESCAPED_TAG_START if may_be_escaped else TAG_START).sub(escape, text)


def _safe_math(math: str) -> str:
    """Put a space after ``<`` in math where readers that do not render math would take it for a tag."""
    pieces: list[str] = []
    done = 0
    for start in TAG_START.finditer(math):
        at = start.end()
        if LIVE_IN_MATH.match(math, at - 1, at + LONGEST_TAG) or BLOCK_IN_MATH.match(math, at - 1):
            pieces += [math[done:at], " "]
            done = at
    return "".join([*pieces, math[done:]])


def unescaped(text: str) -> str:
    """Undo Markdown's backslash escapes and character references."""

    def undo(match: re.Match[str]) -> str:
        return match["escaped"] or html.unescape(match[0])

    return REFERENCE_OR_ESCAPE.sub(undo, text) if "\\" in text or "&" in text else text
