"""Hide the differences between CPU and CUDA: running a step, bringing results back, sizing memory.

On a CPU everything is a plain call. On CUDA a step is captured once for each batch size and replayed, chosen
tokens come back through pinned memory, and encoding runs on a stream of its own beside decoding.
"""

import logging
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from app.ocr.engine.attention import Step
from app.ocr.engine.kv_cache import MIB, KvCache

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
HostRows = list[list[float]]


class Begun(Protocol):
    """Attention of decode steps; ``begin`` is called before each."""

    def begin(self) -> Step: ...


class Steps(Protocol):
    """The part of a decoder that a runner drives."""

    cache: KvCache

    def run_rows(self, num_rows: int, attention: Step) -> torch.Tensor: ...

    def attention(self, num_rows: int | None = None) -> Begun: ...


class Runner(Protocol):
    """Runner of decode steps on a device."""

    def warm_up(self, num_slots: int) -> None:
        """Prepare the device, once, before the first page."""

    def step(self, num_rows: int) -> torch.Tensor:
        """Run one decode step. The next step may overwrite the result unless it was read back first."""


def runner_for(steps: Steps, device: torch.device, *, captures: bool) -> Runner:
    return GraphRunner(steps) if captures and device.type == "cuda" else PlainRunner(steps)


class PlainRunner:
    """Runner that launches operations one by one."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def warm_up(self, num_slots: int) -> None:  # noqa: ARG002 - there is nothing to capture
        device = self._steps.cache.lengths.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for this thread, which will run every step

    def step(self, num_rows: int) -> torch.Tensor:
        return self._steps.run_rows(num_rows, self._steps.attention().begin())


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """A captured step. ``attention`` is kept because the graph reads its tensors by address."""

    graph: torch.cuda.CUDAGraph
    choices: torch.Tensor
    attention: Begun


class GraphRunner(PlainRunner):
    """Runner that replays a CUDA graph of the smallest bucket that holds the running rows.

    Bucket rows beyond the running ones do no harm: such a row writes one key at the start of a free slot,
    which the next prefill overwrites, and its length stays 0. Where steps cannot be captured they run one
    operation at a time: experts that are not bfloat16 or not on Hopper go through a loop that asks the device
    how many tokens each of them got.
    """

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps)
        self._buckets: list[int] = []
        self.graphs: dict[int, Captured] = {}

    def warm_up(self, num_slots: int) -> None:
        """Capture every bucket, largest first so that the smaller ones reuse its memory."""
        super().warm_up(num_slots)
        buckets = buckets_up_to(num_slots)
        try:
            self._rehearse(buckets[-1])
            pool = torch.cuda.graph_pool_handle()
            for bucket in reversed(buckets):
                self.graphs[bucket] = self._capture(bucket, pool)
        except RuntimeError as error:
            if is_lost(self._steps.cache.lengths.device):
                raise
            logger.warning("decode steps run without CUDA graphs: %s", error)
            self.graphs.clear()
            return
        self._buckets = buckets

    def step(self, num_rows: int) -> torch.Tensor:
        if not self._buckets:
            return super().step(num_rows)
        captured = self.graphs[self._buckets[bisect_left(self._buckets, num_rows)]]
        captured.graph.replay()
        return captured.choices[:, :num_rows]

    def _rehearse(self, bucket: int) -> None:
        """Raise for a step that waits for the device, before any capture is tried.

        A capture that fails half way leaves the allocator in a state as if it were still going on.
        """
        attention = self._steps.attention(bucket)
        with torch.inference_mode(), on_side_stream():
            self._steps.run_rows(bucket, attention.begin())  # kernels choose and load themselves
            with refusing_syncs():
                self._steps.run_rows(bucket, attention.begin())

    def _capture(self, bucket: int, pool: Any) -> Captured:
        attention = self._steps.attention(bucket)
        with torch.inference_mode(), on_side_stream():
            for _ in range(2):  # kernels choose and load themselves outside the capture
                self._steps.run_rows(bucket, attention.begin())
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            choices = self._steps.run_rows(bucket, attention.begin())
        return Captured(graph, choices, attention)


@contextmanager
def on_side_stream() -> Iterator[None]:
    """Run warm-up steps away from the default stream, as a capture requires."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


