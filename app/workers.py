"""The API's side of ``app.worker``: starts it, watches it, restarts it, and keeps documents alive meanwhile.

A page that was with the model when the worker died is a suspect: it is read again, once, alone among
suspects, so that a page which kills the worker is told from those that were only near. If the worker dies
with it twice, the page is ``worker_lost``.
"""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.document import Failure, PageResult, ParseOptions
from app.errors import DocumentDeadline, NotReady, ParseError, WorkerLost
from app.formats import Source
from app.frames import MAX_FRAME_BYTES, FrameError, pack, read_frame
from app.messages import (
    Cancel,
    DocumentEvent,
    Ended,
    Opened,
    PageDone,
    Parse,
    Ping,
    Pong,
    Ready,
    Start,
    Started,
    ToWorker,
    Unusable,
    decode_from_worker,
    encode_to_worker,
)
from app.parser import Readiness
from app.processes import child_environment, kill_group, python_module, resident_mib
from app.settings import Settings
from app.telemetry import Metrics

logger = logging.getLogger("rtprune.workers")

FIRST_RESTART_DELAY_S = 0.2
STEADY_S = 10.0
"""A worker that was ready for this long starts again without growing delay."""
CLOSE_GRACE_S = 5.0
MAX_STRIKES = 2
MAX_IDLE_LOSSES = 3
"""Deaths of the worker that a document survives although none of its pages was with the model."""


class _LinkLost(Exception):
    """The worker died."""


