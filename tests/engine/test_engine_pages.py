"""What happens to single pages: cancelled, late, failing, too long. Others go on."""

import time

import pytest
from engine_bench import POISON, RAISES, WRONG_SHAPE, Bench, failing, hostile, limits
from engine_fakes import FakeOcr, random_network

from app.document import ReadOptions
from app.errors import BadOption, Overloaded, PageFailed, PageTooLong
from app.ocr.engine import page_loop, vision
from app.ocr.engine.engine import Engine
from app.ocr.models.model import Mode
from app.reader import KnowsModes


def test_a_cancelled_page_frees_its_slot_within_one_step_and_keeps_what_it_read() -> None:
    bench = Bench(hostile(), limits(max_running_pages=2))
    first, second, waiting = bench.read(0), bench.read(1), bench.read(2)
    bench.turns(8)
    assert (bench.loop.load.running, waiting.row) == (2, None)
    steps = bench.loop.load.steps
    bench.loop.post(lambda: bench.loop.end(first, "cancelled"))
    bench.turns(1)
    assert bench.loop.load.steps == steps + 1
    assert waiting.row is not None, "the freed slot serves the next page in the very same turn"
    reading = first.done.result()
    assert reading.finish_reason == "cancelled"
    assert reading.text
    assert bench.alone(0).startswith(reading.text)
    bench.finish(second, waiting)
    assert second.done.result().text == bench.alone(1)
    bench.loop.end(first, "cancelled")  # idempotent


def test_a_page_cancelled_between_encoding_and_prefill_is_let_go_at_once() -> None:
    """Encoded pages wait where a prefill takes few tokens; one that is over must not keep the loop awake."""
    bench = Bench(hostile(), limits(max_prefill_tokens=1))
    first, second = bench.read(0, ReadOptions(max_output_tokens=2)), bench.read(1)
    bench.turns(2)
    assert (first.row, second.row, bench.loop.load.encoding) == (0, None, 1)
    bench.loop.end(second, "cancelled")
    assert bench.loop.load.encoding == 0
    bench.finish(first, second)
    bench.turns(3)
    assert not bench.loop.turn(), "nothing to do until woken"


def test_a_page_cancelled_before_its_encoding_makes_room_for_another() -> None:
    bench = Bench(hostile(), limits(max_running_pages=1, prefetch_pages=1))
    running, ahead, behind = bench.read(0), bench.read(1), bench.read(2)
    bench.turns(4)
    assert (bench.loop.load.preparing, bench.loop.load.queued) == (1, 1)
    bench.loop.end(ahead, "cancelled")
    assert bench.loop.load.preparing == 0
    bench.finish(running, behind)


@pytest.mark.parametrize("turns", range(5))
def test_a_page_can_be_cancelled_wherever_it_is(turns: int) -> None:
    bench = Bench(hostile(), limits(max_running_pages=1, prefetch_pages=1))
    ahead, task = bench.read(0), bench.read(1)
    bench.turns(turns)
    bench.loop.end(task, "cancelled")
    bench.finish(ahead, task)
    assert task.done.result().finish_reason == "cancelled"
    assert ahead.done.result().text == bench.alone(0)
    bench.turns(2)
    load = bench.loop.load
    assert (load.queued, load.preparing, load.encoding, load.running) == (0, 0, 0, 0)


def test_a_deadline_ends_a_running_page_with_what_it_has_and_refuses_a_waiting_one() -> None:
    bench = Bench(hostile(), limits(max_running_pages=1, prefetch_pages=1))
    running, waiting = bench.read(0), bench.read(1)
    bench.turns(6)
    for task in (running, waiting):
        bench.loop.deadlines.add(task, 0.0)
    bench.turns(1)
    reading = running.done.result()
    assert reading.finish_reason == "deadline"
    assert bench.alone(0).startswith(reading.text)
    with pytest.raises(Overloaded, match="deadline"):
        waiting.done.result()
    assert bench.loop.load.running == 0


@pytest.mark.parametrize("number", [POISON, WRONG_SHAPE, RAISES])
def test_a_failing_page_fails_alone(number: int) -> None:
    bench = Bench(hostile())
    others = [bench.read(0), bench.read(1)]
    bad = bench.read(number)
    others += [bench.read(2), bench.read(3), bench.read(4)]
    bench.finish(bad, *others)
    with pytest.raises(PageFailed) as raised:
        bad.done.result()
    assert "/" not in str(raised.value), "no path"
    for i, task in enumerate(others):
        assert task.done.result().text == bench.alone(i)


def test_a_slot_that_held_poison_serves_the_next_page() -> None:
    bench = Bench(hostile(), limits(max_running_pages=1))
    bad, good = bench.read(POISON), bench.read(5)
    bench.finish(bad, good)
    assert good.done.result().text == bench.alone(5)