@contextmanager
def refusing_syncs() -> Iterator[None]:
    """Raise ``RuntimeError`` for operations that wait for the device, as far as torch notices them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it does not notice all
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def reader_for(device: torch.device) -> Callable[[torch.Tensor], Callable[[], HostRows]]:
    """Return a function that starts copying choices to the host and returns another, which waits for them."""
    return pinned if device.type == "cuda" else at_once


def at_once(choices: torch.Tensor) -> Callable[[], HostRows]:
    rows: Callable[[], HostRows] = choices.tolist
    return rows


def pinned(choices: torch.Tensor) -> Callable[[], HostRows]:
    host = torch.empty(choices.shape, dtype=choices.dtype, pin_memory=True)
    host.copy_(choices, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> HostRows:
        copied.synchronize()
        rows: HostRows = host.tolist()
        return rows

    return read


def buckets_up_to(most: int) -> list[int]:
    """Return batch sizes to capture: powers of two up to 16, then steps of 16, the last one exactly ``most``.

    >>> buckets_up_to(40)
    [1, 2, 4, 8, 16, 32, 40]
    """
    small = [size for size in (1, 2, 4, 8) if size < most]
    return [*small, *range(16, most, 16), most]


CPU_PIXELS_AT_ONCE = 4 * 1024 * 1024
"""Most pixels encoded together on a CPU. More is not faster: 71 views of 256 px take 0.46 s in chunks of 4, 8
or 32.
"""


class EncodeExecutor:
    """Executor of encoding: on CUDA in a thread and on a stream of its own beside decoding, on a CPU at once.

    With ``beside_decode`` a CPU also encodes beside decoding, each with half of the threads. That pays where
    a decode step is too short to be shared. Otherwise a page is first encoded and then decoded, on all
    threads.

    ``max_pixels``: on a CPU, limit for pages encoded together, because running pages wait for them. A single
    page may have more.

    ``shares``: on a CPU wait until one of this many shares of the rows is free, or all waiting pages fit, so
    that pages are encoded in groups. A page encoded and prefilled alone takes twice its share of a group of
    eight.

    ``ahead``, ``group``: how many pages are encoded before rows are free for them, and how many together, so
    that a row that becomes free is filled at once.
    """

    def __init__(self, device: torch.device, *, beside_decode: bool = False) -> None:
        num_threads = torch.get_num_threads()
        shares_threads = device.type == "cpu" and beside_decode and num_threads > 1
        is_beside = shares_threads or device.type == "cuda"
        self._decode_threads = num_threads // 2 if shares_threads else None
        self.shares: int = 8 if device.type == "cpu" else 2**31
        self.ahead, self.group = (16, 8) if is_beside else (0, 1)
        self.max_pixels = CPU_PIXELS_AT_ONCE if device.type == "cpu" else None
        self._stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )
        encode_threads = num_threads - (self._decode_threads or 0)
        self._thread = (
            ThreadPoolExecutor(1, "vision", torch.set_num_threads, (encode_threads,)) if is_beside else None
        )

    def leave_threads(self) -> None:
        """Limit the calling thread to the threads that encoding leaves.

        Call it in the decoding thread, before decoding.
        """
        if self._decode_threads is not None:
            torch.set_num_threads(self._decode_threads)  # for this thread and those started after it

    def submit(self, work: Callable[[], Result]) -> "Future[Result]":
        """Run ``work``. The result's tensors are ready on any stream; call ``adopt`` on them before use."""
        if self._thread is not None:
            return self._thread.submit(self._beside, work)
        future: Future[Result] = Future()
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - a future carries whatever its work raised
            future.set_exception(error)
        return future

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _beside(self, work: Callable[[], Result]) -> Result:
        if self._stream is None:
            return work()
        with torch.cuda.stream(self._stream):
            result = work()
        self._stream.synchronize()  # stops only this thread; decoding goes on
        return result


def adopt(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor from another stream as used here.

    Its memory is then not reused before this stream is done with it.
    """
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream())
    return tensor


OUT_OF_MEMORY = (
    "not enough memory", "bad_alloc", "can't allocate memory", "out of memory", "cublas_status_alloc_failed",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` means that memory ran out.

    CUDA has a class for it; on a CPU only the text tells.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)


def is_lost(device: torch.device) -> bool:
    """Tell, after an error, whether the device fails everything from now on in this process.

    Some CUDA errors do that, such as an illegal address or a card fallen off the bus. Later pages are then
    not at fault.
    """
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).add_(1).tolist()
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


@dataclass(frozen=True, slots=True)
class LaunchPolicy:
    """Policy that keeps the device busy while the host launches a prefill.

    On CUDA a prefill is some 170 launches, 5 ms of the host's time for one page or for eight. On a CPU a
    launch is the work itself, and nothing can be gained.

    ``steps_ahead``: decode steps launched before the prefill. ``shares``: while more pages wait than rows are
    free, wait until one of this many shares of the rows is free, but no longer than ``wait_s``.
    """

    steps_ahead: int
    shares: int
    wait_s: float

    @classmethod
    def on(cls, device: torch.device) -> "LaunchPolicy":
        return cls(1, 16, 0.1) if device.type == "cuda" else cls(0, 2**31, 0.0)


def wait_for(device: torch.device) -> None:
    """Wait until this thread's stream is empty, so that a clock read next measures finished work."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def give_back_memory(device: torch.device) -> None:
    """Free the memory that torch keeps for later. Called after memory ran out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def kv_budget_bytes(device: torch.device, mib: int | None, share: float | None) -> int:
    """Return the KV budget in bytes, from a size in MiB or a share of free device memory.

    The share is in (0, 1) and for CUDA only. Raise ``ValueError`` unless exactly one is given, or for a share
    on another device.
    """
    if (mib is None) == (share is None):
        raise ValueError(
            f"give one of a KV budget in MiB and a share of device memory, got {mib} and {share}"
        )
    if mib is not None:
        return mib * MIB
    if device.type != "cuda":
        raise ValueError(
            f"a share of device memory needs a CUDA device, this is {device}; give the budget in MiB"
        )
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * (share or 0.0))
