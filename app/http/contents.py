"""Make the contents of a dialect's answer: Markdown with figures, or one of our formats.

Everything here runs in a thread, through ``Results.made``.
"""

import json
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from app.document import AnswerOptions, PageResult, ParsedDocument
from app.output.answer import Answer
from app.output.embedding import Pictures
from app.output.figures import Address, readdressed
from app.output.formats import FORMATS
from app.output.pages import Joined, Rule, join_pages

Shown = Callable[[str, str], str]
"""Returns what stands for a figure in Markdown, given its name and its caption."""
SIGN_BYTES = 16
MAX_STEM_CHARS = 100


def page_markdown(page: PageResult, figures: Shown | None) -> str:
    """Return one page with everything on it, with dollars around its math."""
    options = AnswerOptions(headers="keep", join_pages=False, page_marks="none")
    return _markdown([page], figures, options, None)


def document_markdown(document: ParsedDocument, figures: Shown | None, page_break: str = "") -> str:
    """Return the document as one text.

    ``figures`` may be ``None``. ``page_break``: text to put between pages.
    """
    options = AnswerOptions(join_pages=not page_break, page_marks="rule" if page_break else "comment")
    return _markdown(document.pages, figures, options, page_break or None)


def _markdown(
    pages: Sequence[PageResult], figures: Shown | None, options: AnswerOptions, page_break: str | None
) -> str:
    # an address that model text cannot guess, so that text that looks like a reference stays text
    sign = secrets.token_hex(SIGN_BYTES)
    address = None if figures is None else lambda name: f"{sign}-{name}"
    joined = join_pages([readdressed(page, address) for page in pages], options)
    text = joined.markdown(dollars=True) if page_break is None else _with_breaks(joined, page_break)
    if figures is None:
        return text
    reference = re.compile(rf"!\[([^\]\n]*)\]\({sign}-([^)\n]*)\)")
    return reference.sub(lambda found: figures(found[2], found[1]), text)


def _with_breaks(joined: Joined, page_break: str) -> str:
    """Put the client's text at the end of each page but the last."""
    texts: list[str] = []
    start = 0
    entries = joined.entries
    for at in [*(number for number, entry in enumerate(entries) if isinstance(entry, Rule)), len(entries)]:
        texts.append(replace(joined, entries=entries[start:at]).markdown(dollars=True))
        start = at + 1
    return f"\n\n{page_break}\n\n".join(texts)


def formatted(document: ParsedDocument, name: str, address: Address | None, pictures: Pictures) -> str:
    """Return the document in one of our text formats."""
    options = AnswerOptions()
    address = None if FORMATS[name].images == "none" else address
    joined = join_pages([readdressed(page, address) for page in document.pages], options)
    answer = Answer(
        document,
        joined,
        options,
        address,
        pictures,
        as_json=lambda: iter(()),
        scratch=tempfile.TemporaryFile,
    )
    return "".join(map(str, FORMATS[name].make(answer))).rstrip("\n")


def docling_json(
    document: ParsedDocument, name: str, address: Address | None, pictures: Pictures
) -> dict[str, Any]:
    """Return the document as a DoclingDocument, made with docling-core."""
    found: dict[str, Any] = json.loads(formatted(document, "docling", address, pictures))
    return {**found, "name": name}


def stems(filenames: Sequence[str]) -> list[str]:
    """Return names for documents, each another one, that are fit for a file."""
    found: list[str] = []
    for filename in filenames:
        stem = PurePath(filename.replace("\\", "/")).stem.replace("\0", "")[:MAX_STEM_CHARS]
        stem = stem if stem not in {"", ".", ".."} else "document"
        number = 2
        unique = stem
        while unique in found:
            unique, number = f"{stem}_{number}", number + 1
        found.append(unique)
    return found
