"""Find code, math and text in Markdown. Safety depends on this, because a ``<`` in code is left as it is.

So a span counts as code only where every CommonMark renderer takes it for code; in doubt it is text, where
``<`` is escaped and the worst result is a visible ``&lt;``. These rules make doubt rare and the scan linear:

- A fence counts where its line begins at the margin, so that no list or quotation can contain it, and has
  neither ``|`` nor ``<``, because some renderers take such a line for a table's head.
- A code span counts where both its ends are on one line and in one cell of a table. Once a run of backticks
  has no partner, or a link that may swallow one begins, the rest of the paragraph has no code.
- A line that begins with a tag begins an HTML block, up to the next empty line. It contains no Markdown.
- Math is ``\\(..\\)``, ``\\[..\\]``, ``$..$`` and ``$$..$$`` within a paragraph, without backticks and table
  tags. It is not trusted, because programs that do not render math read it as text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "html", "code", "fence", "math"]

FENCE = re.compile(r"(?P<indent> {0,3})(?P<marks>`{3,}+(?=[^`|<\n]*$)|~{3,}+(?=[^|<\n]*$))", re.MULTILINE)
CONTAINER = re.compile(
    r"(?:[ \t>]++|[-+*](?=[ \t])|[0-9]{1,9}[.)](?=[ \t])|\[\^[^\]\n]{1,99}\]:|[:~](?=[ \t]))*+"
)
"""What may stand before a block: quotations, items, footnotes, definitions."""
HTML = re.compile(r"</?(?:table|thead|tbody|tr|td|th|br|sub|sup)(?![A-Za-z0-9-])", re.IGNORECASE)
"""The tags that Markdown keeps. At the start of a line, each begins an HTML block."""
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
INLINE = re.compile(r"`+|\\|\$\$?|\]\(|\]\[|\[\^|\[\[")
BACKTICKS = re.compile("`+")
NOT_IN_MATH = re.compile(r"`|~~~|\n[ \t]*(?:\n|\Z)|</?t(?:able|head|body|r|d|h)\b", re.IGNORECASE)
TABLE_TAG = re.compile(r"</?t(?:able|head|body|r|d|h)\b", re.IGNORECASE)
MATH_ENDS = {"(": "\\)", "[": "\\]"}
NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Span:
    """A piece ``text[start:end]`` of one kind, delimiters included.

    ``size``: length of the delimiters at each end of ``code`` and ``math``. A ``fence`` span is one line of
    fenced code; ``size`` counts the marks of a line that is a fence itself.
    """

    kind: Kind
    start: int
    end: int
    size: int = 0


def spans_of(text: str, *, code_in_html: bool = False) -> list[Span]:
    """Cut Markdown into spans, without gaps.

    ``code_in_html``: find code and math in HTML blocks, too. Renderers see none there.
    """
    return list(_Scan(text, code_in_html=code_in_html).spans())


def open_fence(text: str) -> str | None:
    """Return the marks of the fence that is open at the end of Markdown; ``None`` if all are closed."""
    scan = _Scan(text, code_in_html=False)
    for _ in scan.spans():
        pass
    return scan.fence


def closed(text: str) -> str:
    """Close the last fence of Markdown, so that more text can follow."""
    fence = open_fence(text) if "```" in text or "~~~" in text else None
    return text if fence is None else f"{text}\n{fence}"


class _Scan:
    def __init__(self, text: str, *, code_in_html: bool) -> None:
        self._text = text
        self._code_in_html = code_in_html
        self.fence: str | None = None
        self._is_html = False
        self._has_code = True
        """Backticks may be code: false up to the next empty line after one that had no partner."""
        self._found: dict[str, int] = {}
        self._text_start = 0

    def spans(self) -> Iterator[Span]:
        at, text = 0, self._text
        while at < len(text):
            end = text.find("\n", at) + 1 or len(text)
            if (marks := self._fence_line(at, end)) is not None:
                yield from self._text_until(at)
                yield Span("fence", at, end, marks)
                self._text_start = at = end
                continue
            is_html = self._begin_line(at, end)
            if is_html != self._is_html:
                yield from self._text_until(at)
                self._is_html = is_html
            if is_html and not self._code_in_html:
                at = end
                continue
            found: list[Span] = []
            at = self._inline(at, end, found)
            for span in found:
                yield from self._text_until(span.start)
                yield span
                self._text_start = span.end
        yield from self._text_until(len(text))

    def _text_until(self, end: int) -> Iterator[Span]:
        if end > self._text_start:
            yield Span("html" if self._is_html else "text", self._text_start, end)
            self._text_start = end

    def _fence_line(self, start: int, end: int) -> int | None:
        """Return the number of marks of a line of fenced code; ``None`` for another line.

        Keep ``fence`` up to date.
        """
        match = FENCE.match(self._text, start, end)
        if self.fence is not None:
            if match is None or not match["marks"].startswith(self.fence):
                return 0
            if self._text[match.end() : end].strip(" \t\n"):
                return 0
            self.fence = None
            return len(match["marks"])
        if match is None or match["indent"] or self._is_html:
            return None
        self.fence = match["marks"]
        self._has_code = True
        return len(self.fence)

    def _begin_line(self, start: int, end: int) -> bool:
        """Tell whether a line is HTML. An empty line ends both HTML and paragraph."""
        if not self._text[start:end].strip(" \t\n"):
            self._has_code = True
            return False
        if self._is_html:
            return True
        match = CONTAINER.match(self._text, start, end)
        return HTML.match(self._text, match.end() if match else start, end) is not None

    def _inline(self, start: int, end: int, found: list[Span]) -> int:
        """Find code and math from ``start`` to the end of the line. Return where to continue.

        Math may continue on other lines. Then this call also reads the rest of its last line.
        """
        text, at = self._text, start
        while (match := INLINE.search(text, at, end)) is not None:
            mark, at = match[0], match.end()
            span: Span | None = None
            if mark[0] == "`":
                span = self._code(match.start(), at, end)
                self._has_code = self._has_code and span is not None
            elif mark[0] == "]" or mark[0] == "[":
                self._has_code = False
                at = match.start() + 1
            elif mark[0] == "$":
                span = self._dollars(match.start(), mark, end)
            elif text[at : at + 1] in MATH_ENDS:
                span = self._math(match.start(), 2, MATH_ENDS[text[at]])
                at += 1
            elif text[at : at + 1] in PUNCTUATION and at < end:
                at += 1  # escaped
            if span is not None:
                found.append(span)
                at = span.end
                if at > end:
                    end = text.find("\n", at) + 1 or len(text)
        return end

    def _code(self, start: int, content: int, end: int) -> Span | None:
        text, size = self._text, content - start
        if not self._has_code:
            return None
        for run in BACKTICKS.finditer(text, content, end):
            if len(run[0]) == size:
                is_one = "|" not in text[content : run.start()]
                if self._is_html and TABLE_TAG.search(text, content, run.start()):
                    return None
                return Span("code", start, run.end(), size) if is_one else None
        return None

    def _dollars(self, start: int, mark: str, line_end: int) -> Span | None:
        text, content = self._text, start + len(mark)
        if len(mark) == 2:
            return self._math(start, 2, "$$")
        if text[content : content + 1].isspace():
            return None
        end = self._next("$", content)
        while end < line_end and text[end - 1] == "\\":
            end = self._next("$", end + 1)
        is_math = (
            content < end < min(line_end, self._next_not_in_math(content))
            and not text[end - 1].isspace()
            and not text[end + 1 : end + 2].isdigit()
            and text[end + 1 : end + 2] != "$"
        )
        return Span("math", start, end + 1, 1) if is_math else None

    def _math(self, start: int, size: int, closer: str) -> Span | None:
        end = self._next(closer, start + size)
        if not start + size < end < self._next_not_in_math(start + size):
            return None
        return Span("math", start, end + len(closer), size)

    def _next(self, mark: str, at: int) -> int:
        """Find the next ``mark``.

        Its place is cached: without that, many openers without a closer would make this quadratic.
        """
        if self._found.get(mark, -1) < at:
            place = self._text.find(mark, at)
            self._found[mark] = NEVER if place < 0 else place
        return self._found[mark]

    def _next_not_in_math(self, at: int) -> int:
        if self._found.get("", -1) < at:
            match = NOT_IN_MATH.search(self._text, at)
            self._found[""] = match.start() if match else NEVER
        return self._found[""]
