"""A page reader without a model, to try clients and the service itself: ``RTPRUNE_READER=fake``.

It answers a line per page, a token for each word, and a picture where the page has colour. A prompt that is a
JSON object directs it, so that a client's handling of slow, failing and fatal pages can be tried:
``{"delay_s": 1, "delay_on": [0], "text": "...", "fail_on": [0], "die_on": [1], "grow_mib": 100}``. With
``"token_s": 0.1`` the text comes word by word; with ``"loop": "..."`` that comes first, and is taken back.
With ``"apart": true`` the text of several pages in one prompt cannot be divided.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image, ImageChops

from app.document import (
    FARTHEST,
    Attempt,
    FinishReason,
    Page,
    Reading,
    ReadOptions,
    TokenCounts,
    ViewPatches,
)
from app.errors import BadOption, PageFailed
from app.reader import NotTogether, PagesStream, Restart

MODES = {"tiny": (64, 8), "small": (100, 10), "base": (256, 16), "large": (400, 20)}
COLOURED = 64
"""Least difference between colour channels at which a pixel counts as coloured."""
STAGES = ("queue", "preprocess", "encode", "prune", "prefill", "decode")


class FakeStream:
    """A page that is being read: a wait of ``delay_s``, then the text."""

    def __init__(self, page: Page, options: ReadOptions, directions: dict[str, Any]) -> None:
        self._page = (page.index, page.image.width, page.image.height)
        self._picture = _coloured(page.image)
        self._options = options
        self._directions = directions
        self._cancelled = asyncio.Event()
        self._is_written = asyncio.Event()

    async def pieces(self) -> AsyncIterator[str]:
        if "token_s" in self._directions:
            if "loop" in self._directions:
                async for word in self._words(self._directions["loop"]):
                    yield word
                yield Restart()
            async for word in self._words(self._reading().text):
                yield word
            self._is_written.set()
        else:
            yield (await self.result()).text

    async def _words(self, text: str) -> AsyncIterator[str]:
        for number, word in enumerate(text.split(" ")):
            await asyncio.sleep(float(self._directions["token_s"]))
            yield f" {word}" if number else word

    async def result(self) -> Reading:
        if "token_s" in self._directions:
            await self._is_written.wait()
        if self._page[0] in self._directions.get("die_on", []):
            os.kill(os.getpid(), signal.SIGKILL)
        is_slow = self._page[0] in self._directions.get("delay_on", [self._page[0]])
        try:
            async with asyncio.timeout(float(self._directions.get("delay_s", 0)) * is_slow):
                await self._cancelled.wait()
            raise PageFailed("the page was cancelled")
        except TimeoutError:
            pass
        if self._page[0] in self._directions.get("fail_on", []):
            raise PageFailed("the page failed as directed")
        return self._reading()

    def cancel(self) -> None:
        self._cancelled.set()

    def _reading(self) -> Reading:
        index, width, height = self._page
        mode = self._options.mode or "base"
        patches, rows = MODES[mode]
        kept = patches if self._options.prune == "none" else int(patches * (self._options.keep_ratio or 0.8))
        own = f"# Page {index + 1}\n\n{width} x {height} pixels{self._picture}"
        text = self._directions.get("text", own)
        words = text.split(" ")
        most = self._options.max_output_tokens or len(words)
        output = min(len(words), most)
        finish_reason: FinishReason = "stop" if len(words) <= most else "length"
        return Reading(
            text=" ".join(words[:most]),
            finish_reason=finish_reason,
            confidence=-0.1,
            mode=mode,
            tokens=TokenCounts(
                visual=patches + rows + 1,
                kept=kept + rows + 1,
                patches=patches,
                kept_patches=kept,
                keep_ratio=kept / patches,
                text_density=0.2,
                diversity=0.75,
                prompt=12,
                output=output,
                attended_patches=None if self._options.fixation is None else kept * self._options.fixation,
            ),
            timing_ms=dict.fromkeys(STAGES, 0.0),
            attempts=(Attempt(mode, self._options.prune, 90, finish_reason, output),),
            views=_views(patches, kept) if self._options.tokens == "detail" else (),
        )


def _views(patches: int, kept: int) -> tuple[ViewPatches, ...]:
    """Return one view of the whole page.

    Its first patches are kept, and the others are folded into the first.
    """
    side = round(patches**0.5)
    whole = (0, 0, FARTHEST, FARTHEST)
    folded = tuple((patch, 0, 0) for patch in range(kept, patches))
    return (ViewPatches(whole, whole, side, side, tuple(range(kept)), folded),)


class FakePagesStream:
    """Several pages that are being read in one prompt."""

    def __init__(self, streams: Sequence[FakeStream], *, is_divided: bool) -> None:
        self._streams, self._is_divided = streams, is_divided

    async def results(self) -> Sequence[Reading]:
        try:
            readings = [await stream.result() for stream in self._streams]
        except PageFailed as error:
            raise NotTogether(f"the pages could not be read together: {error}") from error
        num_pages = len(readings)
        if not self._is_divided:
            attempt = replace(readings[0].attempts[0], pages=num_pages)
            together = replace(readings[0], text="", attempts=(attempt,))
            raise NotTogether(f"the text of {num_pages} pages had 0 parts", together)
        return [
            replace(one, attempts=tuple(replace(attempt, pages=num_pages) for attempt in one.attempts))
            for one in readings
        ]

    def cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()


class FakeReader:
    """A ``PageReader`` without a model."""

    model_name = "fake"
    modes: Collection[str] = MODES
    fixates = True
    reads_together = True

    def __init__(self) -> None:
        self._ballast: list[bytearray] = []

    def submit(
        self,
        page: Page,
        options: ReadOptions,
        *,
        document_id: str,  # noqa: ARG002
        priority: int = 0,  # noqa: ARG002
    ) -> FakeStream:
        if options.mode is not None and options.mode not in MODES:
            raise BadOption(f"mode {options.mode!r} is unknown; this model has {', '.join(MODES)}")
        directions = _directions(options.prompt)
        if "grow_mib" in directions:
            self._ballast.append(bytearray(b"\1") * (int(directions["grow_mib"]) * 2**20))
        return FakeStream(page, options, directions)

    def submit_together(
        self, pages: Sequence[Page], options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> PagesStream:
        streams = [self.submit(page, options, document_id=document_id, priority=priority) for page in pages]
        return FakePagesStream(streams, is_divided="apart" not in _directions(options.prompt))

    async def close(self) -> None:
        self._ballast.clear()


def _coloured(image: Image.Image) -> str:
    """Return a tag that grounds a picture region around all coloured pixels; empty without any."""
    red, green, blue = image.convert("RGB").split()
    colour = ImageChops.lighter(ImageChops.difference(red, green), ImageChops.difference(green, blue))
    box = colour.point([0] * COLOURED + [255] * (256 - COLOURED)).getbbox()
    if box is None:
        return ""
    sides = (image.width, image.height, image.width, image.height)
    corners = [min(999, value * 1000 // side) for value, side in zip(box, sides, strict=True)]
    return f"\n\n<|ref|>image<|/ref|><|det|>[{corners}]<|/det|>\n\n"


def _directions(prompt: str | None) -> dict[str, Any]:
    try:
        directions = json.loads(prompt or "{}")
    except ValueError:
        return {}
    return directions if isinstance(directions, dict) else {}
