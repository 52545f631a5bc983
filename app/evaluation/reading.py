"""Let a service read the pages of which a tool's folder has no Markdown, many at a time."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from app.evaluation.truth import ScoredPage, find_prediction, prediction_path
from rtprune.client import AsyncClient, Job, ServiceError
from rtprune.client.answers import Options

MOST_AT_A_TIME = 32
"""Pages asked for at a time: enough to fill a service's batches, and half of the jobs a client may have."""
OF_ALL_PAGES = frozenset({"bad_option", "unauthorized", "forbidden"})
"""Codes of errors that every other page would meet, too."""
BUSY_S = 5.0
"""Time to wait for a service that was busy however often it was asked."""
CANCEL_AGAIN_S = 10.0
"""Longer than cancelling a job takes, which a second cancellation would interrupt."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Missing:
    """A page to be read. ``number``: from 1; ``None``: the document is the page. ``target``: its Markdown."""

    document: Path
    number: int | None
    target: Path
    options: Mapping[str, str]


def missing_pages(
    pages: Sequence[ScoredPage], documents: Path, folder: Path, options: Mapping[str, str]
) -> tuple[list[Missing], int]:
    """Return the pages that ``folder`` lacks and ``documents`` has, and how many neither of them has."""
    files = {path.stem: path for path in sorted(documents.iterdir()) if path.is_file()}
    lacking = [page for page in pages if find_prediction(folder, page) is None]
    missing = [
        Missing(files[page.name], page.number, prediction_path(folder, page), options)
        for page in lacking
        if page.name in files
    ]
    return missing, len(lacking) - len(missing)


async def read_pages(
    address: str, pages: Sequence[Missing], *, key: str | None, say: Say, done: Callable[[int], None]
) -> None:
    """Have pages read, and write each one as soon as it is there.

    ``say`` is told what is refused, what was not read to its end, and why nothing goes on; ``done`` how many
    pages are over. Raise ``ClientError`` if the service does not answer, or refuses what all pages ask for.
    When it is cancelled, it cancels its jobs.
    """
    async with AsyncClient(address, key=key) as client:
        reading = _Reading(client, say, done)
        waiting = iter(pages)
        running = {asyncio.create_task(reading.read(waiting)) for _ in range(MOST_AT_A_TIME)}
        try:
            while running:
                done_ones, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done_ones:
                    task.result()
        finally:
            await _cancelled(running)


async def _cancelled(running: set["asyncio.Task[None]"]) -> None:
    """Cancel tasks, each of which cancels its job; once more where a library lost the cancellation."""
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)


class _Reading:
    """What the tasks of one reading share."""

    def __init__(self, client: AsyncClient, say: Say, done: Callable[[int], None]) -> None:
        self._client, self._say, self._done = client, say, done
        self._num_done = 0
        self._busy: set[str] = set()
        """Codes for which it was said that pages wait."""

    async def read(self, pages: Iterator[Missing]) -> None:
        """Take pages as long as there are any."""
        for page in pages:
            await self._read(page)
            self._num_done += 1
            self._done(self._num_done)

    async def _read(self, page: Missing) -> None:
        try:
            job = await self._submitted(page)
            async with self._client.cancelling(job):
                ended = await self._client.wait(job)
                text = await self._client.answer(job, "markdown")
        except ServiceError as error:
            if error.code in OF_ALL_PAGES:
                raise
            self._say(f"{page.document.name}: {error.code}: {error}\n")
            return
        if ended.status == "partial":
            self._say(f"{page.document.name}: not read to its end\n")
        part = page.target.with_suffix(".part")  # cut short, it is not taken for the page
        part.write_bytes(text)
        part.replace(page.target)

    async def _submitted(self, page: Missing) -> Job:
        """Submit a page. Wait for a service that is busy, for as long as it is."""
        options = {**page.options} if page.number is None else {**page.options, "pages": str(page.number)}
        while True:
            try:
                return await self._client.submit(page.document, **cast("Options", options))
            except ServiceError as error:
                if not error.retryable:
                    raise
                if error.code not in self._busy:
                    self._busy.add(error.code)
                    self._say(f"pages wait: {error.code}: {error}\n")
            await asyncio.sleep(BUSY_S)
