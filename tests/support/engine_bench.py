"""A loop of the engine that the test turns by hand, over models that keep the contract or break it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from engine_fakes import FakeOcr, Inline, page, random_network, read_page

from app.document import ReadOptions
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import PageTask
from app.ocr.models.model import PageViews
from rtprune import VisualTokens

NO_BAN = NgramRule(n=1000, window=1000)
NO_LOOPS = LoopRule(unit=10**6)
POISON, WRONG_SHAPE, RAISES = 200, 201, 202
LONG = ReadOptions(prune="none", max_output_tokens=60)


class Hostile(FakeOcr):
    """Some pages are poison; ``max_encoded`` pages fit the memory of one encoding."""

    max_encoded: int = 1000
    encoded: list[int]

    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        self.encoded = [*getattr(self, "encoded", []), len(pages)]
        if len(pages) > self.max_encoded:
            raise torch.OutOfMemoryError("not this many")
        return super().encode(pages)

    def encode_one(self, page: PageViews) -> VisualTokens:
        tokens = super().encode_one(page)
        number = round((float(page.view[0, 0, 0]) + 1) * 127.5)
        if number == RAISES:
            raise IndexError("the tower does not like it")
        if number == WRONG_SHAPE:
            return VisualTokens(tokens.embeds[:, :7].clone(), tokens.is_patch)
        if number == POISON:
            tokens.embeds[2, 3] = torch.nan
        return tokens


def limits(**changes: Any) -> EngineSettings:
    plain: dict[str, Any] = {
        "max_running_pages": 4, "max_page_tokens": 128, "kv_memory_mib": 64, "ngram": NO_BAN,
        "strict_ngram": NO_BAN, "loops": NO_LOOPS, "max_attempts": 1,
    }  # fmt: skip
    return EngineSettings(**(plain | changes))


def hostile(**text: Any) -> Hostile:
    return Hostile(random_network(0, **text), eos_id=-1)


class Bench:
    """A loop that the test turns, over a model."""

    def __init__(self, model: FakeOcr, settings: EngineSettings | None = None) -> None:
        self.model, self.settings = model, settings or limits()
        self.loop = PageLoop(model, self.settings, Inline(), Inline())

    def read(self, number: int, options: ReadOptions = LONG, document_id: str = "d") -> PageTask:
        return read_page(self.loop, self.model, self.settings, page(number), options, document_id)

    def turns(self, number: int) -> None:
        for _ in range(number):
            self.loop.turn()

    def finish(self, *tasks: PageTask, at_most: int = 3000) -> None:
        for _ in range(at_most):
            if all(task.done.done() for task in tasks):
                return
            self.loop.turn()
        raise AssertionError(f"still going: {self.loop.load}")

    def alone(self, number: int, options: ReadOptions = LONG) -> str:
        bench = Bench(FakeOcr(self.model.network, eos_id=self.model.eos_id), self.settings)
        task = bench.read(number, options)
        bench.finish(task)
        return task.done.result().text


def failing(work: Callable[..., Any], fails: Callable[..., bool]) -> Callable[..., Any]:
    def attempt(*args: Any) -> Any:
        if fails(*args):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return work(*args)

    return attempt
