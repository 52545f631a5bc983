"""A worker's silence is told from that of the API's own event loop."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.jobs.api import supervisor
from app.jobs.api.supervisor import Supervisor
from app.jobs.notifications import Notifications
from app.metrics import Metrics
from app.settings import Settings


def test_a_worker_is_not_silent_while_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed: list[int] = []
    monkeypatch.setattr(supervisor, "kill_group", killed.append)
    monkeypatch.setattr(supervisor, "HELD_UP_S", 0.1)

    async def run() -> None:
        settings = Settings(worker_check_s=0.05, worker_silence_s=0.5, data_dir=tmp_path)
        wakeups = Notifications()
        leases = cast("Any", SimpleNamespace(state=lambda _: SimpleNamespace(phase="ready")))
        supervisor = Supervisor(settings, tmp_path, Metrics(), leases, wakeups, lambda: None)
        loop = asyncio.get_running_loop()
        wakeups.heard_at = loop.time()
        process = cast("Any", SimpleNamespace(pid=0))
        checking = asyncio.create_task(supervisor.check(process, loop.time()))
        await asyncio.sleep(0.2)
        time.sleep(1)  # noqa: ASYNC251 - the loop stands still, as while it does something large
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert killed == []
        wakeups.heard_at = loop.time()  # what waited in the socket
        await asyncio.sleep(0.2)
        assert killed == []
        async with asyncio.timeout(60):
            await checking  # silence that was listened to

    asyncio.run(run())
    assert killed == [0]
