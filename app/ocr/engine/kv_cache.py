"""Keys and values of the running pages: slots of one length, planned once from a stated budget.

Why slots and not blocks: a block table lets pages of different length share memory, but then worst-case
lengths must be reserved at admission (as much memory as slots take), or half-read pages must be thrown out
when blocks run out. On a CPU a block table also means copying every key and value of every page at every
step, while rows of one tensor are read where they lie. Page lengths here differ by the output only and are
capped by ``max_page_tokens``. On an H200, 256 slots of 4,096 tokens of the full-size model are 64 GB.

On a CPU a slot is address space, not memory: its memory pages are committed when first written and given back
when the slot is freed. So there may be more slots than the budget fills, and the most tokens a page may grow
to are reserved at its admission: 64 views of 200 tokens, or 16 pages of 8,192, fit in the same gigabyte.

Running pages are always rows 0 to n - 1: when a page ends, the last row is copied into its place. So a decode
step works on slices and never needs an index.

With a sliding window (Unlimited-OCR), a row keeps its whole prompt and the last ``window`` tokens of its
output, in a ring buffer behind the prompt. Keys are stored rotated, so their order does not matter.

With ``wipes``, a slot is zero beyond what its row holds. Attention that reads several rows as far as the
longest one multiplies the rest by a weight of zero, but a NaN left there by an earlier page would stay NaN.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

MIB = 1024 * 1024
PAGE_BYTES = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class KvShape:
    """Size of one token in the cache: keys and values of every head and layer."""

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Plan of the cache: ``num_slots`` pages of up to ``slot_tokens`` tokens.

    The tokens of a page are its kept visual tokens, prompt and output. ``budget_tokens``: most tokens of all
    pages together; ``None``: as many as the slots hold.
    """

    num_slots: int
    slot_tokens: int
    budget_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens that all slots may hold together."""
        whole = self.num_slots * self.slot_tokens
        return whole if self.budget_tokens is None else min(whole, self.budget_tokens)

    @classmethod
    def within(
        cls, budget_bytes: int, shape: KvShape, *, max_pages: int, max_page_tokens: int, lazy: bool = False
    ) -> "KvPlan":
        """Plan as many slots as the budget pays for, at most ``max_pages``.

        Raise ``ValueError`` if it does not pay for one. ``lazy``: slots cost only what is written to them, so
        plan ``max_pages`` slots and a budget of tokens.
        """
        slot_bytes = shape.bytes_per_token * max_page_tokens
        num_slots = min(max_pages, budget_bytes // slot_bytes)
        if num_slots < 1:
            raise ValueError(
                f"a KV budget of {budget_bytes / MIB:.0f} MiB does not hold one page "
                f"of {max_page_tokens} tokens, {slot_bytes / MIB:.0f} MiB"
            )
        if lazy:
            return cls(max_pages, max_page_tokens, budget_bytes // shape.bytes_per_token)
        return cls(num_slots, max_page_tokens)


class KvCache:
    """Cache of keys and values. ``keys[layer]``, ``values[layer]``: (S, T, H, D).

    This order, slot by token, can be read by SDPA and by packed kernels. ``lengths``: (S,) int32 on the
    device, tokens each row has taken, 0 for a free row. ``prompts``: (S,) int32, how many of them were its
    prompt. ``host_lengths`` and ``host_prompts`` mirror the first n of them, so that no step has to ask the
    device. ``wipes``: make a slot zero when it is freed.
    """

    def __init__(
        self,
        plan: KvPlan,
        shape: KvShape,
        device: torch.device,
        window: int | None = None,
        *,
        wipes: bool = True,
    ) -> None:
        self.plan = plan
        self.shape = shape
        self.window = window
        self._wipes = wipes
        self._lazy = LazySlots(plan, shape) if device.type == "cpu" else None
        self.storage = _zeros(plan, shape, device) if self._lazy is None else self._lazy.storage
        layers = self.storage.unbind(0)  # of (2 L, S, T, H, D)
        self.keys, self.values = layers[0::2], layers[1::2]
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
        """Bytes of all slots, planned at the start."""
        return self.plan.num_tokens * self.shape.bytes_per_token

    def next_places(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the next token of each of the first n rows goes, (n,) int64.

        Also returns how many tokens the row then holds, (n,) int32.
        """
        lengths = self.lengths[:num_rows]
        if self.window is None:
            return lengths.long(), lengths + 1
        prompts = self.prompts[:num_rows]
        places = prompts + (lengths - prompts) % self.window
        return places.long(), torch.minimum(lengths + 1, prompts + self.window)

    def host_held(self, more: int = 0) -> list[int]:
        """Return how many tokens each row holds after ``more`` further tokens."""
        if self.window is None:
            return [length + more for length in self.host_lengths]
        rows = zip(self.host_lengths, self.host_prompts, strict=True)
        return [min(length + more, prompt + self.window) for length, prompt in rows]

    def write(self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the first tokens of a row, (T, H, D) each."""
        self.keys[layer][row, : len(keys)] = keys
        self.values[layer][row, : len(values)] = values

    def write_packed(
        self, layer: int, rows: torch.Tensor, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Write tokens of any rows, in two launches for any number of pages.

        ``rows``, ``places``: (T,) int64. ``keys``, ``values``: (T, H, D).
        """
        self.keys[layer].index_put_((rows, places), keys)
        self.values[layer].index_put_((rows, places), values)

    def wipe(self, row: int, num_tokens: int) -> None:
        """Make a row that held ``num_tokens`` tokens zero again."""
        if self._lazy is not None:
            self._lazy.wipe(row, num_tokens)
        elif self._wipes:
            self.storage[:, row, :num_tokens].zero_()

    def admit(self, lengths: Sequence[int]) -> int:
        """Mark the next rows as holding ``lengths`` tokens, which are already written.

        Returns the first row's index. Raise ``ValueError`` if they do not fit.
        """
        first = self.num_rows
        if len(lengths) > self.num_free or max(lengths) > self.plan.slot_tokens:
            raise ValueError(
                f"{list(lengths)} tokens do not fit {self.num_free} slots of {self.plan.slot_tokens}"
            )
        self.host_lengths.extend(lengths)
        self.host_prompts.extend(lengths)
        held = to_device(lengths, torch.int32, self.lengths.device)
        self.lengths[first : self.num_rows] = held
        self.prompts[first : self.num_rows] = held
        return first

    def advance(self, counts: Sequence[int] | None = None) -> None:
        """Count more tokens for every row on the host: ``counts``, or one each.

        The step itself advances ``lengths`` on the device.
        """
        more = counts or [1] * self.num_rows
        self.host_lengths = [length + count for length, count in zip(self.host_lengths, more, strict=True)]

    def release(self, row: int) -> int:
        """Free a row and move the last row into its place. Returns that row's old index."""
        last = self.num_rows - 1
        lengths = self.host_held()
        self.wipe(row, lengths[row])
        if row != last:
            held = lengths[last]
            self.storage[:, row, :held] = self.storage[:, last, :held]
            self.wipe(last, held)
        for counts in (self.lengths, self.prompts):
            counts[row] = counts[last]
            counts[last] = 0
        for mirror in (self.host_lengths, self.host_prompts):
            mirror[row] = mirror[last]
            mirror.pop()
        return last


class LazySlots:
    """Slots on a CPU. ``storage``: (2 L, S, T, H, D), zero, and not committed before it is written.

    torch's own zeros are written at once: 3.7 GiB were resident for 64 slots that held 10 MiB. The memory of
    a row lies together, and within it that of a head, so it is read in order, 20 % faster at 300 keys.
    """

    def __init__(self, plan: KvPlan, shape: KvShape) -> None:
        sizes = (2 * shape.num_layers, shape.num_heads, plan.slot_tokens, shape.head_dim)
        needed = plan.slot_tokens * shape.bytes_per_token
        self._slot_bytes = -(-needed // PAGE_BYTES) * PAGE_BYTES  # whole pages, or none could be given back
        self._memory = mmap.mmap(
            -1, plan.num_slots * self._slot_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # or each head of each layer takes 2 MiB, however short the page
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        flat = torch.frombuffer(self._memory, dtype=shape.dtype)
        rows = flat.view(plan.num_slots, -1)[:, : needed // shape.dtype.itemsize].view(-1, *sizes)
        self.storage = rows.permute(1, 0, 3, 2, 4)

    def wipe(self, row: int, num_tokens: int) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, row * self._slot_bytes, self._slot_bytes)
        else:
            self.storage[:, row, :num_tokens].zero_()


def _zeros(plan: KvPlan, shape: KvShape, device: torch.device) -> torch.Tensor:
    """Allocate (2 L, S, T, H, D). CUDA's packed kernels need the heads of a token together."""
    sizes = (2 * shape.num_layers, plan.num_slots, plan.slot_tokens, shape.num_heads, shape.head_dim)
    return torch.zeros(sizes, dtype=shape.dtype, device=device)


def to_device(values: Sequence[int] | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copy (n,) values to the device without waiting.

    Pinned memory is used: a copy from ordinary memory would stop the host until the stream is empty.
    """
    host = torch.as_tensor(values, dtype=dtype)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
