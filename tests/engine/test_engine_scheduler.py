"""Properties of the policy: fair, ordered, bounded, and free of torch."""

import subprocess
import sys
import weakref
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Overloaded
from app.ocr.engine.scheduler import (
    BatchLimit,
    Deadlines,
    FairQueue,
    KvBudget,
    Turn,
    chunks_within,
    runs_of_like_length,
)  # fmt: skip

documents = st.sampled_from("abcde")
arrivals = st.lists(documents | st.none(), max_size=60)
"""A document's name: one of its pages arrives. None: one page is served."""


def filled(events: list[str | None]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue(1000)
    for event in events:
        if event is None:
            queue.pop()
        else:
            queue.put(event, event)
    return queue


def drained(queue: FairQueue[str]) -> list[str]:
    served = []
    while (popped := queue.pop()) is not None:
        served.append(popped[1])
    return served


def test_the_policy_does_not_import_torch() -> None:
    check = "import sys, app.ocr.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@given(arrivals)
def test_a_new_document_is_served_before_any_other_is_served_three_times(events: list[str | None]) -> None:
    queue = filled(events)
    queue.put("new", "new")
    served = drained(queue)
    before = served[: served.index("new")]
    assert all(before.count(document) <= 2 for document in "abcde")


@given(arrivals, st.integers(1, 5))
def test_no_stream_of_new_documents_starves_one_that_waits(events: list[str | None], num_pages: int) -> None:
    """A new document with one page comes before every service, for ever."""
    queue = filled(events)
    for _ in range(num_pages):
        queue.put("waiting", "waiting")
    served = []
    for i in range((num_pages + 1) * (len(queue) + 1)):
        queue.put("newcomer", f"newcomer {i}")
        popped = queue.pop()
        assert popped is not None
        served.append(popped[1])
    assert served.count("waiting") == num_pages


@given(st.lists(documents, min_size=1, max_size=40))
def test_pages_of_one_document_keep_their_order(names: list[str]) -> None:
    queue: FairQueue[int] = FairQueue(100)
    for i, name in enumerate(names):
        queue.put(i, name)
    order = [popped[1] for _ in names if (popped := queue.pop()) is not None]
    assert sorted(order) == list(range(len(names)))
    for name in names:
        own = [i for i in order if names[i] == name]
        assert own == sorted(own)


@given(st.lists(st.tuples(documents, st.integers(-2, 2)), min_size=1, max_size=40))
def test_higher_priority_goes_first(pages: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue(100)
    for name, priority in pages:
        queue.put(priority, name, priority)
    order = [popped[1] for _ in pages if (popped := queue.pop()) is not None]
    assert order == sorted(order, reverse=True)


@given(st.integers(2, 9), st.integers(1, 5))
def test_higher_priority_without_end_starves_nobody_where_one_in_so_many_is_lower(
    one_in: int, num_lower: int
) -> None:
    queue: FairQueue[str] = FairQueue(1000, one_in=one_in)
    for _ in range(num_lower):
        queue.put("lower", "a")
    queue.put("lowest", "b", priority=-1)
    served: list[str] = []
    turns: list[Turn] = []
    while "lowest" not in served:
        queue.put("higher", "c", priority=1)
        popped = queue.pop()
        assert popped is not None
        turns.append(popped[0])
        served.append(popped[1])
    assert len(served) == (num_lower + 1) * one_in
    assert served.count("lower") == num_lower, "by whose turn came first"
    assert all("higher" in served[at : at + 2] for at in range(len(served) - 2))
    assert {turn.rank for turn in turns} == {-1}, "it is not passed later on by those it went ahead of"


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_head_start_ends_what_is_short_soon_and_leaves_a_quarter_to_the_others(
    num_pages: int, head_start: int
) -> None:
    queue: FairQueue[str] = FairQueue(1000, group=head_start)
    for _ in range(400):
        queue.put("large", "a")
    for _ in range(100):
        queue.pop()
    for _ in range(num_pages):
        queue.put("small", "b")
    served: list[str] = []
    while served.count("small") < num_pages:
        popped = queue.pop()
        assert popped is not None
        served.append(popped[1])
    num_quick = min(num_pages, head_start)
    most = -(-num_quick // 3) + (num_pages - num_quick)
    assert served.count("large") <= most + 1
    assert served.count("large") >= most - 1


@given(st.lists(documents, max_size=30), st.sets(st.integers(0, 29)))
def test_a_removed_page_is_not_served_and_makes_room(names: list[str], removed: set[int]) -> None:
    queue: FairQueue[int] = FairQueue(max(1, len(names)))
    turns = [queue.put(i, name) for i, name in enumerate(names)]
    gone = {i for i in removed if i < len(names)}
    assert all(queue.remove(turns[i]) for i in gone)
    assert not any(queue.remove(turns[i]) for i in gone), "once"
    assert len(queue) == len(names) - len(gone)
    for i in gone:
        queue.put(100 + i, "again")
    order = [popped[1] for _ in names if (popped := queue.pop()) is not None]
    assert sorted(order) == sorted({*range(len(names))} - gone | {100 + i for i in gone})


def test_a_full_queue_refuses_and_recovers() -> None:
    queue: FairQueue[str] = FairQueue(2)
    queue.put("one", "d")
    queue.put("two", "d")
    with pytest.raises(Overloaded):
        queue.put("three", "d")
    queue.pop()
    queue.put("three", "d")


def test_a_queue_that_pages_pass_through_for_ever_does_not_grow() -> None:
    queue: FairQueue[int] = FairQueue(10)
    for i in range(3000):
        turn = queue.put(i, f"document {i}", priority=i % 7)
        assert queue.remove(turn) if i % 2 else queue.pop() is not None
    held = [len(value) for value in vars(queue).values() if hasattr(value, "__len__")]
    assert sum(held) < 200


class Thing:
    """Told apart by identity."""


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.floats(0, 100), st.sets(st.integers(0, 19)))
def test_deadlines_report_each_waiting_page_once_in_order(
    times: list[float], now: float, over: set[int]
) -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    things = [Thing() for _ in times]
    for thing, at in zip(things, times, strict=True):
        deadlines.add(thing, at)
    for i in over & set(range(len(things))):
        deadlines.discard(things[i])
    due = [things.index(thing) for thing in deadlines.expired(now)]
    assert sorted(due) == [i for i, at in enumerate(times) if at <= now and i not in over]
    assert all(times[a] <= times[b] for a, b in pairwise(due))
    assert deadlines.expired(now) == []
    left = [at for i, at in enumerate(times) if at > now and i not in over]
    following = deadlines.next_s()
    assert not left or (following is not None and following <= min(left))


def test_deadlines_let_go_of_pages_that_are_over() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    for i in range(1000):
        thing = Thing()
        deadlines.add(thing, float(i))
        reference = weakref.ref(thing)
        deadlines.discard(thing)
        del thing
        assert reference() is None
    assert sum(len(value) for value in vars(deadlines).values() if hasattr(value, "__len__")) < 200


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 60))
def test_chunks_keep_order_and_the_budget(sizes: list[int], budget: int) -> None:
    chunks = chunks_within(sizes, budget)
    assert [i for chunk in chunks for i in chunk] == list(range(len(sizes)))
    for chunk in chunks:
        assert len(chunk) == 1 or sum(sizes[i] for i in chunk) <= budget
    for left, right in pairwise(chunks):
        assert sum(sizes[i] for i in left) + sizes[right[0]] > budget, "no chunk is smaller than it must be"


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(0, 600), st.integers(1, 32))
def test_runs_are_all_rows_in_order_and_waste_less_than_the_calls_they_save(
    lengths: list[int], call: int, round_to: int
) -> None:
    runs = runs_of_like_length(lengths, call, round_to)
    assert [i for run in runs for i in run] == list(range(len(lengths)))
    rounded = [-(-length // round_to) * round_to for length in lengths]
    wasted = sum(max(rounded[i] for i in run) - rounded[j] for run in runs for j in run)
    assert wasted <= call * (len(lengths) - len(runs))
    if call == 0:
        assert all(len(run) == 1 for run in runs)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 100), st.integers(0, 100))
def test_no_more_is_promised_than_there_is(amounts: list[int], most: int, taken: int) -> None:
    reserved = KvBudget(most)
    reserved.take(min(taken, most))
    fitting = reserved.how_many(amounts)
    for amount in amounts[:fitting]:
        reserved.take(amount)
    assert reserved.taken <= most
    if fitting < len(amounts):
        with pytest.raises(ValueError, match="beyond"):
            reserved.take(amounts[fitting])


@given(st.integers(1, 64), st.lists(st.integers(1, 64), max_size=10))
def test_a_limit_shrinks_below_what_failed_and_recovers(most: int, failures: list[int]) -> None:
    limit = BatchLimit(most, patience=1)
    for failed in failures:
        limit.shrink(failed)
        assert 1 <= limit.value <= max(1, failed // 2)
    for _ in range(most):
        limit.succeeded()
    assert limit.value == most


@pytest.mark.parametrize("make", [lambda: FairQueue(0), lambda: BatchLimit(0)])
def test_bounds_below_one_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make()


def test_turns_are_ordered_by_priority_then_round_then_arrival() -> None:
    assert Turn(-1, 9, 9) < Turn(0, 0, 0) < Turn(0, 0, 1) < Turn(0, 1, 0)
