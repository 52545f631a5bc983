"""Decide which page is next: fair order over documents, priorities, deadlines, bounds.

Only policy: no torch, no clocks.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, TypeVar

from app.errors import Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


PAGES_A_ROUND = 3
"""Pages in each round of a document that has a head start; see ``FairQueue``."""


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """A place in the order of service; smaller goes first.

    The order is total: no two pages share ``arrival``.
    """

    rank: int
    """The negative of the priority."""
    round: int
    """Number of the round among the documents of this priority; see ``FairQueue``."""
    arrival: int


@dataclass(slots=True)
class _Entry(Generic[Item]):
    """An entry of a heap. ``item`` is ``None`` once it was removed; such entries are skipped when reached."""

    item: Item | None
    document_id: str = ""


@dataclass(slots=True)
class _Level(Generic[Item]):
    """The pages of one priority: the current round, and for each document the round of its last page."""

    current_round: int = 0
    last_round: dict[str, int] = field(default_factory=dict)
    num_came: dict[str, int] = field(default_factory=dict)
    """Number of each document's pages since it last had none waiting."""
    num_waiting: dict[str, int] = field(default_factory=dict)
    heap: list[tuple[Turn, _Entry[Item]]] = field(default_factory=list)

    def first(self) -> Turn:
        """Return the first turn. A level exists only while it has an entry."""
        while self.heap[0][1].item is None:
            heapq.heappop(self.heap)
        return self.heap[0][0]


class FairQueue(Generic[Item]):
    """Queue of waiting pages, served in rounds: each round takes one page of every document that has one.

    A page gets its round when it arrives: one more than that of its document's last waiting page, and later
    than the round being served. So page 1 of a new document goes ahead of page 58 of a document of 2,000. It
    goes behind every page whose round has come; otherwise a stream of new documents would starve the waiting
    one. The order is settled at arrival: a heap, O(log n) a page.

    ``group``: the first pages, this many, of a document that had none waiting take a third of the rounds,
    three pages in each. A reader may cut a page into many views, each of which is a page here. Short
    documents then end soon beside long ones, which keep at least a quarter of their speed.

    Higher priority goes strictly first. With ``one_in``, one in so many pages served while a lower priority
    waits is of the lower priorities, the page that arrived first. Without that, pages that were accepted and
    have a deadline could wait for ever behind higher ones.
    """

    def __init__(self, max_pages: int, *, one_in: int | None = None, group: int = 0) -> None:
        if max_pages < 1:
            raise ValueError(f"max_pages must be at least 1, got {max_pages}")
        self._max_pages = max_pages
        self._one_in = one_in
        self._group = group
        self._num_higher = 0  # served while a lower priority waited
        self._entries: dict[Turn, _Entry[Item]] = {}
        self._levels: dict[int, _Level[Item]] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, item: Item, document_id: str, priority: int = 0) -> Turn:
        """Add a page. Raise ``Overloaded`` rather than wait."""
        if len(self._entries) >= self._max_pages:
            raise Overloaded(f"{self._max_pages} pages are waiting already")
        level = self._levels.setdefault(-priority, _Level())
        num_came = level.num_came.get(document_id, 0)
        last_round = level.last_round.get(document_id, -1)
        shares_round = num_came < self._group and num_came % PAGES_A_ROUND > 0
        if shares_round and last_round > level.current_round:
            turn_round = last_round
        else:
            turn_round = max(level.current_round, last_round) + 1
        level.num_came[document_id] = num_came + 1
        self._arrivals += 1
        turn = Turn(-priority, turn_round, self._arrivals)
        level.last_round[document_id] = turn_round
        level.num_waiting[document_id] = level.num_waiting.get(document_id, 0) + 1
        entry = _Entry(item, document_id)
        self._entries[turn] = entry
        heapq.heappush(level.heap, (turn, entry))
        return turn

    def pop(self) -> tuple[Turn, Item] | None:
        """Take the next page; ``None`` if none waits.

        A page of a lower priority served ahead of higher ones is returned with a turn of the highest
        priority.
        """
        if not self._levels:
            return None
        turn, highest = self._next(), min(self._levels)
        item = self._entries[turn].item
        self._levels[turn.rank].current_round = turn.round
        served = turn
        if turn.rank != highest:
            served = Turn(highest, self._levels[highest].current_round, turn.arrival)
        self.remove(turn)
        return None if item is None else (served, item)

    def remove(self, turn: Turn) -> bool:
        """Take a page out of the queue. Returns False if it is no longer waiting."""
        entry = self._entries.pop(turn, None)
        if entry is None:
            return False
        level, document_id = self._levels[turn.rank], entry.document_id
        entry.item = None
        level.num_waiting[document_id] -= 1
        if not level.num_waiting[document_id]:
            del level.num_waiting[document_id]
            # a document without waiting pages starts afresh, or one that comes and goes would be remembered
            # for ever
            del level.last_round[document_id], level.num_came[document_id]
        if not level.num_waiting:
            del self._levels[turn.rank]
        elif len(level.heap) > 2 * len(self._entries) + 64:
            level.heap = [pair for pair in level.heap if pair[1].item is not None]
            heapq.heapify(level.heap)
        return True

    def _next(self) -> Turn:
        highest = min(self._levels)
        if self._one_in is None or len(self._levels) == 1:
            self._num_higher = 0
            return self._levels[highest].first()
        self._num_higher += 1
        if self._num_higher < self._one_in:
            return self._levels[highest].first()
        self._num_higher = 0
        lower = (level.first() for rank, level in self._levels.items() if rank != highest)
        return min(lower, key=lambda turn: turn.arrival)


