"""Who gets a place: bounded, in a fair order, some kept for others, suspects apart, and nobody held up."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.places import Claim, Places, Ticket, Turnstile

WHO: tuple[st.SearchStrategy[str], st.SearchStrategy[int]] = (
    st.sampled_from("abcd"),
    st.sampled_from([0, 5, 9]),
)
CLIENTS = st.sampled_from(["", "one", "two"])
claims = st.builds(Claim, *WHO, st.sampled_from([None, None, None, 1, 3]), CLIENTS) | st.builds(
    Claim, *WHO, client=CLIENTS, num_pages=st.sampled_from([1, 2, 5])
)
sizes = st.tuples(st.integers(1, 12), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(
    lambda size: size[2] <= size[1] < size[0] > size[3]
)
"""Places, those kept for other documents, for higher priority, and for other clients."""


@dataclass
class Crowd:
    """Everybody who asked; ``inside`` by what they were told."""

    places: Places[int]
    waiting: list[Ticket[int]] = field(default_factory=list)
    inside: list[Ticket[int]] = field(default_factory=list)

    def ask(self, *claims: Claim) -> "Crowd":
        self.waiting += [self.places.ask(claim, number) for number, claim in enumerate(claims)]
        return self

    def admit(self) -> list[str]:
        """Who enters now, in order."""
        entered = []
        while (ticket := self.places.next()) is not None:
            self.waiting.remove(ticket)
            self.inside.append(ticket)
            entered.append(ticket.claim.document_id)
        return entered

    def leave(self, number: int = 0) -> None:
        self.places.leave(self.inside.pop(number))

    def give_up(self, number: int) -> None:
        self.places.leave(self.waiting.pop(number))


def pages_before_last(claims: Sequence[Claim]) -> int:
    """Pages of all but the last to enter, which takes all its places when one is free."""
    return sum(claim.num_pages for claim in claims[:-1])


@given(sizes, st.lists(claims | st.integers(0, 30), max_size=80))
def test_bounds_hold_and_everybody_is_served(
    size: tuple[int, int, int, int], events: list[Claim | int]
) -> None:
    """A number: one that waits gives up, or one inside leaves. Document ``d`` is a slow one."""
    num, for_others, for_higher, for_clients = size
    kept = {"for_others": for_others, "for_higher": for_higher, "for_clients": for_clients}
    crowd = Crowd(Places(num, **kept, is_slow=lambda document_id: document_id == "d"))
    for event in events:
        if isinstance(event, Claim):
            crowd.ask(event)
        elif event % 3 == 0 and crowd.waiting:
            crowd.give_up(event % len(crowd.waiting))
        elif crowd.inside:
            crowd.leave(event % len(crowd.inside))
        crowd.admit()
        inside = [one.claim for one in crowd.inside]
        groups = {min(num, num if claim.most is None else claim.most) for claim in inside}
        assert len(groups) <= 1, "kept apart"
        assert pages_before_last(inside) < min(groups, default=num)
        if groups == {num}:
            for document in {claim.document_id for claim in inside}:
                its = [claim for claim in inside if claim.document_id == document]
                assert pages_before_last(its) < num - for_others
                assert document != "d" or len(its) == 1
            for client in {claim.client for claim in inside}:
                assert pages_before_last([one for one in inside if one.client == client]) < num - for_clients
    while crowd.inside:
        crowd.leave()
        crowd.admit()
    assert not crowd.waiting
    held = [len(value) for value in vars(crowd.places).values() if hasattr(value, "__len__")]
    assert sum(held) == 0, "nothing is kept of who was there"


@pytest.mark.parametrize("num", [1, 2, 3, 4, 8, 128])
def test_a_document_that_is_alone_has_what_is_not_kept(num: int) -> None:
    crowd = Crowd(Places(num, for_others=num // 4, for_higher=num // 8)).ask(*[Claim("large")] * 300)
    assert len(crowd.admit()) == num - num // 4


def test_another_document_finds_a_place_at_once_and_so_does_a_higher_priority() -> None:
    crowd = Crowd(Places(8, for_others=2, for_higher=1)).ask(*[Claim("large")] * 60)
    crowd.admit()
    assert crowd.ask(Claim("small")).admit() == ["small"]
    assert crowd.ask(Claim("third")).admit() == [], "what is left is for a higher priority"
    assert crowd.ask(Claim("urgent", 9)).admit() == ["urgent"]


def test_a_higher_priority_that_everybody_has_is_none() -> None:
    crowd = Crowd(Places(8, for_others=2, for_higher=1))
    crowd.ask(*(Claim(f"urgent {number}", 9) for number in range(20)))
    assert len(crowd.admit()) == 7


def test_documents_have_as_many_places_after_a_while_whoever_came_first() -> None:
    crowd = Crowd(Places(8, for_others=2, for_higher=0)).ask(*[Claim("first")] * 60)
    crowd.admit()
    crowd.ask(*[Claim("second")] * 60)
    for _ in range(6):
        crowd.admit()
        crowd.leave()
    crowd.admit()
    assert Counter(ticket.claim.document_id for ticket in crowd.inside) == {"first": 4, "second": 4}


def test_with_one_place_documents_take_turns_and_newcomers_starve_nobody() -> None:
    crowd = Crowd(Places(1)).ask(*[Claim("waiting")] * 3)
    served = []
    for number in range(9):
        crowd.ask(Claim(f"newcomer {number}"))
        served += crowd.admit()
        crowd.leave()
    assert served.count("waiting") == 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=30))
def test_higher_priority_goes_first_and_documents_keep_their_order(pages: list[tuple[str, int]]) -> None:
    places: Places[int] = Places(1)
    for number, (document_id, priority) in enumerate(pages):
        places.ask(Claim(document_id, priority), number)
    served = []
    while (ticket := places.next()) is not None:
        served.append(ticket)
        places.leave(ticket)
    priorities = [ticket.claim.priority for ticket in served]
    assert priorities == sorted(priorities, reverse=True)
    for claim in {ticket.claim for ticket in served}:
        own = [ticket.item for ticket in served if ticket.claim == claim]
        assert own == sorted(own)


def test_clients_take_turns_however_many_documents_they_have() -> None:
    crowd = Crowd(Places(1))
    crowd.ask(*(Claim(f"large {number}", client="many") for number in range(20)))
    crowd.ask(Claim("small", client="few"), Claim("second", client="few"))
    served = []
    for _ in range(4):
        served += crowd.admit()
        crowd.leave()
    assert served == ["large 0", "small", "large 1", "second"]


def test_another_client_finds_a_place_at_once() -> None:
    crowd = Crowd(Places(3, for_clients=1))
    crowd.ask(*(Claim(f"large {number}", 9, client="many") for number in range(20)))
    assert len(crowd.admit()) == 2
    assert crowd.ask(Claim("small", client="few")).admit() == ["small"]


def test_slow_documents_leave_half_of_the_places_to_others() -> None:
    crowd = Crowd(Places(4, is_slow=lambda document_id: document_id.startswith("slow")))
    crowd.ask(*(Claim(f"slow {number % 5}", client=str(number)) for number in range(20)))
    assert crowd.admit() == ["slow 0", "slow 1"]
    assert crowd.ask(Claim("quick"), Claim("quick")).admit() == ["quick", "quick"]


def test_places_that_are_all_kept_are_refused() -> None:
    with pytest.raises(ValueError, match="for anybody"):
        Places(2, for_others=2)
    with pytest.raises(ValueError, match="for anybody"):
        Places(0)


def turnstile(num: int) -> Turnstile:
    places: Places[asyncio.Future[None]] = Places(num)
    return Turnstile(places)


def test_those_kept_apart_are_together_with_nobody_else_and_smaller_groups_go_first() -> None:
    chance = random.Random(1)
    present: list[int] = []
    seen: list[list[int]] = []

    async def page(turns: Turnstile, most: int) -> None:
        async with turns.place(Claim("a", most=most)):
            present.append(most)
            seen.append(list(present))
            try:
                for _ in range(chance.randrange(5)):
                    await asyncio.sleep(0)
            finally:
                present.remove(most)

    async def run() -> None:
        turns = turnstile(20)
        pages = [asyncio.create_task(page(turns, chance.choice([1, 3, 20]))) for _ in range(200)]
        await asyncio.sleep(0)
        for task in chance.sample(pages, k=60):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*pages, return_exceptions=True), 20)
        async with turns.place(Claim("a", most=1)):
            pass

    asyncio.run(run())
    assert all(len(set(together)) == 1 for together in seen)
    assert all(len(together) <= together[0] for together in seen)
    assert max(len(together) for together in seen) > 3, "and yet they are together"


def test_who_is_cancelled_holds_up_nobody() -> None:
    async def run() -> None:
        turns = turnstile(8)

        async def stay() -> None:
            async with turns.place(Claim("a")):
                await asyncio.sleep(3600)

        staying = asyncio.create_task(stay())
        await asyncio.sleep(0)
        alone = asyncio.create_task(turns.place(Claim("a", most=1)).__aenter__())
        await asyncio.sleep(0)
        another = asyncio.create_task(stay())
        await asyncio.sleep(0)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        staying.cancel()
        another.cancel()
        await asyncio.gather(staying, another, return_exceptions=True)
        async with asyncio.timeout(20), turns.place(Claim("a", most=1)):
            pass

    asyncio.run(run())
