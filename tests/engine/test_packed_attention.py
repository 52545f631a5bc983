"""The steps of CUDA's packed kernel, as far as they go without one: shapes, dtypes, lifetimes."""

from typing import Any

import pytest
import torch

from app.ocr.engine import device, packed_attention
from app.ocr.engine.attention import Step
from app.ocr.engine.kv_cache import KvCache, KvPlan, KvShape
from app.ocr.engine.packed_attention import PackedDecode, PackedPrefill

SHAPE = KvShape(2, 3, 16, torch.bfloat16)
META = torch.device("meta")


def states(num_rows: int, heads: int, length: int) -> torch.Tensor:
    return torch.empty(num_rows, length, heads, 16, dtype=torch.bfloat16, device=META).transpose(1, 2)


@pytest.mark.parametrize("num_heads", [3, 6], ids=["one query a key", "grouped"])
@pytest.mark.parametrize("window", [None, 4])
def test_a_prefill_and_a_step_have_the_shapes_that_the_model_wants(
    num_heads: int, window: int | None
) -> None:
    cache = KvCache(KvPlan(8, 32), SHAPE, META, window)
    prefill = PackedPrefill(cache, [5, 9])
    out = prefill.attend(1, states(1, num_heads, 14), states(1, 3, 14), states(1, 3, 14), 0.25)
    assert (out.shape, out.dtype) == ((1, 14, num_heads, 16), torch.bfloat16)
    cache.admit([5, 9])
    step = PackedDecode(cache, 4).begin()  # a bucket larger than what runs
    out = step.attend(0, states(4, num_heads, 1), states(4, 3, 1), states(4, 3, 1), 0.25)
    assert (out.shape, out.dtype) == ((4, 1, num_heads, 16), torch.bfloat16)


def test_the_kernel_is_asked_for_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """int32 starts and counts, and in a step the keys that each row really holds."""
    seen: dict[str, Any] = {}

    def recorded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: Any) -> torch.Tensor:
        seen.update(rest, key=key)
        return query

    monkeypatch.setattr(packed_attention, "varlen", recorded)
    cpu = torch.device("cpu")
    cache = KvCache(KvPlan(4, 32), SHAPE, cpu)
    PackedPrefill(cache, [5, 9])
    cache.admit([5, 9])
    query, key, value = torch.randn(3, 2, 3, 1, 16).bfloat16()
    PackedDecode(cache, 2).begin().attend(1, query, key, value, 0.25)
    assert seen["held"].tolist() == [6, 10]
    assert [part.tolist() for part in seen["starts"]] == [[0, 1, 2], [0, 32, 64]]
    assert all(part.dtype == torch.int32 for part in (*seen["starts"], seen["held"]))
    torch.testing.assert_close(seen["key"][[5, 32 + 9]], key[:, :, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_is_no_such_kernel_on_cpu(dtype: torch.dtype) -> None:
    assert not packed_attention.works(KvShape(2, 3, 16, dtype), 3, torch.device("cpu"))


class FakeGraph:
    def replay(self) -> None:
        """Runs what was captured."""


class FakeSteps:
    """Counts steps; a step may refuse to be captured."""

    def __init__(self, refuses: bool) -> None:
        self.cache = KvCache(KvPlan(5, 8), SHAPE, torch.device("cpu"))
        self.refuses = refuses
        self.rows: list[int] = []

    def run_rows(self, num_rows: int, attention: Step) -> torch.Tensor:
        if self.refuses:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.rows.append(num_rows)
        return torch.zeros(4, num_rows)

    def attention(self, num_rows: int | None = None) -> PackedDecode:
        return PackedDecode(self.cache, num_rows or 1)


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    for name in ("on_side_stream", "refusing_syncs"):
        monkeypatch.setattr(device, name, nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("without_cuda")
def test_every_bucket_is_captured_and_keeps_the_tensors_its_graph_reads() -> None:
    runner = device.GraphRunner(FakeSteps(refuses=False))
    runner.warm_up(5)
    assert list(runner.graphs) == [5, 4, 2, 1], "largest first"
    assert all(isinstance(captured.attention, PackedDecode) for captured in runner.graphs.values())
    assert runner.step(3).shape == (4, 3), "of the graph for 4"


@pytest.mark.usefixtures("without_cuda")
def test_steps_that_cannot_be_captured_run_all_the_same() -> None:
    """As on cards whose experts run in a loop that asks the device for counts."""
    steps = FakeSteps(refuses=True)
    runner = device.GraphRunner(steps)
    runner.warm_up(5)
    steps.refuses = False
    assert runner.step(3).shape == (4, 3)
    assert steps.rows == [3]
