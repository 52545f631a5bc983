"""Run pages on the device: prefill, one decode step for all rows, choice of the next token.

Policy about pages is elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch

from app.ocr.cuda import choose
from app.ocr.engine import packed_attention
from app.ocr.engine.attention import DraftDecode, EachPrefill, RunsDecode, Step, install
from app.ocr.engine.decode_state import DecodeState
from app.ocr.engine.device import adopt, reader_for, runner_for
from app.ocr.engine.kv_cache import KvCache, KvPlan, KvShape, to_device
from app.ocr.engine.loops import LoopRule, NgramRule, RepeatState
from app.ocr.models.model import OcrModel


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Start of a page's sequence.

    ``embeds``: (T, D). ``positions``: (T,) int64, ascending, with gaps where visual tokens were pruned.
    ``next_position``: position of the first output token.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    next_position: int

    def __len__(self) -> int:
        return len(self.positions)


class Choice(NamedTuple):
    """One page's new token, as the host reads it. A tuple, because many are made at every step."""

    token: int
    is_repeating: bool
    """Whether the output ends in a repeating tail by ``LoopRule``; exempt ids are not yet excused."""
    was_banned: bool
    """Whether the n-gram ban changed the choice."""
    logprob_sum: float
    """Sum over all the page's tokens up to this one; NaN when the model gave no finite number."""


class Choices:
    """Tokens chosen in one pass, still on their way to the host."""

    def __init__(self, read: Callable[[], list[list[float]]]) -> None:
        self._read = read

    def read(self) -> list[Choice]:
        """Wait until the device has finished that pass; return one choice per row."""
        return [Choice(int(a), b > 0, c > 0, d) for a, b, c, d in zip(*self._read(), strict=True)]


@dataclass(frozen=True, slots=True)
class Verified:
    """Tokens chosen in a step that verified drafts, earlier ones of a row first. ``rows``: each one's row."""

    choices: Choices
    rows: list[int]


class StepAttention(Step, Protocol):
    """Attention of decode steps."""

    def begin(self) -> Step:
        """Prepare a step: compute what all layers share."""


class NativeDecoder:
    """Decoder that runs transformers' own modules unchanged."""

    def __init__(self, language_model: Any, head: Any) -> None:
        self._language_model, self._head = language_model, head

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        return choose.native(self._language_model, embeds, positions, step)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._head(hidden)
        return logits


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """Limits that a decoder plans its memory for."""

    plan: KvPlan
    loops: LoopRule
    max_distance: int
    """Farthest distance in tokens that any page's ``NgramRule`` looks back."""


def kv_shape(model: OcrModel) -> KvShape:
    network: Any = model.network
    text = network.config.text_config
    return KvShape(text.num_hidden_layers, text.num_key_value_heads, text.head_dim, model.dtype)


