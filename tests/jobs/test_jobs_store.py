"""What the tables of jobs promise, on SQLite and on PostgreSQL."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from jobs_bench import LIMITS, accept, done, new_job, open_store, started

from app.document import Failure, ParseOptions, Picture, ReadOptions
from app.errors import Expired, IdempotencyConflict, NotFound, QueueFull, TooManyJobs
from app.jobs.api.metrics_feed import MetricsFeed
from app.jobs.database import migrate_dbos, open_dbos_engine, open_engine
from app.jobs.images import Images
from app.jobs.job import encode_options
from app.jobs.leases import Leases, WorkerState
from app.jobs.queues import WorkQueue
from app.jobs.store import Queue, Store
from app.jobs.tables import jobs, pages, workers
from app.jobs.worker.page_store import FIRST_ATTEMPT, Attempt, Done, Interrupted, PageStore, Started
from app.settings import Settings


@pytest.fixture
def store(job_settings: Settings) -> Iterator[Store]:
    opened = open_store(job_settings)
    yield opened
    opened.close()


def test_a_page_is_counted_once_however_many_workers_wrote_it(store: Store) -> None:
    job_id = accept(store, new_job(20))
    store.begin(job_id)
    barrier = threading.Barrier(4)

    def worker(number: int) -> None:
        barrier.wait()
        for page in range(20):
            PageStore(store).write(f"w{number}", [done(job_id, page, f"by {number}")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(worker, range(4)))
    job = store.job(job_id)
    assert (job.status, job.num_done) == ("succeeded", 20)
    events = store.events(job_id, 0)
    assert [event.seq for event in events] == list(range(1, 21))
    assert sorted(event.page.index for event in events) == list(range(20))


def test_of_a_group_what_another_worker_wrote_before_is_left_out(store: Store) -> None:
    first, second = accept(store, new_job(5)), accept(store, new_job(2))
    store.begin(first)
    log = PageStore(store)
    log.write("fast", [done(first, 3, "by fast"), done(first, 1, "by fast")])
    group = [done(first, page, "by slow") for page in (4, 3, 2, 1, 0)]
    log.write("slow", [*group, done(second, 1, "by slow"), started(second, 0)])
    assert [page.markdown[3:] for page in store.results(first)] == ["slow", "fast", "slow", "fast", "slow"]
    assert [(event.seq, event.page.index) for event in store.events(first, 0)] == [
        *[(1, 3), (2, 1)],
        *[(3, 4), (4, 2), (5, 0)],
    ]
    assert store.progress([first, second]) == {first: ("succeeded", 5), second: ("queued", 1)}


def test_a_group_is_as_many_statements_for_many_pages_as_for_one(store: Store) -> None:
    statements: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    one, *many = (accept(store, new_job(12)) for _ in range(4))
    log = PageStore(store)
    sa.event.listen(sa.Engine, "before_cursor_execute", hear)
    try:
        log.write("w", [done(one, 0), started(one, 1)])
        num_for_one = len(statements)
        log.write("w", [entry for job_id in many for page in range(6) for entry in both(job_id, page)])
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hear)
    assert len(statements) == 2 * num_for_one
    assert store.progress(many) == dict.fromkeys(many, ("queued", 6))


def both(job_id: str, page: int) -> tuple[Done, Started]:
    return done(job_id, page), started(job_id, page + 6)


def test_events_replay_from_any_point(store: Store) -> None:
    job_id = accept(store, new_job(5))
    store.begin(job_id)
    for page in (3, 0, 4):
        PageStore(store).write("w", [done(job_id, page)])
    assert [event.page.index for event in store.events(job_id, 0)] == [3, 0, 4]
    assert [event.page.index for event in store.events(job_id, 1)] == [0, 4]
    assert store.events(job_id, 3) == []
    assert [page.index for page in store.results(job_id)] == [0, 3, 4], "results are in document order"


def test_the_same_request_is_the_same_job_until_it_fails_or_expires(store: Store) -> None:
    wanted = new_job(dedupe="content:c:h")
    first = accept(store, wanted)
    again = replace(wanted, id="again")
    assert accept(store, again) == first
    with pytest.raises(IdempotencyConflict):
        accept(store, replace(wanted, id="other", request_hash="other"))
    store.fail(first, Failure("worker_lost", "x"))
    assert accept(store, again) == "again"
    store.cancel("again")
    assert accept(store, replace(wanted, id="third")) == "third"
    store.begin("third")
    PageStore(store).write("w", [done("third", 0)])
    assert accept(store, replace(wanted, id="fourth")) == "third"
    expired = replace(LIMITS, result_lifetime_s=-1.0)
    assert accept(store, replace(wanted, id="fourth"), expired) == "fourth"


def test_simultaneous_repeats_are_one_job(store: Store) -> None:
    wanted = new_job(dedupe="key:c:k")
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: accept(store, replace(wanted, id=f"j{number}")), range(8)))
    assert len(set(ids)) == 1


def test_admission_counts_pages_that_wait(store: Store) -> None:
    limits = replace(LIMITS, max_queued_pages=10, max_jobs_per_client=3)
    first = accept(store, new_job(8), limits)
    with pytest.raises(QueueFull) as refused:
        accept(store, new_job(3), limits)
    assert refused.value.retry_after_s is not None
    with pytest.raises(NotFound):
        store.job("refused")
    accept(store, new_job(2), limits)
    with pytest.raises(QueueFull):
        store.check_room(limits)
    store.begin(first)
    PageStore(store).write("w", [done(first, page) for page in range(4)])
    store.check_room(limits)
    accept(store, new_job(4), limits)
    with pytest.raises(TooManyJobs):
        accept(store, new_job(0), limits)
    accept(store, new_job(0, client="another"), limits)


def test_a_document_larger_than_the_queue_is_let_in_when_nothing_waits(store: Store) -> None:
    limits = replace(LIMITS, max_queued_pages=10)
    accept(store, new_job(50), limits)
    with pytest.raises(QueueFull):
        accept(store, new_job(1), limits)


@pytest.mark.parametrize(
    ("pages", "pages_per_s", "seconds"), [(10, 2.0, 5), (1, 100.0, 1), (10**6, 1.0, 3600), (5, 0.0, 30)]
)
def test_retry_after_is_measured(pages: int, pages_per_s: float, seconds: int) -> None:
    assert abs(Queue(1, pages, pages_per_s).seconds(pages) - seconds) <= 1


def test_throughput_is_that_of_the_last_minute(store: Store) -> None:
    job_id = accept(store, new_job(30))
    store.begin(job_id)
    PageStore(store).write("w", [done(job_id, page) for page in range(30)])
    assert store.queue().pages_per_s == pytest.approx(30, abs=1), "all of them within a second"


def test_attempts_are_counted_and_taken_back(store: Store) -> None:
    job_id = accept(store, new_job(3))
    log = PageStore(store)
    log.write("a", [started(job_id, 0), started(job_id, 1)])
    assert set(log.unread(job_id, [0, 1, 2]).values()) == {FIRST_ATTEMPT, Attempt(0, 0, 10, 20)}
    log.write("b", [Interrupted(job_id, 1)])
    log.mark_worker_dead("a")
    log.mark_worker_dead("a")
    together = Attempt(2, 0, 10, 20)
    assert log.unread(job_id, [0, 1, 2]) == {0: together, 1: together, 2: FIRST_ATTEMPT}
    log.write("b", [started(job_id, 0, again=True), started(job_id, 1, again=True)])
    log.write("b", [Interrupted(job_id, 1)])
    log.mark_worker_dead("b")
    assert log.unread(job_id, [1, 0]) == {1: together, 0: Attempt(1, 1, 10, 20)}, "0 was alone"
    log.write("c", [started(job_id, 0, again=True), started(job_id, 1, again=True), done(job_id, 1)])
    log.mark_worker_dead("c")
    assert log.unread(job_id, [0, 1]) == {0: Attempt(1, 2, 10, 20)}, "what is done is not with anybody"
    assert store.job(job_id).num_retries == 4


def test_priority_and_age_give_the_position(store: Store) -> None:
    first, second = accept(store, new_job()), accept(store, new_job())
    urgent = accept(store, new_job(priority=9))
    positions = [store.position(store.job(job_id)) for job_id in (urgent, first, second)]
    assert positions == [0, 1, 2]
    store.begin(first)
    assert store.position(store.job(first)) is None
    assert store.position(store.job(second)) == 1


def test_a_list_has_every_job_of_its_client_once(store: Store) -> None:
    ids = [accept(store, new_job(), replace(LIMITS, max_jobs_per_client=99)) for _ in range(7)]
    accept(store, new_job(client="another"))
    seen: list[str] = []
    cursor = None
    while page := store.listed("c", None, cursor, 3):
        seen += [job.id for job in page]
        cursor = (page[-1].created_at, page[-1].id)
    assert sorted(seen) == sorted(ids)
    assert store.listed("c", "running", None, 3) == []


def expire_lease(store: Store, worker_id: str) -> None:
    with store.writing() as c:
        c.execute(sa.update(workers).where(workers.c.id == worker_id).values(expires_at=0.0))


def test_one_of_many_takes_over_an_expired_lease(store: Store) -> None:
    leases = Leases(store)
    for name in ("slow", "a", "b"):
        leases.renew(WorkerState(name, "here", "ready", "ready"))
    assert leases.claim_expired("a") is None
    expire_lease(store, "slow")
    with ThreadPoolExecutor(2) as pool:
        claims = list(pool.map(leases.claim_expired, ["a", "b"]))
    assert sorted(map(str, claims)) == ["None", "slow"]
    leases.forget("slow")
    leases.renew(WorkerState("slow", "here", "ready", "ready"))
    assert {worker.id for worker in leases.alive()} == {"slow", "a", "b"}, "it was only slow"
    expire_lease(store, "a")
    assert leases.claim_expired("a") is None, "nobody takes over from itself"


def test_what_is_left_of_an_expired_job_says_so(store: Store) -> None:
    job_id = accept(store, new_job())
    with store.writing() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(options=""))
    with pytest.raises(Expired):
        store.job(job_id)
    with pytest.raises(NotFound):
        store.job("never heard of")


def test_a_page_that_is_seen_late_is_told_all_the_same(store: Store) -> None:
    """Pages bear the time of their transaction's beginning; others may be committed before."""
    meter = MetricsFeed(store)
    log = PageStore(store)
    job_id = accept(store, new_job(1200), replace(LIMITS, max_queued_pages=2000))
    log.write("w", [done(job_id, page) for page in range(1, 1200)])
    told = [page.index for part in iter(meter.new_pages, []) for page in part]
    assert sorted(told) == list(range(1, 1200)), "in several parts"
    log.write("w", [done(job_id, 0)])
    with store.writing() as c:
        earlier = {"done_at": pages.c.done_at - 0.001}
        c.execute(sa.update(pages).where(pages.c.page == 0).values(**earlier))
    assert [page.index for page in meter.new_pages()] == [0]
    assert meter.new_pages() == []
    assert MetricsFeed(store).new_pages() == [], "from its own beginning on"


