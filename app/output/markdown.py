"""Turn hostile model text into Markdown, blocks and boxes, by a strict and linear parser, never eval.

A grounded region is ``<|ref|>type<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`` and the text after it, up
to the next one. A tag that deviates still ends a region, and nothing of it is left in the text:

- Coordinates over 999 become 999, those below 0 become 0, fractions are rounded, corners are put in order.
  A missing bracket is accepted.
- A list without four numbers, a tag without its end and one without a type give no block; the text stays.
- An unfinished tag at the end of the text is cut off, and so is the beginning of a special token.
- Special tokens of the model that stand alone are removed. Text that only looks like one (``<|other|>``)
  stays.

``app.output.html`` describes what becomes of HTML. Links are left as they are: the program that renders the
Markdown decides which schemes it follows. A picture region gives a block and nothing in the Markdown:
``app.output.figures`` refers to its file there, once it is cut out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.document import Block, Reading
from app.output.html import safe, tidied
from app.output.spans import closed

MAX_COORDINATE = 999
SPECIAL_TOKENS = (
    *("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>"),
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),  # noqa: RUF001 - as they are spelled
)

Box = tuple[int, int, int, int]

# Control characters and lone surrogates have no place in Markdown, and break JSON stores behind the service.
NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
BOXES_CUT_OFF = r"[ \t]*+\[\[?[0-9,. \t-]*+(?:\][ \t]*+,[ \t]*+\[[0-9,. \t-]*+)*+\]{0,2}+"
TAG = re.compile(
    r"<\|ref\|>(?P<type>[^<>|\n]{0,64}+)<\|/ref\|>\s*+"
    rf"(?:<\|det\|>(?:(?P<boxes>\s*+\[[^<\n]*+)<\|/det\|>|{BOXES_CUT_OFF})?)?"
)
UNFINISHED_REF = re.compile(
    rf"<\|ref\|>(?:[\w-]{{0,64}}+(?:<\|/ref\|>\s*+(?:<\|det\|>(?:{BOXES_CUT_OFF})?)?)?)?<?\Z"
)
UNFINISHED_DET = re.compile(rf"<\|det\|>(?:{BOXES_CUT_OFF})?<?\Z")
STRAY = re.compile(
    rf"<\|det\|>(?:\s*+\[[^<\n]*+<\|/det\|>|{BOXES_CUT_OFF})?|"
    + "|".join(re.escape(token) for token in SPECIAL_TOKENS)
)
BOX = re.compile(r"\[([^\[\]]*+)\]?")
NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{0,20})?")


@dataclass(frozen=True, slots=True)
class Rendered:
    markdown: str
    blocks: tuple[Block, ...]


def render(reading: Reading) -> Rendered:
    """Turn a reading into Markdown and blocks. Never raise."""
    return to_markdown(reading.text) if reading.blocks is None else of_blocks(reading.blocks)


def of_blocks(blocks: Sequence[Block]) -> Rendered:
    """Join the blocks of a reader that knows where its text stands."""
    bodies = [block.text if block.markdown is None else block.markdown for block in blocks]
    return Rendered(_joined([body for body in bodies if body]), tuple(blocks))


def block_of(kind: str, box: Box, markdown: str) -> Block:
    """Make a block from Markdown in which print is escaped (``app.output.escape``)."""
    markdown, plain = safe(NOT_TEXT.sub("", markdown).strip())
    return Block(kind, box, plain, None if markdown == plain else markdown)


def to_markdown(text: str) -> Rendered:
    """Turn raw model text into Markdown without tags, and one block per box. Never raise.

    If a tag has several boxes, the first block has the text and the others an empty one.
    """
    text = _cut_off(NOT_TEXT.sub("", text))
    tags = list(TAG.finditer(text))
    ends = [*(tag.start() for tag in tags), len(text)]
    starts = [0, *(tag.end() for tag in tags)]
    rendered = [_body(text[start:end]) for start, end in zip(starts, ends, strict=True)]
    blocks: list[Block] = []
    for tag, (markdown, plain) in zip(tags, rendered[1:], strict=True):
        for number, box in enumerate(_boxes(tag["boxes"] or "") if tag["type"].strip() else ()):
            own = (plain, None if markdown == plain else markdown) if number == 0 else ("", None)
            blocks.append(Block(tag["type"].strip(), box, *own))
    return Rendered(_joined([markdown for markdown, _ in rendered if markdown]), tuple(blocks))


def _joined(bodies: Sequence[str]) -> str:
    """Join paragraphs. Close open fences, so that none reaches into the next paragraph."""
    return "\n\n".join([*map(closed, bodies[:-1]), *bodies[-1:]])


def _cut_off(text: str) -> str:
    """Remove an unfinished tag or special token at the end of a text."""
    text = text.rstrip()
    start = text.rfind("<", -max(map(len, SPECIAL_TOKENS)))
    tail = text[start:] if start >= 0 else ""
    is_alone = tail == "<" and text[:-1].rsplit("\n", 1)[-1].strip() == ""
    if is_alone or (
        len(tail) > 1 and any(token.startswith(tail) and token != tail for token in SPECIAL_TOKENS)
    ):
        text = text[: -len(tail)]
    for mark, unfinished in (("<|ref|>", UNFINISHED_REF), ("<|det|>", UNFINISHED_DET)):
        start = text.rfind(mark)
        if start >= 0 and unfinished.match(text, start):
            return text[:start]
    return text


def _body(text: str) -> tuple[str, str]:
    """Return a region's text as Markdown, and the same text without escapes."""
    if "<" in text:
        text = STRAY.sub("", text)
    text = tidied(text.strip())
    if "<" in text:
        text = STRAY.sub(" ", text)  # tokens that tidying formed; no token has a space
    markdown, plain = safe(text.strip())
    return markdown.strip(), plain.strip()


def _boxes(text: str) -> list[Box]:
    """Parse ``[[1, 2, 3, 4], [5, 6, 7, 8]]``. Keep coordinates within the page and put corners in order."""
    boxes: list[Box] = []
    for part in BOX.finditer(text):
        numbers = part[1].split(",")
        if len(numbers) != 4 or not all(NUMBER.fullmatch(number.strip()) for number in numbers):
            continue
        x1, y1, x2, y2 = (min(max(round(float(number)), 0), MAX_COORDINATE) for number in numbers)
        boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return boxes
