"""One page on its way through the engine: the request, the attempts and their outcomes."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import ClassVar

from app.document import Attempt, AttemptReason, FinishReason, Page, Reading, ReadOptions
from app.errors import NO_FIXATION, BadOption, ParseError
from app.ocr.engine.drafts import DraftText
from app.ocr.engine.fixation import FixedRow
from app.ocr.engine.loops import BanCount, LoopRule, NgramRule
from app.ocr.engine.retries import AttemptPlan, attempt_plans
from app.ocr.engine.scheduler import Turn
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.stream import Feed
from app.ocr.engine.vision import Encoded, VisualCounts
from app.ocr.models.model import OcrModel, SeveralPages
from app.ocr.risk import Evidence, RiskCurve

COMPLETENESS: Mapping[FinishReason, int] = {"stop": 3, "length": 2, "low_confidence": 1}
"""How complete a text is by how its reading ended; 0 for other ends."""
STAGES = ("queue", "preprocess", "encode", "prune", "prefill", "decode")
NOT_ENCODED = VisualCounts(0, 0, 0, 0, 1.0, 0.0, None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one attempt.

    ``ids``: the tokens of its text, with loops cut to one repeat and noise left out. ``logprobs``: one for
    each of these tokens, for the end token if it was chosen, and for noise. ``risk``: of these tokens.
    """

    attempt: Attempt
    ids: list[int]
    logprobs: list[float]
    confidence: float
    counts: VisualCounts
    risk: float
    attended_patches: float | None = None
    """Patch tokens attended to, mean over steps and layers; ``None`` without fixation."""

    @property
    def completeness(self) -> int:
        return COMPLETENESS.get(self.attempt.finish_reason, 0)

    def is_no_worse_than(self, other: "Outcome") -> bool:
        """Tell whether this text is no riskier and no less complete, or the other was left out as noise."""
        if self.completeness > other.completeness and other.attempt.finish_reason == "low_confidence":
            return True
        return self.completeness >= other.completeness and self.risk <= other.risk


@dataclass(slots=True)
class ConfidenceWindow:
    """Moving mean of the log-probability over the last ``NUM * TOKENS`` tokens."""

    TOKENS: ClassVar[int] = 32
    NUM: ClassVar[int] = 4
    sums: deque[float] = field(default_factory=lambda: deque([0.0], maxlen=ConfidenceWindow.NUM + 1))

    def mean(self, num_tokens: int, logprob_sum: float) -> float | None:
        """Return the mean after every ``TOKENS`` tokens once the window is full, else ``None``.

        ``logprob_sum``: sum over all ``num_tokens`` tokens so far.
        """
        if num_tokens % self.TOKENS:
            return None
        self.sums.append(logprob_sum)
        if len(self.sums) <= self.NUM:
            return None
        return (self.sums[-1] - self.sums[0]) / (self.NUM * self.TOKENS)