class Decoder:
    """Running pages on the device.

    Rows 0 to n - 1 each have a cache slot, last token, position and repeat state. ``prefill`` and ``step``
    raise what the model raises, out of memory included; the rows are then as before.
    """

    def __init__(self, model: OcrModel, limits: DecoderLimits) -> None:
        network: Any = model.network
        window = install(network)
        num_slots = limits.plan.num_slots
        self._model = model
        language_model = network.model.language_model
        device = model.device
        num_heads = network.config.text_config.num_attention_heads
        self.is_packed = packed_attention.works(kv_shape(model), num_heads, device)
        """Whether attention is one length-aware call, whose steps suit CUDA graphs; otherwise it goes by runs
        of rows.
        """
        # packed attention reads each row by itself and never sees what an earlier page left
        self.cache = KvCache(limits.plan, kv_shape(model), device, window, wipes=not self.is_packed)
        vocab_size = network.config.text_config.vocab_size
        repeats = RepeatState(
            num_slots, limits.loops, limits.max_distance, model.ngram_exempt_ids, vocab_size, device
        )
        self.rows = DecodeState.of(self.cache, repeats)
        self._fused = (
            choose.decoder_for(language_model, network.lm_head, kv_shape(model)) if self.is_packed else None
        )
        self._layers = self._fused or model.decoder_layers or NativeDecoder(language_model, network.lm_head)
        self._rules: list[NgramRule] = []
        self._attention: StepAttention | None = None
        self._runner = runner_for(self, device, captures=self.is_packed)
        self._read_later = reader_for(device)

    @property
    def num_rows(self) -> int:
        return self.cache.num_rows

    def has_room_for(self, more: int) -> bool:
        """Tell whether every row's slot has room for ``more`` tokens."""
        longest = max(self.cache.host_lengths, default=0)
        return self.cache.window is not None or longest + more <= self.cache.plan.slot_tokens

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], rules: Sequence[NgramRule]) -> Choices:
        """Admit pages as the next rows, packed into one forward pass, and choose their first tokens."""
        lengths = [len(prompt) for prompt in prompts]
        try:
            logits = self.first_logits(prompts, lengths)
            tokens = logits.argmax(dim=-1)
            logprobs = chosen_logprobs(logits, tokens)
            positions = to_device([p.next_position for p in prompts], torch.int64, self.rows.positions.device)
            nothing = torch.zeros_like(logprobs)
            choices = torch.stack((tokens.double(), nothing, nothing, logprobs))
        except Exception:
            for row, length in enumerate(lengths[: self.cache.num_free], start=self.num_rows):
                self.cache.wipe(row, min(length, self.cache.plan.slot_tokens))
            raise
        first = self.cache.admit(lengths)
        self.rows.admit(first, tokens, positions, logprobs)
        for i, rule in enumerate(rules):
            self.rows.repeats.start(first + i, rule, tokens[i])
        self._rules.extend(rules)
        self._rows_changed()
        return Choices(self._read_later(choices))

    @torch.inference_mode()
    def step(self) -> Choices:
        """Choose one token for every row. Returns without waiting for the device."""
        chosen = self._runner.step(self.num_rows)
        self.cache.advance()
        return Choices(self._read_later(chosen))

    @property
    def verifies_drafts(self) -> bool:
        """Whether ``verify`` works here: on a CPU, where the host waits for each step anyway, and without a
        sliding window.
        """
        return self.cache.lengths.device.type == "cpu" and self.cache.window is None

    @torch.inference_mode()
    def verify(self, drafts: Sequence[Sequence[int]]) -> Verified:
        """Choose tokens for every row: those of its draft that ``step`` would choose, and one more.

        ``drafts``: what may follow each row's last token. Draft and step are one forward pass over N tokens.
        Ban and loop state are applied token by token, so a row gets the tokens of as many steps. What was
        written for tokens that were not chosen is wiped.
        """
        counts = [1 + len(draft) for draft in drafts]
        attention = DraftDecode(self.cache, counts)
        chosen: _Chosen | None = None
        try:
            logits = self._draft_logits(drafts, attention)
            # a draft whose numbers overflow must not fail the page: its keys are seen with a weight of 0
            if bool(logits.isfinite().all()):
                chosen = self._chosen(logits, drafts, attention.starts)
        finally:
            kept = torch.tensor([1] * len(counts) if chosen is None else chosen.counts)
            is_lost = attention.offsets >= kept[attention.rows]
            self.cache.storage[:, attention.rows[is_lost], attention.places[is_lost]] = 0
        if chosen is None:
            return Verified(self.step(), list(range(self.num_rows)))
        for rows, repeats in chosen.repeats:
            self.rows.repeats.paste(rows, repeats)
        self.rows.tokens[: len(counts)] = chosen.tokens
        self.rows.positions[: len(counts)] += kept
        self.cache.lengths[: len(counts)] += kept.int()
        self.rows.logprob_sums[: len(counts)] = chosen.logprob_sums
        self.cache.advance(chosen.counts)
        return Verified(Choices(self._read_later(chosen.fields)), chosen.rows)

    def _draft_logits(self, drafts: Sequence[Sequence[int]], attention: DraftDecode) -> torch.Tensor:
        """Return (N, V) float32 logits after each row's last token and each token of its draft."""
        ids = torch.tensor([token for draft in drafts for token in (0, *draft)])
        ids[attention.starts] = self.rows.tokens[: len(drafts)]
        positions = self.rows.positions[attention.rows] + attention.offsets
        hidden = self._layers(self._model.embed(ids[None]), positions[None], attention)  # (1, N, D)
        return self._layers.head(hidden[0]).float()

    def _chosen(
        self, logits: torch.Tensor, drafts: Sequence[Sequence[int]], starts: torch.Tensor
    ) -> "_Chosen":
        """Choose as ``run_rows`` does, one token of every row at a time, for the rows whose draft agrees."""
        rows = list(range(len(drafts)))
        repeats = self.rows.repeats.copied(rows)
        logprob_sums, tokens = self.rows.logprob_sums[rows], self.rows.tokens[rows]
        counts = [0] * len(drafts)
        fields: list[torch.Tensor] = []
        order: list[int] = []
        ended: list[tuple[list[int], RepeatState]] = []
        while rows:
            at = counts[rows[0]]  # as many for all that are left
            scores = logits[starts[rows] + at]
            wanted = scores.argmax(dim=-1)
            chosen = repeats.banned(scores).argmax(dim=-1)
            extended = repeats.after(chosen)
            repeats.accept(extended)
            sums = logprob_sums[rows] + chosen_logprobs(scores, chosen)
            logprob_sums[rows], tokens[rows] = sums, chosen
            fields.append(
                torch.stack([f.double() for f in (chosen, extended.is_repeating, chosen != wanted, sums)])
            )
            order += rows
            agrees = [
                at < len(drafts[row]) and drafts[row][at] == token
                for row, token in zip(rows, chosen.tolist(), strict=True)
            ]
            for row in rows:
                counts[row] = at + 1
            if not all(agrees):
                gone = [i for i, agreed in enumerate(agrees) if not agreed]
                ended.append(([rows[i] for i in gone], repeats.copied(gone)))
                stay = [i for i, agreed in enumerate(agrees) if agreed]
                rows, repeats = [rows[i] for i in stay], repeats.copied(stay)
        return _Chosen(torch.cat(fields, dim=1), order, counts, tokens, logprob_sums, ended)

    @torch.inference_mode()
    def release(self, row: int) -> int:
        """Free a row's memory and move the last row into its place. Returns that row's old index."""
        last = self.cache.release(row)
        self.rows.release(row, last)
        self._rules[row] = self._rules[last]
        self._rules.pop()
        self._rows_changed()
        return last

    def run_rows(self, num_rows: int, attention: Step) -> torch.Tensor:
        """Run one step for the first ``num_rows`` rows.

        Returns (4, n) float64, the fields of ``Choice`` in order. The step writes only state at fixed
        addresses and asks the device nothing, so it can be captured and replayed.
        """
        if self._fused is not None:
            return self._fused.step(self.rows, num_rows)
        tokens, positions = self.rows.tokens[:num_rows], self.rows.positions[:num_rows]
        embeds = self._model.embed(tokens[:, None])  # (n, 1, D)
        hidden = self._layers(embeds, positions[:, None], attention)
        logits = self._layers.head(hidden[:, -1]).float()  # (n, V)
        wanted = logits.argmax(dim=-1)
        chosen = self.rows.repeats.banned(logits).argmax(dim=-1)
        extended = self.rows.repeats.after(chosen)
        sums = self.rows.logprob_sums[:num_rows] + chosen_logprobs(logits, chosen)
        fields = (chosen, extended.is_repeating, chosen != wanted, sums)
        choices = torch.stack([field.double() for field in fields])
        # State changes only here, where nothing is allocated: a step that runs out of memory can be taken
        # again.
        self.rows.repeats.accept(extended)
        tokens.copy_(chosen)
        running = self.rows.is_running[:num_rows]
        positions.add_(running)
        self.cache.lengths[:num_rows].add_(running)
        self.rows.logprob_sums[:num_rows] = sums
        return choices

    def attention(self, num_rows: int | None = None) -> StepAttention:
        """Return the attention for steps of ``num_rows`` rows.

        If packed, these may be more than are running.
        """
        if num_rows is not None:
            return packed_attention.PackedDecode(self.cache, num_rows)
        if self._attention is None:
            self._attention = (
                packed_attention.PackedDecode(self.cache, self.num_rows)
                if self.is_packed
                else RunsDecode(self.cache)
            )
        return self._attention

    def warm_up(self) -> None:
        """Prepare the device before the first page."""
        self._runner.warm_up(self.cache.plan.num_slots)

    def first_logits(self, prompts: Sequence[Prompt], lengths: Sequence[int]) -> torch.Tensor:
        """Run B prompts and return (B, V) float32 logits at the last token of each.

        Their keys and values go to the next B slots.
        """
        embeds = torch.cat([adopt(prompt.embeds) for prompt in prompts])[None]  # (1, sum of T, D)
        positions = torch.cat([adopt(prompt.positions) for prompt in prompts])[None]
        prefill = packed_attention.PackedPrefill if self.is_packed else EachPrefill
        hidden = self._layers(embeds, positions, prefill(self.cache, lengths))
        ends = to_device([end - 1 for end in accumulate(lengths)], torch.int64, hidden.device)
        return self._layers.head(hidden[0, ends]).float()

    def _rows_changed(self) -> None:
        self._attention = None
        if not self.is_packed:  # a captured step looks as far back as any rule may
            self.rows.repeats.reach = max((rule.max_distance for rule in self._rules), default=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """What ``verify`` chose, before any state is changed.

    ``fields``: (4, M) float64, those of ``Choice``, and ``rows``: M, each one's row. By row: ``counts``,
    ``tokens``, the last one, and ``logprob_sums``. ``repeats``: what takes the place of which rows.
    """

    fields: torch.Tensor
    rows: list[int]
    counts: list[int]
    tokens: torch.Tensor
    logprob_sums: torch.Tensor
    repeats: list[tuple[list[int], RepeatState]]


def chosen_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the natural log-probability of each token. (B, V) float32, (B,) -> (B,).

    NaN for a row with a logit of NaN or infinity.
    """
    return logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
