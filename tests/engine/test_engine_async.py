"""The engine as the service sees it: threads, streams, cancellation, death."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from engine_fakes import FakeOcr, ids_of, page, permutation_network, random_network
from hypothesis import given
from hypothesis import strategies as st

from app.document import Reading, ReadOptions
from app.errors import Overloaded, PageFailed
from app.ocr.engine.engine import Engine
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.stream import Feed, TextDelta, pieces_of
from app.ocr.models.model import PageViews
from app.reader import PageReader, PageStream, Restart
from rtprune import VisualTokens

NO_BAN = NgramRule(n=1000, window=1000)
SHORT = ReadOptions(prune="none", max_output_tokens=25)
ENDLESS = ReadOptions(prune="none", max_output_tokens=900)
PATIENCE_S = 60.0


def limits(**changes: Any) -> EngineSettings:
    plain: dict[str, Any] = {
        "max_running_pages": 3, "max_page_tokens": 1000, "kv_memory_mib": 128, "ngram": NO_BAN,
        "strict_ngram": NO_BAN, "loops": LoopRule(unit=10**6), "piece_interval_seconds": 0.0,
    }  # fmt: skip
    return EngineSettings(**(plain | changes))


@asynccontextmanager
async def running(model: FakeOcr, settings: EngineSettings | None = None) -> AsyncIterator[Engine]:
    engine = Engine(model, settings or limits())
    try:
        yield engine
    finally:
        await asyncio.wait_for(engine.close(), PATIENCE_S)


def fake() -> FakeOcr:
    return FakeOcr(random_network(0), eos_id=-1)


async def gathered(stream: PageStream) -> tuple[list[str], str]:
    """All pieces, and what they add up to."""
    pieces, text = [], ""
    async for piece in stream.pieces():
        pieces.append(piece)
        text = "" if isinstance(piece, Restart) else text + piece
    return pieces, text


def test_pages_of_many_documents_are_read_and_streamed() -> None:
    async def scenario() -> None:
        async with running(fake()) as engine:
            reader: PageReader = engine
            streams = [reader.submit(page(i), SHORT, document_id=f"d{i % 3}") for i in range(9)]
            told = await asyncio.gather(*(gathered(stream) for stream in streams))
            readings = await asyncio.gather(*(stream.result() for stream in streams))
            assert [text for _, text in told] == [reading.text for reading in readings]
            assert all(len(ids_of(reading.text)) == 25 for reading in readings)
            assert len({reading.text for reading in readings}) == 9
            assert reader.model_name == "fake"

    asyncio.run(scenario())


def test_text_arrives_while_the_page_is_being_read() -> None:
    async def scenario() -> None:
        async with running(fake()) as engine:
            stream = engine.submit(page(0), ENDLESS, document_id="d")
            async for piece in stream.pieces():
                assert piece
                break
            stream.cancel()
            reading = await stream.result()
            assert reading.finish_reason == "cancelled"
            assert 0 < reading.tokens.output < 900

    asyncio.run(scenario())


def test_a_retry_takes_back_what_was_streamed() -> None:
    async def scenario() -> None:
        settings = limits(loops=LoopRule(), strict_ngram=NgramRule(900, 950))
        async with running(FakeOcr(permutation_network(40), eos_id=-1), settings) as engine:
            stream = engine.submit(page(0), ENDLESS, document_id="d")
            pieces, text = await gathered(stream)
            reading = await stream.result()
            assert len(reading.attempts) == 3, "strict; unpruned is no change here; other mode"
            assert text == reading.text
            assert any(isinstance(piece, Restart) for piece in pieces), "the loop was cut after it was sent"
            assert len(ids_of(text)) == 40

    asyncio.run(scenario())


def test_waiting_for_a_result_can_be_given_up_and_taken_up_again() -> None:
    async def scenario() -> None:
        async with running(fake()) as engine:
            stream = engine.submit(page(0), SHORT, document_id="d")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.result(), 1e-4)
            assert len(ids_of((await stream.result()).text)) == 25

    asyncio.run(scenario())


def test_a_page_may_outlive_its_consumers_event_loop() -> None:
    engine = Engine(fake(), limits())

    async def leave() -> PageStream:
        stream = engine.submit(page(0), ENDLESS, document_id="d")
        async for _ in stream.pieces():
            break
        waiting = asyncio.ensure_future(anext(stream.pieces()))
        await asyncio.sleep(0)
        waiting.cancel()
        return stream

    stream = asyncio.run(leave())
    reading = asyncio.run(stream.result())
    assert reading.tokens.output == 900
    engine.shut_down()


def test_pages_that_were_read_are_freed_without_the_garbage_collector() -> None:
    async def scenario() -> None:
        async with running(fake()) as engine:
            pages = [page(i) for i in range(4)]
            images = [weakref.ref(one.image) for one in pages]
            streams = [engine.submit(one, SHORT, document_id="d") for one in pages]
            await asyncio.gather(*(stream.result() for stream in streams))
            del pages, streams
            engine.submit(page(9), SHORT, document_id="d")  # the loop lets go of the last page with the next
            until = time.monotonic() + PATIENCE_S
            while any(image() is not None for image in images):
                assert time.monotonic() < until, "a page is still held"
                await asyncio.sleep(0.01)

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario() -> None:
        async with running(
            fake(), limits(max_running_pages=1, max_queued_pages=2, prefetch_pages=1)
        ) as engine:
            accepted = [engine.submit(page(i), ENDLESS, document_id="d") for i in range(2)]
            with pytest.raises(Overloaded):
                accepted += [engine.submit(page(i), ENDLESS, document_id="d") for i in range(50)]

    asyncio.run(scenario())


def test_closing_cancels_what_runs_and_refuses_what_comes() -> None:
    async def scenario() -> None:
        engine = Engine(fake(), limits())
        streams = [engine.submit(page(i), ENDLESS, document_id="d") for i in range(6)]
        await engine.close()
        readings = await asyncio.wait_for(asyncio.gather(*(s.result() for s in streams)), PATIENCE_S)
        assert {reading.finish_reason for reading in readings} == {"cancelled"}
        with pytest.raises(PageFailed, match="closed"):
            engine.submit(page(0), SHORT, document_id="d")
        await engine.close()  # idempotent
        assert not [
            thread for thread in threading.enumerate() if thread.name.startswith(("engine", "text", "pre"))
        ]

    asyncio.run(scenario())


class Mortal(FakeOcr):
    """``embed`` dies, as a device does: not a matter of one page."""

    dies: bool = False

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        if self.dies and ids.ndim == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().embed(ids)


def test_the_death_of_the_engine_fails_every_page_and_every_later_one() -> None:
    tasks: list[asyncio.Future[Reading]] = []

    async def scenario() -> None:
        model = Mortal(random_network(0), eos_id=-1)
        deaths: list[list[bool]] = []
        engine = Engine(model, limits(), on_death=lambda: deaths.append([task.done() for task in tasks]))
        assert engine.failure is None
        streams = [engine.submit(page(i), ENDLESS, document_id="d") for i in range(8)]
        async for _ in streams[0].pieces():
            break
        tasks.extend(asyncio.ensure_future(stream.result()) for stream in streams)
        model.dies = True
        told = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        assert deaths == [[False] * 8], "told once, before any page was"
        assert all(isinstance(answer, PageFailed) for answer in told)
        assert "illegal" not in str(told[0]), "no internals"
        assert engine.failure is not None
        with pytest.raises(PageFailed):
            engine.submit(page(9), SHORT, document_id="d")
        assert [piece async for piece in streams[-1].pieces()] == [], "ends without raising"
        await engine.close()

    asyncio.run(scenario())


class Bytes(FakeOcr):
    """Tokens are bytes: a character may take four of them."""

    def decode_text(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class Unreadable(FakeOcr):
    def decode_text(self, ids: Sequence[int]) -> str:
        raise KeyError("no such token")


def test_a_page_whose_text_cannot_be_made_fails_alone() -> None:
    async def scenario() -> None:
        async with running(Unreadable(random_network(0), eos_id=-1)) as engine:
            with pytest.raises(PageFailed):
                await asyncio.wait_for(engine.submit(page(0), SHORT, document_id="d").result(), PATIENCE_S)

    asyncio.run(scenario())


class BadTower(FakeOcr):
    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        return []


def test_a_tower_that_loses_pages_fails_them() -> None:
    async def scenario() -> None:
        async with running(BadTower(random_network(0))) as engine:
            with pytest.raises(PageFailed):
                await asyncio.wait_for(engine.submit(page(0), SHORT, document_id="d").result(), PATIENCE_S)

    asyncio.run(scenario())


def decode_utf8(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=40))
def test_pieces_never_split_a_character(text: str, sizes: list[int]) -> None:
    ids, delta, pieces = list(text.encode()), TextDelta(decode_utf8), []
    start = 0
    for size in [*sizes, len(ids)]:
        pieces.append(delta.add(ids[start : start + size]))
        start += size
    if not text.endswith(
        "\ufffd"
    ):  # one that the model wrote looks unfinished, and comes with the final text
        assert "".join(pieces) == text


@given(st.binary(max_size=30), st.lists(st.integers(0, 30), max_size=3))
def test_pieces_add_up_to_the_final_text_whatever_the_bytes_and_restarts(
    data: bytes, restarts: list[int]
) -> None:
    async def scenario() -> str:
        feed = Feed()

        async def write() -> None:
            for i, token in enumerate(data):
                if i in restarts:
                    feed.restart()
                feed.push(token)
                await asyncio.sleep(0)
            feed.finish(decode_utf8(list(data)))

        writing = asyncio.ensure_future(write())
        text = ""
        async for piece in pieces_of(feed, decode_utf8, 0.0):
            text = "" if isinstance(piece, Restart) else text + piece
        await writing
        return text

    assert asyncio.run(scenario()) == decode_utf8(list(data))
