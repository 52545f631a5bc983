"""What a GPU would show, held without one: one wait for the device a batch, no CPU tensor on its way."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rtprune_pages import MODES, Grid, grids, page, ratios, seeds
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rtprune.prune
import rtprune.tokens
from rtprune import RTPruneConfig, VisualTokens, prune_batch, text_densities
from rtprune.precision import product

READS = {"tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"}
WAITING_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class PythonReads(TorchFunctionMode):
    """Names of the calls through which Python reads a tensor's values."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        self.names += [name] if name in READS else []
        return func(*args, **(kwargs or {}))


class WaitingOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operations whose result's shape or value the host must know."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for group in args[1:2]
            if isinstance(group, list | tuple)
            for index in group
        )
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        self.names += [name] if name.startswith(WAITING_OPERATIONS) or by_mask or repeats else []
        return func(*args, **(kwargs or {}))


CONFIGS = [RTPruneConfig(), RTPruneConfig(0.3)]


@pytest.mark.parametrize("config", CONFIGS, ids=["dynamic", "fixed"])
@pytest.mark.parametrize("count", [1, 5])
def test_one_wait_for_the_device_a_batch(config: RTPruneConfig, count: int) -> None:
    pages = [page(((6, 4 + index),), seed=index) for index in range(count)]
    densities = torch.rand(count)
    with PythonReads() as reads, WaitingOperations() as waiting:
        prune_batch(pages, densities, config)
    assert reads.names == ["tolist"]
    assert waiting.names == []


