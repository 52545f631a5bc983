"""The engine's loop. One turn: run commands, expire deadlines, encode, prefill, decode, read results back.

Everything here runs in one thread, except ``enqueue``, ``post`` and ``load``, which any thread may call.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from app.document import AttemptReason, FinishReason
from app.errors import Overloaded, PageFailed, ParseError
from app.ocr.engine.decoder import Choice, Choices, Decoder, DecoderLimits, kv_shape
from app.ocr.engine.device import LaunchPolicy, give_back_memory, is_lost, is_out_of_memory, kv_budget_bytes
from app.ocr.engine.encode_queue import EncodeQueue
from app.ocr.engine.kv_cache import KvPlan
from app.ocr.engine.loops import find_loop, loop_before_ban, without_repeats
from app.ocr.engine.scheduler import BatchLimit, Deadlines, KvBudget, chunks_within
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import ConfidenceWindow, PageTask
from app.ocr.engine.vision import Encoded, failure_of
from app.ocr.models.model import OcrModel
from app.reader import ReaderLoad

logger = logging.getLogger(__name__)
PrefillBatch = list[tuple[PageTask, Encoded]]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Counts at one moment: pages in each stage, room in the KV cache, and totals decoded so far.

    ``num_tokens`` counts one token for each page and step.
    """

    queued: int
    preparing: int
    encoding: int
    running: int
    slots: int
    kv_bytes: int
    kv_tokens_used: int
    kv_tokens_capacity: int
    steps: int
    num_tokens: int

    @property
    def reported(self) -> ReaderLoad:
        """The same counts in the form that the reader reports."""
        return ReaderLoad(
            waiting=self.queued + self.preparing + self.encoding,
            running=self.running,
            slots=self.slots,
            kv_tokens_used=self.kv_tokens_used,
            kv_tokens_capacity=self.kv_tokens_capacity,
            steps=self.steps,
            tokens=self.num_tokens,
        )


@dataclass(frozen=True, slots=True)
class _Pass:
    """Tokens on their way to the host, with the page and life that each belongs to."""

    stage: Literal["prefill", "decode"]
    owners: list[tuple[PageTask, int]]
    choices: Choices


