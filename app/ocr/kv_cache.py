"""Keys and values of the running pages: slots of one length, planned once from a stated budget.

Why slots and not blocks. A block table lets pages of different length share memory, but worst-case lengths
must then be reserved at admission (which holds as much memory as slots do) or pages must be thrown out half
read when blocks run out. And on CPU a block table means copying every key and value of every page at every
step, while rows of one tensor are read where they lie. Page lengths here differ by the output alone and are
capped by ``max_page_tokens``; untouched memory of a slot is not even committed by the operating system on
CPU. On an H200, 256 slots of 4,096 tokens of the full-size model are 64 GB.

Running pages are rows 0 to n - 1, always: a page that ends is replaced by the last row (one copy of what
that page holds), so a decode step works on slices and never on an index.

With a sliding window (Unlimited-OCR), a row keeps its whole prompt and the last ``window`` tokens of its
output: the output is a ring behind the prompt. Keys carry their rotation, so their order does not matter.

Nothing ever reads a slot beyond its row's length, so what earlier pages left there, NaN included, does no
harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token costs: K and V of ``num_heads`` heads of ``head_dim`` in every one of ``num_layers``
    layers.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KvPlan:
    """``num_slots`` pages of at most ``slot_tokens`` tokens (kept visual tokens, prompt and output) each."""

    num_slots: int
    slot_tokens: int

    @classmethod
    def within(cls, budget_bytes: int, shape: KvShape, *, max_pages: int, max_page_tokens: int) -> "KvPlan":
        """As many slots as the budget pays, at most ``max_pages``. ValueError if it does not pay for one."""
        slot_bytes = shape.bytes_per_token * max_page_tokens
        num_slots = min(max_pages, budget_bytes // slot_bytes)
        if num_slots < 1:
            raise ValueError(
                f"a KV budget of {budget_bytes / MIB:.0f} MiB does not hold one page "
                f"of {max_page_tokens} tokens, {slot_bytes / MIB:.0f} MiB"
            )
        return cls(num_slots, max_page_tokens)


class KvCache:
    """``keys[layer]``, ``values[layer]``: (S, T, H, D), slot by token, so both SDPA and packed kernels read
    them.

    ``lengths``: (S,) int32 on the device, tokens each row has taken, 0 for a free one; ``prompts``: (S,)
    int32, how many of them were its prompt. ``host_lengths`` and ``host_prompts`` mirror the first n of them
    so that no step has to ask the device.
    """

    def __init__(self, plan: KvPlan, shape: KvShape, device: torch.device, window: int | None = None) -> None:
        self.plan = plan
        self.shape = shape
        self.window = window
        self._storage = _zeros(plan, shape, device)  # (2 L, S, T, H, D)
        layers = self._storage.unbind(0)
        self.keys, self.values = layers[0::2], layers[1::2]
        self._rows = self._storage.permute(1, 0, 3, 2, 4).unbind(0)  # S of (2 L, H, T, D)
        self.lengths = torch.zeros(plan.num_slots, dtype=torch.int32, device=device)
        self.prompts = torch.zeros_like(self.lengths)
        self.host_lengths: list[int] = []
        self.host_prompts: list[int] = []

    @property
    def num_rows(self) -> int:
        return len(self.host_lengths)

    @property
    def num_free(self) -> int:
        return self.plan.num_slots - self.num_rows

    @property
    def num_bytes(self) -> int:
        return self._storage.nbytes

    def next_places(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For the next token of the first n rows: (n,) int64 its place, (n,) int32 tokens held with it."""
        lengths = self.lengths[:num_rows]
        if self.window is None:
            return lengths.long(), lengths + 1
        prompts = self.prompts[:num_rows]
        places = prompts + (lengths - prompts) % self.window
        return places.long(), torch.minimum(lengths + 1, prompts + self.window)

    def host_held(self, more: int = 0) -> list[int]:
        """Tokens that each row holds, once it has taken ``more``."""
        if self.window is None:
            return [length + more for length in self.host_lengths]
        rows = zip(self.host_lengths, self.host_prompts, strict=True)
        return [min(length + more, prompt + self.window) for length, prompt in rows]

    def held_of(self, row: int, num_tokens: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """The first tokens of a row: (H, T, D) keys of every layer, and values."""
        layers = self._rows[row].narrow(2, 0, num_tokens).unbind(0)
        return layers[0::2], layers[1::2]

    def write(self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """The first tokens of a row: (T, H, D) each."""
        self.keys[layer][row, : len(keys)] = keys
        self.values[layer][row, : len(values)] = values

    def admit(self, lengths: Sequence[int]) -> int:
        """Rows n, n + 1, ... now hold ``lengths`` tokens, already written. Returns n."""
        first = self.num_rows
        if len(lengths) > self.num_free or max(lengths) > self.plan.slot_tokens:
            raise ValueError(
                f"{list(lengths)} tokens do not fit {self.num_free} slots of {self.plan.slot_tokens}"
            )
        self.host_lengths.extend(lengths)
        self.host_prompts.extend(lengths)
        self.lengths[first : self.num_rows] = torch.tensor(lengths, dtype=torch.int32)
        self.prompts[first : self.num_rows] = self.lengths[first : self.num_rows]
        return first

    def advance(self) -> None:
        """Every row got one token (the device's own ``lengths`` are advanced by the step)."""
        self.host_lengths = [length + 1 for length in self.host_lengths]

    def release(self, row: int) -> int:
        """Free a row; the last row takes its place. Returns that row's old index."""
        last = self.num_rows - 1
        held = self.host_held()[last]
        if row != last:
            self._storage[:, row, :held] = self._storage[:, last, :held]
        for counts in (self.lengths, self.prompts):
            counts[row] = counts[last]
            counts[last] = 0
        for mirror in (self.host_lengths, self.host_prompts):
            mirror[row] = mirror[last]
            mirror.pop()
        return last


def _zeros(plan: KvPlan, shape: KvShape, device: torch.device) -> torch.Tensor:
    """(2 L, S, T, H, D): keys and values of each layer in turn. On CPU those of a row lie together, and in
    them those of a head, so memory is read in order, 20 % faster at 300 keys.

    The packed kernels of CUDA want a layer's tokens together instead.
    """
    layers, slots, tokens = shape.num_layers, plan.num_slots, plan.slot_tokens
    heads, dim = shape.num_heads, shape.head_dim
    if device.type == "cpu":
        rows = torch.zeros(slots, 2 * layers, heads, tokens, dim, dtype=shape.dtype, device=device)
        return rows.permute(1, 0, 3, 2, 4)
    return torch.zeros(2 * layers, slots, tokens, heads, dim, dtype=shape.dtype, device=device)
