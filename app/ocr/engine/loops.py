"""Repetition: the windowed n-gram ban on the device, and detection of pages that have run into a loop.

Both use one number for every page and distance d: the *run*, how many of the last output tokens in a row
equal the token d before them. One comparison a step keeps it up to date, for any n and window.

What counts as a loop: the text ends in a loop of period p when its last max(3 p, 3 * UNIT) tokens repeat with
period p. That is three copies; a loop shorter than UNIT tokens is read as its multiple that reaches UNIT
(endless repetition of five tokens is also endless repetition of thirty). A lower limit would stop a row of
dots, a ruler of dashes or a table with a few equal rows. A higher one would only waste steps, because a loop
never ends by itself. Ids that the ban exempts (table tags) count one eighth in loops shorter than UNIT,
because the empty cells of a form rightly are `<td></td>` dozens of times. Such a loop still ends, after 24 *
UNIT tokens at most.

The ban itself hides loops: a short loop is broken after n repeated tokens, and the model wanders off and back
without ever repeating exactly. So each time the ban changes the choice counts as n repeated tokens, and 3 *
UNIT of them within two windows are a loop as well.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

EXEMPT_SHARE = 8
NEVER = 2**31 - 1
"""A run longer than any page can have."""


@dataclass(frozen=True, slots=True)
class NgramRule:
    """Rule that bans the token which would complete an n-gram already within the last ``window`` output
    tokens.

    This is DeepSeek-OCR's ``NoRepeatNGramLogitsProcessor`` (n 20 or 30, window 50 or 90). ``exempt``: ids
    that are never banned; ``None``: the checkpoint's own.
    """

    n: int = 30
    window: int = 90
    exempt: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"ngram n must be at least 2, got {self.n}")
        if self.window < self.n:
            raise ValueError(f"ngram window must hold one n-gram of {self.n}, got {self.window}")

    def with_n_at_least(self, n: int) -> "NgramRule":
        longer = max(self.n, n)
        return replace(self, n=longer, window=max(self.window, longer))

    @property
    def max_distance(self) -> int:
        """Farthest distance of a repeat: the n tokens of its first copy must be inside the window."""
        return self.window - self.n + 1


@dataclass(frozen=True, slots=True)
class LoopRule:
    """Rule for what counts as a loop; see the module's docstring.

    ``unit``: tokens from which three copies of a loop suffice. ``max_period``: longest period looked for.
    """

    unit: int = 30
    max_period: int = 512

    def __post_init__(self) -> None:
        if self.unit < 1 or self.max_period < 1:
            raise ValueError(
                f"loop unit and max_period must be at least 1, got {self.unit}, {self.max_period}"
            )

    def covered(self, period: int) -> int:
        """Return how many tokens a loop of this period must cover, its first copy included."""
        return 3 * max(period, self.unit)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop: ``ids[start:]`` repeats with ``period``."""

    period: int
    start: int


