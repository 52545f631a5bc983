"""One document, from file to answer: the seam to whatever reads pages, and what is made of its results."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from app.document import PageResult, ParsedDocument, ParseOptions, Status
from app.errors import DocumentFailed, ParseError
from app.formats import Source
from app.telemetry import Stopwatch

MAX_FAILURES_NAMED = 5


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether pages can be read now; if not, why. ``model`` is the last one that was loaded."""

    ready: bool
    detail: str
    model: str = ""


class Parser(Protocol):
    """Reads documents. Whether a child process does it or a queue of jobs is not known above."""

    @property
    def readiness(self) -> Readiness: ...

    def parse(
        self, source: Source, options: ParseOptions, *, document_id: str
    ) -> AsyncGenerator[PageResult, None]:
        """Pages as they are finished, each selected one once. Closing the generator cancels the document.

        Raises the document's own ``ParseError``. Readiness is waited for, up to the document's deadline.
        """


async def parse_document(
    parser: Parser, source: Source, options: ParseOptions, *, document_id: str
) -> ParsedDocument:
    """Read a document to its end. Raises the document's own ``ParseError``."""
    watch = Stopwatch()
    with watch("total"):
        async with aclosing(parser.parse(source, options, document_id=document_id)) as results:
            pages = tuple(sorted([page async for page in results], key=lambda page: page.index))
    return ParsedDocument(document_id, parser.readiness.model, _status(pages), pages, watch.ms)


def raise_if_unread(document: ParsedDocument) -> None:
    """Raise when no page was read: the pages' error if they have one in common, else ``DocumentFailed``.

    A pipeline that looks at the HTTP status alone must never take an empty answer for a blank document.
    """
    if document.status != "failed":
        return
    failures = [(page.index + 1, page.failure) for page in document.pages if page.failure is not None]
    codes = Counter(failure.code for _, failure in failures)
    if len(codes) == 1:
        raise _common_error(failures[0][1].error(), len(failures))
    named = [f"page {number}: {failure.code}" for number, failure in failures[:MAX_FAILURES_NAMED]]
    raise DocumentFailed(f"none of {len(failures)} pages could be read ({', '.join(named)})")


def _common_error(error: ParseError, num_pages: int) -> ParseError:
    return error if num_pages == 1 else type(error)(f"{error} (and so for each of {num_pages} pages)")


def _status(pages: tuple[PageResult, ...]) -> Status:
    num_failed = sum(page.failure is not None for page in pages)
    if not num_failed:
        return "succeeded"
    return "failed" if num_failed == len(pages) else "partial"
