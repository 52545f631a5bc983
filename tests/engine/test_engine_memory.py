"""What the engine may hold: planned at start, given back, and what happens when there is not enough."""

import mmap
from pathlib import Path

import pytest
import torch
from engine_bench import Bench, failing, hostile, limits
from engine_fakes import FakeOcr, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from app.document import ReadOptions
from app.errors import PageFailed
from app.ocr.engine import device
from app.ocr.engine.kv_cache import KvShape
from app.ocr.engine.settings import PROMPT_ROOM, EngineSettings
from app.ocr.engine.task import PageTask
from app.ocr.sizing import engine_settings
from app.settings import Settings


def test_encoding_takes_fewer_pages_when_memory_runs_out() -> None:
    model = hostile()
    model.max_encoded = 2
    bench = Bench(model, limits(max_running_pages=8, prefetch_pages=8))
    tasks = [bench.read(i) for i in range(8)]
    bench.finish(*tasks)
    assert model.encoded[:3] == [8, 4, 2], "halved until it fits"
    assert all(size <= 2 for size in model.encoded[3:] if size != 4)
    assert [task.done.result().text for task in tasks] == [bench.alone(i) for i in range(8)]


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
    prefill = bench.loop.decoder.first_logits
    monkeypatch.setattr(
        bench.loop.decoder,
        "first_logits",
        failing(prefill, lambda prompts, _: len(prompts) > 1),
    )
    tasks = [bench.read(i) for i in range(4)]
    bench.finish(*tasks)
    assert [task.done.result().text for task in tasks] == [bench.alone(i) for i in range(4)]


def test_decoding_takes_fewer_pages_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(hostile())
    run_rows = bench.loop.decoder.run_rows
    monkeypatch.setattr(bench.loop.decoder, "run_rows", failing(run_rows, lambda rows, _: rows > 2))
    tasks = [bench.read(i) for i in range(4)]
    bench.finish(*tasks)
    assert [task.done.result().text for task in tasks] == [bench.alone(i) for i in range(4)]


def test_a_page_that_never_fits_memory_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(hostile())
    run_rows = bench.loop.decoder.run_rows
    monkeypatch.setattr(bench.loop.decoder, "run_rows", failing(run_rows, lambda *_: True))
    tasks = [bench.read(i) for i in range(3)]
    bench.finish(*tasks)
    for task in tasks:
        with pytest.raises(PageFailed, match="memory"):
            task.done.result()


def test_the_cache_never_grows() -> None:
    bench = Bench(hostile(), limits(max_running_pages=3))
    cache = bench.loop.decoder.cache
    before = [storage.data_ptr() for storage in (*cache.keys, *cache.values)], cache.num_bytes
    assert cache.num_bytes <= 64 * 2**20
    tasks = [bench.read(i, ReadOptions(max_output_tokens=5 + i % 7)) for i in range(30)]
    bench.finish(*tasks)
    assert ([storage.data_ptr() for storage in (*cache.keys, *cache.values)], cache.num_bytes) == before
    assert len(bench.loop.deadlines) == 0, "pages that are over are let go, minutes before their deadline"


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
    assert bench.loop.kv_budget.taken == 0
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
    most = bench.loop.decoder.cache.plan.num_tokens
    tasks: list[PageTask] = []
    for turn in range(60):
        for number, (length, at, cancelled) in enumerate(pages):
            if at == turn:
                tasks.append(bench.read(number, ReadOptions(prune="none", max_output_tokens=length)))
                if cancelled:
                    bench.loop.end(tasks[turn % len(tasks)], "cancelled")
        bench.turns(1)
        assert sum(bench.loop.decoder.cache.host_lengths) <= bench.loop.kv_budget.taken <= most
    bench.finish(*tasks)
    assert bench.loop.kv_budget.taken == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's count of resident pages")
def test_memory_is_taken_when_written_and_given_back_when_a_page_ends() -> None:
    bench = Bench(hostile(), limits(max_running_pages=200, max_page_tokens=1000, kv_memory_mib=200))
    storage = bench.loop.decoder.cache.storage
    assert storage.nbytes > 250 * 2**20

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20

    before = resident_mib()
    storage[:, :100] = 1.0
    assert resident_mib() - before > 100
    for row in range(100):
        bench.loop.decoder.cache.wipe(row, 1000)
    assert resident_mib() - before < 20
    assert not storage[:, :100].any()


FULL_SIZE = KvShape(num_layers=12, num_heads=10, head_dim=128, dtype=torch.bfloat16)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_page_may_write_what_a_client_may_ask_for_on_either_device(device: str) -> None:
    model = FakeOcr(random_network(0, max_position_embeddings=32_768))
    plain = engine_settings(Settings.model_validate({"device": device}))
    assert plain.max_output_tokens == 8192
    assert plain.page_tokens(model, FULL_SIZE, 90 * 2**30) == 8192 + PROMPT_ROOM
    explicit = engine_settings(Settings.model_validate({"device": device, "max_page_tokens": 4096}))
    assert explicit.page_tokens(model, FULL_SIZE, 90 * 2**30) == 4096
    more = engine_settings(Settings.model_validate({"device": device, "max_output_tokens": 20_000}))
    assert more.page_tokens(model, FULL_SIZE, 90 * 2**30) == 20_000 + PROMPT_ROOM


def test_the_room_of_a_page_bows_to_positions_and_memory_unless_it_was_set() -> None:
    model = FakeOcr(random_network(0, max_position_embeddings=8192))
    free = EngineSettings(max_page_tokens=None, max_output_tokens=8192)
    assert free.page_tokens(model, FULL_SIZE, 90 * 2**30) == 8192
    assert free.page_tokens(model, FULL_SIZE, 61_440 * 1000) == 1000
    assert EngineSettings(max_page_tokens=4096).page_tokens(model, FULL_SIZE, 61_440 * 1000) == 4096


def test_a_page_that_does_not_say_gets_all_of_its_output() -> None:
    bench = Bench(hostile(), limits(max_page_tokens=None, max_output_tokens=300))
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert (reading.finish_reason, reading.tokens.output) == ("length", 300)
