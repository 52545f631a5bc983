"""What a worker does with batches of pages: order, bounds, failures, suspects. A real store, no processes."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from jobs_bench import Bench, done, started
from service_client import PATIENCE_S

from app.document import ParseOptions, ReadOptions
from app.errors import StorageUnavailable
from app.jobs.blobs import Blobs
from app.jobs.store import Store
from app.jobs.tables import attempts
from app.jobs.worker import reading as reading_module
from app.jobs.worker.page_store import Entry, PageStore
from app.jobs.worker.result_writer import ResultWriter
from app.output.checks import Checks, check_page


def num_open(store: Store) -> int:
    """Pages that some worker has."""
    with store.reading() as c:
        query = sa.select(sa.func.count()).select_from(attempts).where(attempts.c.worker.is_not(None))
        return int(c.execute(query).scalar_one())


def test_pages_in_flight_are_bounded_and_all_are_read(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=3)
        job_id = bench.job()
        reading = asyncio.create_task(bench.worker.read(job_id, 0))
        await bench.running(3)
        assert bench.reader.running == {0, 1, 2}, "in document order"
        bench.reader.gate.set()
        await reading
        job = bench.store.job(job_id)
        assert (job.status, job.num_done, job.num_failed) == ("partial", 12, 2)
        assert bench.reader.max_running == 3
        pages = bench.store.results(job_id)
        assert [page.index for page in pages] == list(range(12))
        failed = {page.index: page.failure.code for page in pages if page.failure}
        assert failed == {2: "page_failed", 11: "unreadable_page"}

    asyncio.run(run())


def test_pages_of_all_documents_are_bounded(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=6)
        tasks = [asyncio.create_task(bench.worker.read(bench.job(4), 0)) for _ in range(3)]
        await bench.running(6 - 2)  # their numbers repeat: 0..3 of one job, and the first two of another
        assert bench.reader.num_begun == 6
        bench.reader.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_what_was_read_before_is_not_read_again(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        job_id = bench.job(10)
        bench.store.begin(job_id)
        bench.log.write("other", [done(job_id, index) for index in range(7)])
        bench.reader.gate.set()
        await bench.worker.read(job_id, 0)
        assert bench.reader.num_begun == 3
        assert bench.store.job(job_id).status == "succeeded"

    asyncio.run(run())


def test_a_cancelled_job_frees_the_reader_and_stays_cancelled(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=2)
        job_id = bench.job()
        reading = asyncio.create_task(bench.worker.read(job_id, 0))
        await bench.running(2)
        assert bench.store.cancel(job_id)
        bench.worker.cancel(job_id)
        await reading
        assert bench.reader.running == set()
        assert bench.reader.num_cancels == 2
        bench.log.write("w", [done(job_id, 0)])
        job = bench.store.job(job_id)
        assert (job.status, job.num_done) == ("cancelled", 0)
        assert num_open(bench.store) == 0, "taken from the model on purpose: whoever dies now, it is not why"

    asyncio.run(run())


def test_a_refused_option_ends_the_document(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        job_id = bench.job(options=ParseOptions(ReadOptions(mode="none such")))
        await bench.worker.read(job_id, 0)
        job = bench.store.job(job_id)
        assert job.status == "failed"
        assert job.failure is not None
        assert job.failure.code == "bad_option"
        assert num_open(bench.store) == 0, "or it would be blamed for whatever ends the worker later"

    asyncio.run(run())


class SlowStore(PageStore):
    """Writes when it is let."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked, self.may_write = threading.Event(), threading.Event()

    def write(self, worker_id: str, entries: Sequence[Entry]) -> None:
        self.asked.set()
        assert self.may_write.wait(PATIENCE_S)
        super().write(worker_id, entries)


def test_pages_that_are_interrupted_while_their_start_is_written_are_taken_back(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=2)
        log = SlowStore(bench.store)
        worker = bench.new_worker("w", writer=ResultWriter(log, "w"))
        job_id = bench.job(2)
        reading = asyncio.create_task(worker.read(job_id, 0))
        assert await asyncio.to_thread(log.asked.wait, PATIENCE_S)
        assert bench.store.cancel(job_id)
        worker.cancel(job_id)
        await asyncio.sleep(0)
        log.may_write.set()
        await reading
        assert bench.reader.num_begun == 0
        assert num_open(bench.store) == 0

    asyncio.run(run())


class CountingStore(PageStore):
    num_writes = 0

    def write(self, worker_id: str, entries: Sequence[Entry]) -> None:
        self.num_writes += 1
        super().write(worker_id, entries)


