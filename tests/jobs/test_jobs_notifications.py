"""Wake-ups between processes, and what happens without them.

Where nobody would look for an hour, whatever happens within a test's patience was told.
"""

import asyncio
import base64
import json
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jobs_client import Client, api, workers
from service_client import A4, eventually, image_bytes, pdf_bytes

from app.jobs.notifications import Notifications, SocketNotifications, open_notifications
from app.settings import Settings

NEVER_S = 3600


@contextmanager
def service(data_dir: Path, database_url: str) -> Iterator[Client]:
    """An API and a worker: its own on SQLite, one of another machine's kind on PostgreSQL."""
    settings: dict[str, Any] = {"queue_poll_s": NEVER_S, "max_pages_in_flight": 2, "batch_pages": 2}
    if not database_url:
        with api(data_dir, embedded_worker=True, **settings) as client:
            client.server.wait_ready()
            yield client
        return
    with (
        api(data_dir, database_url, **settings) as client,
        workers(1, data_dir, database_url, **settings),
    ):
        client.server.wait_ready()
        yield client


def test_work_results_and_cancellations_are_told(database_url: str, tmp_path: Path) -> None:
    with service(tmp_path, database_url) as client:
        assert client.server.parse(image_bytes()).status_code == 200, "one page, to the worker and back"
        # more batches than a worker holds: room is seen, children are seen
        job_id = client.accepted(pdf_bytes(*[A4] * 9), dpi=36)
        assert [number for number, _, _ in client.events(job_id)] == list(range(1, 11))
        endless = client.accepted(pdf_bytes(*[A4] * 2), dpi=36, prompt={"delay_s": NEVER_S})
        eventually(lambda: client.job(endless)["status"] == "running")
        assert client.http.delete(f"/v1/jobs/{endless}").status_code == 200
        # no slot is left unless those two pages were taken from the model
        assert client.server.parse(image_bytes(size=(50, 40))).status_code == 200


def test_text_is_told_while_it_is_decoded(database_url: str, tmp_path: Path) -> None:
    text = "a page\nof \u20ac 5 \0 and more"
    image = base64.b64encode(image_bytes()).decode()
    directions = json.dumps({"text": text, "token_s": 0.05})
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": directions},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "stream": True, "skip_special_tokens": False}
    with service(tmp_path, database_url) as client:
        answer = client.http.post("/v1/chat/completions", json=body)
    data = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in data]
    assert "".join(pieces) == text
    assert len(list(filter(None, pieces))) > 3


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_connections_that_break_are_made_again(database_url: str, tmp_path: Path) -> None:
    with service(tmp_path, database_url) as client, psycopg.connect(database_url, autocommit=True) as admin:
        for number in range(3):
            query = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'rtprune-notifications' AND datname = current_database()"
            )
            assert len(admin.execute(query).fetchall()) == 4, "API and worker, each with two"
            # told to nobody: who connects again looks for what it missed
            assert client.server.parse(image_bytes(size=(60 + number, 40))).status_code == 200
            eventually(lambda: _num_connections(admin) == 4)


def _num_connections(admin: psycopg.Connection) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'rtprune-notifications' AND datname = current_database()"
    )
    row = admin.execute(query).fetchone()
    return int(row[0]) if row else 0


class Heard:
    """What was heard of one topic."""

    def __init__(self, notifications: Notifications) -> None:
        self.names: list[str] = []
        self.num = 0
        notifications.on("pages", self._hear)

    def _hear(self, names: Collection[str]) -> None:
        self.num += 1
        self.names += names


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is watched from outside
            await asyncio.sleep(0.005)


def test_a_socket_carries_both_ways_until_an_end_is_gone() -> None:
    async def run() -> None:
        left, right = SocketNotifications(), SocketNotifications()
        at_left, at_right = Heard(left), Heard(right)
        left_end, right_end = socket.socketpair()
        carried = [asyncio.create_task(left.carry(left_end)), asyncio.create_task(right.carry(right_end))]
        await until(lambda: left.arriving and right.arriving)
        await asyncio.to_thread(left.tell, "pages", ["a", "b"])
        await until(lambda: at_right.names == ["a", "b"])
        right.tell("pages", ["c"])
        await until(lambda: at_left.names == ["a", "b", "c"])
        assert left.pause_s(0.02) > 0.02
        assert left.pause_s(5.0) == 5.0
        carried[1].cancel()
        await carried[0]
        assert not left.arriving
        assert left.pause_s(0.02) == 0.02, "who hears nothing looks"
        left.tell("pages", ["d"])
        await until(lambda: at_left.names[-1] == "d")

    asyncio.run(run())


def test_what_a_child_writes_is_not_trusted() -> None:
    async def run() -> None:
        notifications = SocketNotifications()
        heard = Heard(notifications)
        ours, theirs = socket.socketpair()
        theirs.sendall(b"odd y\n\npages x\n")
        carrying = asyncio.create_task(notifications.carry(ours))
        await until(lambda: heard.names == ["x"])
        theirs.sendall(b"\xff\xfe\n")
        await carrying
        assert not notifications.arriving
        theirs.close()

    asyncio.run(run())


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_processes_on_one_database_hear_each_other(job_settings: Settings) -> None:
    async def run() -> None:
        talking, listening = open_notifications(job_settings), open_notifications(job_settings)
        heard = Heard(listening)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(side.run()) for side in (talking, listening)]
            await until(lambda: talking.arriving and listening.arriving)
            assert heard.num == 1, "who begins to hear may have missed something"
            for number in range(300):
                talking.tell("pages", [f"job {number}"])
            await until(lambda: len(heard.names) == 300)
            assert heard.names == [f"job {number}" for number in range(300)]
            for task in tasks:
                task.cancel()

    asyncio.run(run())
