"""Read several pages of a document in one prompt. Every page still has a task, and a result, of its own."""

import asyncio
from collections.abc import Collection, Sequence
from itertools import pairwise

from app.document import Page, Reading
from app.jobs.job import Job
from app.reader import NotTogether, ReadsTogether


class SharedPrompt:
    """Pages that are to be read in one prompt. It goes to the model once each page has come or dropped out.

    ``indices``: of the pages of the job that may come.
    """

    def __init__(self, reader: ReadsTogether, job: Job, indices: Collection[int]) -> None:
        self._reader, self._job = reader, job
        self.num_pages = len(indices)
        self._awaited = set(indices)
        self._inside: dict[int, Page] = {}
        self._is_complete = asyncio.Event()
        self._reading: asyncio.Task[dict[int, Reading]] | None = None

    async def read(self, page: Page) -> Reading | None:
        """Wait for the others, then for the page's reading; ``None`` if no other page has come.

        Raise ``NotTogether`` if the pages are to be read one by one, or what ``submit_together`` raises.
        """
        self._inside[page.index] = page
        self._came_or_dropped(page.index)
        await self._is_complete.wait()
        if self._reading is None:
            if len(self._inside) < 2:
                return None
            self._reading = asyncio.create_task(self._read(), name="pages in one prompt")
        # shielded: the prompt goes on without a page that stops waiting
        return (await asyncio.shield(self._reading))[page.index]

    def leave(self, index: int) -> None:
        """Stop waiting for a page that will not come, or came and needs no more. Idempotent."""
        self._inside.pop(index, None)
        self._came_or_dropped(index)
        if self._reading is not None and not self._inside:
            self._reading.cancel()

    def _came_or_dropped(self, index: int) -> None:
        self._awaited.discard(index)
        if not self._awaited:
            self._is_complete.set()

    async def _read(self) -> dict[int, Reading]:
        indices = sorted(self._inside)
        pages, job = [self._inside[index] for index in indices], self._job
        stream = self._reader.submit_together(
            pages, job.options.read, document_id=job.id, priority=job.priority
        )
        try:
            readings = await stream.results()
        finally:
            stream.cancel()
        if len(readings) != len(indices):
            raise NotTogether(f"{len(indices)} pages were given, {len(readings)} came back")
        return dict(zip(indices, readings, strict=True))


def prompts_of(indices: Sequence[int], most: int) -> list[Sequence[int]]:
    """Divide pages, in order, into as few prompts as possible, of nearly the same size and at most ``most``.

    >>> prompts_of([0, 1, 2, 3, 4, 5, 6, 7, 8], 4)
    [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    """
    number = -(-len(indices) // most)
    ends = [len(indices) * i // max(1, number) for i in range(number + 1)]
    return [indices[start:stop] for start, stop in pairwise(ends)]
