"""Combine the readings of a page's views into the reading of the page: counts, risk and finish reason.

A page ends as most of its print did, not as its worst view. A view that was not read to its end (noise, a
loop, cut off) loses only the few words it shows; ``Reading.left_out`` tells where. If such views hold more
than ``MAX_LOST_SHARE`` of the page's rows, the page itself was not read to its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.document import Attempt, AttemptReason, FinishReason, Reading, TokenCounts
from app.ocr.risk import Evidence

MAX_LOST_SHARE = 1 / 3
"""Largest share of rows that may be lost in a page read to its end: few may be a picture beside the text."""
NOISE_RISK = 0.75
"""Risk from which a page counts as guessed, though few of its views are noise: half of its words are
wrong.
"""
STOPPED: tuple[FinishReason, ...] = ("cancelled", "deadline")
"""Reasons from outside. They end the page itself, however few of its views were still to come."""
WORST_FIRST: tuple[FinishReason, ...] = (*STOPPED, "length", "low_confidence", "loop", "stop")


@dataclass(frozen=True, slots=True)
class ViewReading:
    """The reading of one view.

    ``logprobs``: of the tokens read in it. ``num_rows``: rows of print that it shows, 0 for the view of a
    blank page, whose text is discarded.
    """

    reading: Reading
    logprobs: Sequence[float]
    num_rows: int = 1

    @property
    def is_noise(self) -> bool:
        """Whether the model guessed: the view shows a picture, a scribble or another script."""
        return self.reading.finish_reason == "low_confidence"


def confidence_of_print(views: Sequence[ViewReading]) -> float:
    """Return the mean confidence weighted by rows of print.

    So one view in which the model rambled counts no more than another.
    """
    num_rows = sum(view.num_rows for view in views)
    return sum(view.reading.confidence * view.num_rows for view in views) / max(1, num_rows)


def confidence_of_tokens(views: Sequence[ViewReading]) -> float:
    """Return the mean confidence over all tokens, noise included."""
    weights = [max(1, len(view.logprobs)) for view in views]
    return sum(view.reading.confidence * w for view, w in zip(views, weights, strict=True)) / sum(weights)


def evidence_of(views: Sequence[ViewReading]) -> Evidence:
    """Collect the log-probabilities of the text and the share of the page's rows that is noise.

    The tokens of noise are left out, or a logo's would count against the page around it. If all views are
    noise, all tokens are used.
    """
    shown = [view for view in views if view.num_rows]
    used = [view for view in shown if not view.is_noise] or shown
    num_noise = sum(view.num_rows for view in shown if view.is_noise)
    noise_share = num_noise / sum(view.num_rows for view in shown) if shown else 0.0
    return Evidence([logprob for view in used for logprob in view.logprobs], noise_share)


def whole_reading(views: Sequence[ViewReading], text: str, risk: float, cut_ms: float) -> Reading:
    """Combine readings into one: counts and times are summed, the confidence is the mean over all tokens."""
    readings = [view.reading for view in views]
    tokens = [reading.tokens for reading in readings]
    diversities = [one.diversity for one in tokens if one.diversity is not None]
    counts = TokenCounts(
        visual=sum(one.visual for one in tokens),
        kept=sum(one.kept for one in tokens),
        patches=sum(one.patches for one in tokens),
        kept_patches=sum(one.kept_patches for one in tokens),
        keep_ratio=sum(one.keep_ratio for one in tokens) / len(tokens),
        text_density=sum(one.text_density for one in tokens) / len(tokens),
        diversity=sum(diversities) / len(diversities) if diversities else None,
        prompt=sum(one.prompt for one in tokens),
        output=sum(one.output for one in tokens),
        drafted=sum(one.drafted for one in tokens),
        accepted=sum(one.accepted for one in tokens),
    )
    times = {stage: sum(reading.timing_ms[stage] for reading in readings) for stage in readings[0].timing_ms}
    times["queue"] = max(reading.timing_ms["queue"] for reading in readings)
    times["preprocess"] += cut_ms
    return Reading(
        text=text,
        finish_reason=page_end(views, risk),
        confidence=confidence_of_tokens(views),
        mode=readings[0].mode,
        tokens=counts,
        timing_ms=times,
        risk=risk,
        attempts=_attempts(readings),
    )


def page_end(views: Sequence[ViewReading], risk: float) -> FinishReason:
    """Return the page's finish reason: the one from outside if there is one, else by the lost rows.

    If too many rows were lost, it is the reason of most of them. Otherwise it is ``low_confidence`` at a high
    risk, else ``stop``.
    """
    num_rows: dict[FinishReason, int] = {}
    for view in views:
        num_rows[view.reading.finish_reason] = num_rows.get(view.reading.finish_reason, 0) + view.num_rows
    for reason in STOPPED:
        if reason in num_rows:
            return reason
    lost = {reason: count for reason, count in num_rows.items() if reason != "stop"}
    if sum(lost.values()) > MAX_LOST_SHARE * sum(num_rows.values()):
        return max(lost, key=lambda reason: lost[reason])
    return "low_confidence" if risk >= NOISE_RISK else "stop"


def _attempts(readings: Sequence[Reading]) -> tuple[Attempt, ...]:
    """Combine the nth attempts of all views into one for each reason, which ends as the worst of them."""
    alike: dict[tuple[int, AttemptReason], list[Attempt]] = {}
    for reading in readings:
        for number, attempt in enumerate(reading.attempts):
            alike.setdefault((number, attempt.reason), []).append(attempt)
    tries: list[Attempt] = []
    for _, these in sorted(alike.items()):
        reasons = {attempt.finish_reason for attempt in these}
        reason = next(reason for reason in WORST_FIRST if reason in reasons)
        output_tokens = sum(attempt.output_tokens for attempt in these)
        tries.append(replace(these[0], finish_reason=reason, output_tokens=output_tokens))
    return tuple(tries)
