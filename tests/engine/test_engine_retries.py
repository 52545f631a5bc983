"""Pages that loop, or are noise: how soon they end, what is tried again, and what is answered."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_bench import Bench, Hostile, limits
from engine_fakes import FakeOcr, ids_of, permutation_network, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from app.document import ReadOptions
from app.errors import BadOption
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.models.model import Mode, PageViews
from app.ocr.risk import Evidence
from rtprune import VisualTokens

RETRIES = limits(loops=LoopRule(), strict_ngram=NgramRule(900, 950), max_attempts=4, max_page_tokens=1000)
loop_pages = st.sampled_from([1, 3, 29, 30, 31, 97, 250])


@settings(max_examples=7, deadline=None)
@given(loop_pages)
def test_a_looping_page_ends_within_three_repeats_of_its_loop(period: int) -> None:
    """The model repeats ``period`` tokens for ever; loops under 30 tokens are judged by three times 30."""
    bench = Bench(
        FakeOcr(permutation_network(period), eos_id=-1), limits(loops=LoopRule(), max_page_tokens=1000)
    )
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert reading.finish_reason == "loop"
    assert [attempt.output_tokens for attempt in reading.attempts] == [3 * max(period, 30)]
    assert len(ids_of(reading.text)) == period, "cut to one repeat"


@pytest.mark.parametrize("period", [5, 40, 200])
def test_a_looping_page_ends_early_with_the_ban_on_too(period: int) -> None:
    settings = limits(
        loops=LoopRule(), ngram=NgramRule(), strict_ngram=NgramRule(10, 256), max_page_tokens=1000
    )
    bench = Bench(FakeOcr(permutation_network(period), eos_id=-1), settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert reading.finish_reason == "loop"
    assert reading.attempts[0].output_tokens <= 6 * max(period, 30)


def test_attempts_are_made_in_order_and_told() -> None:
    model = FakeOcr(permutation_network(40), eos_id=-1)
    bench = Bench(model, RETRIES)
    task = bench.read(0, ReadOptions(keep_ratio=0.5))
    bench.finish(task)
    reading = task.done.result()
    tried = [(attempt.mode, attempt.prune, attempt.ngram_window) for attempt in reading.attempts]
    assert tried == [
        ("tiny", "rtprune", 1000),
        ("tiny", "rtprune", 950),
        ("tiny", "none", 950),
        ("small", "none", 950),
    ]
    assert {attempt.finish_reason for attempt in reading.attempts} == {"loop"}
    assert len(ids_of(reading.text)) == 40
    assert reading.finish_reason == "loop"


def test_a_retry_in_the_same_mode_encodes_nothing_again() -> None:
    """Neither for a stricter ban nor without pruning: the unpruned tokens are still there."""
    model = Hostile(permutation_network(40), eos_id=-1)
    bench = Bench(model, RETRIES)
    task = bench.read(0, ReadOptions(keep_ratio=0.5))
    bench.finish(task)
    attempts = task.done.result().attempts
    assert [attempt.mode for attempt in attempts] == ["tiny", "tiny", "tiny", "small"]
    assert model.encoded == [1, 1], "once for each mode"
    assert task.encoded is None, "let go with the page"


def test_a_retry_reads_what_it_would_read_as_a_first_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned, then not: the second attempt starts from the tokens that the first one pruned."""
    model = FakeOcr(random_network(), eos_id=-1)
    model.min_confidence = -1e-9
    bench = Bench(model, limits(max_page_tokens=400, max_output_tokens=300, max_attempts=4))
    prompts: list[torch.Tensor] = []
    first_logits = bench.loop.decoder.first_logits

    def recorded(some: Any, lengths: Any) -> torch.Tensor:
        prompts.extend(prompt.embeds for prompt in some)
        return first_logits(some, lengths)

    monkeypatch.setattr(bench.loop.decoder, "first_logits", recorded)
    bench.finish(bench.read(0, ReadOptions(keep_ratio=0.5)))
    bench.finish(bench.read(0, ReadOptions(prune="none", max_output_tokens=1)))
    pruned, again, unpruned = prompts
    assert len(pruned) < len(again)
    torch.testing.assert_close(again, unpruned, rtol=0, atol=0)


def test_no_retry_goes_to_a_mode_the_model_was_not_trained_for() -> None:
    model = FakeOcr(permutation_network(40), eos_id=-1)
    model.modes = {name: replace(mode, trained=name == "tiny") for name, mode in model.modes.items()}
    settings = limits(loops=LoopRule(), max_attempts=4, max_page_tokens=1000)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    assert {attempt.mode for attempt in task.done.result().attempts} == {"tiny"}


