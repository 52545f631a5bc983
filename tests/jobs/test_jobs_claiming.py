"""When a worker looks for work: not while it is full, not in vain, and soon when there is some."""

import asyncio
import threading
import time
from pathlib import Path

from jobs_bench import Bench, done
from jobs_client import api, workers
from service_client import A4, PATIENCE_S, eventually, image_bytes, pdf_bytes

from app.jobs.database import open_dbos_engine
from app.jobs.notifications import Notifications
from app.jobs.queues import BATCH_QUEUE, SINGLE_QUEUE, Work, WorkQueue
from app.jobs.worker.claiming import Claiming, Room


class Looks:
    """A thread that looks whenever it is let, as the claiming of DBOS does."""

    def __init__(self, claiming: Claiming) -> None:
        self.num = 0
        self._claiming = claiming
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._claiming.wait(0.01):
            self.num += 1

    def end(self) -> None:
        self._claiming.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def claiming_of(bench: Bench, name: str, max_running: int) -> Claiming:
    """Must be called on a running event loop."""
    queue = WorkQueue(open_dbos_engine(bench.settings))
    return Claiming(name, Room(max_running), 0.01, queue, bench.store, Notifications())


def test_nobody_looks_without_work_or_without_room(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        claiming = claiming_of(bench, BATCH_QUEUE, max_running=1)
        looks = Looks(claiming)
        single = bench.job(1)
        await asyncio.sleep(0.1)
        assert looks.num == 0, "what waits is in another queue"
        job_id = bench.job(2)
        await asyncio.to_thread(eventually, lambda: looks.num > 0)
        claiming.begun(Work(job_id, 5))
        await asyncio.sleep(0.1)
        num_looks = looks.num
        await asyncio.sleep(0.1)
        assert looks.num == num_looks, "it is full"
        claiming.ended(Work(job_id, 5))
        await asyncio.to_thread(eventually, lambda: looks.num > num_looks)
        bench.store.begin(single)
        bench.store.cancel(job_id)
        await asyncio.sleep(0.1)
        num_looks = looks.num
        await asyncio.sleep(0.1)
        assert looks.num == num_looks, "nothing is left"
        looks.end()

    asyncio.run(run())


def test_work_can_be_where_a_job_is_unfinished(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert not any(map(bench.store.has_work, (SINGLE_QUEUE, BATCH_QUEUE)))
    job_id = bench.job(1)
    assert [bench.store.has_work(queue) for queue in (SINGLE_QUEUE, BATCH_QUEUE)] == [True, False]
    bench.store.begin(job_id)
    assert bench.store.has_work(SINGLE_QUEUE)
    bench.log.write("w", [done(job_id, 0)])
    assert not bench.store.has_work(SINGLE_QUEUE)


def test_a_worker_of_the_same_name_takes_up_what_it_left(tmp_path: Path) -> None:
    """Without another worker, and before its lease would expire for others."""
    settings = {"max_pages_in_flight": 2, "batch_pages": 2}
    with api(tmp_path) as client:
        with workers(1, tmp_path, "", **settings) as (first,):
            job_id = client.accepted(pdf_bytes(*[A4] * 8), dpi=36, prompt={"delay_s": 0.5})
            eventually(lambda: client.done(job_id) >= 2)
            first.kill()
        with workers(1, tmp_path, "", worker_id=first.id, **settings):
            job = client.ended(job_id)
        assert (job["status"], job["pages"]["done"]) == ("succeeded", 8)
        assert job["retries"]["requeues"] == 0


def test_a_worker_that_waited_long_reads_at_once(tmp_path: Path) -> None:
    """Nobody looks at queues of a service that does nothing; what comes then is found by itself."""
    with api(tmp_path, embedded_worker=True) as client:
        client.server.wait_ready()
        time.sleep(3)
        for data in (image_bytes(), pdf_bytes(A4, A4)):
            assert client.ended(client.accepted(data, dpi=36))["status"] == "succeeded"
