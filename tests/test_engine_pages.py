"""What happens to single pages: cancelled, late, failing, too long, short of memory, looping. Others go
on.
"""

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import FakeOcr, Inline, ids_of, page, permutation_network, random_network, read_page
from hypothesis import given, settings
from hypothesis import strategies as st

from app.document import ReadOptions
from app.errors import BadOption, Overloaded, PageFailed, PageTooLong
from app.ocr import device, page_loop, vision
from app.ocr.engine_settings import EngineSettings
from app.ocr.loops import LoopRule, NgramRule
from app.ocr.model import Mode, PageViews
from app.ocr.page_loop import PageLoop
from app.ocr.task import PageTask
from rtprune import VisualTokens

NO_BAN = NgramRule(n=1000, window=1000)
NO_LOOPS = LoopRule(unit=10**6)
POISON, WRONG_SHAPE, RAISES = 200, 201, 202
LONG = ReadOptions(prune="none", max_output_tokens=60)


class Hostile(FakeOcr):
    """Some pages are poison; ``max_encoded`` pages fit the memory of one encoding."""

    max_encoded: int = 1000
    encoded: list[int]

    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        self.encoded = [*getattr(self, "encoded", []), len(pages)]
        if len(pages) > self.max_encoded:
            raise torch.OutOfMemoryError("not this many")
        return super().encode(pages)

    def encode_one(self, page: PageViews) -> VisualTokens:
        tokens = super().encode_one(page)
        number = round((float(page.view[0, 0, 0]) + 1) * 127.5)
        if number == RAISES:
            raise IndexError("the tower does not like it")
        if number == WRONG_SHAPE:
            return VisualTokens(tokens.embeds[:, :7].clone(), tokens.is_patch)
        if number == POISON:
            tokens.embeds[2, 3] = torch.nan
        return tokens


def limits(**changes: Any) -> EngineSettings:
    plain: dict[str, Any] = {
        "max_running_pages": 4, "max_page_tokens": 128, "kv_memory_mib": 64, "ngram": NO_BAN,
        "strict_ngram": NO_BAN, "loops": NO_LOOPS, "max_attempts": 1,
    }  # fmt: skip
    return EngineSettings(**(plain | changes))


def hostile(**text: Any) -> Hostile:
    return Hostile(random_network(0, **text), eos_id=-1)


class Bench:
    """A loop that the test turns, over a model."""

    def __init__(self, model: FakeOcr, settings: EngineSettings | None = None) -> None:
        self.model, self.settings = model, settings or limits()
        self.loop = PageLoop(model, self.settings, Inline(), Inline())

    def read(self, number: int, options: ReadOptions = LONG, document_id: str = "d") -> PageTask:
        return read_page(self.loop, self.model, self.settings, page(number), options, document_id)

    def turns(self, number: int) -> None:
        for _ in range(number):
            self.loop.turn()

    def finish(self, *tasks: PageTask, at_most: int = 3000) -> None:
        for _ in range(at_most):
            if all(task.done.done() for task in tasks):
                return
            self.loop.turn()
        raise AssertionError(f"still going: {self.loop.load}")

    def alone(self, number: int, options: ReadOptions = LONG) -> str:
        bench = Bench(FakeOcr(self.model.network, eos_id=self.model.eos_id), self.settings)
        task = bench.read(number, options)
        bench.finish(task)
        return task.done.result().text


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
        bench.loop._deadlines.add(task, 0.0)
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


def test_encoding_takes_fewer_pages_when_memory_runs_out() -> None:
    model = hostile()
    model.max_encoded = 2
    bench = Bench(model, limits(max_running_pages=8, prefetch_pages=8))
    tasks = [bench.read(i) for i in range(8)]
    bench.finish(*tasks)
    assert model.encoded[:3] == [8, 4, 2], "halved until it fits"
    assert all(size <= 2 for size in model.encoded[3:] if size != 4)
    assert [task.done.result().text for task in tasks] == [bench.alone(i) for i in range(8)]


def failing(work: Callable[..., Any], fails: Callable[..., bool]) -> Callable[..., Any]:
    def attempt(*args: Any) -> Any:
        if fails(*args):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return work(*args)

    return attempt


