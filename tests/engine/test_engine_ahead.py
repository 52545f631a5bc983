"""What CUDA does ahead of time, on a loop that is told to: pages encoded before a row is free, steps launched
before a prefill. And what a CPU does beside decoding.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from engine_bench import LONG, Bench, hostile, limits

from app.document import ReadOptions
from app.ocr.engine.device import EncodeExecutor, LaunchPolicy
from app.ocr.models import vision_graphs
from app.ocr.models.vision_graphs import BATCHES, VisionGraphs

CPU = torch.device("cpu")
SHORT = ReadOptions(prune="none", max_output_tokens=9)


def ahead(bench: Bench, pages: int, group: int) -> Bench:
    lane = bench.loop.encode_queue.lane
    lane.ahead, lane.group = pages, group
    lane.shares = 2**31  # as on CUDA: a row that is free waits for nobody
    return bench


def test_pages_are_encoded_before_a_row_is_free_in_groups_and_no_more_than_stated() -> None:
    model = hostile()
    bench = ahead(Bench(model, limits(max_running_pages=2, max_encode_pages=3)), pages=3, group=2)
    first = [bench.read(number) for number in (1, 2)]
    bench.turns(2)
    assert bench.loop.load.running == 2
    later = [bench.read(number) for number in range(3, 10)]
    bench.turns(3)
    assert bench.loop.load.running == 2, "no row is free"
    assert bench.loop.load.encoding == 3
    assert sum(model.encoded) == 5
    bench.finish(*first, *later)
    assert [task.done.result().text for task in later] == [bench.alone(number) for number in range(3, 10)]


def test_a_page_that_nothing_follows_waits_for_no_group() -> None:
    bench = ahead(Bench(hostile(), limits(max_running_pages=1)), pages=4, group=4)
    bench.read(1)
    bench.turns(2)
    bench.read(2)
    bench.turns(2)
    assert bench.loop.load.encoding == 1


def test_a_page_that_is_cancelled_while_it_waits_encoded_is_gone() -> None:
    bench = ahead(Bench(hostile(), limits(max_running_pages=1)), pages=3, group=1)
    first, second, third = (bench.read(number) for number in (1, 2, 3))
    bench.turns(3)
    assert bench.loop.load.encoding == 2
    bench.loop.end(second, "cancelled")
    bench.finish(first, third)
    assert second.done.result().finish_reason == "cancelled"
    assert third.done.result().text == bench.alone(3)


@pytest.mark.parametrize("max_page_tokens", [40, 128])
def test_steps_ahead_of_a_prefill_change_no_page(max_page_tokens: int) -> None:
    """Pages join one after the other; in the small slots each ends because its slot is full."""
    endless = ReadOptions(prune="none")
    bench = Bench(hostile(), limits(max_running_pages=3, max_page_tokens=max_page_tokens))
    bench.loop.launch_policy = LaunchPolicy(steps_ahead=2, shares=2**31, wait_s=0.0)
    tasks = []
    for number in range(1, 8):
        tasks.append(bench.read(number, [LONG, SHORT, endless][number % 3]))
        bench.turns(2)
    bench.finish(*tasks)
    for number, task in enumerate(tasks, start=1):
        assert task.done.result().text == bench.alone(number, [LONG, SHORT, endless][number % 3])
    assert not bench.loop.decoder.cache.host_lengths


@pytest.mark.parametrize("wait_s", [3600.0, 0.0])
def test_rows_that_become_free_wait_for_each_other_while_pages_wait_for_rows(wait_s: float) -> None:
    """Two of four rows, or as long as stated: then one by one."""
    bench = ahead(Bench(hostile(), limits(max_running_pages=4)), pages=4, group=1)
    bench.loop.launch_policy = LaunchPolicy(steps_ahead=0, shares=2, wait_s=wait_s)
    lengths = [8, 16, 40, 40, 9, 9, 9]
    tasks = [
        bench.read(number, ReadOptions(prune="none", max_output_tokens=length))
        for number, length in enumerate(lengths, start=1)
    ]
    bench.turns(12)
    assert tasks[0].done.done()
    assert not tasks[1].done.done()
    assert bench.loop.load.running == (3 if wait_s else 4)
    bench.turns(10)
    assert tasks[1].done.done()
    assert bench.loop.load.running == 4, "two rows were free at once"
    bench.finish(*tasks)
    for number, task in enumerate(tasks, start=1):
        assert task.done.result().text == bench.alone(
            number, ReadOptions(prune="none", max_output_tokens=lengths[number - 1])
        )


def test_the_last_page_waits_for_no_row_but_its_own() -> None:
    bench = ahead(Bench(hostile(), limits(max_running_pages=4)), pages=4, group=1)
    bench.loop.launch_policy = LaunchPolicy(steps_ahead=0, shares=2, wait_s=3600.0)
    tasks = [bench.read(number) for number in range(1, 6)]
    bench.finish(*tasks, at_most=200)


class FakeGraph:
    """Runs the tower when it is replayed, as a graph does: into the memory it was captured with."""

    def __init__(self, tower: Any, pixels: torch.Tensor, features: torch.Tensor) -> None:
        self._tower, self._pixels, self._features = tower, pixels, features

    def replay(self) -> None:
        self._features.copy_(self._tower(self._pixels))


def tower(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.view(len(pixels), -1).cumsum(1)[:, :5, None] + 1


def graphs(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> tuple[VisionGraphs, list[int]]:
    captured: list[int] = []

    def capture(self: VisionGraphs, pixels: torch.Tensor) -> Any:
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        captured.append(len(pixels))
        features = tower(pixels)
        return vision_graphs._Captured(FakeGraph(tower, pixels, features), pixels, features)  # type: ignore[arg-type]

    monkeypatch.setattr(VisionGraphs, "_capture", capture)
    return VisionGraphs(tower, torch.device("cpu")), captured


def test_a_batch_is_captured_when_it_comes_again_and_the_answer_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, captured = graphs(monkeypatch)
    answers = []
    for count in (3, 5, 5, 6, 3, 3):
        pixels = torch.rand(count, 3, 4, 4)
        answers.append((ours(pixels), tower(pixels)))
    assert captured == [6, 3], "5 views run in the graph for 6"
    for found, wanted in answers:  # looked at when all have run: none may be what a later one has written
        torch.testing.assert_close(found, wanted)


def test_what_cannot_be_captured_is_encoded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, captured = graphs(monkeypatch, fails=True)
    for _ in range(3):
        pixels = torch.rand(2, 3, 4, 4)
        torch.testing.assert_close(ours(pixels), tower(pixels))
    assert not captured


def test_a_batch_is_one_of_the_sizes_and_not_too_many_pixels() -> None:
    for side in (256, 512, 640, 1024, 1280, 4096):
        most = VisionGraphs.most(side)
        assert most in BATCHES
        assert most == 1 or most * side * side <= vision_graphs.MAX_PIXELS


@pytest.fixture
def five_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(before)


def whereabouts() -> tuple[int, int]:
    return threading.get_ident(), torch.get_num_threads()


@pytest.mark.usefixtures("five_threads")
def test_views_are_encoded_beside_decoding_each_with_threads_of_its_own() -> None:
    lane = EncodeExecutor(CPU, beside_decode=True)
    with ThreadPoolExecutor(1) as decoding:
        decoding.submit(lane.leave_threads).result()
        decodes_in, num_decode_threads = decoding.submit(whereabouts).result()
        encodes_in, num_encode_threads = lane.submit(whereabouts).result()
    assert decodes_in != encodes_in
    assert (num_encode_threads, num_decode_threads) == (3, 2)
    assert torch.get_num_threads() == 5, "those of other threads are theirs"
    lane.close()


@pytest.mark.usefixtures("five_threads")
@pytest.mark.parametrize(("beside_decode", "num_threads"), [(False, 5), (True, 1)])
def test_whole_pages_and_a_single_thread_are_not_shared(beside_decode: bool, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    lane = EncodeExecutor(CPU, beside_decode=beside_decode)
    lane.leave_threads()
    assert lane.submit(whereabouts).result() == (threading.get_ident(), num_threads)
    assert lane.ahead == 0
    lane.close()


@pytest.mark.usefixtures("five_threads")
def test_pages_encoded_beside_decoding_read_as_alone() -> None:
    bench = Bench(hostile(), limits(max_running_pages=3))
    bench.loop.encode_queue.lane = EncodeExecutor(CPU, beside_decode=True)
    tasks = [bench.read(number) for number in range(12)]
    while not all(task.done.done() for task in tasks):
        if not bench.loop.turn():
            bench.loop.wait()
    bench.loop.close()
    assert [task.done.result().text for task in tasks] == [bench.alone(number) for number in range(12)]
