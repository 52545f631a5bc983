"""Continuous batching over pages of different documents: the ``PageReader`` that the service talks to.

    submit -> queue -> preprocess -> encode + prune -> prefill -> decode ... -> result
              fair     thread pool   pages of one     packed     all running
              rounds                 mode together               pages, one step

A page joins or leaves at any step; the batch never has to drain. The loop (``PageLoop``) runs in one thread.
If that thread dies, every page fails and so does every later ``submit``, so no caller waits for ever.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from app.document import Page, Reading, ReadOptions
from app.errors import PageFailed
from app.ocr.engine.drafts import Acceptance, DraftText
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.stream import pieces_of
from app.ocr.engine.task import PageTask, can_fixate, new_task
from app.ocr.engine.together import EnginePagesStream
from app.ocr.models.model import OcrModel
from app.ocr.models.preprocess import view_scale
from app.ocr.risk import Evidence
from app.reader import ReaderLoad

logger = logging.getLogger(__name__)


class EngineStream:
    """The ``PageStream`` of this engine."""

    def __init__(self, task: PageTask, model: OcrModel, loop: PageLoop, interval_seconds: float) -> None:
        self._task, self._model, self._loop = task, model, loop
        self._interval_seconds = interval_seconds

    def pieces(self) -> AsyncIterator[str]:
        return pieces_of(self._task.feed, self._model.decode_text, self._interval_seconds)

    async def result(self) -> Reading:
        # shielded: a caller that stops waiting must not cancel the future that the engine will set
        return await asyncio.shield(asyncio.wrap_future(self._task.done))

    @property
    def evidence(self) -> Evidence:
        """Data from which the result's risk was estimated; complete once the result is there."""
        return Evidence(self._task.best().logprobs if self._task.outcomes else ())

    def cancel(self) -> None:
        self._loop.post(partial(self._loop.end, self._task, "cancelled"))


class Engine:
    """Reader of pages with one model on one device. It starts its thread at once; ``close`` ends it.

    ``on_death`` is called when the thread dies of a defect or a lost device, before any page fails. A process
    that only reads pages ends itself there, so that its pages are read elsewhere instead of failing.
    """

    def __init__(
        self,
        model: OcrModel,
        settings: EngineSettings | None = None,
        on_death: Callable[[], None] | None = None,
    ) -> None:
        self._model = model
        self._on_death = on_death or _carry_on
        self._settings = settings or EngineSettings()
        self._preparing = ThreadPoolExecutor(
            self._settings.preprocess_threads, thread_name_prefix="preprocess"
        )
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._loop = PageLoop(model, self._settings, self._preparing, self._finishing)
        self._lock = threading.Lock()
        self._tasks: dict[Future[Reading], PageTask] = {}
        self._is_closing = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def model_name(self) -> str:
        return self._model.name

    @property
    def modes(self) -> Collection[str]:
        return self._model.modes

    @property
    def reads_together(self) -> bool:
        return self._model.several_pages is not None

    @property
    def fixates(self) -> bool:
        return can_fixate(self._model)

    @property
    def default_mode(self) -> str:
        return self._model.default_mode

    def scales(self, width: int, height: int) -> dict[str, float]:
        """Return how many pixels of its views show one pixel of a page, by mode; see ``KnowsModes``."""
        trained = (mode for mode in self._model.modes.values() if mode.trained)
        return {mode.name: view_scale(width, height, mode) for mode in trained}

    @property
    def failure(self) -> str | None:
        """Reason why no page can be read any more; ``None`` while the engine works."""
        return self._failure

    @property
    def load(self) -> ReaderLoad:
        return self._loop.load.reported

    def submit(
        self,
        page: Page,
        options: ReadOptions,
        *,
        document_id: str,
        priority: int = 0,
        deadline_seconds: float | None = None,
        draft_text: DraftText | None = None,
    ) -> EngineStream:
        """Queue a page without waiting.

        Higher ``priority`` goes first, except for one page in eight (``FairQueue``). Pages of one priority
        take turns by document. A page whose deadline passes ends with what it has; one not yet begun ends
        with ``Overloaded``.

        ``draft_text``: what may be written on the page, by default the words of its text layer; it changes no
        token. Raise ``BadOption``; ``Overloaded`` for a full queue; ``PageFailed`` when the engine has
        stopped.
        """
        if draft_text is None and page.words:
            draft_text = self.draft_text(" ".join(page.words))
        task = new_task(self._model, self._settings, page, options, document_id, deadline_seconds, draft_text)
        return self._submit(task, priority)

    def submit_together(
        self,
        pages: Sequence[Page],
        options: ReadOptions,
        *,
        document_id: str,
        priority: int = 0,
        deadline_seconds: float | None = None,
    ) -> EnginePagesStream:
        """Queue several pages as one prompt. The checkpoint writes a mark in front of the text of each.

        One page is queued as ``submit`` does. ``deadline_seconds``: for each page. Raise ``BadOption`` for a
        checkpoint that reads one page a prompt, and what ``submit`` raises.
        """
        page, *more = pages
        task = new_task(self._model, self._settings, page, options, document_id, deadline_seconds, more=more)
        return EnginePagesStream(self._submit(task, priority), task, self._model)

    def _submit(self, task: PageTask, priority: int) -> EngineStream:
        with self._lock:
            if self._failure is not None:
                raise PageFailed(self._failure)
            self._loop.enqueue(task, priority)
            self._tasks[task.done] = task
        # a callback that holds the task makes a circle: the page would stay until the garbage collector runs
        task.done.add_done_callback(self._forget)
        return EngineStream(task, self._model, self._loop, self._settings.piece_interval_seconds)

    def draft_text(
        self, text: str, acceptance: Acceptance | None = None, *, is_exact: bool = False
    ) -> DraftText | None:
        """Return text for ``submit``; ``None`` where no drafts are made."""
        if not self._loop.max_draft_tokens:
            return None
        return DraftText(text, self._model.text_ids, acceptance, is_exact=is_exact)

    async def close(self) -> None:
        """Cancel running pages and release the device."""
        await asyncio.to_thread(self.shut_down)

    def shut_down(self) -> None:
        """Do the same as ``close`` for callers without an event loop. Returns when the threads have ended."""
        self._is_closing = True
        self._loop.post(lambda: None)
        self._thread.join()
        self._preparing.shutdown(wait=True, cancel_futures=True)
        self._finishing.shutdown(wait=True)

    def _forget(self, done: Future[Reading]) -> None:
        with self._lock:
            self._tasks.pop(done, None)

    def _run(self) -> None:
        try:
            self._loop.warm_up()
            while not self._is_closing:
                if not self._loop.turn():
                    self._loop.wait()
            self._stop("the reading engine was closed")
            for task in self._unfinished():
                self._loop.end(task, "cancelled")
        except BaseException as error:
            logger.exception("the engine's loop died")
            self._on_death()
            self._stop(f"the reading engine stopped ({type(error).__name__})")
            for task in self._unfinished():
                task.settle(PageFailed(self._failure or "the reading engine stopped"))
        finally:
            self._loop.close()

    def _stop(self, reason: str) -> None:
        """Make ``submit`` refuse from now on.

        Pages accepted before are in ``_tasks`` and get their answers.
        """
        with self._lock:
            self._failure = reason

    def _unfinished(self) -> list[PageTask]:
        with self._lock:
            return [task for task in self._tasks.values() if not task.done.done()]


def _carry_on() -> None:
    """Do nothing: the default ``on_death``, for a process with other work."""
