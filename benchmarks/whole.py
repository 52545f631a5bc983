"""Measure the whole engine with the full-size model: images in, tokens out, all stages at the same time."""

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.document import Page, Reading, ReadOptions
from app.ocr.engine.engine import Engine
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.settings import EngineSettings
from benchmarks.full_size import FullSizeOcr

NAME = "engine base"
WAVES = 4
"""Total pages for each page that runs at once. The first wave has no decoding beside its vision."""


def measure_whole(model: FullSizeOcr, num_running: int, output_tokens: int) -> dict[str, Any]:
    """Measure pages a second, from submitting ``WAVES * num_running`` pages at once to the very last token.

    Pages have half to one and a half times ``output_tokens``, which is their mean. ``distinct_tokens``: among
    the pages that start together, the share that write different tokens in the same step, mean over steps; if
    it is small, a step reads few experts. ``timing_ms``: means over pages.
    """
    lengths = spread_lengths(WAVES * num_running, output_tokens)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1754 + len(lengths), 1240, 3), dtype=np.uint8)
    pages = [Page(i, Image.fromarray(noise[i : i + 1754])) for i in range(len(lengths))]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the service does on a GPU
    engine = Engine(model, _settings(model, num_running, max(lengths)))
    try:
        asyncio.run(_read(engine, pages[:2], [2, 2]))
        start = time.perf_counter()
        readings = asyncio.run(_read(engine, pages, lengths))
        seconds = time.perf_counter() - start
    finally:
        engine.shut_down()
        torch.set_num_threads(before)
    texts = [json.loads(reading.text) for reading in readings]
    return {
        "mode": NAME,
        "pages": num_running,
        "pages_in_all": len(pages),
        "output_tokens_in_all": sum(map(len, texts)),
        "seconds": round(seconds, 3),
        "pages_per_s": round(len(pages) / seconds, 4),
        "tok_per_s": round(sum(map(len, texts)) / seconds, 1),
        "distinct_tokens": round(_distinct(texts[:num_running]), 3),
        "timing_ms": {
            stage: round(math.fsum(reading.timing_ms[stage] for reading in readings) / len(readings), 2)
            for stage in readings[0].timing_ms
        },
    }


def spread_lengths(num_pages: int, mean: int) -> list[int]:
    """Return lengths evenly spread from half to one and a half of ``mean``, in a fixed shuffled order."""
    half = mean // 2
    lengths = [mean - half + 2 * half * i // max(1, num_pages - 1) for i in range(num_pages)]
    random.Random(0).shuffle(lengths)  # noqa: S311 - a fixed draw
    return lengths


def _settings(model: FullSizeOcr, num_running: int, most_tokens: int) -> EngineSettings:
    """Return the settings that the service has on a GPU, for pages that neither loop nor repeat."""
    never = NgramRule(n=1000, window=1000)
    return EngineSettings(
        max_running_pages=num_running,
        max_page_tokens=min(model.max_positions, most_tokens + 512),
        kv_memory_mib=1024 * 24 if model.device.type == "cuda" else 64,
        max_encode_pages=32,
        max_prefill_tokens=16_384,
        preprocess_threads=4,
        prefetch_pages=32,
        ngram=never,
        strict_ngram=never,
        loops=LoopRule(unit=10**6),
        max_attempts=1,
    )


async def _read(engine: Engine, pages: Sequence[Page], lengths: Sequence[int]) -> list[Reading]:
    streams = [
        engine.submit(
            page,
            ReadOptions(prune="none", prompt=f"page {page.index}", max_output_tokens=length),
            document_id=str(page.index),
        )
        for page, length in zip(pages, lengths, strict=True)
    ]
    return [await stream.result() for stream in streams]


def _distinct(texts: Sequence[Sequence[int]]) -> float:
    steps = [set(tokens) for tokens in zip(*texts, strict=False)]
    return math.fsum(len(tokens) for tokens in steps) / len(steps) / len(texts)
