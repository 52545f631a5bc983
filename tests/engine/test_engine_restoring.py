"""Pages read again unpruned because their pruned reading is risky: when, from what, what is answered."""

import asyncio
import gc
import weakref
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from engine_bench import Bench, Hostile, limits
from engine_fakes import FakeOcr, page, permutation_network, random_network
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.document import FinishReason, Reading, ReadOptions
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.stream import pieces_of
from app.ocr.engine.task import PageTask, new_task
from app.ocr.engine.vision import VisualCounts
from app.ocr.models.checkpoint_spec import DEEPSEEK_OCR, CheckpointSpec
from app.ocr.sizing import engine_settings
from app.reader import Restart
from app.settings import Settings

PRUNED = ReadOptions(keep_ratio=0.4, mode="small")
WHOLE = ReadOptions(prune="none", mode="small")
EVERY, NONE = 0.0, 1.0


@cache
def network() -> Any:
    return random_network()


def bench_of(restore_risk: float | None, model: FakeOcr | None = None, **changes: object) -> Bench:
    plain: dict[str, object] = {"max_output_tokens": 25, "max_attempts": 4, "restore_risk": restore_risk}
    return Bench(model or FakeOcr(network(), eos_id=-1), limits(**(plain | changes)))


def read(bench: Bench, number: int, options: ReadOptions = PRUNED) -> Reading:
    task = bench.read(number, options)
    bench.finish(task)
    return task.done.result()


def reasons(reading: Reading) -> list[str]:
    return [attempt.reason for attempt in reading.attempts]


@pytest.mark.parametrize(
    ("restore_risk", "options", "max_attempts", "expected"),
    [
        (EVERY, PRUNED, 4, ["asked", "risk"]),
        (NONE, PRUNED, 4, ["asked"]),
        (None, PRUNED, 4, ["asked"]),  # the checkpoint has no threshold
        (EVERY, WHOLE, 4, ["asked"]),
        (EVERY, ReadOptions(keep_ratio=1.0, mode="small"), 4, ["asked"]),  # nothing was pruned
        (EVERY, PRUNED, 1, ["asked"]),
    ],
)
def test_a_page_is_restored_once_if_it_was_pruned_and_is_risky(
    restore_risk: float | None, options: ReadOptions, max_attempts: int, expected: list[str]
) -> None:
    reading = read(bench_of(restore_risk, max_attempts=max_attempts), 3, options)
    assert reasons(reading) == expected
    assert [attempt.prune for attempt in reading.attempts] == [options.prune, "none"][: len(expected)]


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 60))
def test_the_less_risky_reading_is_the_answer(number: int) -> None:
    """It is the pruned reading, or, to the last token, that of a page which was never pruned."""
    pruned, whole = read(bench_of(NONE), number), read(bench_of(NONE), number, WHOLE)
    restored = read(bench_of(EVERY), number)
    better = whole if whole.risk <= pruned.risk else pruned
    assert (restored.text, restored.risk) == (better.text, better.risk)
    assert (restored.tokens, restored.confidence) == (better.tokens, better.confidence)
    assert restored.finish_reason == "length"
    threshold = pruned.risk
    assert reasons(read(bench_of(threshold), number)) == ["asked"], "only above the threshold"


def test_both_readings_win_on_some_pages() -> None:
    kept = {read(bench_of(EVERY), number).tokens.retention == 1 for number in range(12)}
    assert kept == {True, False}


