"""The MLP of a decoder layer on CUDA: the experts that a row's router chose, and the shared experts.

With few rows each pair of row and expert is multiplied by itself. With more rows the pairs of an expert are
gathered, so that its weights are read once for all of them: reading weights takes most of such a step's time.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn import functional
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2TextMLP, DeepseekOcr2TextMoe
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrTextMLP, UnlimitedOcrTextMoe

from app.ocr.cuda import kernels

FEW_ROWS = 4
"""Most rows for which pairs are multiplied one by one: so few rows seldom share an expert."""
LARGE_BYTES = 128 * 1024
"""Shared memory in bytes that the largest tiles need, with a margin."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Work of one program of an experts' kernel.

    ``m`` pairs, ``n`` output columns, steps of ``k`` input columns.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int


def expand_tile(num_rows: int, shared_bytes: int = 2**31) -> Tile:
    """Return the tile of ``kernels.expand`` for this many rows.

    Measured on an H200 with 64 experts, 6 a row: each choice is the fastest or within 1 % of it.
    ``shared_bytes``: shared memory of one program on this card; cards with less than an A100 take smaller
    tiles.
    """
    return _few_rows(num_rows) or (
        Tile(128, 64, 64, 4, 3) if num_rows > 512 and shared_bytes > LARGE_BYTES else Tile(32, 64, 64, 4, 4)
    )


def contract_tile(num_rows: int, shared_bytes: int = 2**31) -> Tile:
    return _few_rows(num_rows) or (
        Tile(128, 128, 64, 8, 3) if num_rows > 512 and shared_bytes > LARGE_BYTES else Tile(32, 64, 64, 4, 4)
    )


def _few_rows(num_rows: int) -> Tile | None:
    if num_rows <= FEW_ROWS:
        return Tile(16, 32, 128, 4, 4)
    return Tile(16, 64, 128, 4, 3) if num_rows <= 128 else None


def shared_bytes(device: torch.device) -> int:
    """Return how many bytes of memory the threads of one program can share."""
    if device.type != "cuda":
        return 2**31
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0))


Mlp: TypeAlias = UnlimitedOcrTextMLP | UnlimitedOcrTextMoe | DeepseekOcr2TextMLP | DeepseekOcr2TextMoe