@dataclass(eq=False, slots=True)
class PageTask:
    """A page in the engine.

    Only the engine's thread may use it, except ``feed`` and ``done``, which any may read.
    """

    page: Page
    document_id: str
    attempt_plans: Sequence[AttemptPlan]
    prompt_ids: list[int]
    max_output_tokens: int
    deadline_s: float
    risk_curve: RiskCurve
    more: Sequence[Page] = ()
    """The pages that follow in the same prompt."""
    restore_risk: float | None = None
    """Risk above which a pruned reading is followed by an unpruned one; ``None``: none is."""
    trace: bool = False
    """Whether the answer tells what became of each patch token."""
    draft_text: DraftText | None = None
    """The page's text layer, from which tokens are proposed."""
    num_drafted: int = 0
    num_accepted: int = 0
    feed: Feed = field(default_factory=Feed)
    done: "Future[Reading]" = field(default_factory=Future)
    turn: Turn | None = None
    """Place in the queue; ``None`` until queued."""
    is_over: bool = False
    """Whether the page has ended; ``done`` follows once its text is made."""
    times_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    waiting_since_s: float | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    attempt: int = 0
    """Index of the plan that is being tried."""
    reason: AttemptReason = "asked"
    """Why it is being tried."""
    life: int = 0
    """Counts how often the page was begun, so that results of an earlier start are recognised and dropped."""
    row: int | None = None
    room: int = 0
    """Total output tokens that this attempt may have."""
    reserved: int = 0
    """KV tokens promised to the page while it is in a row."""
    encoded: Encoded | None = None
    """What the page was last prefilled from, with its unpruned tokens, so another attempt in its mode skips
    encoding.
    """
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Log-probabilities of ``ids`` and of the end token."""
    logprob_sum: float = 0.0
    window: ConfidenceWindow = field(default_factory=ConfidenceWindow)
    counts: VisualCounts = NOT_ENCODED
    fixed: FixedRow | None = None
    """What the page attends to, if it fixates."""
    decode_clock_ms: float = 0.0
    bans: BanCount | None = None

    @property
    def attempt_plan(self) -> AttemptPlan:
        return self.attempt_plans[self.attempt]

    @property
    def has_next_attempt(self) -> bool:
        return self.attempt + 1 < len(self.attempt_plans)

    @property
    def confidence(self) -> float:
        """Mean log-probability of the current attempt's tokens; 0 before the first."""
        return min(0.0, self.logprob_sum / len(self.logprobs)) if self.logprobs else 0.0

    def waits(self, now_s: float) -> None:
        self.waiting_since_s = now_s

    def stops_waiting(self, now_s: float) -> None:
        if self.waiting_since_s is not None:
            self.times_ms["queue"] += (now_s - self.waiting_since_s) * 1e3
            self.waiting_since_s = None

    def starts(self, row: int, encoded: Encoded, room: int, loops: LoopRule) -> None:
        """Reset the attempt's state after prefill put the page in ``row``."""
        self.row, self.room, self.counts, self.encoded = row, room, encoded.counts, encoded
        self.ids, self.logprobs, self.logprob_sum = [], [], 0.0
        self.window = ConfidenceWindow()
        self.bans = BanCount(self.attempt_plan.ngram, loops)

    def restarts(self, attempt: int, reason: AttemptReason) -> None:
        """Discard what the attempt gave; text already sent to the client is taken back."""
        self.attempt, self.reason = attempt, reason
        self.life += 1
        self.ids, self.logprobs, self.logprob_sum, self.counts = [], [], 0.0, NOT_ENCODED
        self.fixed = None
        self.feed.restart()

    def draft(self, most: int) -> list[int]:
        """Propose up to ``most`` next tokens, as far as the page may have more than one."""
        if self.draft_text is None:
            return []
        return self.draft_text.propose(self.ids, min(most, self.room - len(self.ids) - 1))

    def counts_draft(self, num_drafted: int, num_accepted: int) -> None:
        if self.draft_text is not None:
            self.draft_text.acceptance.add(num_drafted, num_accepted)
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted

    def scores(self, logprob_sum: float) -> None:
        """Record another token. ``logprob_sum``: sum over all tokens up to it."""
        self.logprobs.append(min(0.0, logprob_sum - self.logprob_sum))
        self.logprob_sum = logprob_sum

    def conclude(self, reason: FinishReason, ids: list[int] | None = None) -> Outcome:
        """Record how the current attempt ended. ``ids``: the part of its output to keep, by default all."""
        attempt_plan = self.attempt_plan
        attempt = Attempt(
            attempt_plan.mode,
            attempt_plan.prune,
            attempt_plan.ngram.window,
            reason,
            len(self.ids),
            self.reason,
            pages=1 + len(self.more),
        )
        kept = self.ids if ids is None else ids
        # a loop's repeats have high probabilities that tell nothing; noise counts, it makes a page doubtful
        num_scored = len(kept) if reason == "loop" else len(self.logprobs)
        logprobs = self.logprobs[:num_scored]
        risk = self.risk_curve.risk(Evidence(logprobs))
        attended = None if self.fixed is None else self.fixed.mean_attended
        outcome = Outcome(attempt, list(kept), logprobs, self.confidence, self.counts, risk, attended)
        self.outcomes.append(outcome)
        return outcome

    def plan_restoring(self) -> bool:
        """Make the unpruned page the next and last attempt if the pruned one, just concluded, is too risky.

        Return whether it is. It attends to everything; all else stays as in that attempt, so the text is
        that of an unpruned page.
        """
        is_pruned = self.counts.kept < self.counts.visual
        if self.restore_risk is None or not is_pruned or self.outcomes[-1].risk <= self.restore_risk:
            return False
        unpruned = replace(self.attempt_plan, prune="none", keep_ratio=None, fixation=None)
        self.attempt_plans = (*self.attempt_plans[: self.attempt + 1], unpruned)
        return True

    def best(self) -> Outcome:
        """Return the outcome that gives the text.

        A page read again for its risk: the unpruned reading if it is no worse than the pruned one. Any other:
        the last outcome if it ended by itself or at its limit, else the one with most tokens.
        """
        last = self.outcomes[-1]
        if last.attempt.reason == "risk":
            return last if last.is_no_worse_than(self.outcomes[-2]) else self.outcomes[-2]
        if last.attempt.finish_reason in ("stop", "length"):
            return last
        return max(self.outcomes, key=lambda outcome: len(outcome.ids))

    def reading(self, text: str) -> Reading:
        """Build the answer: the text of ``best()``, the finish reason of the last attempt.

        After an attempt for the page's risk, the finish reason is that of the text, unless it was cancelled.
        """
        best, counts = self.best(), self.best().counts
        last = self.outcomes[-1].attempt
        is_cancelled = last.finish_reason == "cancelled"
        ended = best.attempt if last.reason == "risk" and not is_cancelled else last
        tokens = replace(
            counts.reported(prompt=len(self.prompt_ids), output=len(best.ids)),
            drafted=self.num_drafted,
            accepted=self.num_accepted,
            attended_patches=best.attended_patches,
        )
        return Reading(
            text=text,
            finish_reason=ended.finish_reason,
            confidence=best.confidence,
            mode=best.attempt.mode,
            tokens=tokens,
            timing_ms=dict(self.times_ms),
            risk=best.risk,
            attempts=tuple(outcome.attempt for outcome in self.outcomes),
            views=counts.views,
        )

    def settle(self, result: Reading | ParseError) -> None:
        """Give the answer to the caller. Later calls have no effect."""
        self.is_over, self.encoded = True, None
        try:
            if isinstance(result, Reading):
                self.done.set_result(result)
            else:
                self.done.set_exception(result)
        except InvalidStateError:
            return  # its text was finished while the engine was dying, or the reverse
        self.feed.finish(result.text if isinstance(result, Reading) else None)