def test_pages_beside_a_restored_one_are_read_as_if_alone() -> None:
    """Rows are independent: of pages in one batch some are restored, each from its own tokens."""
    alone = {number: read(bench_of(NONE), number) for number in range(8)}
    risks = sorted(reading.risk for reading in alone.values())
    _, low, high = max((high - low, low, high) for low, high in pairwise(risks))
    threshold = (low + high) / 2  # far from any risk: a batch's sums differ in the last bit
    bench = bench_of(threshold)
    tasks = [bench.read(number, PRUNED) for number in range(8)]
    bench.finish(*tasks)
    for number, task in enumerate(tasks):
        reading = task.done.result()
        assert reasons(reading) == (["asked", "risk"] if alone[number].risk > threshold else ["asked"])
        expected = read(bench_of(threshold), number)
        assert (reading.text, reading.tokens) == (expected.text, expected.tokens)
        assert reading.risk == pytest.approx(expected.risk, abs=1e-4)
    assert bench.loop.load.kv_tokens_used == bench.loop.load.running == 0


def test_nothing_is_encoded_again_and_nothing_is_kept_longer_than_the_page() -> None:
    model = Hostile(random_network(), eos_id=-1)
    bench = bench_of(EVERY, model)
    task = bench.read(3, PRUNED)
    while task.row is None:
        bench.turns(1)
    assert task.encoded is not None
    assert task.encoded.page.views.view.numel() == 0, "pixels outweigh tokens by far"
    tokens = weakref.ref(task.encoded.tokens[0].embeds)
    bench.finish(task)
    assert reasons(task.done.result()) == ["asked", "risk"]
    assert model.encoded == [1]
    gc.collect()
    assert tokens() is None


def test_times_of_both_readings_are_told() -> None:
    once, twice = read(bench_of(NONE), 3), read(bench_of(EVERY), 3)
    assert [attempt.output_tokens for attempt in twice.attempts] == [25, 25]
    assert twice.tokens.output == once.tokens.output == 25, "of the text that is answered"
    assert all(twice.timing_ms[stage] > 0 for stage in ("encode", "prefill", "decode"))


@pytest.mark.parametrize(("reason", "expected"), [("deadline", "length"), ("cancelled", "cancelled")])
def test_what_was_read_is_answered_if_time_runs_out_while_restoring(
    reason: FinishReason, expected: FinishReason
) -> None:
    pruned = read(bench_of(NONE), 3)
    bench = bench_of(EVERY)
    task = bench.read(3, PRUNED)
    while not (task.reason == "risk" and task.row is not None and len(task.ids) > 3):
        bench.turns(1)
    bench.loop.end(task, reason)
    reading = task.done.result()
    assert (reading.text, reading.finish_reason) == (pruned.text, expected)
    assert [attempt.finish_reason for attempt in reading.attempts] == ["length", reason]
    assert bench.loop.load.kv_tokens_used == 0


def test_a_page_too_long_without_pruning_keeps_its_pruned_reading() -> None:
    """Nine patches, three row breaks, a separator and three tokens around them: 16, of 15."""
    pruned, restored = (read(bench_of(risk, max_page_tokens=15), 3) for risk in (NONE, EVERY))
    assert (restored.text, restored.finish_reason) == (pruned.text, "length")
    assert restored.text


def test_a_looping_page_climbs_its_ladder_as_before() -> None:
    settings = {"loops": LoopRule(), "strict_ngram": NgramRule(900, 950), "max_page_tokens": 1000}
    model = FakeOcr(permutation_network(40), eos_id=-1)
    reading = read(bench_of(EVERY, model, max_output_tokens=900, **settings), 0)
    assert reasons(reading) == ["asked", "loop", "loop", "loop"]
    assert reading.finish_reason == "loop"


def test_text_that_was_sent_is_taken_back() -> None:
    async def sent() -> tuple[list[str], Reading]:
        bench = bench_of(EVERY)
        task = bench.read(3, PRUNED)
        pieces: list[str] = []

        async def collect() -> None:
            pieces.extend([one async for one in pieces_of(task.feed, bench.model.decode_text, 0.0)])

        collecting = asyncio.create_task(collect())
        while not task.done.done():
            bench.turns(1)
            await asyncio.sleep(0)
        await collecting
        return pieces, task.done.result()

    pieces, reading = asyncio.run(sent())
    restarts = [at for at, piece in enumerate(pieces) if isinstance(piece, Restart)]
    assert restarts
    assert "".join(pieces[restarts[-1] :]) == reading.text