def test_the_counters_count() -> None:
    values = torch.ones(3)
    with PythonReads() as reads, WaitingOperations() as waiting:
        values.tolist(), values[0].item(), bool(values[0] > 0), values[values > 0], values.nonzero()
    assert reads.names == ["tolist", "item", "__bool__"]
    assert [name for name in waiting.names if name != "_local_scalar_dense"] == ["index", "nonzero"]
    assert waiting.names.count("_local_scalar_dense") >= 1


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises when an operation other than a copy meets tensors of two devices."""

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device for tensor in tensors}) > 1 and "copy" not in func._schema.name:
            raise RuntimeError(f"{func._schema.name} on {[tensor.device for tensor in tensors]}")
        return func(*args, **(kwargs or {}))


ONE_DEVICE: TorchDispatchMode = OneDevice()  # type: ignore[no-untyped-call]


# The meta device stands for a GPU: its tensors have shapes and no values, so that reading one raises.
@pytest.mark.parametrize("config", CONFIGS, ids=["dynamic", "fixed"])
@pytest.mark.parametrize("mask_device", ["meta", "cpu"])
def test_the_way_on_a_gpu_makes_no_cpu_tensor_and_reads_once(
    config: RTPruneConfig, mask_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [page(grids, hidden=8, seed=1) for grids, _ in (MODES["tiny"], MODES["gundam 2 x 3"])]
    tables: list[torch.Tensor] = []
    rows: list[list[list[float]]] = []

    def note_rows(table: torch.Tensor) -> list[list[float]]:
        rows.append(table.tolist())
        return rows[-1]

    def answer_for_the_device(table: torch.Tensor) -> list[list[float]]:
        tables.append(table)
        return rows[-1]

    monkeypatch.setattr(rtprune.prune, "read_to_host", note_rows)
    right = prune_batch(pages, [0.1, 0.2], config)
    monkeypatch.setattr(rtprune.prune, "read_to_host", answer_for_the_device)
    shapes = [VisualTokens(one.embeds.to("meta"), one.is_patch.to(mask_device)) for one in pages]
    with ONE_DEVICE:
        pruned = prune_batch(shapes, torch.rand(2).to("meta"), config)
    assert [table.device.type for table in tables] == ["meta"]
    for ours, real in zip(pruned, right, strict=True):
        assert (ours.embeds.device.type, ours.kept.device.type) == ("meta", "meta")
        assert (ours.embeds.shape, ours.kept.shape) == (real.embeds.shape, real.kept.shape)


def test_the_pretended_gpu_catches_what_it_is_for() -> None:
    values, indices = torch.ones(3, 3, device="meta"), torch.zeros(3, 3, dtype=torch.int64)
    with ONE_DEVICE, pytest.raises(RuntimeError, match="gather on"):
        values.gather(1, indices)
    for read in (values.tolist, values.nonzero, values.sum().item):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


def test_densities_on_a_gpu_stay_there_unread() -> None:
    with ONE_DEVICE:
        densities = text_densities(torch.empty(2, 3, 64, 96, device="meta"), 2, 3)
    assert (densities.device.type, densities.shape, densities.dtype) == ("meta", (2,), torch.float64)


def test_the_gpu_way_of_ratio_and_density_gives_the_cpu_ways_numbers() -> None:
    """The two differ in how pages are grouped and in the dtype of products; here both run on the CPU."""
    from rtprune.ratio import _blank_lines, _edge_pixels, _squared_cosines

    pixels = torch.rand(2, 3, 32, 48)
    patches = pixels.reshape(2, 3, 2, 16, 3, 16)
    grouped = _edge_pixels(patches, _blank_lines(patches)) / (32 * 48)
    assert torch.equal(grouped, text_densities(pixels, 2, 3))
    embeds, divisors = torch.randn(2, 9, 8), torch.rand(2, 9, 1, dtype=torch.float64) + 1
    exact = _squared_cosines(embeds.double(), divisors)
    torch.testing.assert_close(_squared_cosines(embeds, divisors), exact, rtol=1e-5, atol=0)


@settings(max_examples=40, deadline=None)
@given(pages=st.lists(st.tuples(grids, seeds), min_size=2, max_size=5), ratio=ratios)
def test_pages_padded_together_get_their_own_answers(
    pages: list[tuple[tuple[Grid, ...], int]], ratio: float | None
) -> None:
    """A CPU takes page by page, a GPU all at once: here the CPU does that too, in float64 as a GPU."""
    tokens = [page(grids, seed=seed, dtype=torch.float64) for grids, seed in pages]
    config, densities = RTPruneConfig(ratio), [0.1] * len(tokens)
    right = prune_batch(tokens, densities, config)
    with pytest.MonkeyPatch.context() as patch, PythonReads() as reads, WaitingOperations() as waiting:
        patch.setattr(rtprune.tokens, "_parts", rtprune.tokens._together)
        together = prune_batch(tokens, densities, config)
    assert (reads.names, waiting.names) == (["tolist"], [])
    for one, alone, given_tokens in zip(together, right, tokens, strict=True):
        assert one.kept.tolist() == alone.kept.tolist()
        torch.testing.assert_close(one.embeds, alone.embeds, rtol=0, atol=1e-6)
        others = ~given_tokens.is_patch[one.kept]
        assert torch.equal(one.embeds[others], given_tokens.embeds[one.kept[others]])


def test_needs_torch_and_nothing_else_of_ours() -> None:
    others = "('app', 'ot', 'transformers')"
    listing = f"import sys, rtprune; print([m for m in sys.modules if m.split('.')[0] in {others}])"
    shown = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 7, 3, 2), (1, 90, 40, 300), (3, 5, 4, 6), (1, 0, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_onednn", [True, False])
def test_the_product_is_the_product(
    shape: tuple[int, int, int, int], dtype: torch.dtype, with_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    num_pages, rows, columns, hidden = shape
    left, right = torch.randn(num_pages, rows, hidden), torch.randn(num_pages, hidden, columns).mT
    answer = product(left.to(dtype), right.to(dtype))
    assert (answer.dtype, answer.layout, answer.device.type) == (dtype, torch.strided, "cpu")
    exact = left.double() @ right.double().mT
    # sums of products that cancel are off by what was added up, not by what is left
    added_up = left.double().abs() @ right.double().abs().mT
    assert ((answer.double() - exact).abs() <= 8 * torch.finfo(torch.float32).eps * added_up).all()
