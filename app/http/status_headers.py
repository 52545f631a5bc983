"""Tell in headers what a text answer cannot: the status, and which pages fall short.

They are structured fields (RFC 9651).
"""

from collections.abc import Iterable, Iterator

from app.document import PageResult, ParsedDocument

MAX_LISTED = 40
"""Most pages named in one header, because proxies refuse headers of more than a few KiB."""


def status_headers(document: ParsedDocument) -> dict[str, str]:
    """Return the headers of a document's answer. Pages count from 1, as in the option ``pages``.

    ``RTPrune-Status: partial``
    ``RTPrune-Pages: total=9, failed=1, incomplete=1``
    ``RTPrune-Shortfalls: 2;code=length, 5;code=unreadable_page``, the first ``MAX_LISTED``
    ``RTPrune-Warnings: 3;code=missing_glyphs``, likewise, without the finish reasons listed as shortfalls
    """
    pages = document.pages
    num_failed = sum(page.failure is not None for page in pages)
    num_short = sum(page.shortfall is not None for page in pages)
    counts = f"total={len(pages)}, failed={num_failed}, incomplete={num_short - num_failed}"
    headers = {"RTPrune-Status": document.status, "RTPrune-Pages": counts}
    if shortfalls := _listed(_shortfalls(pages)):
        headers["RTPrune-Shortfalls"] = shortfalls
    if warnings := _listed(_warnings(pages)):
        headers["RTPrune-Warnings"] = warnings
    return headers


def _shortfalls(pages: Iterable[PageResult]) -> Iterator[tuple[int, str]]:
    return ((page.index, page.shortfall) for page in pages if page.shortfall is not None)


def _warnings(pages: Iterable[PageResult]) -> Iterator[tuple[int, str]]:
    for page in pages:
        yield from ((page.index, one.code) for one in page.warnings if one.code != page.shortfall)


def _listed(found: Iterable[tuple[int, str]]) -> str:
    members = [f"{index + 1};code={code}" for index, code in found]
    return ", ".join(members[:MAX_LISTED])
