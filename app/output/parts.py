"""Split a page's Markdown into parts: its blocks, and the paragraphs between them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from app.document import Block, PageResult
from app.output.spans import closed, spans_of

EMPTY_LINES = re.compile(r"\n[ \t]*\n\s*")

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """A block or paragraph. ``number``: index of the block in ``page.blocks``.

    ``type``, ``box`` and ``number`` are ``None`` for a paragraph outside blocks.
    """

    markdown: str
    type: str | None = None
    box: Box | None = None
    number: int | None = None


def parts_of(page: PageResult) -> list[Part]:
    """Return all parts of a page's Markdown, in order."""
    parts: list[Part] = []
    markdown, at = page.markdown, 0
    for number, block in enumerate(page.blocks):
        body = block.text if block.markdown is None else block.markdown
        if not body:
            continue
        found = place(markdown, body, at)
        if found is None:
            return list(_paragraphs(markdown))  # blocks and Markdown come from different readings
        parts += _paragraphs(markdown[at : found.start])
        parts.append(_part(block, body, number))
        at = found.stop
    parts += _paragraphs(markdown[at:])
    return parts


def _part(block: Block, markdown: str, number: int) -> Part:
    return Part(markdown, block.type, block.bbox, number)


def place(markdown: str, body: str, at: int) -> range | None:
    """Find a block's Markdown, as whole paragraphs, from ``at`` on. Return ``None`` if it is not there."""
    start = markdown.find(body, at)
    while start >= 0:
        end = start + len(body)
        if markdown[max(start - 1, 0) : start] in ("", "\n") and markdown[end : end + 1] in ("", "\n"):
            whole = closed(body)
            return range(start, start + len(whole) if markdown.startswith(whole, start) else end)
        start = markdown.find(body, end)
    return None


def _paragraphs(markdown: str) -> Iterator[Part]:
    """Yield the paragraphs of text without blocks. Do not split fenced code."""
    start = 0
    for span in spans_of(markdown):
        if span.kind not in ("text", "html"):
            continue
        for empty in EMPTY_LINES.finditer(markdown, span.start, span.end):
            if text := markdown[start : empty.start()].strip():
                yield Part(text)
            start = empty.end()
    if text := markdown[start:].strip():
        yield Part(text)