class _Link:
    """One running worker and the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        incoming: asyncio.StreamReader,
        outgoing: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.incoming = incoming
        self._outgoing = outgoing
        self._events: dict[str, asyncio.Queue[DocumentEvent | None]] = {}
        self._lost = False
        self.started_at = self.heard_at = asyncio.get_running_loop().time()
        self.ready_at: float | None = None

    @classmethod
    async def open(cls, settings: Settings, tmp_dir: Path) -> "_Link":
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *python_module("app.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # our standard error: what a worker prints is a log, not our output
                env=child_environment(tmp_dir),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        incoming, outgoing = await asyncio.open_connection(sock=ours, limit=MAX_FRAME_BYTES)
        link = cls(process, incoming, outgoing)
        link.post(Start(settings.model_dump(mode="json")))
        return link

    def post(self, message: ToWorker) -> None:
        """Send without waiting: messages to a worker are small, and as many as there are documents."""
        if not self._outgoing.is_closing():
            self._outgoing.write(pack(encode_to_worker(message)))

    @contextlib.contextmanager
    def events(self, job_id: str) -> Iterator[asyncio.Queue[DocumentEvent | None]]:
        """What the worker says about one job; ``None``: it died."""
        queue = self._events[job_id] = asyncio.Queue()
        if self._lost:
            queue.put_nowait(None)
        try:
            yield queue
        finally:
            del self._events[job_id]

    def deliver(self, event: DocumentEvent) -> None:
        if event.id in self._events:  # else: said before the worker knew of the cancellation
            self._events[event.id].put_nowait(event)

    async def close(self) -> None:
        """End the worker, gently if it listens; tell the documents it had."""
        self._lost = True
        for queue in self._events.values():
            queue.put_nowait(None)
        self._outgoing.close()
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self.process.wait()
        except TimeoutError:
            logger.warning("worker does not end, killing it")
        finally:
            kill_group(self.process.pid)
            await self.process.wait()


@dataclass(slots=True)
class _Progress:
    """What is known of one document across the workers that had it. ``todo``: 0-based pages, once known."""

    todo: list[int] | None = None
    with_model: dict[int, Started] = field(default_factory=dict)
    suspects: list[int] = field(default_factory=list)
    strikes: Counter[int] = field(default_factory=Counter)
    num_idle_losses: int = 0
    num_attempts: int = 0

    def next_pages(self) -> tuple[int, ...] | None:
        if self.suspects:
            return (self.suspects[0],)
        return None if self.todo is None else tuple(self.todo)

    def finish(self, page: PageResult) -> PageResult:
        if self.todo is not None:
            self.todo.remove(page.index)
        self.with_model.pop(page.index, None)
        if page.index in self.suspects:
            self.suspects.remove(page.index)
        return page

    def lost(self) -> list[PageResult]:
        """The worker died: pages that are given up. Raise ``WorkerLost`` if not even the pages are known."""
        seen, self.with_model = self.with_model, {}
        self.strikes.update(seen.keys())
        self.num_idle_losses += not seen
        error = WorkerLost("the process that read the page died, twice")
        if self.num_idle_losses >= MAX_IDLE_LOSSES:
            if self.todo is None:
                raise WorkerLost("the process that was to read the document died repeatedly")
            return self.give_up(error)
        self.suspects += [index for index in seen if index not in self.suspects]
        doomed = [event for index, event in seen.items() if self.strikes[index] >= MAX_STRIKES]
        return [self.finish(_failed(event.index, error, event.width, event.height)) for event in doomed]

    def give_up(self, error: ParseError) -> list[PageResult]:
        """Every page that is left, failed. Raise ``error`` when the pages are not even known."""
        if self.todo is None:
            raise error
        return [self.finish(_failed(index, error)) for index in list(self.todo)]


class Supervisor:
    """Keeps the contract of ``Parser`` with one worker process."""

    def __init__(self, settings: Settings, tmp_dir: Path, metrics: Metrics) -> None:
        self._settings = settings
        self._tmp_dir = tmp_dir
        self._metrics = metrics
        self._link: _Link | None = None
        self._changed = asyncio.Condition()
        self._readiness = Readiness(ready=False, detail="the model is being loaded")
        self._unusable = False
        self._quarantine = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def readiness(self) -> Readiness:
        return self._readiness

    @property
    def worker_pid(self) -> int | None:
        return self._link.process.pid if self._link else None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="worker keeper")
        self._keeper.add_done_callback(_log_if_failed)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def wait_ready(self) -> None:
        """Wait for the model. Raise ``NotReady`` as soon as it is known that it cannot be loaded."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._readiness.ready or self._unusable)
        if not self._readiness.ready:
            raise NotReady(self._readiness.detail)

    async def parse(
        self, source: Source, options: ParseOptions, *, document_id: str
    ) -> AsyncGenerator[PageResult, None]:
        """See ``Parser.parse``. Pages that the deadline overtakes are failures; earlier ones are results."""
        deadline = asyncio.get_running_loop().time() + self._settings.document_deadline_s
        progress = _Progress()
        while progress.todo != []:
            progress.num_attempts += 1
            job = Parse(f"{document_id}.{progress.num_attempts}", str(source.path), source.format, options)
            given_up: list[PageResult] = []
            try:
                async with contextlib.aclosing(self._attempt(job, progress, deadline)) as pages:
                    async for page in pages:
                        yield page
            except TimeoutError:
                limit_s = self._settings.document_deadline_s
                given_up = progress.give_up(DocumentDeadline(f"not read within {limit_s:g} s"))
            except _LinkLost:
                given_up = progress.lost()
            for page in given_up:
                yield page

    async def _attempt(
        self, job: Parse, progress: _Progress, deadline: float
    ) -> AsyncGenerator[PageResult, None]:
        """Have the worker read what is left, or one suspect. Raise ``_LinkLost``, or ``TimeoutError``."""
        async with self._turn(progress, deadline):
            link = await self._ready_link(deadline)
            with link.events(job.id) as events:
                link.post(replace(job, pages=progress.next_pages()))
                try:
                    while True:
                        async with asyncio.timeout_at(deadline):
                            event = await events.get()
                        match event:
                            case None:
                                raise _LinkLost
                            case Opened(pages=pages):
                                progress.todo = list(pages)
                            case Started():
                                progress.with_model[event.index] = event
                            case PageDone(page=page):
                                yield progress.finish(page)
                            case Ended(failure=None):
                                return
                            case Ended(failure=Failure() as failure):
                                raise failure.error()
                finally:
                    link.post(Cancel(job.id))

    @contextlib.asynccontextmanager
    async def _turn(self, progress: _Progress, deadline: float) -> AsyncIterator[None]:
        if not progress.suspects:
            yield
            return
        async with asyncio.timeout_at(deadline):
            await self._quarantine.acquire()
        try:
            yield
        finally:
            self._quarantine.release()

    async def _ready_link(self, deadline: float) -> _Link:
        async with asyncio.timeout_at(deadline), self._changed:
            await self._changed.wait_for(lambda: self._readiness.ready)
        if self._link is None:
            raise _LinkLost
        return self._link

    async def _keep(self) -> None:
        delay_s = FIRST_RESTART_DELAY_S
        while True:
            steady = False
            try:
                steady = await self._run_one()
            except OSError:
                logger.exception("the worker cannot be started")
            delay_s = (
                FIRST_RESTART_DELAY_S if steady else min(delay_s * 2, self._settings.max_restart_delay_s)
            )
            await asyncio.sleep(delay_s)

    async def _run_one(self) -> bool:
        """Start a worker and stay with it until it is gone. True when it had been ready for a while."""
        self._metrics.worker_starts.inc()
        link = self._link = await _Link.open(self._settings, self._tmp_dir)
        checks = asyncio.create_task(self._check(link), name="worker checks")
        try:
            await self._listen(link)
        except FrameError:
            logger.exception("the worker does not speak our language")
        finally:
            checks.cancel()
            if self._readiness.ready:
                await self._set(Readiness(False, "the model is being loaded again", self._readiness.model))
            self._link = None
            await link.close()
            logger.warning("worker ended", extra={"returncode": link.process.returncode})
        lived_s = asyncio.get_running_loop().time() - (link.ready_at or float("inf"))
        return lived_s > STEADY_S

    async def _listen(self, link: _Link) -> None:
        while (frame := await read_frame(link.incoming)) is not None:
            link.heard_at = asyncio.get_running_loop().time()
            match decode_from_worker(frame):
                case Ready(model=model):
                    link.ready_at = link.heard_at
                    self._unusable = False
                    await self._set(Readiness(True, "ready", model))
                    logger.info("model loaded", extra={"model": model, "pid": link.process.pid})
                case Unusable(detail=detail):
                    self._unusable = True
                    await self._set(Readiness(False, detail, self._readiness.model))
                case Pong():
                    pass
                case event:
                    link.deliver(event)

    async def _check(self, link: _Link) -> None:
        """Kill a worker that outgrew its memory, fell silent, or never finishes loading."""
        while True:
            await asyncio.sleep(self._settings.worker_check_s)
            complaint = self._complaint(link)
            if complaint is not None:
                logger.error("killing the worker", extra={"reason": complaint})
                kill_group(link.process.pid)
                return
            link.post(Ping())

    def _complaint(self, link: _Link) -> str | None:
        rss_mib = resident_mib(link.process.pid)
        now = asyncio.get_running_loop().time()
        if rss_mib is not None and rss_mib > self._settings.max_worker_rss_mib:
            return f"it uses {rss_mib:.0f} MiB, the limit is {self._settings.max_worker_rss_mib}"
        if link.ready_at is None:
            too_long = now - link.started_at > self._settings.worker_load_s
            return "the model takes too long to load" if too_long else None
        if now - link.heard_at > self._settings.worker_silence_s:
            return f"nothing heard for {self._settings.worker_silence_s:g} s"
        return None

    async def _set(self, readiness: Readiness) -> None:
        async with self._changed:
            self._readiness = readiness
            self._metrics.worker_ready.set(readiness.ready)
            self._changed.notify_all()


def _failed(index: int, error: ParseError, width: int = 0, height: int = 0) -> PageResult:
    return PageResult(index, width, height, "", failure=Failure.of(error))


def _log_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the worker keeper ended", exc_info=error)
