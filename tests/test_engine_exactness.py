"""Whatever joins, leaves or is cancelled around it, a page's tokens are those of transformers'
``generate()``.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from engine_fakes import FakeOcr, Inline, ids_of, page, random_network, read_page
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.unlimited_ocr.generation_unlimited_ocr import (
    UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor as WindowedBan,
)

from app.document import Page, Reading, ReadOptions
from app.ocr.engine_settings import EngineSettings
from app.ocr.ladder import Rung
from app.ocr.loops import LoopRule, NgramRule
from app.ocr.page_loop import PageLoop
from app.ocr.scheduler import BatchLimit
from app.ocr.vision import Encoded, Vision, prepare

NO_BAN = NgramRule(n=1000, window=1000)
TIGHT_BAN = NgramRule(n=3, window=24)
NO_LOOPS = LoopRule(unit=10**6)


@cache
def fake(seed: int, double: bool) -> tuple[FakeOcr, FakeOcr]:
    """The engine's model, and a second instance with the same weights for ``generate()``."""
    dtype = torch.float64 if double else torch.float32
    return FakeOcr(random_network(seed, dtype=dtype)), FakeOcr(random_network(seed, dtype=dtype))


@dataclass(frozen=True)
class Wish:
    """One page of a schedule."""

    number: int
    options: ReadOptions
    at_turn: int
    cancel_at: int | None


def expected(model: FakeOcr, wish_page: Page, options: ReadOptions, ban: NgramRule) -> list[int]:
    """The same embeddings and positions through ``generate()``, one page alone."""
    mode = options.mode or model.default_mode
    rung = Rung(mode, options.prune, options.keep_ratio, ban)
    prepared = prepare(
        model,
        wish_page.image,
        rung,
        model.prompt_ids(model.default_prompt if options.prompt is None else options.prompt),
    )
    encoded = Vision(model, BatchLimit(1)).encode([prepared])[0]
    assert isinstance(encoded, Encoded)
    prompt = encoded.prompt
    processors = [] if ban is NO_BAN else [WindowedBan(ban.n, ban.window)]
    output = model.network.generate(
        inputs_embeds=prompt.embeds[None],
        position_ids=prompt.positions[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=options.max_output_tokens,
        do_sample=False,
        logits_processor=processors,
    )
    ids: list[int] = output[0].tolist()
    return ids[:-1] if ids[-1] == model.eos_id else ids


def options() -> st.SearchStrategy[ReadOptions]:
    return st.builds(
        ReadOptions,
        mode=st.sampled_from([None, "tiny", "small"]),
        prune=st.sampled_from(["rtprune", "none"]),
        keep_ratio=st.sampled_from([None, 0.3, 0.75]),
        prompt=st.sampled_from([None, "", "a longer prompt"]),
        max_output_tokens=st.integers(1, 40),
    )


def schedules(max_pages: int) -> st.SearchStrategy[list[Wish]]:
    wish = st.builds(
        Wish, st.integers(0, 200), options(), st.integers(0, 30), st.none() | st.none() | st.integers(0, 60)
    )
    return st.lists(wish, min_size=1, max_size=max_pages)


def run_schedule(model: FakeOcr, wishes: list[Wish], ban: NgramRule, num_slots: int) -> list[Reading]:
    limits = EngineSettings(
        max_running_pages=num_slots, max_page_tokens=128, kv_memory_mib=64, ngram=ban, strict_ngram=ban,
        loops=NO_LOOPS, max_encode_pages=3, max_prefill_tokens=60,
    )  # fmt: skip
    loop = PageLoop(model, limits, Inline(), Inline())
    tasks: list[Any] = [None] * len(wishes)
    turn = 0
    while any(task is None or not task.done.done() for task in tasks):
        for i, wish in enumerate(wishes):
            if wish.at_turn == turn:
                tasks[i] = read_page(loop, model, limits, page(wish.number), wish.options, f"d{i % 3}")
            if wish.cancel_at == turn and tasks[i] is not None:
                loop.end(tasks[i], "cancelled")
        loop.turn()
        turn += 1
    return [task.done.result() for task in tasks]


@pytest.mark.parametrize("ban", [NO_BAN, TIGHT_BAN], ids=["greedy", "banned"])
@settings(max_examples=12, deadline=None)
@given(wishes=schedules(9), num_slots=st.integers(1, 5), seed=st.integers(0, 2))
def test_tokens_are_those_of_generate(ban: NgramRule, wishes: list[Wish], num_slots: int, seed: int) -> None:
    model, reference = fake(seed, double=False)
    for wish, reading in zip(wishes, run_schedule(model, wishes, ban, num_slots), strict=True):
        ids, wanted = ids_of(reading.text), expected(reference, page(wish.number), wish.options, ban)
        if reading.finish_reason == "cancelled":
            assert ids == wanted[: len(ids)], "what came before the cancellation"
        else:
            assert ids == wanted
            assert reading.finish_reason == (
                "length" if len(wanted) == wish.options.max_output_tokens else "stop"
            )
