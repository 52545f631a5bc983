"""Decide who enters next where few may at a time: pages of many clients' documents, of several priorities.

``Places`` is the policy, without clocks or an event loop. ``Turnstile`` makes coroutines wait by it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Claim:
    """A request for a place.

    ``most``: enter only while at most this many are inside, all with the same ``most``; ``None``: as many as
    there are places. ``client``: who sent the document. ``num_pages``: places taken. All are taken at once
    when one is free, so that pages read together do not wait for ever behind single ones.
    """

    document_id: str
    priority: int = 0
    most: int | None = None
    client: str = ""
    num_pages: int = 1


@dataclass(eq=False, slots=True)
class Ticket(Generic[Item]):
    """A claim that waits, then has a place, then is over. Tickets are compared by identity."""

    claim: Claim
    item: Item
    is_inside: bool = False


@dataclass(slots=True)
class _Party:
    """A client or a document. ``turn``: when it arrived or last had a turn, on the policy's own counter."""

    turn: int
    num_tickets: int = 0
    num_inside: int = 0


class Places(Generic[Item]):
    """A policy for ``num`` places. A claim of several pages may take more than there are.

    The highest priority goes first. Within one priority, the client with the fewest places goes first, and
    among those the one whose last turn was longest ago. Within one client, documents follow the same rule.
    Pages of one document keep their order.

    One document has at most ``num - for_others`` places and one client at most ``num - for_clients``, so that
    others find some free. The last ``for_higher`` places only go to a page of higher priority than some page
    inside. A document that ``is_slow`` has one place, and all slow ones together have half.

    A claim with ``most`` never enters together with claims of another ``most``. Smaller groups go first, and
    while one waits, nobody of a larger group enters.
    """

    def __init__(
        self,
        num: int,
        *,
        for_others: int = 0,
        for_higher: int = 0,
        for_clients: int = 0,
        is_slow: Callable[[str], bool] = lambda _: False,
    ) -> None:
        if not (0 <= for_higher <= for_others < num and 0 <= for_clients < num):
            raise ValueError(
                f"of {num} places one at least must be for anybody, got {for_others} kept for others, "
                f"{for_higher} for higher priority and {for_clients} for other clients"
            )
        self._num, self._for_others, self._for_higher = num, for_others, for_higher
        self._for_clients, self._is_slow = for_clients, is_slow
        self._waiting: dict[int, dict[tuple[int, str], deque[Ticket[Item]]]] = {}
        """Waiting tickets by ``most``, then by priority and document."""
        self._inside: set[Ticket[Item]] = set()
        self._num_inside = 0
        self._documents: dict[str, _Party] = {}
        self._clients: dict[str, _Party] = {}
        self._clock = count()

    @property
    def are_taken(self) -> bool:
        return self._num_inside >= self._num

    def ask(self, claim: Claim, item: Item) -> Ticket[Item]:
        ticket = Ticket(claim, item)
        lines = self._waiting.setdefault(self._most(claim), {})
        lines.setdefault((-claim.priority, claim.document_id), deque()).append(ticket)
        for parties, name in self._parties(claim):
            parties.setdefault(name, _Party(next(self._clock))).num_tickets += 1
        return ticket

    def next(self) -> Ticket[Item] | None:
        """Give a place to the next ticket. Return ``None`` if nobody may enter."""
        if not self._waiting:
            return None
        most = min(self._waiting)
        if self._inside and (self._most(next(iter(self._inside)).claim) != most or self._num_inside >= most):
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
        self._num_inside += claim.num_pages
        for parties, name in self._parties(claim):
            parties[name].num_inside += claim.num_pages
            parties[name].turn = next(self._clock)
        return ticket

    def leave(self, ticket: Ticket[Item]) -> None:
        """Give up a ticket, whether it has a place or still waits."""
        num_pages = ticket.claim.num_pages if ticket.is_inside else 0
        self._num_inside -= num_pages
        for parties, name in self._parties(ticket.claim):
            parties[name].num_tickets -= 1
            parties[name].num_inside -= num_pages
            if not parties[name].num_tickets:
                del parties[name]
        if ticket.is_inside:
            ticket.is_inside = False
            self._inside.remove(ticket)
        else:
            self._remove(ticket)

    def _parties(self, claim: Claim) -> tuple[tuple[dict[str, _Party], str], ...]:
        return (self._clients, claim.client), (self._documents, claim.document_id)

    def _most(self, claim: Claim) -> int:
        return self._num if claim.most is None else min(self._num, claim.most)

    def _is_free_for(self, claim: Claim) -> bool:
        """Tell whether the limits on shares admit a claim.

        Claims with a smaller ``most`` are exempt: they are few.
        """
        document, client = self._documents[claim.document_id], self._clients[claim.client]
        if document.num_inside >= self._num - self._for_others:
            return False
        if client.num_inside >= self._num - self._for_clients:
            return False
        if self._is_slow(claim.document_id):
            num_slow = sum(self._is_slow(ticket.claim.document_id) for ticket in self._inside)
            if document.num_inside or num_slow >= max(1, self._num // 2):
                return False
        if self._num_inside < self._num - self._for_higher:
            return True
        return any(claim.priority > ticket.claim.priority for ticket in self._inside)

    def _order(self, claim: Claim) -> tuple[int, ...]:
        document, client = self._documents[claim.document_id], self._clients[claim.client]
        return -claim.priority, client.num_inside, client.turn, document.num_inside, document.turn

    def _remove(self, ticket: Ticket[Item]) -> None:
        """Take a ticket out of its line. Delete lines that become empty."""
        most, claim = self._most(ticket.claim), ticket.claim
        lines, key = self._waiting[most], (-claim.priority, claim.document_id)
        lines[key].remove(ticket)
        if not lines[key]:
            del lines[key]
        if not lines:
            del self._waiting[most]


class Turnstile:
    """A policy's places for coroutines. A cancelled one gives up its place, or its turn, at once."""

    def __init__(self, places: Places[asyncio.Future[None]]) -> None:
        self._places = places

    @property
    def is_full(self) -> bool:
        return self._places.are_taken

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
            self._admit()  # others may have waited only for this claim's turn

    def _admit(self) -> None:
        while (ticket := self._places.next()) is not None:
            if not ticket.item.cancelled():
                ticket.item.set_result(None)
