"""Make an HTML page that stands alone. Model text is hostile, so the HTML made from Markdown is sanitised.

Math stays as TeX, for readers that render it. Nothing is loaded from elsewhere: the only images are the
document's figures. A policy in the page tells the browser the same.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from html import escape

import nh3
from markdown_it import MarkdownIt

from app.output.answer import Answer, Piece
from app.output.figures import reference_of
from app.output.math import with_dollars
from app.output.pages import Gap, Rule
from app.output.parts import Part
from app.output.plain import to_plain
from app.output.spans import closed, spans_of

TAGS = frozenset(
    "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr img li ol p pre s strong sub sup"
    " table tbody td th thead tr ul".split()
)
ATTRIBUTES = {
    "a": {"href"},
    "img": {"src", "alt"},
    "ol": {"start"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
}
SCHEMES = frozenset({"http", "https", "mailto"})
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
HEAD = f"""<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width">
<style>
body {{ max-width: 50em; margin: 2em auto; padding: 0 1em; font: 1em/1.5 sans-serif }}
table {{ border-collapse: collapse }}
td, th {{ border: 1px solid #888; padding: 0.2em 0.5em; vertical-align: top }}
img {{ max-width: 100% }}
</style>
"""
TAIL = "</body>\n</html>\n"
MAX_TITLE_CHARS = 200


def make(answer: Answer) -> Iterable[Piece]:
    """Make the document's HTML, one block at a time."""
    title = escape(_title(answer))
    own = {
        answer.address(block.figure.name)
        for page in answer.document.pages
        for block in page.blocks
        if answer.address is not None and block.figure is not None and reference_of(block)
    }
    return [HEAD, f"<title>{title}</title>\n</head>\n<body>\n", *_body(answer, own), TAIL]


def _title(answer: Answer) -> str:
    """Return the first heading of the document, or its id."""
    for entry in answer.joined.entries:
        if isinstance(entry, Part) and (match := re.match(r"#{1,6} (.+)", entry.markdown)):
            return to_plain(match[1])[:MAX_TITLE_CHARS]
    return answer.document.id


def _body(answer: Answer, own: set[str]) -> Iterator[str]:
    renderer = Renderer(own.__contains__)
    for entry in answer.joined.entries:
        match entry:
            case Gap():
                yield f"<p><em>{escape(entry.sentence)}</em></p>\n"
            case Rule():
                yield "<hr>\n"
            case Part():
                text = entry.markdown
                yield renderer.html(with_dollars(text) if answer.options.math == "dollar" else text)


class Renderer:
    """A converter from Markdown to harmless HTML. ``is_own``: tells which image addresses may be shown."""

    def __init__(self, is_own: Callable[[str], bool]) -> None:
        self._is_own = is_own
        self._markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        self._sign = secrets.token_hex(8)
        self._signs = re.compile(rf"{self._sign}x([0-9]+)x")

    def html(self, markdown: str) -> str:
        """Render a whole block. Math stays as written."""
        math: list[str] = []
        pieces: list[str] = []
        markdown = closed(markdown)
        for span in spans_of(markdown, code_in_html=True):
            text = markdown[span.start : span.end]
            if span.kind == "math":  # hidden from Markdown, which would take parts of it for markup
                pieces.append(f"{self._sign}x{len(math)}x")
                math.append(text)
            else:
                pieces.append(text)
        clean = nh3.clean(
            self._markdown.render("".join(pieces)),
            tags=set(TAGS),
            attributes=ATTRIBUTES,
            url_schemes=set(SCHEMES),
            attribute_filter=self._attribute,
            link_rel="noopener noreferrer nofollow",
        )
        return self._signs.sub(lambda sign: escape(math[int(sign[1])]), clean)

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        if tag == "img" and name == "src" and not self._is_own(value):
            return None
        return value