def test_a_retry_bans_no_shorter_n_gram_than_the_model_allows() -> None:
    model = FakeOcr(permutation_network(40), eos_id=-1)
    model.strict_ngram_n = 24
    settings = limits(strict_ngram=NgramRule(10, 256), max_attempts=2)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    assert task.attempt_plans[1].ngram == NgramRule(24, 256)
    bench.finish(task)


@pytest.mark.parametrize(
    ("least", "reasons"),
    [
        (None, ["length"]),
        (-100.0, ["length"]),
        (-1e-9, ["low_confidence", "low_confidence"]),  # pruned, then not
    ],
)
def test_a_page_of_noise_ends_without_it(least: float | None, reasons: list[str]) -> None:
    model = FakeOcr(random_network(), eos_id=-1)
    model.min_confidence = least
    settings = limits(ngram=NgramRule(), max_page_tokens=400, max_output_tokens=300, max_attempts=4)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(keep_ratio=0.5))
    bench.finish(task)
    reading = task.done.result()
    assert [attempt.finish_reason for attempt in reading.attempts] == reasons
    assert reading.finish_reason == reasons[-1]
    if least == -1e-9:
        assert [attempt.output_tokens for attempt in reading.attempts] == [128, 128]
        assert [attempt.prune for attempt in reading.attempts] == ["rtprune", "none"]
        assert reading.text == ""


class Stubborn(FakeOcr):
    """Loops in the mode tiny; in any other the first token is the end."""

    def encode_one(self, page: PageViews) -> VisualTokens:
        return super().encode_one(page)

    def prompt_ids(self, prompt: str) -> list[int]:
        return [10]


def test_a_later_attempt_that_ends_by_itself_is_the_answer() -> None:
    """The strict ban breaks the loop, and the token after it is the end."""
    model = Stubborn(permutation_network(40, then=1), eos_id=1)
    settings = limits(loops=LoopRule(), strict_ngram=NgramRule(12, 60), max_attempts=4, max_page_tokens=1000)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert [attempt.finish_reason for attempt in reading.attempts] == ["loop", "stop"]
    assert reading.finish_reason == "stop"
    assert reading.tokens.output == reading.attempts[1].output_tokens == len(ids_of(reading.text))


def test_a_retry_that_fails_leaves_what_was_read_before() -> None:
    model = FakeOcr(
        permutation_network(40),
        eos_id=-1,
        modes={m.name: m for m in (Mode("tiny", 128, pad=True), Mode("odd", 100, pad=True))},
    )
    settings = limits(loops=LoopRule(), max_attempts=4, max_page_tokens=1000)
    bench = Bench(model, settings)
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading = task.done.result()
    assert reading.finish_reason == "loop"
    assert len(ids_of(reading.text)) == 40


def test_a_short_page_of_noise_ends_without_it() -> None:
    """It is over before a stretch is complete, and what it says is as little worth."""
    model = FakeOcr(random_network(), eos_id=-1)
    bench = Bench(model, limits(max_page_tokens=400, max_output_tokens=20, max_attempts=4))
    reasons = []
    for model.min_confidence in (None, -100.0, -1e-9):
        task = bench.read(0, ReadOptions(keep_ratio=0.5))
        bench.finish(task)
        reading = task.done.result()
        reasons.append(reading.finish_reason)
        assert (reading.text == "") == (reading.finish_reason == "low_confidence")
        assert reading.risk > 0, "of all that was read"
    assert reasons == ["length", "length", "low_confidence"]


def test_risk_is_told_from_the_tokens_of_the_text() -> None:
    bench = Bench(FakeOcr(random_network(), eos_id=-1), limits(max_page_tokens=400, max_output_tokens=30))
    task = bench.read(0, ReadOptions(prune="none"))
    bench.finish(task)
    reading, logprobs = task.done.result(), task.best().logprobs
    assert len(logprobs) == reading.tokens.output == 30
    assert sum(logprobs) / 30 == pytest.approx(reading.confidence, abs=1e-4)
    assert reading.risk == task.risk_curve.risk(Evidence(logprobs))


def test_a_page_may_have_an_ngram_rule_of_its_own() -> None:
    """It holds for the first attempt; one that reaches farther back than the rows remember is refused."""
    bench = Bench(FakeOcr(random_network(1)), limits(max_page_tokens=200, strict_ngram=NgramRule(10, 256)))
    task = bench.read(0, ReadOptions(prune="none", ngram=(5, 20)))
    assert task.attempt_plans[0].ngram == NgramRule(5, 20)
    task = bench.read(0, ReadOptions(prune="none", ngram=(5, 20), ngram_exempt=(7,)))
    assert {plan.ngram.exempt for plan in task.attempt_plans} == {frozenset({7})}
    with pytest.raises(BadOption, match="n-gram"):
        bench.read(1, ReadOptions(ngram=(2, 10_000)))
    with pytest.raises(ValueError, match="ngram"):
        ReadOptions(ngram=(5, 4))
