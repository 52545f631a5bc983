"""One large document starves nobody: real workers, and pages that are never read beside pages that are."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_bench import Bench, GatedReader, GatedStream
from jobs_client import Client, api, workers
from service_client import A4, eventually, image_bytes, pdf_bytes
from test_jobs_durability import open_pages

from app.document import Page, ReadOptions
from app.jobs.queues import BATCH_QUEUE, SINGLE_QUEUE, Batch, Work
from app.jobs.worker.claiming import Room, next_up
from app.settings import Settings
from app.worker import FAKE_PAGES_IN_FLIGHT, pages_in_flight

NEVER_S = 10_000
LARGE = Work("large", 5)


@pytest.mark.parametrize(
    ("held", "work", "is_for"),
    [
        ([], LARGE, True),
        ([LARGE], LARGE, True),
        ([LARGE] * 2, LARGE, False),
        ([LARGE] * 2, Work("other", 5), True),
        ([LARGE] * 2, Work("other", 0), True),
        ([LARGE] * 2, Work("large", 9), True),
        ([LARGE] * 2 + [Work("other", 5)], Work("third", 5), False),
        ([LARGE] * 2 + [Work("other", 5)], Work("third", 9), True),
        ([LARGE] * 2 + [Work("other", 5), Work("third", 9)], Work("fourth", 9), False),
        ([Work("large", 9)] * 2, Work("large", 9), False),
        ([LARGE] * 2, None, False),
    ],
)
def test_what_a_full_worker_claims_all_the_same(held: list[Work], work: Work | None, is_for: bool) -> None:
    assert Room(2, for_others=1, for_higher=1).is_for(work, held) == is_for


@pytest.mark.parametrize(("priority", "number"), [(0, 0), (5, 0), (5, 1249), (9, 3)])
def test_queued_work_is_told_by_what_the_queue_knows(priority: int, number: int) -> None:
    options = Batch("id", number, 1250, 10_000, priority, generation=1).options
    assert Work.of(options["workflow_id"], options["priority"]) == Work("id", priority)


def test_pages_in_flight_follow_what_is_set_then_the_reader() -> None:
    assert pages_in_flight(Settings(reader="fake")) == FAKE_PAGES_IN_FLIGHT
    assert pages_in_flight(Settings(reader="fake", max_pages_in_flight=3)) == 3
    assert pages_in_flight(Settings(device="cpu")) == 8
    assert pages_in_flight(Settings(device="cpu", max_running_pages=2)) == 8
    assert pages_in_flight(Settings(device="cuda")) == 128
    assert pages_in_flight(Settings(device="cuda:1", max_running_pages=40)) == 40


class Noting(GatedReader):
    """Notes who came with which priority."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[tuple[str, int]] = []

    def submit(self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0) -> GatedStream:
        self.came.append((document_id, priority))
        return super().submit(page, options, document_id=document_id, priority=priority)


def test_a_jobs_priority_reaches_the_reader_and_its_pages_go_first(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, max_pages_in_flight=1)
        reader = Noting()
        worker = bench.new_worker("w", reader)
        jobs = [bench.job(2), bench.job(2), bench.job(2, priority=9)]
        reading = [asyncio.create_task(worker.read(job_id, 0)) for job_id in jobs]
        async with asyncio.timeout(20):
            while not reader.came:  # noqa: ASYNC110 - it is watched from outside
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        reader.gate.set()
        await asyncio.gather(*reading)
        first, others = reader.came[0], reader.came[1:]
        assert set(reader.came) == {(jobs[0], 5), (jobs[1], 5), (jobs[2], 9)}
        waiting = [came for came in others if came[1] == 9]
        assert others[: len(waiting)] == waiting, "first of those that waited"
        rest = [job_id for job_id, _ in others[len(waiting) :]]
        if first[1] == 5:
            assert rest[-1] != first[0], "in turn"

    asyncio.run(run())


@pytest.fixture(params=["embedded", "apart"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """An API with a worker of 8 places: its own, or another that nothing is told and polls SQLite."""
    settings: dict[str, Any] = {"max_pages_in_flight": 8, "batch_pages": 20}
    if request.param == "embedded":
        with api(tmp_path, embedded_worker=True, **settings) as started:
            started.server.wait_ready()
            yield started
    else:
        with api(tmp_path, **settings) as started, workers(1, tmp_path, "", **settings):
            yield started


def large(client: Client, num_pages: int = 60, **fields: Any) -> str:
    """A document of which no page is ever read, with all the places that it may have."""
    before = open_pages(client.server.data_dir)
    job_id = client.accepted(pdf_bytes(*[A4] * num_pages), dpi=36, prompt={"delay_s": NEVER_S}, **fields)
    eventually(lambda: open_pages(client.server.data_dir) > before)
    return job_id


def test_others_are_read_beside_a_document_that_takes_all_it_can(client: Client) -> None:
    first = large(client)
    eventually(lambda: open_pages(client.server.data_dir) == 6)
    single = client.accepted(image_bytes(size=(61, 40)))
    assert client.ended(single)["status"] == "succeeded"
    several = client.accepted(pdf_bytes(*[A4] * 30), dpi=36)
    assert client.ended(several)["status"] == "succeeded", "two batches, while none of the large one ends"
    large(client, 1)
    client.accepted(image_bytes(size=(63, 40)), prompt={"delay_s": NEVER_S})
    assert open_pages(client.server.data_dir) == 7, "what is left is for a higher priority"
    urgent = client.accepted(image_bytes(size=(62, 40)), priority=9)
    assert client.ended(urgent)["status"] == "succeeded"
    assert client.done(first) == 0


def test_a_job_that_is_cancelled_gives_its_places_back(client: Client) -> None:
    first = large(client)
    eventually(lambda: open_pages(client.server.data_dir) == 6)
    assert client.http.delete(f"/v1/jobs/{first}").status_code == 200
    eventually(lambda: open_pages(client.server.data_dir) == 0)
    large(client, 61)
    eventually(lambda: open_pages(client.server.data_dir) == 6)


def test_who_is_next_in_a_queue_is_known(tmp_path: Path) -> None:
    with api(tmp_path) as client:
        store = Bench(tmp_path).store
        assert next_up(store, BATCH_QUEUE) is None
        jobs = [
            client.accepted(pdf_bytes(A4, A4), dpi=36 + number, priority=5 + number) for number in range(2)
        ]
        assert next_up(store, BATCH_QUEUE) == Work(jobs[1], 6)
        assert next_up(store, SINGLE_QUEUE) is None
        store.close()
