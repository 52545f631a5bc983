"""Who may go on, where few can at a time: pages of many documents, of several priorities, some kept apart.

``Places`` is the policy, without clocks or an event loop; ``Turnstile`` has coroutines wait by it.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of somebody who wants a place.

    ``most``: be among at most so many, all of the same ``most``; ``None``: as many as there are places.
    """

    document_id: str
    priority: int = 0
    most: int | None = None


@dataclass(eq=False, slots=True)
class Ticket(Generic[Item]):
    """Waits, then has a place, then is over. Told apart by identity."""

    claim: Claim
    item: Item
    is_inside: bool = False


class Places(Generic[Item]):
    """``num`` places, and the order in which they are given.

    Higher priority goes first; of one priority, the document that has the fewest places, and of those the one
    whose turn was longest ago. Pages of one document keep their order.

    One document has at most ``num - for_others`` places, so that another one finds some free. The last
    ``for_higher`` are given to a page whose priority is higher than that of some page inside.

    Whoever asks to be among fewer is kept apart from all who ask otherwise: smaller groups go first, and
    while one waits nobody of a larger one enters.
    """

    def __init__(self, num: int, *, for_others: int = 0, for_higher: int = 0) -> None:
        if not 0 <= for_higher <= for_others < num:
            raise ValueError(
                f"of {num} places one at least must be for anybody, got {for_others} kept for others and "
                f"{for_higher} for higher priority"
            )
        self._num, self._for_others, self._for_higher = num, for_others, for_higher
        self._waiting: dict[int, dict[tuple[int, str], deque[Ticket[Item]]]] = {}
        """By how many they may be, then by priority and document."""
        self._inside: set[Ticket[Item]] = set()
        self._num_of: Counter[str] = Counter()
        """Places of each document."""
        self._turns: dict[str, int] = {}
        """When each document came, or had its last turn."""
        self._clock = count()

    def ask(self, claim: Claim, item: Item) -> Ticket[Item]:
        ticket = Ticket(claim, item)
        lines = self._waiting.setdefault(self._most(claim), {})
        lines.setdefault((-claim.priority, claim.document_id), deque()).append(ticket)
        self._turns.setdefault(claim.document_id, next(self._clock))
        return ticket

    def next(self) -> Ticket[Item] | None:
        """Give a place to whoever is next; ``None`` if nobody may enter."""
        if not self._waiting:
            return None
        most = min(self._waiting)
        if self._inside and (self._most(next(iter(self._inside)).claim) != most or len(self._inside) >= most):
            return None
        lines = self._waiting[most]
        heads = [line[0].claim for line in lines.values()]
        entering = [claim for claim in heads if most < self._num or self._is_free_for(claim)]
        if not entering:
            return None
        claim = min(entering, key=self._order)
        ticket = lines[(-claim.priority, claim.document_id)][0]
        self._remove(ticket)
        ticket.is_inside = True
        self._inside.add(ticket)
        self._num_of[claim.document_id] += 1
        self._turns[claim.document_id] = next(self._clock)
        return ticket

    def leave(self, ticket: Ticket[Item]) -> None:
        """Give a place back, or wait no longer."""
        document_id = ticket.claim.document_id
        if ticket.is_inside:
            ticket.is_inside = False
            self._inside.remove(ticket)
            self._num_of[document_id] -= 1
        else:
            self._remove(ticket)
        lines = self._waiting.values()
        if not self._num_of[document_id] and not any(of == document_id for one in lines for _, of in one):
            del self._num_of[document_id], self._turns[document_id]

    def _most(self, claim: Claim) -> int:
        return self._num if claim.most is None else min(self._num, claim.most)

    def _is_free_for(self, claim: Claim) -> bool:
        """Whether the places that are kept let it in. Not asked of pages kept apart: they are few."""
        if self._num_of[claim.document_id] >= self._num - self._for_others:
            return False
        if len(self._inside) < self._num - self._for_higher:
            return True
        return any(claim.priority > ticket.claim.priority for ticket in self._inside)

    def _order(self, claim: Claim) -> tuple[int, int, int]:
        return (-claim.priority, self._num_of[claim.document_id], self._turns[claim.document_id])

    def _remove(self, ticket: Ticket[Item]) -> None:
        """Out of the line it waits in; nothing is kept of lines that are empty."""
        most, claim = self._most(ticket.claim), ticket.claim
        lines, key = self._waiting[most], (-claim.priority, claim.document_id)
        lines[key].remove(ticket)
        if not lines[key]:
            del lines[key]
        if not lines:
            del self._waiting[most]


class Turnstile:
    """Has coroutines wait for a place. One that is cancelled gives its place, or its turn, back at once."""

    def __init__(self, places: Places[asyncio.Future[None]]) -> None:
        self._places = places

    @contextlib.asynccontextmanager
    async def place(self, claim: Claim) -> AsyncIterator[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = self._places.ask(claim, turn)
        try:
            self._admit()
            await turn
            yield
        finally:
            self._places.leave(ticket)
            self._admit()  # others may have waited for this one's turn alone

    def _admit(self) -> None:
        while (ticket := self._places.next()) is not None:
            if not ticket.item.cancelled():
                ticket.item.set_result(None)
