"""Start, watch and restart the embedded worker, for the API.

Work and results go through the database. The socket to the worker carries only its settings at the start,
and wake-ups in both directions.
"""

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

from app.errors import StorageFull, StorageUnavailable
from app.jobs.api.outcome import Phase
from app.jobs.leases import Leases
from app.jobs.notifications import Notifications
from app.metrics import Metrics
from app.processes import child_environment, kill_group, memory_mib, own_mib, python_module
from app.settings import Settings

logger = logging.getLogger("rtprune.workers")

FIRST_RESTART_DELAY_S = 0.2
STEADY_S = 10.0
"""A worker that lived this long is restarted without a growing delay."""
CLOSE_GRACE_S = 5.0
HELD_UP_S = 0.5
"""A check that comes this late is skipped. This process stood still and may have missed the worker's beats.
"""
WORKER_SHARE = 0.9
"""Share of the machine's memory that a worker may use where no limit is set."""
UNUSABLE_STATUS = 3
"""Exit status of a worker whose model cannot be loaded; it has said why in its lease."""


def max_worker_rss_mib(settings: Settings) -> float:
    """Return the resident memory, in MiB, above which a worker is restarted."""
    return settings.max_worker_rss_mib or WORKER_SHARE * memory_mib()


class Supervisor:
    """Keeps one worker process running for as long as this object is open."""

    def __init__(
        self,
        settings: Settings,
        tmp_dir: Path,
        metrics: Metrics,
        leases: Leases,
        notifications: Notifications,
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._tmp_dir = tmp_dir
        self._metrics = metrics
        self._leases = leases
        self._notifications = notifications
        self._changed = changed
        self.worker_id = ""
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="worker keeper")
        self._keeper.add_done_callback(_log_if_failed)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

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
        """Start a worker and stay with it until it is gone. Return whether it lived for ``STEADY_S``."""
        self._metrics.worker_starts.inc()
        self.worker_id = uuid.uuid4().hex
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await self._spawn(ours, theirs)
            beside = (
                asyncio.create_task(self._notifications.carry(ours), name="worker notifications"),
                asyncio.create_task(self.check(process, started_at), name="worker checks"),
            )
            try:
                await process.wait()
            finally:
                await self._end(process)
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
        logger.warning("worker ended", extra={"returncode": process.returncode})
        return loop.time() - started_at > STEADY_S

    async def _spawn(self, ours: socket.socket, theirs: socket.socket) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *python_module("app.worker", "--embedded"),
            stdin=theirs.fileno(),
            stdout=2,  # our standard error: what a worker prints is a log, not our output
            env=child_environment(self._tmp_dir) | {"RTPRUNE_WORKER_ID": self.worker_id},
            start_new_session=True,
        )
        ours.sendall(self._settings.model_dump_json().encode() + b"\n")
        return process

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """End the worker, gently if it still runs.

        Expire its lease at once, because it is known to be gone.
        """
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await process.wait()
        except TimeoutError:
            logger.warning("worker does not end, killing it")
        finally:
            kill_group(process.pid)
            await process.wait()
        if process.returncode != UNUSABLE_STATUS:
            with contextlib.suppress(StorageUnavailable, StorageFull):
                await asyncio.to_thread(self._leases.expire, self.worker_id)
        self._changed()

    async def check(self, process: asyncio.subprocess.Process, started_at: float) -> None:
        """Kill a worker that uses too much memory, falls silent, or never finishes loading."""
        was_ready = False
        while True:
            slept_at = asyncio.get_running_loop().time()
            await asyncio.sleep(self._settings.worker_check_s)
            now = asyncio.get_running_loop().time()
            if now - slept_at > self._settings.worker_check_s + HELD_UP_S:
                continue  # our own loop stood still: the worker's beats are not read yet
            if not was_ready:
                with contextlib.suppress(StorageUnavailable, StorageFull):
                    phase = await self._phase()
                    was_ready = phase == "ready"
                    if phase == "downloading":
                        started_at = now
            # Beats, not the lease: a full disk keeps the lease from being renewed, and no restart helps.
            heard_at = max(started_at, self._notifications.heard_at) if was_ready else started_at
            complaint = self._complaint(process.pid, now - heard_at, was_ready=was_ready)
            if complaint is not None:
                logger.error("killing the worker", extra={"reason": complaint})
                kill_group(process.pid)
                return

    async def _phase(self) -> Phase | None:
        state = await asyncio.to_thread(self._leases.state, self.worker_id)
        return None if state is None else state.phase

    def _complaint(self, pid: int, silent_s: float, *, was_ready: bool) -> str | None:
        rss_mib = own_mib(pid)
        limit_mib = max_worker_rss_mib(self._settings)
        if rss_mib is not None and rss_mib > limit_mib:
            return f"it uses {rss_mib:.0f} MiB, the limit is {limit_mib:.0f}"
        if not was_ready and silent_s > self._settings.worker_load_s:
            return "the model takes too long to load"
        if was_ready and silent_s > self._settings.worker_silence_s:
            return f"nothing heard for {self._settings.worker_silence_s:g} s"
        return None


def _log_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the worker keeper ended", exc_info=error)