def task_of(*ends: tuple[FinishReason, float]) -> PageTask:
    """A page of two readings: how each ended, and the log-probability of its tokens."""
    model = FakeOcr(random_network(), eos_id=-1)
    task = new_task(model, limits(max_attempts=4, restore_risk=EVERY), page(0), PRUNED, "d")
    task.counts = VisualCounts(13, 8, 9, 4, 0.4, 0.2, None)
    for number, (reason, logprob) in enumerate(ends):
        if number:
            assert task.plan_restoring()
            task.restarts(task.attempt + 1, "risk")
        for _ in range(10):
            task.ids.append(20 + number)
            task.scores(task.logprob_sum + logprob)
        task.conclude(reason, [] if reason == "low_confidence" else None)
    return task


@pytest.mark.parametrize(
    ("first", "second", "answer", "finish_reason"),
    [
        (("stop", -0.5), ("stop", -0.1), 1, "stop"),
        (("stop", -0.1), ("stop", -0.5), 0, "stop"),
        (("stop", -0.5), ("stop", -0.5), 1, "stop"),
        (("stop", -0.5), ("loop", -0.01), 0, "stop"),  # a loop is sure of itself
        (("stop", -0.5), ("length", -0.1), 0, "stop"),
        (("length", -0.5), ("stop", -0.1), 1, "stop"),
        (("length", -0.1), ("stop", -0.5), 0, "length"),
        (("stop", -0.5), ("low_confidence", -0.1), 0, "stop"),
        (("low_confidence", -0.9), ("stop", -0.5), 1, "stop"),
        (("low_confidence", -0.5), ("stop", -0.9), 1, "stop"),  # there was no text to be riskier than
        (("stop", -0.5), ("deadline", -0.1), 0, "stop"),
    ],
)
def test_a_riskier_or_less_complete_reading_never_wins(
    first: tuple[FinishReason, float],
    second: tuple[FinishReason, float],
    answer: int,
    finish_reason: FinishReason,
) -> None:
    task = task_of(first, second)
    assert task.best() is task.outcomes[answer]
    assert task.reading("text").finish_reason == finish_reason
    assert not task.has_next_attempt


def test_the_threshold_is_the_settings_or_else_the_checkpoints() -> None:
    model = FakeOcr(random_network())
    model.restore_risk = 0.4
    assert EngineSettings().restore_from(model) == 0.4
    assert EngineSettings(restore_risk=1.0).restore_from(model) == 1.0
    assert engine_settings(Settings(device="cpu")).restore_risk is None, "0: as the checkpoint says"
    assert engine_settings(Settings(device="cuda", restore_risk=0.3)).restore_risk == 0.3
    with pytest.raises(ValueError, match="restore_risk"):
        EngineSettings(restore_risk=1.5)
    spec = DEEPSEEK_OCR.model_dump(exclude={"modes"}) | {"modes": {"large": {"view_px": 64, "pad": True}}}
    assert CheckpointSpec.model_validate(spec | {"restore_risk": 0.5}).restore_risk == 0.5
    assert DEEPSEEK_OCR.restore_risk is None
    with pytest.raises(ValidationError, match="restore_risk"):
        CheckpointSpec.model_validate(spec | {"restore_risk": -0.1})


def test_the_unpruned_reading_starts_from_what_an_unpruned_page_starts_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = bench_of(EVERY)
    prompts: list[torch.Tensor] = []
    first_logits = bench.loop.decoder.first_logits

    def recorded(some: list[object], lengths: object) -> torch.Tensor:
        prompts.extend(prompt.embeds for prompt in some)  # type: ignore[attr-defined]
        return first_logits(some, lengths)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.loop.decoder, "first_logits", recorded)
    read(bench, 3)
    read(bench, 3, WHOLE)
    pruned, again, whole = prompts
    assert len(pruned) < len(again)
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
