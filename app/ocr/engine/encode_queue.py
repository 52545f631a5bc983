"""Pages on their way to prefill: queued, preprocessed ahead, then encoded and pruned together."""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Protocol

from app.errors import PageTooLong, ParseError
from app.ocr.engine.device import EncodeExecutor
from app.ocr.engine.kv_cache import KvPlan
from app.ocr.engine.scheduler import BatchLimit, FairQueue, Turn
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import PageTask
from app.ocr.engine.vision import Encoded, Prepared, Vision, failure_of, prepare
from app.ocr.models.model import OcrModel

logger = logging.getLogger(__name__)


LOWER_SHARE = 8
"""One page in this many has a lower priority than others that wait."""


class Owner(Protocol):
    """The loop that a queue takes pages in for."""

    def post(self, command: Callable[[], None]) -> None:
        """Run ``command`` in the loop's thread. May be called from any thread."""

    def wake(self) -> None:
        """Wake the loop, because there is new work. May be called from any thread."""

    def fail(self, task: PageTask, error: ParseError) -> None: ...


class EncodeQueue:
    """Queue of pages before prefill. All methods but ``put`` must run in the loop's thread.

    ``lane``: executor in which pages are encoded. ``encoded``: pages ready for prefill, in turn.
    """

    def __init__(
        self, model: OcrModel, settings: EngineSettings, pool: Executor, plan: KvPlan, owner: Owner
    ) -> None:
        self._model, self._pool, self._owner = model, pool, owner
        self._max_ahead = settings.prefetch_pages
        self._slot_tokens = plan.slot_tokens
        self._lock = threading.Lock()
        self._queue: FairQueue[PageTask] = FairQueue(
            settings.max_queued_pages, one_in=LOWER_SHARE, group=settings.view_group
        )
        self._limit = BatchLimit(settings.max_encode_pages)
        self._vision = Vision(model, self._limit)
        self.lane = EncodeExecutor(model.device, beside_decode=settings.encode_beside_decode)
        self._num_in_pool = 0
        self._ready: list[tuple[Turn, int, PageTask, Prepared]] = []
        self._arrivals = count()
        self._encoding: Future[list[Encoded | ParseError]] | None = None
        self._group: list[PageTask] = []
        self.encoded: list[tuple[PageTask, Encoded]] = []

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_preparing(self) -> int:
        return self._num_in_pool + len(self._ready)

    @property
    def num_encoding(self) -> int:
        return len(self._group) + len(self.encoded)

    def put(self, task: PageTask, priority: int) -> None:
        """Queue a page. Raise ``Overloaded`` rather than wait. May be called from any thread."""
        with self._lock:
            task.waits(time.monotonic())
            task.turn = self._queue.put(task, task.document_id, priority)

    def withdraw(self, task: PageTask) -> None:
        """Remove a page from wherever it waits. Work already running for it is dropped when done."""
        if task.turn is not None:
            with self._lock:
                self._queue.remove(task.turn)
        self.encoded = [pair for pair in self.encoded if pair[0] is not task]
        if any(entry[2] is task for entry in self._ready):
            self._ready = [entry for entry in self._ready if entry[2] is not task]
            heapq.heapify(self._ready)

    def begin(self, task: PageTask) -> None:
        """Preprocess a page now. A page that is read again keeps its turn, so it is next."""
        self._num_in_pool += 1
        life = task.life
        future = self._pool.submit(self._prepare, task)
        future.add_done_callback(lambda done: self._owner.post(partial(self._prepared, task, life, done)))

    def advance(self, num_rows: int, most_rows: int) -> None:
        """Preprocess ahead, and encode pages for ``num_rows`` free rows of ``most_rows``.

        Where encoding runs beside decoding, also encode some pages for rows that become free later.
        """
        while self.num_preparing < self._max_ahead:
            with self._lock:
                popped = self._queue.pop()
            if popped is None:
                break
            turn, task = popped
            task.turn = turn
            self.begin(task)
        self._collect()
        num_rows -= len(self.encoded)
        # a free row must not wait; pages that have time are encoded in groups
        least = most_rows // self.lane.shares if num_rows > 0 else self.lane.group
        room = num_rows + self.lane.ahead
        if self._encoding is None and room >= max(1, min(least, self._num_coming)):
            self._encode(room, at_least=0 if num_rows > 0 else min(least, self._num_coming))
            self._collect()

    @property
    def _num_coming(self) -> int:
        """Number of pages that could be encoded together if one waited for them."""
        return self.num_queued + self.num_preparing

    def take_up(self, task: PageTask, encoded: Encoded) -> None:
        """Read a page once more in the same mode, without preprocessing or encoding it again."""
        try:
            again = self._vision.again(encoded, task.attempt_plan)
        except Exception as error:
            logger.warning("a page could not be read again", exc_info=error)
            self._owner.fail(task, failure_of(error))
            return
        self._take_in([(task, again)], in_front=True)

    def room(self, task: PageTask, encoded: Encoded) -> int:
        """Return how many output tokens the request, the page's slot and the model's positions leave."""
        slot = self._slot_tokens - len(encoded.prompt)
        positions = self._model.max_positions - encoded.prompt.next_position
        return min(task.max_output_tokens, slot, positions)

    def size(self, task: PageTask, encoded: Encoded) -> int:
        """Return the most KV tokens that the page may come to hold."""
        return len(encoded.prompt) + self.room(task, encoded)

    def close(self) -> None:
        self.lane.close()

    def _prepare(self, task: PageTask) -> Prepared | None:
        """Preprocess a page, in the pool. Return ``None`` for a page that ended while it waited."""
        if task.is_over:
            return None
        if task.draft_text is not None:
            task.draft_text.prepare()
        first, *more = (
            prepare(self._model, page.image, task.attempt_plan, task.prompt_ids, trace=task.trace)
            for page in (task.page, *task.more)
        )
        return replace(first, more=tuple(more)) if more else first

    def _prepared(self, task: PageTask, life: int, done: "Future[Prepared | None]") -> None:
        self._num_in_pool -= 1
        error = done.exception()
        if error is not None:
            logger.warning("a page could not be prepared", exc_info=error)
            self._owner.fail(task, failure_of(error))
            return
        prepared = done.result()
        if prepared is None or task.is_over or task.life != life or task.turn is None:
            return
        task.stops_waiting(prepared.started_s)
        task.times_ms["preprocess"] += prepared.preprocess_ms
        task.waits(time.monotonic())
        heapq.heappush(self._ready, (task.turn, next(self._arrivals), task, prepared))

    def _encode(self, num_rows: int, at_least: int) -> None:
        if len(self._ready) < at_least:
            return
        group = self._next_group(min(num_rows, self._limit.value))
        if not group:
            return
        now = time.monotonic()
        for task, _ in group:
            task.stops_waiting(now)
        self._group = [task for task, _ in group]
        self._encoding = self.lane.submit(partial(self._vision.encode, [prepared for _, prepared in group]))
        self._encoding.add_done_callback(lambda _: self._owner.wake())

    def _next_group(self, most: int) -> list[tuple[PageTask, Prepared]]:
        """Take the first ready page and the next ones of its mode; the others keep their places."""
        group: list[tuple[PageTask, Prepared]] = []
        passed = []
        num_pixels, most_pixels = 0, self.lane.max_pixels
        while self._ready and len(group) < most:
            entry = heapq.heappop(self._ready)
            task, prepared = entry[2:]
            if task.is_over:
                continue
            is_too_much = most_pixels is not None and num_pixels + prepared.num_pixels > most_pixels
            if group and (is_too_much or prepared.views.mode != group[0][1].views.mode):
                passed.append(entry)
                continue
            num_pixels += prepared.num_pixels
            group.append((task, prepared))
        for entry in passed:
            heapq.heappush(self._ready, entry)
        return group

    def _collect(self) -> None:
        """Take in the pages whose encoding is done."""
        if self._encoding is None or not self._encoding.done():
            return
        results: Sequence[Encoded | ParseError] = self._encoding.result()
        group, self._encoding, self._group = self._group, None, []
        now = time.monotonic()
        for task, result in zip(group, results, strict=True):
            if task.is_over:
                continue
            if isinstance(result, ParseError):
                self._owner.fail(task, result)
                continue
            task.times_ms["encode"] += result.encode_ms
            task.times_ms["prune"] += result.prune_ms
            task.waits(now)
            self._take_in([(task, result)])

    def _take_in(self, pages: list[tuple[PageTask, Encoded]], *, in_front: bool = False) -> None:
        fitting = []
        for task, encoded in pages:
            if self.room(task, encoded) >= 1:
                fitting.append((task, encoded))
                continue
            before = f"{len(encoded.prompt)} tokens before any output"
            self._owner.fail(task, PageTooLong(f"{before}, {self._slot_tokens} is the most for a page"))
        self.encoded = fitting + self.encoded if in_front else self.encoded + fitting