@pytest.mark.parametrize(("pixels", "most"), [(2 * 128 * 128, 2), (128 * 128 - 1, 1)])
def test_on_cpu_running_pages_wait_for_few_views_to_be_encoded(
    pixels: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "CPU_PIXELS_AT_ONCE", pixels)
    model = hostile()
    bench = Bench(model, limits(max_running_pages=5))
    running = bench.read(0)
    bench.turns(3)
    later = [bench.read(number) for number in range(1, 5)]
    steps = bench.loop.load.steps
    bench.turns(1)
    assert bench.loop.load.steps == steps + 1, "the running page had its turn"
    bench.finish(running, *later)
    assert model.encoded == [1, *[most] * (4 // most)]
    for number, task in enumerate(later, start=1):
        assert task.done.result().text == bench.alone(number)


def test_prefill_takes_fewer_pages_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(hostile())
    prefill = bench.loop._decoder._first_logits
    monkeypatch.setattr(
        bench.loop._decoder,
        "_first_logits",
        failing(prefill, lambda prompts, _: len(prompts) > 1),
    )
    tasks = [bench.read(i) for i in range(4)]
    bench.finish(*tasks)
    assert [task.done.result().text for task in tasks] == [bench.alone(i) for i in range(4)]


def test_decoding_takes_fewer_pages_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(hostile())
    run_rows = bench.loop._decoder.run_rows
    monkeypatch.setattr(bench.loop._decoder, "run_rows", failing(run_rows, lambda rows, _: rows > 2))
    tasks = [bench.read(i) for i in range(4)]
    bench.finish(*tasks)
    assert [task.done.result().text for task in tasks] == [bench.alone(i) for i in range(4)]


def test_a_page_that_never_fits_memory_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(hostile())
    run_rows = bench.loop._decoder.run_rows
    monkeypatch.setattr(bench.loop._decoder, "run_rows", failing(run_rows, lambda *_: True))
    tasks = [bench.read(i) for i in range(3)]
    bench.finish(*tasks)
    for task in tasks:
        with pytest.raises(PageFailed, match="memory"):
            task.done.result()


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


def test_the_cache_never_grows() -> None:
    bench = Bench(hostile(), limits(max_running_pages=3))
    cache = bench.loop._decoder.cache
    before = [storage.data_ptr() for storage in (*cache.keys, *cache.values)], cache.num_bytes
    assert cache.num_bytes <= 64 * 2**20
    tasks = [bench.read(i, ReadOptions(max_output_tokens=5 + i % 7)) for i in range(30)]
    bench.finish(*tasks)
    assert ([storage.data_ptr() for storage in (*cache.keys, *cache.values)], cache.num_bytes) == before
    assert len(bench.loop._deadlines) == 0, "pages that are over are let go, minutes before their deadline"


def test_a_budget_decides_how_many_pages_run() -> None:
    """What pages may grow to is reserved: many that are short run together, and few that may be long."""
    network = random_network(0)  # 3 layers, 60 wide, float32: 1440 bytes a token
    one_mib = limits(kv_memory_mib=1, max_page_tokens=240, max_running_pages=100)
    bench = Bench(FakeOcr(network, eos_id=-1), one_mib)
    assert bench.loop.load.kv_bytes <= 2**20
    longest = ReadOptions(prune="none", max_output_tokens=1000)
    long = [bench.read(i, longest) for i in range(5)]
    bench.turns(10)
    assert [task.row is None for task in long] == [False, False, False, True, True], "3 * 240 of 728 tokens"
    bench.loop.end(long[0], "cancelled")
    bench.turns(1)
    assert long[3].row is not None, "what one gives back is the next one's"
    bench.finish(*long)
    short = [bench.read(i, ReadOptions(prune="none", max_output_tokens=4)) for i in range(40)]
    bench.turns(20)
    bench.finish(*short)
    assert bench.loop._reserved.taken == 0
    with pytest.raises(ValueError, match="does not hold one page of 1000 tokens"):
        Bench(FakeOcr(network), limits(kv_memory_mib=1, max_page_tokens=1000))


def test_a_page_that_waits_for_memory_is_not_passed_by_smaller_ones() -> None:
    bench = Bench(hostile(), limits(kv_memory_mib=1, max_page_tokens=500, max_running_pages=100))
    first = bench.read(0, ReadOptions(prune="none", max_output_tokens=400))
    bench.turns(3)
    large = bench.read(1, ReadOptions(prune="none", max_output_tokens=400))
    small = [bench.read(i, ReadOptions(prune="none", max_output_tokens=3)) for i in range(2, 9)]
    bench.finish(first)
    assert not any(task.done.done() for task in small)
    bench.finish(large, *small)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 40), st.booleans()), min_size=1, max_size=12))
