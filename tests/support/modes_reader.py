"""A reader that knows its modes, with the answers that a test gives it."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from app.document import Attempt, Page, Reading, ReadOptions, TokenCounts
from app.errors import BadOption

WORDS = tuple("the northern store has forty sheets of white stock and twelve of gray".split())
ALL, HALF, LESS = " ".join(WORDS), " ".join(WORDS[:6]), WORDS[0]
SCALES = {"small": 0.3, "large": 0.7, "gundam": 1.1}
Answer = str | Reading | Exception | None


def reading(text: str = ALL, mode: str = "large", prune: str = "rtprune", finish: str = "stop") -> Reading:
    kept = 100 if prune == "none" else 60
    tokens = TokenCounts(110, kept + 10, 100, kept, kept / 100, 0.2, None, 5, 9)
    attempt = Attempt(mode, prune, 90, finish, 9)  # type: ignore[arg-type]
    return Reading(text, finish, -0.1, mode, tokens, {"decode": 2.0}, attempts=(attempt,))  # type: ignore[arg-type]


class Stream:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def pieces(self) -> AsyncIterator[str]:
        yield ""

    async def result(self) -> Reading:
        if self._answer is None:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert isinstance(self._answer, Reading)
        return self._answer

    def cancel(self) -> None:
        pass


class ModesReader:
    """Gives one answer after the other, and notes how each was asked for. ``None``: never."""

    model_name = "modes"
    modes = ("small", "large", "gundam", "untrained")
    default_mode = "large"

    def __init__(self, *answers: Answer, scales: Mapping[str, float] = SCALES) -> None:
        self.asked: list[ReadOptions] = []
        self._answers, self._scales = list(answers or (ALL,)), scales

    def scales(self, width: int, height: int) -> Mapping[str, float]:
        return self._scales

    def submit(self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0) -> Stream:
        if options.mode not in (None, *self.modes):
            raise BadOption(f"mode {options.mode}")
        self.asked.append(options)
        answer = self._answers.pop(0)
        if isinstance(answer, str):
            answer = reading(answer, options.mode or self.default_mode, options.prune)
        return Stream(answer)

    async def close(self) -> None:
        pass