class Deadlines(Generic[Item]):
    """Deadlines of pages. Items are told apart by identity; times are seconds of any one clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Entry[Item]]] = []
        self._entries: dict[int, _Entry[Item]] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, item: Item, at_s: float) -> None:
        self._added += 1
        entry = _Entry(item)
        self._entries[id(item)] = entry
        heapq.heappush(self._heap, (at_s, self._added, entry))

    def discard(self, item: Item) -> None:
        """Forget a page that is over. It may hold an image, and its deadline may be minutes away."""
        entry = self._entries.pop(id(item), None)
        if entry is not None:
            entry.item = None
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [place for place in self._heap if place[2].item is not None]
            heapq.heapify(self._heap)

    def expired(self, now_s: float) -> list[Item]:
        """Take the items whose deadline has passed, earliest first, each once."""
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            item = heapq.heappop(self._heap)[2].item
            if item is not None:
                del self._entries[id(item)]
                due.append(item)
        return due

    def next_s(self) -> float | None:
        """Return when to look again: no later than the next deadline, ``None`` if there is none."""
        return self._heap[0][0] if self._heap else None


class BatchLimit:
    """Limit of a batch: halved when memory runs out, raised by one after ``patience`` successful batches."""

    def __init__(self, most: int, patience: int = 16) -> None:
        if most < 1:
            raise ValueError(f"a batch limit must be at least 1, got {most}")
        self._most = most
        self._patience = patience
        self._good = 0
        self.value = most

    def shrink(self, failed: int) -> None:
        """Lower the limit after a batch of ``failed`` items did not fit."""
        self.value = max(1, min(self.value, failed // 2))
        self._good = 0

    def succeeded(self) -> None:
        self._good += 1
        if self._good >= self._patience:
            self.value = min(self._most, self.value + 1)
            self._good = 0


def chunks_within(sizes: Sequence[int], budget: int) -> list[range]:
    """Group consecutive items into chunks of total size up to ``budget``.

    A larger item gets a chunk of its own.

    >>> chunks_within([3, 3, 9, 1], budget=6)
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    chunks: list[range] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > budget:
            chunks.append(range(start, i))
            start, total = i, 0
        total += size
    if start < len(sizes):
        chunks.append(range(start, len(sizes)))
    return chunks


def runs_of_like_length(lengths: Sequence[int], call: int, round_to: int) -> list[range]:
    """Group neighbouring rows into runs that one call reads, each row as far as the longest of its run.

    A row starts a new run when padding the current one would read more unused keys than an extra ``call``
    costs. Lengths are rounded up to multiples of ``round_to``.

    >>> runs_of_like_length([3, 4, 4, 90, 91], call=10, round_to=4)
    [range(0, 3), range(3, 5)]
    >>> runs_of_like_length([4, 4], call=0, round_to=1)
    [range(0, 1), range(1, 2)]
    """
    runs: list[range] = []
    start, longest = 0, 0
    for i, length in enumerate(-(-length // round_to) * round_to for length in lengths):
        most = max(longest, length)
        num_unused = (most - longest) * (i - start) + most - length
        if i > start and num_unused >= call:
            runs.append(range(start, i))
            start, most = i, length
        longest = most
    if start < len(lengths):
        runs.append(range(start, len(lengths)))
    return runs


class KvBudget:
    """KV tokens promised to pages. Never more than there are, so that every promise can be kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0

    def how_many(self, amounts: Sequence[int]) -> int:
        """Count how many of ``amounts``, from the first on, fit together."""
        left = self._most - self.taken
        return sum(1 for total in accumulate(amounts) if total <= left)

    def take(self, amount: int) -> None:
        if self.taken + amount > self._most:
            raise ValueError(f"{amount} more than {self.taken} is beyond {self._most}")
        self.taken += amount

    def give_back(self, amount: int) -> None:
        self.taken -= amount