def test_what_is_reserved_never_exceeds_the_budget_and_is_given_back(
    pages: list[tuple[int, int, bool]],
) -> None:
    """Pages of any length join at any turn, some are cancelled."""
    bench = Bench(hostile(), limits(kv_memory_mib=1, max_page_tokens=300, max_running_pages=6))
    most = bench.loop._decoder.cache.plan.num_tokens
    tasks: list[PageTask] = []
    for turn in range(60):
        for number, (length, at, cancelled) in enumerate(pages):
            if at == turn:
                tasks.append(bench.read(number, ReadOptions(prune="none", max_output_tokens=length)))
                if cancelled:
                    bench.loop.end(tasks[turn % len(tasks)], "cancelled")
        bench.turns(1)
        assert sum(bench.loop._decoder.cache.host_lengths) <= bench.loop._reserved.taken <= most
    bench.finish(*tasks)
    assert bench.loop._reserved.taken == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's count of resident pages")
def test_memory_is_taken_when_written_and_given_back_when_a_page_ends() -> None:
    bench = Bench(hostile(), limits(max_running_pages=200, max_page_tokens=1000, kv_memory_mib=200))
    storage = bench.loop._decoder.cache._storage
    assert storage.nbytes > 250 * 2**20

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20

    before = resident_mib()
    storage[:, :100] = 1.0
    assert resident_mib() - before > 100
    for row in range(100):
        bench.loop._decoder.cache.wipe(row, 1000)
    assert resident_mib() - before < 20
    assert not storage[:, :100].any()


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


# loops

loop_pages = st.sampled_from([1, 3, 29, 30, 31, 97, 250])


@settings(max_examples=7, deadline=None)
@given(loop_pages)
def test_a_looping_page_ends_within_three_repeats_of_its_loop(period: int) -> None:
    """The model repeats ``period`` tokens for ever; loops under 30 tokens are judged by three times 30."""
    bench = Bench(
        FakeOcr(permutation_network(period), eos_id=-1), limits(loops=LoopRule(), max_page_tokens=1000)
    )
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert reading.finish_reason == "loop"
    assert [attempt.output_tokens for attempt in reading.attempts] == [3 * max(period, 30)]
    assert len(ids_of(reading.text)) == period, "cut to one repeat"


@pytest.mark.parametrize("period", [5, 40, 200])
def test_a_looping_page_ends_early_with_the_ban_on_too(period: int) -> None:
    settings = limits(
        loops=LoopRule(), ngram=NgramRule(), strict_ngram=NgramRule(10, 256), max_page_tokens=1000
    )
    bench = Bench(FakeOcr(permutation_network(period), eos_id=-1), settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert reading.finish_reason == "loop"
    assert reading.attempts[0].output_tokens <= 6 * max(period, 30)


def test_the_ladder_is_climbed_and_told() -> None:
    model = FakeOcr(permutation_network(40), eos_id=-1)
    settings = limits(
        loops=LoopRule(), strict_ngram=NgramRule(900, 950), max_attempts=4, max_page_tokens=1000
    )
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(keep_ratio=0.5))
    bench.finish(task)
    reading = task.done.result()
    tried = [(attempt.mode, attempt.prune, attempt.ngram_window) for attempt in reading.attempts]
    assert tried == [
        ("tiny", "rtprune", 1000),
        ("tiny", "rtprune", 950),
        ("tiny", "none", 950),
        ("small", "none", 950),
    ]
    assert {attempt.finish_reason for attempt in reading.attempts} == {"loop"}
    assert len(ids_of(reading.text)) == 40
    assert reading.finish_reason == "loop"


def test_a_retry_in_the_same_mode_encodes_nothing_again() -> None:
    """Neither for a stricter ban nor without pruning: the unpruned tokens are still there."""
    model = Hostile(permutation_network(40), eos_id=-1)
    settings = limits(
        loops=LoopRule(), strict_ngram=NgramRule(900, 950), max_attempts=4, max_page_tokens=1000
    )
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(keep_ratio=0.5))
    bench.finish(task)
    attempts = task.done.result().attempts
    assert [attempt.mode for attempt in attempts] == ["tiny", "tiny", "tiny", "small"]
    assert model.encoded == [1, 1], "once for each mode"
    assert task.encoded is None, "let go with the page"