def test_a_short_page_beside_a_long_one_never_reads_what_poison_left() -> None:
    """Rows are read as far as the longest of a run, and zero times NaN is NaN."""
    bench = Bench(hostile(), limits(max_running_pages=2))
    poisoned = [bench.read(POISON), bench.read(POISON)]
    bench.finish(*poisoned)
    long = bench.read(5)
    bench.turns(30)
    short = bench.read(6, ReadOptions(prune="none", max_output_tokens=9))
    bench.finish(long, short)
    assert long.done.result().text == bench.alone(5)
    assert short.done.result().text == bench.alone(6, ReadOptions(prune="none", max_output_tokens=9))


def test_a_page_that_cannot_be_pruned_fails_alone() -> None:
    """The poison is found by the pruning here, or by the decoder: either way by no other page."""
    bench = Bench(hostile())
    pruned = ReadOptions(keep_ratio=0.5, max_output_tokens=9)
    bad, good, unpruned = bench.read(POISON, pruned), bench.read(1, pruned), bench.read(2)
    bench.finish(bad, good, unpruned)
    assert isinstance(bad.done.exception(), PageFailed)
    assert good.done.result().text == bench.alone(1, pruned)
    assert unpruned.done.result().text == bench.alone(2)


def test_a_page_longer_than_a_slot_fails_with_its_own_error() -> None:
    bench = Bench(hostile(), limits(max_page_tokens=20))
    too_long, good = bench.read(0, ReadOptions(prompt="p" * 12, prune="none")), bench.read(1)
    bench.finish(too_long, good)
    with pytest.raises(PageTooLong, match="20"):
        too_long.done.result()
    reading = good.done.result()
    assert (reading.finish_reason, reading.tokens.output) == ("length", 20 - 10), (
        "cut to what its slot leaves"
    )


def test_output_stops_at_the_models_last_position() -> None:
    bench = Bench(hostile(max_position_embeddings=32), limits(max_page_tokens=128))
    task = bench.read(0, ReadOptions(prune="rtprune", keep_ratio=0.25))
    bench.finish(task)
    assert task.done.result().tokens.output == 32 - 10, "positions count what pruning took out"


def test_a_one_page_document_is_not_kept_waiting_by_a_long_one() -> None:
    bench = Bench(hostile(), limits(max_running_pages=1, prefetch_pages=2))
    long_document = [bench.read(i, ReadOptions(max_output_tokens=3), "long") for i in range(40)]
    bench.finish(long_document[4])
    short = bench.read(99, ReadOptions(max_output_tokens=3), "short")
    bench.finish(short)
    assert sum(task.done.done() for task in long_document) < 12


@pytest.mark.parametrize("options", [ReadOptions(mode="huge"), ReadOptions(prompt="<image>")])
def test_options_the_model_cannot_serve_are_refused_at_once(options: ReadOptions) -> None:
    with pytest.raises(BadOption):
        Bench(hostile()).read(0, options)


def test_confidence_and_timing_are_told() -> None:
    bench = Bench(hostile())
    task = bench.read(0)
    bench.finish(task)
    reading = task.done.result()
    assert reading.confidence < 0
    assert set(reading.timing_ms) == {"queue", "preprocess", "encode", "prune", "prefill", "decode"}
    assert all(value >= 0 for value in reading.timing_ms.values())
    assert reading.timing_ms["decode"] > 0
    assert reading.tokens.prompt == 2
    assert (reading.tokens.visual, reading.tokens.kept, reading.tokens.patches) == (7, 7, 4)


def test_decoding_time_is_shared_among_the_pages_it_was_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by one second whenever it is read: the shares add up to all of it."""
    bench = Bench(hostile())
    tasks = [bench.read(i, ReadOptions(prune="none", max_output_tokens=3 + 4 * i)) for i in range(6)]
    seconds = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    bench.finish(*tasks)
    spent = sum(task.done.result().timing_ms["decode"] for task in tasks)
    steps_for_somebody = bench.loop.load.steps - 1  # the last one was for a page that had ended
    assert spent == pytest.approx(1e3 * steps_for_somebody)


def test_an_error_of_one_page_is_not_taken_for_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost device fails every page that follows: the loop ends instead, and its process is started anew."""
    for module in (page_loop, vision):
        monkeypatch.setattr(module, "is_lost", lambda _: True)
    bench = Bench(hostile())
    bench.read(RAISES)
    with pytest.raises(IndexError):
        bench.turns(3)
    bench = Bench(hostile())
    monkeypatch.setattr(bench.loop.decoder, "first_logits", failing(lambda *_: None, lambda *_: True))
    bench.read(0)
    with pytest.raises(RuntimeError):
        bench.turns(3)


def test_an_engine_tells_the_scales_of_the_modes_it_was_trained_on() -> None:
    model = FakeOcr(random_network())
    model.modes = {**model.modes, "untrained": Mode("untrained", 512, pad=True, trained=False)}
    engine = Engine(model)
    try:
        assert isinstance(engine, KnowsModes)
        assert engine.default_mode == "tiny"
        assert engine.scales(256, 100) == {"tiny": 0.5, "small": 0.75}
    finally:
        engine.shut_down()
