"""Divide what a model wrote about several pages in one prompt, or say that it cannot be divided.

A checkpoint trained for it, such as Unlimited-OCR, writes a mark in front of each page. A page more or less
than were shown means that some text stands under another page's number, and nothing tells which.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from app.document import Attempt, Reading
from app.errors import PageFailed, PageTooLong
from app.ocr.engine.task import Outcome, PageTask
from app.ocr.models.model import OcrModel
from app.ocr.risk import Evidence
from app.reader import NotTogether, PageStream


class EnginePagesStream:
    """The ``PagesStream`` of the engine. ``stream``: of all pages as one."""

    def __init__(self, stream: PageStream, task: PageTask, model: OcrModel) -> None:
        self._stream, self._task, self._model = stream, task, model

    async def results(self) -> Sequence[Reading]:
        try:
            reading = await self._stream.result()
        except (PageTooLong, PageFailed) as error:
            raise NotTogether(f"the pages could not be read together: {error}") from error
        return await asyncio.to_thread(divide, reading, self._task, self._model)

    def cancel(self) -> None:
        self._stream.cancel()


def divide(reading: Reading, task: PageTask, model: OcrModel) -> list[Reading]:
    """Divide the reading of a prompt into one for each of its pages. Raise ``NotTogether``.

    Confidence and risk are of a page's own tokens, which begin after its mark and end with that of the next
    page. Times are divided equally.
    """
    pages = [task.page, *task.more]
    together = model.several_pages
    outcome = task.best()
    if len(pages) == 1 or together is None:
        return [reading]
    # an outcome has counts of pages; without them the reading ended before it was prefilled
    if reading.finish_reason != "stop" or len(outcome.counts.of_pages) != len(pages):
        raise NotTogether(f"reading the pages together ended with {reading.finish_reason}", reading)
    texts = texts_of(reading.text, together.mark)
    if len(texts) != len(pages):
        raise NotTogether(f"the text of {len(pages)} pages had {len(texts)} parts", reading)
    starts = _starts(outcome, len(pages), together.mark, model.decode_text)
    num_tokens = [stop - start for start, stop in pairwise([*starts, len(outcome.ids)])]
    # the end token has a probability, too
    logprobs = [outcome.logprobs[start:stop] for start, stop in pairwise([*starts, len(outcome.logprobs)])]
    readings = []
    for text, counts, output, own in zip(texts, outcome.counts.of_pages, num_tokens, logprobs, strict=True):
        attempt: Attempt = replace(outcome.attempt, output_tokens=output, pages=len(pages))
        readings.append(
            replace(
                reading,
                text=text,
                confidence=sum(own) / len(own) if own else 0.0,
                risk=task.risk_curve.risk(Evidence(own)),
                tokens=counts.reported(prompt=reading.tokens.prompt, output=output),
                timing_ms={stage: ms / len(pages) for stage, ms in reading.timing_ms.items()},
                attempts=(attempt,),
            )
        )
    return readings


def _starts(
    outcome: Outcome, num_pages: int, mark: str, decode_text: Callable[[Sequence[int]], str]
) -> list[int]:
    """Return the number of tokens in front of each page: those up to its mark, which may be several tokens.

    The first page has its own mark, too.
    """

    def num_marks(num_tokens: int) -> int:
        return decode_text(outcome.ids[:num_tokens]).count(mark)

    lengths = range(len(outcome.ids) + 1)
    return [0, *(bisect_left(lengths, number, key=num_marks) for number in range(2, num_pages + 1))]


def texts_of(text: str, mark: str) -> list[str]:
    """Divide the text of several pages, each with ``mark`` in front; none if text precedes the first mark."""
    before, *texts = text.split(mark)
    return [] if before.strip() else [one.strip() for one in texts]