def test_images_are_there_with_their_page_and_written_once(store: Store) -> None:
    job_id = accept(store, new_job(2))
    store.begin(job_id)
    for worker, data in (("a", b"first"), ("b", b"second")):
        picture = Picture("p1-1.png", "image/png", data, 3, 4, (1, 2, 3, 4))
        PageStore(store).write(worker, [replace(done(job_id, 0), pictures=(picture,))])
    images = Images(store)
    assert images.picture(job_id, "p1-1.png") == replace(picture, data=b"first")
    with pytest.raises(NotFound):
        images.picture(job_id, "p2-1.png")


def test_sqlite_gives_space_back_and_keeps_no_deleted_text(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    migrate_dbos(settings)
    engine = open_engine(settings)
    store = Store(engine)
    store.migrate()
    queue = WorkQueue(engine)
    file = tmp_path / "jobs.sqlite"
    text = "a sentence that nobody is to find again"
    pixels = b"an image that nobody is to see again"
    pictures = (Picture("p1.jpg", "image/jpeg", pixels * 100, 9, 9),)
    job_ids = [accept(store, new_job(40)) for _ in range(3)]
    for job_id in job_ids:
        store.begin(job_id)
        entries = [done(job_id, page, text + "x" * 20_000) for page in range(40)]
        PageStore(store).write("w", [replace(entries[0], pictures=pictures), *entries[1:]])

    def checkpointed() -> bytes:
        with engine.connect() as c:
            c.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return file.read_bytes()

    before = checkpointed()
    assert text.encode() in before
    assert pixels in before
    Leases(store).expire_results(-1.0, queue)
    after = checkpointed()
    assert text.encode() not in after
    assert pixels not in after
    assert len(after) < len(before) / 2
    queue.close()


@pytest.mark.parametrize("open_one", [open_engine, open_dbos_engine])
def test_the_time_in_milliseconds_is_known_to_an_old_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_one: Callable[[Settings], sa.Engine]
) -> None:
    """Tables are made as DBOS makes them on Python 3.12; before SQLite 3.42 their default would be NULL."""
    monkeypatch.setattr("app.jobs.database.SUBSEC_SINCE", (99, 0))
    settings = Settings(data_dir=tmp_path)
    migrate_dbos(settings)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as plain:
        plain.execute("CREATE TABLE t (id INTEGER, at INTEGER NOT NULL DEFAULT (unixepoch('subsec') * 1000))")
    engine = open_one(settings)
    with engine.connect() as c:
        c.exec_driver_sql("INSERT INTO t (id) VALUES (1)")
        at = c.exec_driver_sql("SELECT at FROM t").scalar_one()
        now_ms = c.execute(sa.select(sa.func.unixepoch("subsec") * 1000)).scalar_one()
    engine.dispose()
    assert abs(at - time.time() * 1000) < 60_000
    assert abs(now_ms - time.time() * 1000) < 60_000


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fixation", ParseOptions(ReadOptions(fixation=0.5))),
        ("pages_per_prompt", ParseOptions(pages_per_prompt=2)),
    ],
)
def test_options_of_before_an_option_was_are_written_as_they_were(name: str, given: ParseOptions) -> None:
    """Or a request that is repeated after an upgrade would conflict with its own idempotency key."""
    assert name not in encode_options(ParseOptions())
    assert encode_options(ParseOptions()) != encode_options(given)