def test_pages_that_are_cancelled_while_they_are_checked_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checking, go_on = threading.Event(), threading.Event()

    def slow(*page: Any) -> Checks:
        checking.set()
        go_on.wait(PATIENCE_S)
        return check_page(*page)

    monkeypatch.setattr(reading_module, "check_page", slow)

    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=1)
        job_id = bench.job(1)
        bench.reader.gate.set()
        batch = asyncio.create_task(bench.worker.read(job_id, 0))
        assert await asyncio.to_thread(checking.wait, PATIENCE_S)
        assert num_open(bench.store) == 1
        bench.store.cancel(job_id)
        bench.worker.cancel(job_id)
        go_on.set()
        await batch
        assert num_open(bench.store) == 0, "it would share the blame for deaths of its worker"

    asyncio.run(run())


def test_pages_that_come_one_after_the_other_are_written_together(tmp_path: Path) -> None:
    """The longer a page takes, the longer others are gathered with it; one that is alone waits for nobody."""

    async def run() -> None:
        bench = Bench(tmp_path)
        log = CountingStore(bench.store)
        writer = ResultWriter(log, "w")
        job_id = bench.job(12)
        await writer.write(started(job_id, 0))
        await asyncio.sleep(1.0)
        await writer.write(done(job_id, 0))
        assert log.num_writes == 2
        writing = []
        for page in range(1, 12):
            writing.append(asyncio.create_task(writer.write(started(job_id, page))))
            await asyncio.sleep(0.002)
        await asyncio.gather(*writing)
        assert log.num_writes < 2 + 11 / 2

    asyncio.run(run())


def test_suspects_are_read_apart_and_given_up_after_two_deaths_alone(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        job_id = bench.job(6)
        for worker, begun in (("a", [0]), ("b", [0]), ("c", [1, 3])):
            bench.log.write(worker, [started(job_id, page, again=worker == "b") for page in begun])
            bench.log.mark_worker_dead(worker)
        reading = asyncio.create_task(bench.worker.read(job_id, 0))
        await bench.running(1)
        assert bench.reader.running < {1, 3}, (
            "one of those that were with a worker that died, and nobody else"
        )
        bench.reader.gate.set()
        await reading
        pages = bench.store.results(job_id)
        assert pages[0].failure is not None
        assert (pages[0].failure.code, pages[0].height) == ("worker_lost", 20)
        assert [page.failure is None for page in pages[1:]] == [True, False, True, True, True]
        assert bench.store.job(job_id).num_retries == 3, "retries are visible"
        assert num_open(bench.store) == 0

    asyncio.run(run())


def test_a_worker_that_closes_leaves_pages_to_others_without_a_strike(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=2)
        job_id = bench.job(4)
        reading = asyncio.create_task(bench.worker.read(job_id, 0))
        await bench.running(2)
        await bench.worker.close(grace_s=0)
        with pytest.raises(asyncio.CancelledError):  # or the batch would count as read
            await reading
        bench.reader.gate.set()
        await bench.new_worker("next").read(job_id, 0)
        job = bench.store.job(job_id)
        assert (job.status, job.num_done, job.num_retries) == ("partial", 4, 0)

    asyncio.run(run())


class DistantBlobs(Blobs):
    """Away for the first few times."""

    num_refused = 0

    @contextlib.contextmanager
    def local(self, name: str, tmp_dir: Path) -> Iterator[Path]:
        if self.num_refused < 3:
            self.num_refused += 1
            raise StorageUnavailable("away")
        with super().local(name, tmp_dir) as path:
            yield path


def test_documents_that_cannot_be_fetched_now_are_waited_for(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        job_id = bench.job(2)
        blobs = bench.blobs = DistantBlobs(bench.settings)
        bench.reader.gate.set()
        await bench.new_worker("far").read(job_id, 0)
        assert (bench.store.job(job_id).status, blobs.num_refused) == ("succeeded", 3)

    asyncio.run(run())


def test_a_batch_is_its_part_of_the_selected_pages(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.store.job(bench.job(pages=(range(2, 5), range(9, 10), range(11, 14)), batch_pages=3))
    assert [job.batch(number) for number in range(4)] == [[2, 3, 4], [9, 11, 12], [13], []]


@pytest.mark.parametrize("text", ["\0", "\ud83d\ude00", "x" * 100_000])
def test_any_model_text_is_written(tmp_path: Path, text: str) -> None:
    bench = Bench(tmp_path)
    job_id = bench.job(1)
    bench.log.write("w", [done(job_id, 0, text.encode("utf-16", "surrogatepass").decode("utf-16"))])
    assert len(bench.store.results(job_id)) == 1