def can_fixate(model: OcrModel) -> bool:
    """Tell whether pages may be read with ``fixation``: on a CPU, by a checkpoint with a plan for it.

    Its patch tokens must stand for places on the page, of which neighbours are attended to.
    """
    return model.fixation is not None and model.has_patch_places and model.device.type == "cpu"


def _first_ngram(
    model: OcrModel, settings: EngineSettings, options: ReadOptions, together: SeveralPages | None
) -> NgramRule:
    exempt = None if options.ngram_exempt is None else frozenset(options.ngram_exempt)
    if options.ngram is None:
        usual = settings.first_ngram(model) if together is None else together.ngram
        return replace(usual, exempt=exempt)
    rule, farthest = NgramRule(*options.ngram, exempt), settings.max_ban_distance(model)
    if rule.max_distance > farthest:
        raise BadOption(f"the n-gram rule reaches {rule.max_distance} tokens back, at most {farthest} here")
    return rule


def new_task(
    model: OcrModel,
    settings: EngineSettings,
    page: Page,
    options: ReadOptions,
    document_id: str,
    deadline_seconds: float | None = None,
    draft_text: DraftText | None = None,
    more: Sequence[Page] = (),
) -> PageTask:
    """Decide a page's attempts, limits and deadline, before it waits. Raise ``BadOption``.

    ``more``: pages that follow in the same prompt. There is one attempt at several pages, with as many times
    the tokens and seconds of one.
    """
    together = model.several_pages if more else None
    if more and together is None:
        raise BadOption(f"{model.name} reads one page a prompt")
    usual = model if together is None else together
    mode = options.mode or usual.default_mode
    if mode not in model.modes:
        raise BadOption(f"mode {mode!r} is unknown to {model.name}, which has {', '.join(model.modes)}")
    if options.tokens == "detail" and more:
        raise BadOption("tokens=detail is for one page a prompt")
    if options.tokens == "detail" and not model.has_patch_places:
        raise BadOption(f"tokens=detail: the tokens of {model.name} stand for no places on the page")
    if deadline_seconds is not None and not deadline_seconds > 0:
        raise BadOption(f"the deadline must be a positive number of seconds, got {deadline_seconds}")
    if options.fixation is not None and not can_fixate(model):
        raise BadOption(NO_FIXATION)
    if options.fixation is not None and more:
        raise BadOption("fixation is for one page a prompt")
    prompt = usual.default_prompt if options.prompt is None else options.prompt
    keep_ratio = None if options.prune == "none" else options.keep_ratio
    strict = settings.strict_ngram.with_n_at_least(model.strict_ngram_n)
    ngram = _first_ngram(model, settings, options, together)
    first = AttemptPlan(mode, options.prune, keep_ratio, ngram, options.fixation)
    strict = replace(strict, exempt=first.ngram.exempt)
    num_pages = 1 + len(more)
    modes = list(model.modes.values())
    return PageTask(
        page=page,
        document_id=document_id,
        attempt_plans=attempt_plans(first, strict, modes, 1 if more else settings.max_attempts),
        prompt_ids=model.prompt_ids(prompt),
        max_output_tokens=(options.max_output_tokens or settings.max_output_tokens) * num_pages,
        deadline_s=time.monotonic() + (deadline_seconds or settings.page_deadline_seconds) * num_pages,
        risk_curve=model.risk_curve,
        more=tuple(more),
        restore_risk=None if more else settings.restore_from(model),
        trace=options.tokens == "detail",
        draft_text=draft_text,
    )
