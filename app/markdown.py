"""Model text -> Markdown, blocks, boxes. Model text is hostile: a strict parser, linear in it, never eval.

A grounded region is ``<|ref|>type<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`` and the text after it, up
to the next one. Whatever deviates (a coordinate over 999, corners the wrong way round, a float, a missing
bracket) is no tag: it stays text, as it stands.

Of HTML, only table tags stay, with colspan and rowspan alone; every other ``<`` that could start a tag, a
comment or a declaration becomes ``&lt;``. Links are left as they are: whoever renders Markdown decides which
schemes it follows. A picture region gives a block and, there being no picture file, nothing in the Markdown.
"""

import re
from dataclasses import dataclass

from app.document import Block

REF, REF_END = "<|ref|>", "<|/ref|>"
DET, DET_END = "<|det|>", "<|/det|>"
MAX_TYPE_CHARS = 64
MAX_TAG_CHARS = 200

Box = tuple[int, int, int, int]

# Control characters and lone surrogates have no place in Markdown, and break JSON stores behind the service.
NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
TAG_START = re.compile("<(?=[A-Za-z/!?])")
TABLE_TAG = re.compile(
    r"<(?P<close>/?)(?P<name>table|thead|tbody|tr|td|th)"
    r"(?P<attributes>(?:\s+[a-z-]+(?:=(?:\"[^\"<>]*\"|'[^'<>]*'|[\w%.#-]+))?)*)\s*>",
    re.IGNORECASE | re.ASCII,
)
SPAN = re.compile(r"\s(colspan|rowspan)=[\"']?([0-9]{1,3})[\"']?(?=\s|$)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Rendered:
    markdown: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class _Tag:
    """A well-formed tag: ``text[start:end]``."""

    start: int
    end: int
    type: str
    boxes: tuple[Box, ...]


def to_markdown(text: str) -> Rendered:
    """Raw model text -> Markdown without tags, and one block a box. Never raises.

    Of a tag with several boxes, the first block has the text and the others an empty one.
    """
    text = NOT_TEXT.sub("", text)
    tags = _tags(text)
    ends = [*(tag.start for tag in tags), len(text)][1:]
    bodies = [safe_html(text[tag.end : end].strip()) for tag, end in zip(tags, ends, strict=True)]
    preface = safe_html(text[: tags[0].start if tags else None].strip())
    blocks = [
        Block(tag.type, box, body if box_number == 0 else "")
        for tag, body in zip(tags, bodies, strict=True)
        for box_number, box in enumerate(tag.boxes)
    ]
    return Rendered("\n\n".join(filter(None, [preface, *bodies])), tuple(blocks))


def safe_html(text: str) -> str:
    """Text that no Markdown renderer turns into HTML other than plain tables."""
    return _rewrite_tags(text) if "<" in text else text


def _rewrite_tags(text: str) -> str:
    pieces: list[str] = []
    done = 0
    for match in TAG_START.finditer(text):
        start = match.start()
        if start < done:
            continue  # a "<" inside an attribute value of a tag that was kept
        pieces.append(text[done:start])
        # the bound keeps this linear: the pattern never looks past it, however many "<" there are
        tag = TABLE_TAG.match(text, start, start + MAX_TAG_CHARS)
        pieces.append(_plain_tag(tag) if tag else "&lt;")
        done = tag.end() if tag else start + 1
    return "".join([*pieces, text[done:]])


def _plain_tag(tag: re.Match[str]) -> str:
    name = tag["name"].lower()
    if tag["close"]:
        return f"</{name}>"
    spans = {attribute.lower(): int(value) for attribute, value in SPAN.findall(tag["attributes"])}
    return "<" + " ".join([name, *(f'{attribute}="{value}"' for attribute, value in spans.items())]) + ">"


def _tags(text: str) -> list[_Tag]:
    tags: list[_Tag] = []
    start = text.find(REF)
    while start >= 0:
        tag = _tag_at(text, start)
        if tag is not None:
            tags.append(tag)
        start = text.find(REF, tag.end if tag else start + len(REF))
    return tags


def _tag_at(text: str, start: int) -> _Tag | None:
    type_start = start + len(REF)
    type_end = text.find(REF_END, type_start, type_start + MAX_TYPE_CHARS + len(REF_END))
    kind = text[type_start : max(type_end, type_start)]
    if not kind.strip() or any(mark in kind for mark in "<>|\n"):
        return None
    boxes_start = type_end + len(REF_END) + len(DET)
    if not text.startswith(DET, type_end + len(REF_END)):
        return None
    boxes, end = _boxes_at(text, boxes_start)
    if not boxes or not text.startswith(DET_END, end):
        return None
    return _Tag(start, end + len(DET_END), kind.strip(), tuple(boxes))


def _boxes_at(text: str, at: int) -> tuple[list[Box], int]:
    """``[[1, 2, 3, 4], [5, 6, 7, 8]]`` -> boxes and where the list ends; no boxes if it is anything else."""
    boxes: list[Box] = []
    at = _expect(text, at, "[")
    while at >= 0:
        box, at = _box_at(text, _skip_spaces(text, at))
        if box is None:
            break
        boxes.append(box)
        at = _skip_spaces(text, at)
        if text.startswith("]", at):
            return boxes, at + 1
        at = _expect(text, at, ",")
    return [], -1


def _box_at(text: str, at: int) -> tuple[Box | None, int]:
    numbers: list[int] = []
    for mark in "[,,,":
        at = _expect(text, at, mark)
        at = _skip_spaces(text, at) if at >= 0 else at
        number, at = _number_at(text, at)
        numbers.append(number)
        at = _skip_spaces(text, at) if at >= 0 else at
    at = _expect(text, at, "]")
    if at < 0 or numbers[0] > numbers[2] or numbers[1] > numbers[3]:
        return None, -1
    return (numbers[0], numbers[1], numbers[2], numbers[3]), at


def _number_at(text: str, at: int) -> tuple[int, int]:
    """One to three ASCII digits, so 0..999 by construction; -1 for anything else."""
    if at < 0:
        return -1, -1
    end = at
    while end < at + 3 and text[end : end + 1] in "0123456789" and end < len(text):
        end += 1
    return (int(text[at:end]), end) if end > at else (-1, -1)


def _expect(text: str, at: int, mark: str) -> int:
    return at + 1 if at >= 0 and text.startswith(mark, at) else -1


def _skip_spaces(text: str, at: int) -> int:
    return at + 1 if text.startswith(" ", at) else at