class PageLoop:
    """The loop's state: pages go in, answers come out.

    ``preparing`` runs host work of many pages; ``finishing`` turns ids into text.
    """

    def __init__(
        self, model: OcrModel, settings: EngineSettings, preparing: Executor, finishing: Executor
    ) -> None:
        self._model, self._settings = model, settings
        self._finishing_pool = finishing
        budget = kv_budget_bytes(model.device, settings.kv_memory_mib, settings.kv_memory_share)
        shape = kv_shape(model)
        plan = KvPlan.within(
            budget,
            shape,
            max_pages=settings.max_running_pages,
            max_page_tokens=settings.page_tokens(model, shape, budget),
            lazy=model.device.type == "cpu",
        )
        self.decoder = Decoder(model, DecoderLimits(plan, settings.loops, settings.max_ban_distance(model)))
        self.max_draft_tokens = settings.max_draft_tokens if self.decoder.verifies_drafts else 0
        """Most tokens proposed for a page in a step; 0 where none are."""
        self.kv_budget = KvBudget(plan.num_tokens)
        self._is_full = False  # a page waits for memory, and those behind it need not be encoded yet
        self._prefill_limit = BatchLimit(plan.num_slots)
        self._row_limit = BatchLimit(plan.num_slots, patience=256)
        self._commands: deque[Callable[[], None]] = deque()
        self._woken = threading.Event()
        self.encode_queue = EncodeQueue(model, settings, preparing, plan, self)
        self.deadlines: Deadlines[PageTask] = Deadlines()
        self._num_alone = 0
        self._running: list[PageTask] = []
        self._pending: deque[_Pass] = deque()
        self.launch_policy = LaunchPolicy.on(model.device)
        self._short_of_rows_s: float | None = None
        self._decode_clock_ms = 0.0
        self._clock_s = 0.0
        self._steps = 0
        self._num_tokens = 0

    # any thread

    def enqueue(self, task: PageTask, priority: int) -> None:
        """Queue a page. Raise ``Overloaded`` rather than wait."""
        self.encode_queue.put(task, priority)
        self.post(partial(self._watch, task))

    def post(self, command: Callable[[], None]) -> None:
        """Have the loop run ``command`` at the start of its next turn."""
        self._commands.append(command)
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(
            queued=self.encode_queue.num_queued,
            preparing=self.encode_queue.num_preparing,
            encoding=self.encode_queue.num_encoding,
            running=len(self._running),
            slots=self.decoder.cache.plan.num_slots,
            kv_bytes=self.decoder.cache.num_bytes,
            kv_tokens_used=self.kv_budget.taken,
            kv_tokens_capacity=self.decoder.cache.plan.num_tokens,
            steps=self._steps,
            num_tokens=self._num_tokens,
        )

    # the loop's thread

    def warm_up(self) -> None:
        self.encode_queue.lane.leave_threads()
        self.decoder.warm_up()

    def turn(self) -> bool:
        """Do everything that can be done now, with at most one decode step.

        False: nothing to do until woken.
        """
        self._woken.clear()
        while self._commands:
            self._commands.popleft()()
        for task in self.deadlines.expired(time.monotonic()):
            self.end(task, "deadline")
        self.encode_queue.advance(0 if self._is_full else self._num_free, self._most_rows)
        self._prefill()
        self._clock_s = time.perf_counter()
        self._decode()
        # a step that verified drafts is over, and what it chose is needed for the next one's
        self._settle(leave=1 if self._running and not self._drafts_pages() else 0)
        return bool(self._running or self._pending or self.encode_queue.encoded or self._commands)

    def wait(self) -> None:
        """Wait until something is posted or a deadline passes."""
        due = self.deadlines.next_s()
        self._woken.wait(None if due is None else max(0.0, due - time.monotonic()))

    def end(self, task: PageTask, reason: FinishReason) -> None:
        """Stop a page wherever it is and free its memory now. Do nothing for a page that is already over."""
        if task.is_over:
            return
        if reason == "deadline" and not task.outcomes and task.row is None:
            self.fail(task, Overloaded("the page's deadline passed before its turn came"))
            return
        task.conclude(reason)
        self._finish(task)

    def fail(self, task: PageTask, error: ParseError) -> None:
        """Fail a page. One that failed on a later attempt is answered with what the earlier attempts read."""
        if task.is_over:
            return
        if task.outcomes:
            self._finish(task)
            return
        self._leave(task)
        self.deadlines.discard(task)
        task.settle(error)

    def close(self) -> None:
        self.encode_queue.close()

    @property
    def _most_rows(self) -> int:
        return min(self.decoder.cache.plan.num_slots, self._row_limit.value)

    @property
    def _num_free(self) -> int:
        """Number of rows that pages may take now."""
        return max(0, self._most_rows - len(self._running))

    def _watch(self, task: PageTask) -> None:
        if not task.is_over:
            self.deadlines.add(task, task.deadline_s)

    def _prefill(self) -> None:
        """Run at most one packed prefill.

        So running pages wait no longer than ``max_prefill_tokens`` take.
        """
        size = self._num_fitting()
        if not size:
            return
        batch = self.encode_queue.encoded[:size]
        del self.encode_queue.encoded[:size]
        for _ in range(self.launch_policy.steps_ahead):
            if self.decoder.has_room_for(2):  # this step's, and one launched before its result is known
                self._decode()
        self._num_alone = max(0, self._num_alone - size)
        start = time.perf_counter()
        try:
            choices = self.decoder.prefill(
                [encoded.prompt for _, encoded in batch], [task.attempt_plan.ngram for task, _ in batch]
            )
        except Exception as error:
            if is_lost(self._model.device):
                raise
            logger.warning("a prefill of %d pages failed", size, exc_info=error)
            self._prefill_failed(batch, error)
            return
        self._prefill_limit.succeeded()
        self._admitted(batch, choices, (time.perf_counter() - start) * 1e3 / size)

    def _num_fitting(self) -> int:
        """Count the encoded pages that one prefill takes, in turn.

        The first page that does not fit also stops the later ones, or smaller pages would overtake it for
        ever.
        """
        waiting = self.encode_queue.encoded[: self._num_free]
        if not waiting or self._waits_for_rows():
            return 0
        lengths = [len(encoded.prompt) for _, encoded in waiting]
        size = len(chunks_within(lengths, self._settings.max_prefill_tokens)[0])
        size = min(1 if self._num_alone else self._prefill_limit.value, size)
        num_fitting = self.kv_budget.how_many([self.encode_queue.size(*pair) for pair in waiting[:size]])
        self._is_full = num_fitting < size
        return num_fitting

    def _waits_for_rows(self) -> bool:
        """Tell whether to delay prefill until more rows are free, so that several pages share one launch."""
        is_short = self._num_free < min(
            self._most_rows // self.launch_policy.shares, len(self.encode_queue.encoded)
        )
        if not is_short or not self._running:
            self._short_of_rows_s = None
            return False
        now = time.monotonic()
        if self._short_of_rows_s is None:
            self._short_of_rows_s = now
        if now - self._short_of_rows_s < self.launch_policy.wait_s:
            return True
        self._short_of_rows_s = None
        return False

    def _admitted(self, batch: PrefillBatch, choices: Choices, prefill_ms: float) -> None:
        now = time.monotonic()
        for task, encoded in batch:
            task.stops_waiting(now)
            task.times_ms["prefill"] += prefill_ms
            task.starts(
                len(self._running), encoded, self.encode_queue.room(task, encoded), self._settings.loops
            )
            task.reserved = self.encode_queue.size(task, encoded)
            self.kv_budget.take(task.reserved)
            task.decode_clock_ms = self._decode_clock_ms
            self._running.append(task)
        self._pending.append(_Pass("prefill", [(task, task.life) for task, _ in batch], choices))

    def _prefill_failed(self, batch: PrefillBatch, error: Exception) -> None:
        """Handle a failed prefill. A page that was alone fails.

        Several pages are tried again: in smaller batches if memory ran out, otherwise each alone to find the
        faulty one.
        """
        if is_out_of_memory(error):
            give_back_memory(self._model.device)
            self._prefill_limit.shrink(len(batch))
        if len(batch) == 1:
            self.fail(batch[0][0], failure_of(error))
            return
        if not is_out_of_memory(error):
            self._num_alone = len(batch)
        self.encode_queue.encoded = batch + self.encode_queue.encoded

    def _drafts_pages(self) -> bool:
        return bool(self.max_draft_tokens) and any(
            task.draft_text is not None and not task.draft_text.acceptance.is_low for task in self._running
        )

    def _drafts(self) -> list[list[int]]:
        """Propose the next tokens of every page, where there are any to propose."""
        if not self._drafts_pages():
            return []
        self._settle(leave=0)
        return [task.draft(self.max_draft_tokens) for task in self._running]

    def _count_drafts(self, drafts: list[list[int]], rows: list[int]) -> None:
        counts = Counter(rows)
        for row, draft in enumerate(drafts):
            if draft:
                self._running[row].counts_draft(len(draft), counts[row] - 1)

    def _decode(self) -> None:
        drafts = self._drafts()
        if not self._running:
            return
        owners = [(task, task.life) for task in self._running]
        try:
            if any(drafts):
                verified = self.decoder.verify(drafts)
                choices, owners = verified.choices, [owners[row] for row in verified.rows]
                self._count_drafts(drafts, verified.rows)
            else:
                choices = self.decoder.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise  # no page can be blamed, and the device's state is unknown
            self._step_out_of_memory()
            return
        self._steps += 1
        self._num_tokens += len(owners)
        self._row_limit.succeeded()
        self._pending.append(_Pass("decode", owners, choices))

    def _step_out_of_memory(self) -> None:
        """Run fewer pages at once from now on. The half that came last starts over when there is room."""
        give_back_memory(self._model.device)
        num_rows = len(self._running)
        self._row_limit.shrink(num_rows)
        if num_rows == 1:
            self.fail(self._running[0], PageFailed("the page alone does not fit the device's memory"))
            return
        for task in reversed(self._running[num_rows // 2 :]):
            self._again(task, task.attempt, task.reason)

    def _settle(self, leave: int) -> None:
        """Read passes back except the last ``leave``, on which the device works while the host goes on."""
        while len(self._pending) > leave:
            settled = self._pending.popleft()
            choices = settled.choices.read()
            self._charge(settled)
            for (task, life), choice in zip(settled.owners, choices, strict=True):
                # drop results of pages that ended or started over since this pass was launched
                if not task.is_over and task.life == life:
                    self._take(task, choice)

    def _charge(self, settled: _Pass) -> None:
        """Charge the time since the last clock reading to this pass's pages.

        It was spent on launching the next pass and on waiting for this one. On CUDA the device's time shows
        in that wait.
        """
        now = time.perf_counter()
        spent_ms, self._clock_s = (now - self._clock_s) * 1e3, now
        # pages that left do not need this pass: its time is charged to those that still do
        owners = dict.fromkeys(settled.owners)  # once each, however many tokens a page got
        alive = [task for task, life in owners if not task.is_over and task.life == life]
        if not alive:
            return
        if settled.stage == "decode":
            self._decode_clock_ms += spent_ms / len(alive)
            return
        for task in alive:
            task.times_ms["prefill"] += spent_ms / len(alive)
            # the step in flight when it joined did not include it
            task.decode_clock_ms = self._decode_clock_ms

    def _take(self, task: PageTask, choice: Choice) -> None:
        if not math.isfinite(choice.logprob_sum):
            self.fail(task, PageFailed("the model's numbers overflowed on this page"))
            return
        task.scores(choice.logprob_sum)
        if choice.token == self._model.eos_id:
            self._ended(task, "stop")
            return
        task.ids.append(choice.token)
        task.feed.push(choice.token)
        ids = self._ids_before_loop(task, choice)
        if ids is not None:
            self._looped(task, ids)
        elif self._is_noise(task.window.mean(len(task.ids), task.logprob_sum)):
            self._unsure(task)
        elif len(task.ids) >= task.room:
            self._ended(task, "length")

    def _ended(self, task: PageTask, reason: FinishReason) -> None:
        """Finish a page that ended by itself or at its limit, or read it again unpruned if it is too risky.

        A page too short for a full confidence window may be noise from its first token on. Its text is then
        left out, as for a noisy stretch, but for that it is not read again: it is over almost as soon as it
        begins.
        """
        if self._is_noise(task.confidence):
            task.conclude("low_confidence", [])
        else:
            task.conclude(reason)
        if len(task.outcomes) < self._settings.max_attempts and task.plan_restoring():
            self._again(task, task.attempt + 1, "risk")
        else:
            self._finish(task)

    def _ids_before_loop(self, task: PageTask, choice: Choice) -> list[int] | None:
        """Return the output with the loop once if the page has run into a loop, else ``None``."""
        exempt, ngram = self._model.ngram_exempt_ids, task.attempt_plan.ngram
        if choice.is_repeating and (loop := find_loop(task.ids, self._settings.loops, exempt)) is not None:
            return without_repeats(task.ids, loop)
        if choice.was_banned and task.bans is not None:
            first = task.bans.add(len(task.ids) - 1)
            if first is not None:
                loop = loop_before_ban(task.ids[:first], ngram)
                return task.ids[:first] if loop is None else without_repeats(task.ids, loop)
        return None

    def _is_noise(self, mean: float | None) -> bool:
        least = self._model.min_confidence
        return least is not None and mean is not None and mean < least

    def _unsure(self, task: PageTask) -> None:
        """Cut the page's output before the noise began.

        Pruning may have removed what is missing, so a pruned page is read again without it.
        """
        noise = ConfidenceWindow.NUM * ConfidenceWindow.TOKENS
        task.conclude("low_confidence", task.ids[:-noise])
        unpruned = next(
            (i for i, attempt_plan in enumerate(task.attempt_plans) if attempt_plan.prune == "none"), None
        )
        if unpruned is not None and unpruned > task.attempt:
            self._again(task, unpruned, "low_confidence")
        else:
            self._finish(task)

    def _looped(self, task: PageTask, ids: list[int]) -> None:
        task.conclude("loop", ids)
        if task.has_next_attempt:
            self._again(task, task.attempt + 1, "loop")
        else:
            self._finish(task)

    def _again(self, task: PageTask, attempt: int, reason: AttemptReason) -> None:
        """Read the page from the start. It keeps its turn, so it is next."""
        mode, encoded = task.attempt_plan.mode, task.encoded
        self._leave(task)
        task.restarts(attempt, reason)
        task.waits(time.monotonic())
        if encoded is not None and task.attempt_plan.mode == mode:
            self.encode_queue.take_up(task, encoded)
        else:
            self.encode_queue.begin(task)

    def _finish(self, task: PageTask) -> None:
        """Free the page's memory and have its text made; its outcomes are complete."""
        task.is_over = True
        self._leave(task)
        self.deadlines.discard(task)
        self._finishing_pool.submit(_complete, task, self._model)

    def _leave(self, task: PageTask) -> None:
        """Take the page out of the queue and off the device."""
        task.stops_waiting(time.monotonic())
        self.encode_queue.withdraw(task)
        if task.row is None:
            return
        task.times_ms["decode"] += self._decode_clock_ms - task.decode_clock_ms
        row, task.row = task.row, None
        self.decoder.release(row)
        self.kv_budget.give_back(task.reserved)
        self._is_full = False
        moved = self._running.pop()
        if moved is not task:
            self._running[row] = moved
            moved.row = row


def _complete(task: PageTask, model: OcrModel) -> None:
    """Turn ids into text and answer, outside the loop's thread."""
    try:
        task.settle(task.reading(model.decode_text(task.best().ids)))
    except Exception as error:
        logger.exception("a page's text could not be made")
        task.settle(failure_of(error))
