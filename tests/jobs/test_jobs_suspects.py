"""Pages that kill workers are told from those that were near: no innocent page is lost."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from jobs_bench import Bench

from app.document import Page, ParseOptions, Reading, ReadOptions
from app.fake import FakeReader
from app.jobs.store import Store
from app.jobs.tables import attempts
from app.jobs.worker.page_store import Entry, PageStore
from app.jobs.worker.reading import MAX_STRIKES
from app.jobs.worker.result_writer import ResultWriter

NUM_PAGES = 10
NUM_KILLS = 8
"""From outside."""
MAX_KILLS_BY_ONE_PAGE = 4
"""Of at most 63 pages in flight: with all of them, with an eighth, and twice alone."""


class MortalWriter(ResultWriter):
    """What is written after death reaches nobody."""

    def __init__(self, log: PageStore, worker_id: str) -> None:
        super().__init__(log, worker_id)
        self.died = asyncio.Event()

    async def write(self, entry: Entry) -> None:
        if self.died.is_set():
            raise asyncio.CancelledError
        await super().write(entry)

    async def silent(self) -> None:
        if self._writer is not None:
            await self._writer


class DeadlyStream:
    def __init__(self, reader: "DeadlyReader", page: Page, options: ReadOptions) -> None:
        self._reader = reader
        self._page = page
        self._options = options

    async def pieces(self) -> AsyncIterator[str]:
        yield ""

    async def result(self) -> Reading:
        await self._reader.at_model(self._page.index)
        return await FakeReader().submit(self._page, self._options, document_id="x").result()

    def cancel(self) -> None:
        return


class DeadlyPages:
    """Pages in one prompt, any of which may kill."""

    def __init__(self, streams: Sequence[DeadlyStream]) -> None:
        self._streams = streams

    async def results(self) -> Sequence[Reading]:
        return [await stream.result() for stream in self._streams]

    def cancel(self) -> None:
        return


class DeadlyReader:
    """Keeps the contracts of readers, until a killer is read or an outsider kills."""

    model_name = "deadly"
    modes = ("tiny",)
    fixates = False
    reads_together = True

    def __init__(self, writer: MortalWriter, killers: set[int], chance: random.Random) -> None:
        self._writer = writer
        self._killers = killers
        self._chance = chance
        self.blame: int | None = None
        """The page that killed."""

    async def at_model(self, index: int) -> None:
        for _ in range(self._chance.randrange(40)):
            await asyncio.sleep(0)
        if index in self._killers and not self._writer.died.is_set():
            self.blame = index
            self._writer.died.set()

    def submit(
        self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> DeadlyStream:
        return DeadlyStream(self, page, options)

    def submit_together(
        self, pages: Sequence[Page], options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> DeadlyPages:
        return DeadlyPages([DeadlyStream(self, page, options) for page in pages])

    async def close(self) -> None:
        return


async def outsider(writer: MortalWriter, chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0, 0.05))
    writer.died.set()


def pages_of(store: Store, worker_id: str) -> list[int]:
    """The pages that a worker has, or had when it died."""
    with store.reading() as c:
        return list(c.execute(sa.select(attempts.c.page).where(attempts.c.worker == worker_id)).scalars())


async def live(
    bench: Bench, job_id: str, number: int, killers: set[int], chance: random.Random
) -> tuple[int | None, list[int]]:
    """One worker's life, until the batch is read or it dies: the page that killed it, the pages it had."""
    worker_id = f"w{number}"
    writer = MortalWriter(bench.log, worker_id)
    reader = DeadlyReader(writer, killers, chance)
    reading = asyncio.create_task(bench.new_worker("", reader, writer).read(job_id, 0))
    tasks: list[asyncio.Task[Any]] = [reading, asyncio.create_task(writer.died.wait())]
    if number < NUM_KILLS:
        tasks.append(asyncio.create_task(outsider(writer, chance)))
    await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await writer.silent()
    had = pages_of(bench.store, worker_id)
    bench.log.mark_worker_dead(worker_id)
    return reader.blame, had


@pytest.mark.parametrize("pages_per_prompt", [1, 4])
@pytest.mark.parametrize("seed", range(8))
def test_a_page_is_lost_when_it_was_alone_twice_and_every_killer_is_found(
    tmp_path: Path, seed: int, pages_per_prompt: int
) -> None:
    """Kills from outside at random moments; pages that kill among the others."""
    chance = random.Random(seed)
    killers = set(chance.sample(range(NUM_PAGES), k=seed % 3))

    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=chance.choice([1, 2, 4, 16]))
        job_id = bench.job(NUM_PAGES, options=ParseOptions(pages_per_prompt=pages_per_prompt))
        blamed: Counter[int | None] = Counter()
        alone: Counter[int] = Counter()
        number = 0
        while bench.store.job(job_id).is_open:
            assert number < NUM_KILLS + MAX_KILLS_BY_ONE_PAGE * len(killers) + 1, "it ends"
            page, had = await live(bench, job_id, number, killers, chance)
            blamed[page] += 1
            alone.update(had if len(had) == 1 else [])
            number += 1
        failures = {page.index: page.failure for page in bench.store.results(job_id) if page.failure}
        assert set(failures) == {page for page in alone if alone[page] == MAX_STRIKES}
        assert set(failures) >= killers
        assert all(failure.code == "worker_lost" for failure in failures.values())
        assert all(blamed[page] <= MAX_KILLS_BY_ONE_PAGE for page in killers)

    asyncio.run(run())