def find_loop(ids: Sequence[int], rule: LoopRule, exempt: Collection[int] = ()) -> Loop | None:
    """Return the loop that the output ends in, or ``None``.

    Takes O(len * periods) at worst, O(periods) on ordinary text.
    """
    excused = len(ids)  # where the longest short loop of exempt ids begins
    for period in range(1, min(rule.max_period, len(ids) // 3) + 1):
        start = _start_of_tail(ids, period)
        # a multiple of that short loop's period repeats as long as it does, and is no loop of its own
        if len(ids) - start < rule.covered(period) or start > excused - period:
            continue
        if period >= rule.unit or _weight(ids[start:], exempt) >= rule.covered(period):
            return Loop(period, start)
        excused = min(excused, start)
    return None


def loop_before_ban(ids: Sequence[int], rule: NgramRule) -> Loop | None:
    """Return the repetition that triggers the ban after ``ids``.

    Its last n - 1 tokens have occurred before.
    """
    for period in range(1, min(rule.max_distance, len(ids) - rule.n + 1) + 1):
        start = _start_of_tail(ids, period)
        if len(ids) - start - period >= rule.n - 1:
            return Loop(period, start)
    return None


def without_repeats(ids: Sequence[int], loop: Loop) -> list[int]:
    """Return everything before the loop, and the loop once."""
    return list(ids[: loop.start + loop.period])


class BanCount:
    """Loop detector that counts how often the ban changed a choice; see the module's last paragraph."""

    def __init__(self, ngram: NgramRule, rule: LoopRule) -> None:
        self._needed = -(-3 * rule.unit // ngram.n)
        self._span = 2 * ngram.window
        self._at: list[int] = []

    def add(self, num_tokens: int) -> int | None:
        """Record that the ban changed the token after ``num_tokens`` tokens.

        Returns the number of tokens before the first such change if the changes now make a loop, else
        ``None``.
        """
        self._at = [at for at in self._at if num_tokens - at < self._span]
        self._at.append(num_tokens)
        return self._at[0] if len(self._at) >= self._needed else None


def _start_of_tail(ids: Sequence[int], period: int) -> int:
    """Return the first index from which ``ids`` repeats with ``period`` to the end.

    It is len - period if it does not repeat.
    """
    i = len(ids) - 1
    while i >= period and ids[i] == ids[i - period]:
        i -= 1
    return i - period + 1


def _weight(ids: Sequence[int], exempt: Collection[int]) -> float:
    return sum(1 / EXEMPT_SHARE if token in exempt else 1.0 for token in ids)


class RepeatState:
    """Output history and runs of every row, on the device.

    Nothing here waits for a device other than the CPU. ``history``: (S, P) int32, the last P output tokens,
    latest first, -1 where there is none. ``runs``: (S, P) int32, the run at distance d in column d - 1.
    ``run_needed``: (S, max_distance) int32, the run from which the ban applies at that distance.
    ``loop_needed``: (max_period,) int32, the run that makes a loop. ``is_exempt``: (S, V) bool.
    """

    def __init__(
        self, num_slots: int, rule: LoopRule, max_distance: int, exempt: Collection[int], vocab_size: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        span = max(rule.max_period, max_distance)
        self.history = torch.full((num_slots, span), -1, dtype=torch.int32, device=device)
        self.runs = torch.zeros((num_slots, span), dtype=torch.int32, device=device)
        self.reach = max_distance
        """Distances that ``banned`` looks at. It may be lowered to the largest one in the running pages'
        rules.
        """
        self.loop_needed = torch.tensor(
            [rule.covered(d) - d for d in range(1, rule.max_period + 1)], dtype=torch.int32, device=device
        )
        self.run_needed = torch.full((num_slots, max_distance), NEVER, dtype=torch.int32, device=device)
        self._own_exempt = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._own_exempt[sorted(exempt)] = True
        self.is_exempt = self._own_exempt.repeat(num_slots, 1)

    def start(self, row: int, rule: NgramRule, first_id: torch.Tensor) -> None:
        """Reset ``row`` for a new page. ``first_id``: () int64, the token that its prefill chose."""
        self.history[row].fill_(-1)
        self.history[row, 0] = first_id
        self.runs[row].zero_()
        self.run_needed[row].fill_(NEVER)
        self.run_needed[row, : rule.max_distance] = rule.n - 1
        if rule.exempt is None:
            self.is_exempt[row] = self._own_exempt
        else:
            self.is_exempt[row] = False
            self.is_exempt[row, [one for one in sorted(rule.exempt) if one < self.is_exempt.shape[1]]] = True

    def move(self, source: int, target: int) -> None:
        for state in (self.history, self.runs, self.run_needed, self.is_exempt):
            state[target] = state[source]

    def banned(self, scores: torch.Tensor) -> torch.Tensor:
        """Replace the scores of tokens that the rule bans by -inf, for the first n rows. (n, V) -> (n, V)."""
        n = len(scores)
        is_long = self.runs[:n, : self.reach] >= self.run_needed[:n, : self.reach]
        if scores.device.type == "cpu" and not is_long.any():
            return scores
        # the token d back is what followed the earlier copy, d back, of the tokens that end the output
        followers = self.history[:n, : self.reach].clamp(min=0).long()
        is_banned = is_long & ~self.is_exempt[:n].gather(1, followers)
        ceiling = torch.where(is_banned, -torch.inf, torch.inf).to(scores.dtype)
        return scores.scatter_reduce(1, followers, ceiling, "amin")

    def after(self, ids: torch.Tensor) -> "Extended":
        """Return the state of the first n rows with (n,) int64 ``ids`` appended, without changing it."""
        n = len(ids)
        latest = ids[:, None].int()
        history = torch.cat((latest, self.history[:n, :-1]), dim=1)
        runs = (self.runs[:n] + 1) * (self.history[:n] == latest)
        return Extended(history, runs, (runs[:, : len(self.loop_needed)] >= self.loop_needed).any(dim=1))

    def accept(self, extended: "Extended") -> None:
        n = len(extended.history)
        self.history[:n] = extended.history
        self.runs[:n] = extended.runs

    def copied(self, rows: Sequence[int]) -> "RepeatState":
        """Return a state whose rows are copies of these."""
        copied = copy.copy(self)
        at = torch.tensor(rows, dtype=torch.int64, device=self.history.device)
        for name in ("history", "runs", "run_needed", "is_exempt"):
            setattr(copied, name, getattr(self, name)[at])
        return copied

    def paste(self, rows: Sequence[int], copied: "RepeatState") -> None:
        """Put the history of a copy's rows in the place of these."""
        at = torch.tensor(rows, dtype=torch.int64, device=self.history.device)
        self.history[at] = copied.history
        self.runs[at] = copied.runs


@dataclass(frozen=True, slots=True, eq=False)
class Extended:
    """State that ``RepeatState.after`` computed.

    ``is_repeating``: (n,) bool, whether the row now ends in a repeating tail.
    """

    history: torch.Tensor
    runs: torch.Tensor
    is_repeating: torch.Tensor
