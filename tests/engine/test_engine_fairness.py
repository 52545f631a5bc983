"""Priorities and cancelled pages of checkpoints that read in regions: what reaches the engine."""

import asyncio
import threading
from typing import Any

from service_client import PATIENCE_S

from app.document import Page, ReadOptions
from app.ocr.engine.engine import Engine, EngineStream
from app.pocket.opening import load_pocket
from app.pocket.reader import PocketReader
from app.reader import KnowsModes
from benchmarks.service import a4_image

MAX_TOKENS = ReadOptions(max_output_tokens=2)


class Noting(Engine):
    """Notes the priority of what comes."""

    came: list[int]

    def submit(self, page: Page, options: ReadOptions, **rest: Any) -> EngineStream:
        self.came = [*getattr(self, "came", []), rest["priority"]]
        return super().submit(page, options, **rest)


def test_priority_reaches_every_view_and_a_cancelled_page_is_not_even_cut() -> None:
    page = Page(0, a4_image(0).crop((0, 0, 1240, 400)).convert("RGB"))

    async def run() -> None:
        model = load_pocket()
        engine = Noting(model)
        reader = PocketReader(engine, model)
        assert isinstance(reader, KnowsModes)
        assert (reader.default_mode, reader.scales(1240, 1754)) == ("pocket", {}), "lines keep their size"
        try:
            await reader.submit(page, MAX_TOKENS, document_id="a", priority=7).result()
            assert len(engine.came) > 5
            assert set(engine.came) == {7}
            engine.came = []
            goes_on = threading.Event()
            blocking = [reader.cutting.submit(goes_on.wait, PATIENCE_S) for _ in range(2)]
            left = [reader.submit(page, MAX_TOKENS, document_id="b") for _ in range(3)]
            await asyncio.sleep(0)
            for stream in left:
                stream.cancel()
            goes_on.set()
            readings = [await stream.result() for stream in left]
            assert {reading.finish_reason for reading in readings} == {"cancelled"}
            assert len(engine.came) == len(left), "a view each, so that there is something to answer"
            assert all(future.result() for future in blocking)
        finally:
            await reader.close()

    asyncio.run(run())
