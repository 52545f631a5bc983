"""How a page read in views ends, and its risk: from most of its print, not from its worst view."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.document import Attempt, FinishReason, Reading, TokenCounts
from app.ocr.risk import UNCALIBRATED, Evidence, RiskCurve
from app.pocket.whole import (
    NOISE_RISK,
    ViewReading,
    confidence_of_print,
    confidence_of_tokens,
    evidence_of,
    whole_reading,
)

STAGES = ("queue", "preprocess", "encode", "prune", "prefill", "decode")
SURE, GUESSED = [-0.001] * 20, [-2.0] * 20


def view(reason: FinishReason = "stop", logprobs: list[float] = SURE, rows: int = 4) -> ViewReading:
    tokens = TokenCounts(21, 18, 16, 13, 0.8, 0.2, 0.5, 3, len(logprobs))
    attempt = Attempt("pocket", "rtprune", 90, reason, len(logprobs))
    confidence = sum(logprobs) / max(1, len(logprobs))
    times = dict.fromkeys(STAGES, 1.0)
    reading = Reading("text", reason, confidence, "pocket", tokens, times, attempts=(attempt,))
    return ViewReading(reading, logprobs, rows)


def test_attempts_of_views_are_told_together_by_what_made_them() -> None:
    first = Attempt("pocket", "rtprune", 90, "stop", 40)
    risk = Attempt("pocket", "none", 90, "stop", 41, "risk")
    loop = Attempt("pocket", "rtprune", 256, "stop", 30, "loop")
    tried = [(first,), (first, risk), (replace(first, finish_reason="loop"), loop), (first, risk)]
    views = [ViewReading(replace(view().reading, attempts=attempts), SURE) for attempts in tried]
    whole = whole_reading(views, "text", 0.0, 0.0)
    assert whole.attempts == (
        replace(first, finish_reason="loop", output_tokens=160),
        loop,
        replace(risk, output_tokens=82),
    )


def end(views: list[ViewReading]) -> FinishReason:
    return whole_reading(views, "text", UNCALIBRATED.risk(evidence_of(views)), 0.0).finish_reason


@pytest.mark.parametrize("reason", ["low_confidence", "loop", "length"])
def test_one_view_of_a_logo_does_not_end_a_good_page(reason: FinishReason) -> None:
    views = [view()] * 20 + [view(reason, GUESSED)]
    assert end(views) == "stop"
    assert UNCALIBRATED.risk(evidence_of(views)) < 0.1


@pytest.mark.parametrize("reason", ["low_confidence", "loop", "length"])
def test_a_page_of_which_most_was_lost_says_why(reason: FinishReason) -> None:
    assert end([view()] * 5 + [view(reason, GUESSED)] * 8) == reason


def test_rows_count_and_not_views() -> None:
    assert end([view()] * 4 + [view("low_confidence", GUESSED, rows=1)] * 5) == "stop"
    assert end([view(rows=1)] * 5 + [view("low_confidence", GUESSED)] * 4) == "low_confidence"


def test_a_page_guessed_throughout_is_no_stop_though_no_view_is_noise() -> None:
    views = [view(logprobs=GUESSED)] * 10
    assert UNCALIBRATED.risk(evidence_of(views)) > NOISE_RISK
    assert end(views) == "low_confidence"


@pytest.mark.parametrize("reason", ["deadline", "cancelled"])
def test_what_ends_a_page_from_outside_is_its_end(reason: FinishReason) -> None:
    assert end([view()] * 30 + [view(reason)]) == reason


@pytest.mark.parametrize("reason", ["low_confidence", "loop", "length", "stop"])
def test_a_blank_page_ends_well_whatever_was_read_of_it(reason: FinishReason) -> None:
    nothing = [view(reason, GUESSED, rows=0)]
    assert end(nothing) == "stop"
    assert UNCALIBRATED.risk(evidence_of(nothing)) == 0


def test_noise_adds_its_share_to_the_risk_and_not_its_tokens() -> None:
    good = [view()] * 9
    noise = view("low_confidence", GUESSED * 8)
    risk = UNCALIBRATED.risk(evidence_of([*good, noise]))
    assert risk == pytest.approx(0.1, abs=0.01)
    assert UNCALIBRATED.risk(evidence_of([noise])) == 1
    assert confidence_of_tokens([*good, noise]) < -0.5, "confidence is of all tokens"
    assert confidence_of_print([*good, noise]) > -0.3, "a rambling view says little of how a page lies"


@given(st.lists(st.floats(-30, 0), max_size=40), st.floats(0.01, 5), st.floats(0.2, 8))
def test_risk_is_a_share_and_grows_with_doubt(logprobs: list[float], half: float, steepness: float) -> None:
    curve = RiskCurve(half, steepness)
    risk = curve.risk(Evidence(logprobs))
    assert 0 <= risk <= 1
    assert curve.risk(Evidence([logprob - 0.5 for logprob in logprobs])) >= risk
    assert curve.risk(Evidence(logprobs, 0.5)) >= max(risk, 0.5)


def test_the_curve_is_a_half_where_it_says() -> None:
    assert RiskCurve(0.4, 3.0).risk(Evidence([-0.4] * 5)) == pytest.approx(0.5)
    assert RiskCurve(0.4, 3.0).risk(Evidence([])) == 0
    with pytest.raises(ValueError, match="steepness"):
        RiskCurve(0.4, math.nan)
