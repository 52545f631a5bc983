"""Whatever joins, leaves or is cancelled around it, a page's tokens are those of transformers'
``generate()``.
"""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import FakeOcr, Inline, ids_of, page, random_network, read_page
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import UnlimitedOcrForConditionalGeneration
from transformers.models.unlimited_ocr.generation_unlimited_ocr import (
    UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor as WindowedBan,
)

from app.document import Page, Pruning, Reading, ReadOptions
from app.ocr.engine import attention
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from rtprune import RTPruneConfig, prune_batch, text_density

NO_BAN = NgramRule(n=1000, window=1000)
TIGHT_BAN = NgramRule(n=3, window=24)
NO_LOOPS = LoopRule(unit=10**6)


@cache
def fake(seed: int, double: bool) -> tuple[FakeOcr, FakeOcr]:
    """The engine's model, and a second instance with the same weights for ``generate()``."""
    dtype = torch.float64 if double else torch.float32
    return FakeOcr(random_network(seed, dtype=dtype)), FakeOcr(reference_network(seed, dtype))


def reference_network(seed: int, dtype: torch.dtype, **text: Any) -> Any:
    """Its experts in a plain loop: the grouped kernel refuses odd sizes in bfloat16, and float64."""
    network = random_network(seed, dtype=dtype, **text)
    network.set_experts_implementation("eager")
    return network


@dataclass(frozen=True)
class Wish:
    """One page of a schedule."""

    number: int
    options: ReadOptions
    at_turn: int
    cancel_at: int | None


def sequence(model: FakeOcr, image: Page, options: ReadOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, D) and (T,): bos, kept visual tokens where they stood, the prompt after the unpruned length."""
    views = model.preprocess(image.image, options.mode or model.default_mode)
    tokens = model.encode_one(views)
    visual, places = tokens.embeds, torch.arange(len(tokens.embeds))
    if options.prune == "rtprune":
        side = views.mode.view_px // 64
        density = text_density(views.view, side, side)
        pruned = prune_batch([tokens], [density], RTPruneConfig(keep_ratio=options.keep_ratio))[0]
        visual, places = pruned.embeds, pruned.kept
    prompt = model.prompt_ids(model.default_prompt if options.prompt is None else options.prompt)
    text = model.embed(torch.tensor([model.bos_id, *prompt]))
    after = 1 + len(tokens.embeds) + torch.arange(len(prompt))
    return torch.cat((text[:1], visual, text[1:])), torch.cat((torch.zeros(1).long(), 1 + places, after))


@torch.no_grad()
def expected(model: FakeOcr, wish_page: Page, options: ReadOptions, ban: NgramRule) -> list[int]:
    """The same embeddings and positions through ``generate()``, one page alone."""
    embeds, positions = sequence(model, wish_page, options)
    processors = [] if ban is NO_BAN else [WindowedBan(ban.n, ban.window)]
    output = model.network.generate(
        inputs_embeds=embeds[None],
        position_ids=positions[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
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


@pytest.mark.parametrize("prune", ["rtprune", "none"])
def test_thirty_two_pages_at_once_are_those_of_generate(prune: Pruning) -> None:
    model, reference = fake(1, double=True)
    reading = ReadOptions(mode="small", prune=prune, keep_ratio=0.5 if prune == "rtprune" else None)
    wishes = [Wish(i, replace(reading, max_output_tokens=5 + 7 * i % 31), i // 5, None) for i in range(32)]
    for wish, answer in zip(wishes, run_schedule(model, wishes, TIGHT_BAN, 32), strict=True):
        assert ids_of(answer.text) == expected(reference, page(wish.number), wish.options, TIGHT_BAN)
        assert (answer.tokens.kept < answer.tokens.visual) == (prune == "rtprune")


@pytest.mark.parametrize("call_tokens", [0, 40, 10**9], ids=["row by row", "in runs", "all in one"])
@pytest.mark.parametrize("kind", ["full", "sliding", "grouped"])
def test_rows_read_together_are_rows_read_alone(
    kind: str, call_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDPA by runs of like length is what cards without the packed kernel run."""
    kinds: dict[str, dict[str, Any]] = {
        "full": {},
        "sliding": {"layer_types": ["reference_sliding_attention"] * 3, "sliding_window": 5},
        "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2},
    }
    text = kinds[kind]
    monkeypatch.setitem(attention.CALL_TOKENS, "cpu", call_tokens)
    model = FakeOcr(random_network(0, **text))
    reference = FakeOcr(reference_network(0, torch.float32, **text))
    wishes = [
        Wish(i, ReadOptions(mode=mode, prune=prune, keep_ratio=ratio, max_output_tokens=8 + 5 * i), i, None)
        for i, (prune, ratio) in enumerate([*PRUNINGS, *PRUNINGS])
        for mode in ("tiny", "small")
    ]
    for wish, reading in zip(wishes, run_schedule(model, wishes, NO_BAN, 8), strict=True):
        assert ids_of(reading.text) == expected(reference, page(wish.number), wish.options, NO_BAN)


