"""Read several pages in one prompt, and one by one if what comes back is not as many pages.

A checkpoint trained for it, such as Unlimited-OCR, writes a mark in front of each page. A page more or less
than were shown means that some text stands under another page's number, and nothing tells which.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.document import Page, Reading, ReadOptions
from app.errors import BadOption, PageFailed, PageTooLong
from app.reader import PageReader, PageStream


class ReadsTogether(PageReader, Protocol):
    """A reader that can be shown several pages in one prompt."""

    @property
    def page_mark(self) -> str | None:
        """Text in front of each page; ``None``: a prompt has one page."""

    def submit_together(
        self, pages: Sequence[Page], options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> PageStream:
        """Queue several pages as one prompt."""


@dataclass(frozen=True, slots=True)
class PagesRead:
    """Raw model text of pages that were to be read together.

    ``texts``: one for each page, in order. ``readings``: the one reading of all pages, or one for each page
    if they were read one by one. ``one_by_one``: why they were, safe to show; ``None``: they were read
    together.
    """

    texts: tuple[str, ...]
    readings: tuple[Reading, ...]
    one_by_one: str | None = None


async def read_together(
    reader: ReadsTogether,
    pages: Sequence[Page],
    options: ReadOptions,
    *,
    document_id: str,
    priority: int = 0,
) -> PagesRead:
    """Read pages in one prompt; if that gives another number of pages, or no end, read them one by one.

    ``options`` are those of either way; what they leave open is chosen by the checkpoint for each. Raise what
    ``submit`` and ``result`` of the reader raise, ``BadOption`` if the checkpoint reads one page a prompt.
    """
    mark = reader.page_mark
    if mark is None:
        raise BadOption(f"{reader.model_name} reads one page a prompt")
    reason = None
    if len(pages) > 1:
        stream = reader.submit_together(pages, options, document_id=document_id, priority=priority)
        found = await _in_one_prompt(stream, len(pages), mark)
        if isinstance(found, PagesRead):
            return found
        reason = found
    streams = [reader.submit(page, options, document_id=document_id, priority=priority) for page in pages]
    try:
        readings = [await stream.result() for stream in streams]
    finally:
        for stream in streams:
            stream.cancel()
    return PagesRead(tuple(one.text for one in readings), tuple(readings), reason)


async def _in_one_prompt(stream: PageStream, num_pages: int, mark: str) -> PagesRead | str:
    """Wait for pages read together. Return why they are to be read one by one if that did not work."""
    try:
        reading = await stream.result()
    except (PageTooLong, PageFailed) as error:
        return f"The pages could not be read together: {error}."
    finally:
        stream.cancel()
    if reading.finish_reason != "stop":
        return f"Reading the pages together ended with {reading.finish_reason}."
    texts = texts_of(reading.text, mark)
    if len(texts) != num_pages:
        return f"The text of {num_pages} pages had {len(texts)} parts."
    return PagesRead(tuple(texts), (reading,))


def texts_of(text: str, mark: str) -> list[str]:
    """Divide the text of several pages, each with ``mark`` in front; none if text precedes the first mark."""
    before, *texts = text.split(mark)
    return [] if before.strip() else [one.strip() for one in texts]
