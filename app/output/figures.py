"""Refer to figures in Markdown: a reference with the address of its file stands for each picture region.

A stored page refers to ``images/p3-1.png``. An answer may have another address there, or none
(``readdressed``). Only the references of blocks that have a figure are changed; model text that looks like
a reference stays text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from app.document import Block, Figure, PageResult
from app.output.markdown import Rendered
from app.output.parts import place
from app.output.plain import to_plain
from app.output.spans import closed

PICTURE_TYPES = frozenset({"image", "figure", "picture", "chart", "diagram", "photo", "graphic"})
CAPTION = re.compile(r"caption|figure_title|image_title", re.IGNORECASE)
FOLDER = "images/"
MAX_CAPTION_CHARS = 200
NOT_IN_ALT = re.compile(r"[\[\]\\<>`$*_|&~^{}!#\s]+")
"""Characters that Markdown or HTML could take for more than the text of a reference."""

Address = Callable[[str], str]


def figure_names(pages: Sequence[PageResult]) -> list[str]:
    """List the figures of pages, each once, in order."""
    blocks = (block for page in pages for block in page.blocks)
    return list(dict.fromkeys(block.figure.name for block in blocks if block.figure is not None))


def is_picture(block: Block) -> bool:
    """Tell whether a block is a region to cut out."""
    return block.type.casefold() in PICTURE_TYPES


def relative(name: str) -> str:
    """Return the path of a figure beside the Markdown."""
    return FOLDER + name


def caption_of(blocks: Sequence[Block], number: int) -> str:
    """Return the caption below a picture, or above it, as one line without markup; empty without one."""
    for near in (number + 1, number - 1):
        if 0 <= near < len(blocks) and CAPTION.search(blocks[near].type):
            block = blocks[near]
            text = to_plain(block.text if block.markdown is None else block.markdown)
            return NOT_IN_ALT.sub(" ", text).strip()[:MAX_CAPTION_CHARS].strip()
    return ""


def with_figures(rendered: Rendered, figures: Mapping[int, Figure]) -> Rendered:
    """Put references into a page's Markdown. ``figures``: figures by the number of their block."""
    if not figures:
        return rendered
    markdown, at = rendered.markdown, 0
    parts: list[str] = []
    waiting: list[str] = []  # references to put before the next text
    blocks: list[Block] = []
    for number, block in enumerate(rendered.blocks):
        body = block.text if block.markdown is None else block.markdown
        found = place(markdown, body, at) if body else None
        if found is not None:
            parts += [markdown[at : found.start], *waiting]
            waiting, at = [], found.start
        if (figure := figures.get(number)) is not None:
            shown = _reference(figure, caption_of(rendered.blocks, number), relative)
            (waiting if found is None else parts).append(shown)
            own = shown if found is None else f"{shown}\n\n{body}"
            blocks.append(replace(block, markdown=own, figure=figure))
        else:
            blocks.append(block)
        if found is not None:
            parts.append(markdown[at : found.stop])
            at = found.stop
    parts = [text for part in (*parts, *waiting, markdown[at:]) if (text := part.strip("\n"))]
    return Rendered("\n\n".join([*map(closed, parts[:-1]), *parts[-1:]]), tuple(blocks))


def readdressed(page: PageResult, address: Address | None) -> PageResult:
    """Return a page whose references to figures have another address. ``None``: remove the references."""
    if address is relative or not any(block.figure for block in page.blocks):
        return page
    pieces: list[str] = []
    blocks: list[Block] = []
    at = 0
    for block in page.blocks:
        old = reference_of(block)
        found = place(page.markdown, old, at) if old else None
        if found is None or old is None or block.figure is None or block.markdown is None:
            blocks.append(block)
            continue
        new = "" if address is None else _reference(block.figure, alt_of(block), address)
        pieces += [page.markdown[at : found.start], new]
        gone = page.markdown.startswith("\n\n", found.stop) and not new
        at = found.stop + (2 if gone else 0)
        body = (new + block.markdown[len(old) :]).strip("\n")
        blocks.append(replace(block, markdown=body or None))
    markdown = "".join([*pieces, page.markdown[at:]]).strip("\n")
    return replace(page, markdown=markdown, blocks=tuple(blocks))


def reference_of(block: Block) -> str | None:
    """Return the reference to its figure at the start of a block's Markdown; ``None`` without one."""
    if block.figure is None or block.markdown is None:
        return None
    line = block.markdown.partition("\n")[0]
    is_one = line.startswith("![") and line.endswith(f"]({relative(block.figure.name)})")
    return line if is_one else None


def alt_of(block: Block) -> str:
    """Return the text of the reference to a block's figure; empty without a caption."""
    line = reference_of(block)
    return "" if line is None else line[2:].partition("](")[0]


def _reference(figure: Figure, caption: str, address: Address) -> str:
    return f"![{caption}]({address(figure.name)})"
