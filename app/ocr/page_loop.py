"""The engine's loop, one turn at a time: obey, expire, prepare, encode, prefill, decode, settle.

Everything here runs in one thread, but for ``enqueue`` and ``post``, which any thread may call.
"""

import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from itertools import count

from app.document import FinishReason
from app.errors import Overloaded, PageFailed, PageTooLong, ParseError
from app.ocr.decoder import Choice, Choices, Decoder, DecoderLimits, kv_shape
from app.ocr.device import VisionLane, give_back_memory, is_out_of_memory, kv_budget_bytes
from app.ocr.engine_settings import EngineSettings
from app.ocr.kv_cache import KvPlan
from app.ocr.loops import find_loop, loop_before_ban, without_repeats
from app.ocr.model import OcrModel
from app.ocr.scheduler import BatchLimit, Deadlines, FairQueue, Turn, chunks_within
from app.ocr.task import PageTask
from app.ocr.vision import Encoded, Prepared, Vision, failure_of, prepare

logger = logging.getLogger(__name__)
PrefillBatch = list[tuple[PageTask, Encoded]]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, for health checks and metrics."""

    queued: int
    preparing: int
    encoding: int
    running: int
    slots: int
    kv_bytes: int
    steps: int


@dataclass(frozen=True, slots=True)
class _Pass:
    """Tokens on their way to the host, and whose they are: page and attempt."""

    owners: list[tuple[PageTask, int]]
    choices: Choices


class PageLoop:
    """Pages in, answers out. ``preparing`` runs host work of many pages, ``finishing`` turns ids into
    text.
    """

    def __init__(
        self, model: OcrModel, settings: EngineSettings, preparing: Executor, finishing: Executor
    ) -> None:
        self._model, self._settings = model, settings
        self._preparing_pool, self._finishing_pool = preparing, finishing
        budget = kv_budget_bytes(model.device, settings.kv_memory_mib, settings.kv_memory_share)
        max_page_tokens = min(settings.max_page_tokens, model.max_positions)
        plan = KvPlan.within(
            budget, kv_shape(model), max_pages=settings.max_running_pages, max_page_tokens=max_page_tokens
        )
        self._decoder = Decoder(model, DecoderLimits(plan, settings.loops, settings.max_ban_distance))
        self._encode_limit = BatchLimit(settings.max_encode_pages)
        self._prefill_limit = BatchLimit(plan.num_slots)
        self._row_limit = BatchLimit(plan.num_slots, patience=256)
        self._vision = Vision(model, self._encode_limit)
        self._lane = VisionLane(model.device)

        self._lock = threading.Lock()
        self._queue: FairQueue[PageTask] = FairQueue(settings.max_queued_pages)
        self._commands: deque[Callable[[], None]] = deque()
        self._woken = threading.Event()

        self._deadlines: Deadlines[PageTask] = Deadlines()
        self._num_preparing = 0
        self._ready: list[tuple[Turn, int, PageTask, Prepared]] = []
        self._ready_order = count()
        self._encoding: Future[list[Encoded | ParseError]] | None = None
        self._encoding_tasks: list[PageTask] = []
        self._encoded: deque[tuple[PageTask, Encoded]] = deque()
        self._num_alone = 0
        self._running: list[PageTask] = []
        self._pending: deque[_Pass] = deque()
        self._decode_clock_ms = 0.0
        self._steps = 0

    # any thread

    def enqueue(self, task: PageTask, priority: int) -> None:
        """Raise ``Overloaded`` rather than wait."""
        with self._lock:
            task.waits(time.monotonic())
            task.turn = self._queue.put(task, task.document_id, priority)
        self.post(partial(self._watch, task))

    def post(self, command: Callable[[], None]) -> None:
        """Have the loop run ``command`` at the start of its next turn."""
        self._commands.append(command)
        self._woken.set()

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(
            queued=len(self._queue),
            preparing=self._num_preparing + len(self._ready),
            encoding=len(self._encoding_tasks) + len(self._encoded),
            running=len(self._running),
            slots=self._decoder.cache.plan.num_slots,
            kv_bytes=self._decoder.cache.num_bytes,
            steps=self._steps,
        )

    # the loop's thread

    def warm_up(self) -> None:
        self._decoder.warm_up()

    def turn(self) -> bool:
        """Everything that can be done now, at most one decode step. False: nothing to do until woken."""
        self._woken.clear()
        while self._commands:
            self._commands.popleft()()
        for task in self._deadlines.expired(time.monotonic()):
            self.end(task, "deadline")
        self._prepare()
        self._encode()
        self._prefill()
        start = time.perf_counter()
        num_rows = len(self._running)
        self._decode()
        self._settle(leave=1 if self._running else 0)
        if num_rows:
            self._decode_clock_ms += (time.perf_counter() - start) * 1e3 / num_rows
        return bool(self._running or self._pending or self._encoded or self._commands)

    def wait(self) -> None:
        """Until something is posted or a deadline passes."""
        due = self._deadlines.next_s()
        self._woken.wait(None if due is None else max(0.0, due - time.monotonic()))

    def end(self, task: PageTask, reason: FinishReason) -> None:
        """Stop a page wherever it is and free its memory now. Nothing happens to one that is over."""
        if task.is_over:
            return
        if reason == "deadline" and not task.outcomes and task.row is None:
            self.fail(task, Overloaded("the page's deadline passed before its turn came"))
            return
        task.conclude(reason)
        self._finish(task)

    def fail(self, task: PageTask, error: ParseError) -> None:
        """A page that failed on a later attempt still has what the earlier ones read."""
        if task.is_over:
            return
        if task.outcomes:
            self._finish(task)
            return
        self._leave(task)
        task.settle(error)

    def close(self) -> None:
        self._lane.close()

    # waiting pages

    def _watch(self, task: PageTask) -> None:
        self._deadlines.add(task, task.deadline_s)

    def _prepare(self) -> None:
        while self._num_preparing + len(self._ready) < self._settings.prefetch_pages:
            with self._lock:
                popped = self._queue.pop()
            if popped is None:
                return
            self._start_preparing(popped[1])

    def _start_preparing(self, task: PageTask) -> None:
        self._num_preparing += 1
        attempt = task.attempt
        future = self._preparing_pool.submit(self._prepared_now, task)
        future.add_done_callback(lambda done: self.post(partial(self._prepared, task, attempt, done)))

    def _prepared_now(self, task: PageTask) -> Prepared | None:
        """In the pool. A page that ended while it waited costs nothing more."""
        if task.is_over:
            return None
        return prepare(self._model, task.page.image, task.rung, task.prompt_ids)

    def _prepared(self, task: PageTask, attempt: int, done: "Future[Prepared | None]") -> None:
        self._num_preparing -= 1
        error = done.exception()
        if error is not None:
            if not isinstance(error, Exception):
                raise error
            logger.warning("a page could not be prepared", exc_info=error)
            self.fail(task, failure_of(error))
            return
        prepared = done.result()
        if prepared is None or task.is_over or task.attempt != attempt or task.turn is None:
            return
        task.stops_waiting(prepared.started_s)
        task.times_ms["preprocess"] += prepared.preprocess_ms
        task.waits(time.monotonic())
        heapq.heappush(self._ready, (task.turn, next(self._ready_order), task, prepared))

    def _encode(self) -> None:
        """Take back what was encoded; start on the next pages of one mode, as many as there will be slots
        for.
        """
        if self._encoding is not None and self._encoding.done():
            self._encoded_arrived(self._encoding.result())
        if self._encoding is None:
            group = self._next_group(min(self._free_rows(), self._encode_limit.value))
            if group:
                now = time.monotonic()
                for task, _ in group:
                    task.stops_waiting(now)
                self._encoding_tasks = [task for task, _ in group]
                work = partial(self._vision.encode, [prepared for _, prepared in group])
                self._encoding = self._lane.submit(work)
                self._encoding.add_done_callback(lambda _: self._woken.set())
                if self._encoding.done():
                    self._encoded_arrived(self._encoding.result())

    def _free_rows(self) -> int:
        return (
            min(self._decoder.cache.plan.num_slots, self._row_limit.value)
            - len(self._running)
            - len(self._encoded)
        )

    def _next_group(self, most: int) -> list[tuple[PageTask, Prepared]]:
        """The first ready page and those of its mode behind it, in turn; the others keep their places."""
        group: list[tuple[PageTask, Prepared]] = []
        passed = []
        while self._ready and len(group) < most:
            entry = heapq.heappop(self._ready)
            task, prepared = entry[2:]
            if task.is_over:
                continue
            if group and prepared.views.mode != group[0][1].views.mode:
                passed.append(entry)
                continue
            group.append((task, prepared))
        for entry in passed:
            heapq.heappush(self._ready, entry)
        return group

    def _encoded_arrived(self, results: Sequence[Encoded | ParseError]) -> None:
        now = time.monotonic()
        for task, result in zip(self._encoding_tasks, results, strict=True):
            if task.is_over:
                continue
            if isinstance(result, ParseError):
                self.fail(task, result)
                continue
            task.times_ms["encode"] += result.encode_ms
            task.times_ms["prune"] += result.prune_ms
            if self._room(task, result) < 1:
                slot = self._decoder.cache.plan.slot_tokens
                self.fail(
                    task, PageTooLong(f"{len(result.prompt)} tokens before any output, {slot} is the most")
                )
                continue
            task.waits(now)
            self._encoded.append((task, result))
        self._encoding, self._encoding_tasks = None, []

    def _room(self, task: PageTask, encoded: Encoded) -> int:
        """Output tokens that the request, the page's slot and the model's positions leave."""
        slot = self._decoder.cache.plan.slot_tokens - len(encoded.prompt)
        positions = self._model.max_positions - encoded.prompt.next_position
        return min(task.max_output_tokens, slot, positions)

    # running pages

    def _prefill(self) -> None:
        """One packed prefill a turn, so that running pages wait no longer than ``max_prefill_tokens``
        take.
        """
        while self._encoded and self._encoded[0][0].is_over:
            self._encoded.popleft()
        waiting = [pair for pair in self._encoded if not pair[0].is_over]
        if not waiting:
            return
        lengths = [len(encoded.prompt) for _, encoded in waiting]
        most = 1 if self._num_alone else self._prefill_limit.value
        size = min(most, len(chunks_within(lengths, self._settings.max_prefill_tokens)[0]))
        batch = waiting[:size]
        self._encoded = deque(waiting[size:])
        self._num_alone = max(0, self._num_alone - size)
        start = time.perf_counter()
        try:
            choices = self._decoder.prefill(
                [encoded.prompt for _, encoded in batch], [task.rung.ngram for task, _ in batch]
            )
        except Exception as error:
            logger.warning("a prefill of %d pages failed", size, exc_info=error)
            self._prefill_failed(batch, error)
            return
        self._prefill_limit.succeeded()
        self._admitted(batch, choices, (time.perf_counter() - start) * 1e3 / size)

    def _admitted(self, batch: PrefillBatch, choices: Choices, prefill_ms: float) -> None:
        now = time.monotonic()
        for task, encoded in batch:
            task.stops_waiting(now)
            task.times_ms["prefill"] += prefill_ms
            task.starts(len(self._running), encoded, self._room(task, encoded), self._settings.loops)
            task.decode_clock_ms = self._decode_clock_ms
            self._running.append(task)
        self._pending.append(_Pass([(task, task.attempt) for task, _ in batch], choices))

    def _prefill_failed(self, batch: PrefillBatch, error: Exception) -> None:
        """Alone: the page fails. Together: smaller if memory ran out, else each alone to find whose fault it
        is.
        """
        if is_out_of_memory(error):
            give_back_memory(self._model.device)
            self._prefill_limit.shrink(len(batch))
        if len(batch) == 1:
            self.fail(batch[0][0], failure_of(error))
            return
        if not is_out_of_memory(error):
            self._num_alone = len(batch)
        self._encoded.extendleft(reversed(batch))

    def _decode(self) -> None:
        if not self._running:
            return
        owners = [(task, task.attempt) for task in self._running]
        try:
            choices = self._decoder.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise  # no page can be blamed, and the device's state is unknown
            self._step_out_of_memory()
            return
        self._steps += 1
        self._row_limit.succeeded()
        self._pending.append(_Pass(owners, choices))

    def _step_out_of_memory(self) -> None:
        """Fewer pages at once from now on: the half that came last starts over when there is room."""
        give_back_memory(self._model.device)
        num_rows = len(self._running)
        self._row_limit.shrink(num_rows)
        if num_rows == 1:
            self.fail(self._running[0], PageFailed("the page alone does not fit the device's memory"))
            return
        for task in self._running[num_rows // 2 :]:
            self._again(task, task.attempt)

    def _settle(self, leave: int) -> None:
        """Read passes back, all but the last ``leave``: the device works on those while the host thinks."""
        while len(self._pending) > leave:
            settled = self._pending.popleft()
            for (task, attempt), choice in zip(settled.owners, settled.choices.read(), strict=True):
                # a page that ended, or started over, since this pass was launched ran it for nothing
                if not task.is_over and task.attempt == attempt and task.row is not None:
                    self._take(task, choice)

    def _take(self, task: PageTask, choice: Choice) -> None:
        if not math.isfinite(choice.logprob_sum):
            self.fail(task, PageFailed("the model's numbers overflowed on this page"))
            return
        task.logprob_sum = choice.logprob_sum
        task.num_scored += 1
        if choice.token == self._model.eos_id:
            task.conclude("stop")
            self._finish(task)
            return
        task.ids.append(choice.token)
        task.feed.push(choice.token)
        ids = self._ids_before_loop(task, choice)
        if ids is not None:
            self._looped(task, ids)
        elif len(task.ids) >= task.room:
            task.conclude("length")
            self._finish(task)

    def _ids_before_loop(self, task: PageTask, choice: Choice) -> list[int] | None:
        """If the page has run into a loop: its output with the loop once. ``None``: it has not."""
        exempt, ngram = self._model.ngram_exempt_ids, task.rung.ngram
        if choice.is_repeating and (loop := find_loop(task.ids, self._settings.loops, exempt)) is not None:
            return without_repeats(task.ids, loop)
        if choice.was_banned and task.bans is not None:
            first = task.bans.add(len(task.ids) - 1)
            if first is not None:
                loop = loop_before_ban(task.ids[:first], ngram)
                return task.ids[:first] if loop is None else without_repeats(task.ids, loop)
        return None

    def _looped(self, task: PageTask, ids: list[int]) -> None:
        task.conclude("loop", ids)
        if task.has_next_rung:
            self._again(task, task.attempt + 1)
        else:
            self._finish(task)

    def _again(self, task: PageTask, attempt: int) -> None:
        """Read the page from the start. It keeps its turn, so it is next."""
        self._leave(task)
        task.restarts(attempt)
        task.waits(time.monotonic())
        self._start_preparing(task)

    def _finish(self, task: PageTask) -> None:
        """Its outcomes are complete: free its memory, make its text."""
        task.is_over = True
        self._leave(task)
        self._deadlines.discard(lambda other: other.is_over)
        self._finishing_pool.submit(_complete, task, self._model)

    def _leave(self, task: PageTask) -> None:
        """Out of the queue and off the device."""
        task.stops_waiting(time.monotonic())
        if task.turn is not None:
            with self._lock:
                self._queue.remove(task.turn)
        if task.row is None:
            return
        task.times_ms["decode"] += self._decode_clock_ms - task.decode_clock_ms
        row, task.row = task.row, None
        self._decoder.release(row)
        moved = self._running.pop()
        if moved is not task:
            self._running[row] = moved
            moved.row = row


def _complete(task: PageTask, model: OcrModel) -> None:
    """Ids -> text, away from the loop."""
    try:
        task.settle(task.reading(model.decode_text(task.best().ids)))
    except Exception as error:
        logger.exception("a page's text could not be made")
        task.settle(failure_of(error))