def test_grouped_query_heads_are_those_of_generate() -> None:
    networks = [random_network(3, num_attention_heads=6, num_key_value_heads=2) for _ in range(2)]
    model, reference = (FakeOcr(network) for network in networks)
    wishes = [Wish(i, ReadOptions(keep_ratio=0.5, max_output_tokens=20 + i), 2 * i, None) for i in range(6)]
    for wish, answer in zip(wishes, run_schedule(model, wishes, NO_BAN, 4), strict=True):
        assert ids_of(answer.text) == expected(reference, page(wish.number), wish.options, NO_BAN)


def test_bfloat16_runs_and_agrees_with_generate_on_most_first_tokens() -> None:
    """Rounding differs with the batch, so near-ties may fall either way: the first tokens seldom are one."""
    model = FakeOcr(random_network(0, dtype=torch.bfloat16))
    reference = FakeOcr(reference_network(0, torch.bfloat16))
    wishes = [Wish(i, ReadOptions(prune="none", max_output_tokens=3), 0, None) for i in range(12)]
    answers = run_schedule(model, wishes, NO_BAN, 4)
    wanted = [expected(reference, page(wish.number), wish.options, NO_BAN) for wish in wishes]
    assert sum(ids_of(a.text)[:1] == ids[:1] for a, ids in zip(answers, wanted, strict=True)) >= 10


def pocket_folder() -> Path | None:
    root = Path(__file__).resolve().parents[2]
    shared = Path(os.environ.get("RTPRUNE_SHARED", root.parent / "shared"))
    folders = (root / "app" / "pocket" / "weights", shared / "pocket-start")
    return next((folder for folder in folders if (folder / "model.safetensors").exists()), None)


@pytest.mark.skipif(pocket_folder() is None, reason="no pocket checkpoint here: neither packaged nor shared")
def test_the_pocket_checkpoint_gives_the_tokens_of_generate() -> None:
    networks = [
        UnlimitedOcrForConditionalGeneration.from_pretrained(pocket_folder(), dtype=torch.float32).eval()
        for _ in range(2)
    ]
    model, reference = (FakeOcr(network) for network in networks)
    wishes = [
        Wish(
            i, ReadOptions(keep_ratio=0.6 if i % 2 else None, max_output_tokens=10 + 9 * i % 50), i % 7, None
        )
        for i in range(16)
    ]
    for wish, answer in zip(wishes, run_schedule(model, wishes, TIGHT_BAN, 5), strict=True):
        assert ids_of(answer.text) == expected(reference, page(wish.number), wish.options, TIGHT_BAN)


@pytest.mark.parametrize("window", [2, 5, 17])  # transformers itself fails at 1
def test_sliding_layers_see_the_page_and_the_last_of_the_output(window: int) -> None:
    """Unlimited-OCR's attention; rows move while their windows have wrapped around."""
    text: dict[str, Any] = {"layer_types": ["reference_sliding_attention"] * 3, "sliding_window": window}
    model = FakeOcr(random_network(0, **text))
    reference = FakeOcr(reference_network(0, torch.float32, **text))
    wishes = [
        Wish(i, ReadOptions(prune=prune, keep_ratio=ratio, max_output_tokens=8 + 5 * i), i // 2, None)
        for i, (prune, ratio) in enumerate([*PRUNINGS, *PRUNINGS])
    ]
    for wish, reading in zip(wishes, run_schedule(model, wishes, NO_BAN, 3), strict=True):
        assert ids_of(reading.text) == expected(reference, page(wish.number), wish.options, NO_BAN)


PRUNINGS: tuple[tuple[Pruning, float | None], ...] = (("none", None), ("rtprune", None), ("rtprune", 0.5))


def test_a_checkpoint_with_layers_of_both_kinds_is_refused() -> None:
    network = random_network(0)
    network.config.text_config.layer_types = [
        "reference_sliding_attention",
        "full_attention",
        "full_attention",
    ]
    with pytest.raises(ValueError, match="reference_sliding_attention"):
        PageLoop(FakeOcr(network), EngineSettings(), Inline(), Inline())


def test_generate_still_works_on_another_instance_beside_an_engine() -> None:
    """Registering the attention is global to the process, using it is not."""
    model, reference = fake(2, double=False)
    before = expected(reference, page(0), ReadOptions(prune="none", max_output_tokens=9), NO_BAN)
    run_schedule(model, [Wish(0, ReadOptions(prune="none", max_output_tokens=9), 0, None)], NO_BAN, 1)
    assert expected(reference, page(0), ReadOptions(prune="none", max_output_tokens=9), NO_BAN) == before
    assert reference.network.config.text_config._attn_implementation == "sdpa"