def test_a_retry_reads_what_it_would_read_as_a_first_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned, then not: the second attempt starts from the tokens that the first one pruned."""
    model = FakeOcr(random_network(), eos_id=-1)
    model.min_confidence = -1e-9
    bench = Bench(model, limits(max_page_tokens=400, max_output_tokens=300, max_attempts=4))
    prompts: list[torch.Tensor] = []
    first_logits = bench.loop._decoder._first_logits

    def recorded(some: Any, lengths: Any) -> torch.Tensor:
        prompts.extend(prompt.embeds for prompt in some)
        return first_logits(some, lengths)

    monkeypatch.setattr(bench.loop._decoder, "_first_logits", recorded)
    bench.finish(bench.read(0, ReadOptions(keep_ratio=0.5)))
    bench.finish(bench.read(0, ReadOptions(prune="none", max_output_tokens=1)))
    pruned, again, unpruned = prompts
    assert len(pruned) < len(again)
    torch.testing.assert_close(again, unpruned, rtol=0, atol=0)


def test_no_retry_goes_to_a_mode_the_model_was_not_trained_for() -> None:
    model = FakeOcr(permutation_network(40), eos_id=-1)
    model.modes = {name: replace(mode, trained=name == "tiny") for name, mode in model.modes.items()}
    settings = limits(loops=LoopRule(), max_attempts=4, max_page_tokens=1000)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    assert {attempt.mode for attempt in task.done.result().attempts} == {"tiny"}


def test_a_retry_bans_no_shorter_n_gram_than_the_model_allows() -> None:
    model = FakeOcr(permutation_network(40), eos_id=-1)
    model.strict_ngram_n = 24
    settings = limits(strict_ngram=NgramRule(10, 256), max_attempts=2)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    assert task.rungs[1].ngram == NgramRule(24, 256)
    bench.finish(task)


@pytest.mark.parametrize(
    ("least", "reasons"),
    [
        (None, ["length"]),
        (-100.0, ["length"]),
        (-1e-9, ["low_confidence", "low_confidence"]),  # pruned, then not
    ],
)
def test_a_page_of_noise_ends_without_it(least: float | None, reasons: list[str]) -> None:
    model = FakeOcr(random_network(), eos_id=-1)
    model.min_confidence = least
    settings = limits(ngram=NgramRule(), max_page_tokens=400, max_output_tokens=300, max_attempts=4)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(keep_ratio=0.5))
    bench.finish(task)
    reading = task.done.result()
    assert [attempt.finish_reason for attempt in reading.attempts] == reasons
    assert reading.finish_reason == reasons[-1]
    if least == -1e-9:
        assert [attempt.output_tokens for attempt in reading.attempts] == [128, 128]
        assert [attempt.prune for attempt in reading.attempts] == ["rtprune", "none"]
        assert reading.text == ""


class Stubborn(FakeOcr):
    """Loops in the mode tiny; in any other the first token is the end."""

    def encode_one(self, page: PageViews) -> VisualTokens:
        return super().encode_one(page)

    def prompt_ids(self, prompt: str) -> list[int]:
        return [10]


def test_a_later_attempt_that_ends_by_itself_is_the_answer() -> None:
    """The strict ban breaks the loop, and the token after it is the end."""
    model = Stubborn(permutation_network(40, then=1), eos_id=1)
    settings = limits(loops=LoopRule(), strict_ngram=NgramRule(12, 60), max_attempts=4, max_page_tokens=1000)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert [attempt.finish_reason for attempt in reading.attempts] == ["loop", "stop"]
    assert reading.finish_reason == "stop"
    assert reading.tokens.output == reading.attempts[1].output_tokens == len(ids_of(reading.text))


def test_a_retry_that_fails_leaves_what_was_read_before() -> None:
    model = FakeOcr(
        permutation_network(40),
        eos_id=-1,
        modes={m.name: m for m in (Mode("tiny", 128, pad=True), Mode("odd", 100, pad=True))},
    )
    settings = limits(loops=LoopRule(), max_attempts=4, max_page_tokens=1000)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert reading.finish_reason == "loop"
    assert len(ids_of(reading.text)) == 40


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
    monkeypatch.setattr(bench.loop._decoder, "_first_logits", failing(lambda *_: None, lambda *_: True))
    bench.read(0)
    with pytest.raises(RuntimeError):
        bench.turns(3)