class Experts:
    """The MLP of a layer as experts of one size: the routed ones first, then the shared ones.

    A dense MLP becomes shared experts only. The last of them is filled up with zeros, which add nothing.
    """

    def __init__(self, mlp: Mlp, inner: int) -> None:
        shared = mlp if isinstance(mlp, UnlimitedOcrTextMLP | DeepseekOcr2TextMLP) else mlp.shared_experts
        self.inner = inner
        num_shared = -(-shared.intermediate_size // inner)
        beyond = num_shared * inner - shared.intermediate_size
        gates, ups = (
            functional.pad(linear.weight, (0, 0, 0, beyond)).view(num_shared, inner, -1)
            for linear in (shared.gate_proj, shared.up_proj)
        )  # (S, I, D)
        self.shared_in = torch.cat((gates, ups), dim=1)  # (S, 2 I, D)
        down = functional.pad(shared.down_proj.weight, (0, beyond)).view(-1, num_shared, inner)
        self.shared_out = down.transpose(0, 1).contiguous()  # (S, D, I)
        self.num_experts, self.top, self.factor = 0, 0, 1.0
        self.router: torch.Tensor | None = None
        self.routed_in, self.routed_out = self.shared_in, self.shared_out
        if isinstance(mlp, UnlimitedOcrTextMoe | DeepseekOcr2TextMoe):
            self.num_experts, self.top = mlp.gate.num_experts, mlp.gate.top_k
            self.factor, self.router = float(mlp.gate.routed_scaling_factor), mlp.gate.weight
            self.routed_in, self.routed_out = mlp.experts.gate_up_proj, mlp.experts.down_proj
        self.num_parts = self.top + num_shared
        self.dim: int = self.shared_out.shape[1]
        self._shared_bytes = shared_bytes(self.shared_out.device)

    def __call__(
        self, hidden: torch.Tensor, part: torch.Tensor, norm: Any, scratch: "Scratch"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add ``part`` to ``hidden`` and run the MLP on the norm of the sum.

        (n, D), (n, D) -> (n, D), (n, parts, D): the sum, and the experts' outputs, which add up to the MLP's
        output.
        """
        num_rows = len(hidden)
        routes = Routes.of(num_rows, self, scratch)
        hidden, states = self._normed(hidden, part, norm, routes, scratch)
        inner = states.new_empty((num_rows * self.num_parts, self.inner))
        out = states.new_empty((num_rows, self.num_parts, self.dim))
        self._launch(
            kernels.expand, expand_tile(num_rows, self._shared_bytes), (self.inner, self.dim), num_rows,
            states, self.routed_in, self.shared_in, routes.ids, routes.counts, routes.pairs, inner,
        )  # fmt: skip
        self._launch(
            kernels.contract, contract_tile(num_rows, self._shared_bytes), (self.dim, self.inner), num_rows,
            inner, self.routed_out, self.shared_out, routes.ids, routes.shares, routes.counts, routes.pairs,
            out,
        )  # fmt: skip
        return hidden, out

    def _normed(
        self, hidden: torch.Tensor, part: torch.Tensor, norm: Any, routes: "Routes", scratch: "Scratch"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum and its norm. With a router, also fill ``routes``."""
        if self.router is None:
            return add_norm(hidden, part[:, None], norm)
        num_rows = len(hidden)
        out, states = torch.empty_like(hidden), torch.empty_like(hidden)
        group = min(4 if num_rows <= 16 else 8 if num_rows <= 1024 else 16, power_of_two(self.num_experts))
        groups = -(-self.num_experts // group)
        scores = torch.empty((num_rows, self.num_experts), dtype=torch.float32, device=hidden.device)
        kernels.norm_route[(num_rows, groups)](
            hidden, part, norm.weight, self.router, out, states, scores, scratch.arrived, routes.ids,
            routes.shares, routes.counts, routes.pairs, num_rows, self.factor, norm.variance_epsilon,
            GROUP=group, GROUPS=groups, BLOCK=power_of_two(self.num_experts),
            BLOCK_D=power_of_two(self.dim), num_warps=4, **self._sizes(num_rows),
        )  # fmt: skip
        return out, states

    def _sizes(self, num_rows: int) -> dict[str, Any]:
        return {
            "D": self.dim, "EXPERTS": self.num_experts, "TOP": self.top, "PARTS": self.num_parts,
            "LISTED": is_listed(num_rows),
        }  # fmt: skip

    def _launch(
        self, kernel: Any, tile: Tile, sizes: tuple[int, int], num_rows: int, *tensors: torch.Tensor
    ) -> None:
        """Launch ``kernel`` with ``tile``. ``sizes``: output columns, input columns."""
        n, k = dividing(tile.n, sizes[0]), dividing(tile.k, sizes[1])
        chunks, groups = 1, num_rows * self.num_parts
        if is_listed(num_rows):
            chunks, groups = -(-num_rows // tile.m), self.num_experts + self.num_parts - self.top
        kernel[(chunks, groups, sizes[0] // n)](
            *tensors, num_rows, INNER=self.inner, BLOCK_M=tile.m, BLOCK_N=n, BLOCK_K=k,
            num_warps=tile.warps, num_stages=tile.stages, **self._sizes(num_rows),
        )  # fmt: skip


def is_listed(num_rows: int) -> bool:
    return num_rows > FEW_ROWS


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """Assignment of rows to experts.

    ``ids``: (n, top) int32, chosen experts. ``shares``: (n, parts) float32, their weights. ``counts``: (E,)
    int32 and ``pairs``: (E, n) int32, the number and the list of each expert's pairs.
    """

    ids: torch.Tensor
    shares: torch.Tensor
    counts: torch.Tensor
    pairs: torch.Tensor

    @classmethod
    def of(cls, num_rows: int, experts: Experts, scratch: "Scratch") -> "Routes":
        device = scratch.arrived.device
        ids = torch.empty((num_rows, max(1, experts.top)), dtype=torch.int32, device=device)
        shares = torch.empty((num_rows, experts.num_parts), dtype=torch.float32, device=device)
        counts, pairs = scratch.next_lists()
        return cls(ids, shares, counts, pairs)


class Scratch:
    """Buffers that the layers of one step share. ``arrived``: int32, zero between kernels.

    Every routed layer has its own counts, because it counts its experts' pairs from zero.
    """

    def __init__(self, arrived: torch.Tensor, num_layers: int, num_experts: int, num_rows: int) -> None:
        self.arrived = arrived
        sizes = (num_layers, max(1, num_experts))
        self._counts = torch.zeros(sizes, dtype=torch.int32, device=arrived.device)
        self._pairs = torch.empty((sizes[1], num_rows), dtype=torch.int32, device=arrived.device)
        self._layer = 0

    def next_lists(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next layer's counts, (E,) and zero, and the shared pairs, (E, n)."""
        self._layer += 1
        return self._counts[self._layer - 1], self._pairs


def add_norm(
    hidden: torch.Tensor, parts: torch.Tensor | None, norm: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the sum of ``parts`` to ``hidden``; return the result and its RMS norm.

    (n, D), (n, P, D) -> (n, D), (n, D).
    """
    num_rows, dim = hidden.shape
    normed = torch.empty_like(hidden)
    out = hidden if parts is None else torch.empty_like(hidden)
    kernels.add_norm[(num_rows,)](
        hidden, hidden if parts is None else parts, norm.weight, out, normed, norm.variance_epsilon,
        D=dim, PARTS=0 if parts is None else parts.shape[1], BLOCK=power_of_two(dim), num_warps=4,
    )  # fmt: skip
    return out, normed


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()


def dividing(block: int, size: int) -> int:
    """Return the largest power of two up to ``block`` that divides ``size``."""
    while size % block:
        block //= 2
    return block
