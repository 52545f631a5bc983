"""Wake-ups between processes: look at the database now instead of at the next poll.

A wake-up is a hint and may be lost. A process that is woken reads the database. Without one it looks every
``pause_s``, so a lost wake-up costs at most that time. On PostgreSQL wake-ups use LISTEN and NOTIFY. On
SQLite they use the socket between the API and the worker it supervises; other processes on SQLite poll.
"""

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import Callable, Collection, Iterable
from typing import Literal

import psycopg
from sqlalchemy.engine import make_url

from app.jobs.database import CONNECT_S, KEEPALIVES, database_url
from app.settings import Settings

logger = logging.getLogger("rtprune.notifications")

Topic = Literal["work", "pages", "cancel", "text"]
"""``work``: queues got work. ``pages``: status or pages of jobs changed. ``cancel``: jobs were cancelled.
"""
Handler = Callable[[Collection[str]], None]
Message = tuple[str, str]

TOPICS: tuple[Topic, ...] = ("work", "pages", "cancel", "text")
RELAXED_POLL_S = 1.0
"""Longest pause between two looks while wake-ups arrive."""
ECHO_S = 10.0
"""How often a listener sends itself a message, to check that others' messages would arrive."""
FIRST_RETRY_S = 0.2
MAX_RETRY_S = 5.0
MAX_UNSENT_BYTES = 2**16


class Notifications:
    """Notifications inside one process. Subclasses reach other processes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[Topic, list[Handler]] = {}
        self._unsent: dict[Message, None] = {}
        self._end: socket.socket | None = None
        self.arriving = False
        """Whether what others tell is known to arrive."""
        self.heard_at = 0.0
        """When anything came over the socket that is carried, on the loop's clock."""

    def on(self, topic: Topic, handler: Handler) -> None:
        """Call ``handler`` with names on the event loop.

        An empty collection means that some may have been missed.
        """
        self._handlers.setdefault(topic, []).append(handler)

    def tell(self, topic: Topic, names: Iterable[str]) -> None:
        """Announce a change, from any thread, after it is committed. Never raise, never wait.

        ``names``: ids of jobs, or for the topic ``work`` names of queues.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._tell, topic, list(names))

    def pause_s(self, poll_s: float) -> float:
        """Return how long to wait for a notification before looking all the same."""
        return max(poll_s, RELAXED_POLL_S) if self.arriving else poll_s

    async def run(self) -> None:
        """Keep the connection to other processes open, until cancelled."""

    async def carry(self, end: socket.socket) -> None:
        """Use the socket between an API and its worker, until its other end is gone."""
        end.setblocking(False)
        self._end = end
        with contextlib.suppress(OSError):
            while await self._loop.sock_recv(end, 1024):
                self.heard_at = self._loop.time()  # only beats: wake-ups use the database here
        self._end = None

    def beat(self) -> None:
        """Show the other end of the socket that this process is alive, whatever state the database is in."""
        if self._end is not None:
            with contextlib.suppress(OSError):  # full: the other end does not read
                self._end.send(b"\n")

    def _tell(self, topic: Topic, names: list[str]) -> None:
        self._hear(topic, names)
        if not self._unsent:
            # one message for everything told in the same turn of the loop
            self._loop.call_soon(self._flush)
        self._unsent.update(dict.fromkeys((topic, name) for name in names))

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, {}
        self._send(list(unsent))

    def _send(self, messages: list[Message]) -> None:
        """Send messages to other processes."""

    def _hear(self, topic: Topic, names: Collection[str]) -> None:
        for handler in self._handlers.get(topic, ()):
            handler(names)

    def _hear_all(self) -> None:
        for topic in TOPICS:
            self._hear(topic, ())


class SocketNotifications(Notifications):
    """Notifications between an API and the worker that it supervises."""

    def __init__(self) -> None:
        super().__init__()
        self._writer: asyncio.StreamWriter | None = None

    async def carry(self, end: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=end)
        self._writer, self.arriving = writer, True
        self._hear_all()
        try:
            while line := await reader.readline():
                self.heard_at = self._loop.time()
                topic, _, name = line.decode().strip().partition(" ")
                for known in TOPICS:
                    if topic == known:
                        self._hear(known, (name,))
        except (OSError, ValueError):  # ValueError: a line without end, or not text
            logger.warning("wake-ups between API and worker end")
        finally:
            self._writer, self.arriving = None, False
            writer.close()

    def beat(self) -> None:
        self._write("\n")

    def _send(self, messages: list[Message]) -> None:
        self._write("".join(f"{topic} {name}\n" for topic, name in messages))

    def _write(self, text: str) -> None:
        # a process that hangs does not read: unsent text must not fill our memory
        if self._writer is not None and self._writer.transport.get_write_buffer_size() <= MAX_UNSENT_BYTES:
            self._writer.write(text.encode())


class PostgresNotifications(Notifications):
    """Notifications by LISTEN on one connection and NOTIFY on another.

    NOTIFY does not run in the transactions that messages are about: PostgreSQL commits notifying transactions
    one after the other, including their disk syncs.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        address = make_url(url).set(drivername="postgresql")
        address = address.update_query_dict({name: str(value) for name, value in KEEPALIVES.items()})
        self._conninfo = address.render_as_string(hide_password=False)
        self._echo = f"rtprune_echo_{uuid.uuid4().hex}"
        self._outbox: dict[Message, None] = {}
        self._posted = asyncio.Event()
        self._connected = False

    async def run(self) -> None:
        delay_s = FIRST_RETRY_S
        while True:
            try:
                async with await self._connect() as listener, await self._connect() as notifier:
                    self._connected = True
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._listen(listener))
                        group.create_task(self._notify(notifier))
            except* (psycopg.Error, OSError) as errors:
                reason = str(errors.exceptions[0]).strip().partition("\n")[0][:300]
                logger.info("no wake-ups: looking more often", extra={"reason": reason})
            delay_s = FIRST_RETRY_S if self.arriving else min(delay_s * 2, MAX_RETRY_S)
            self._connected = self.arriving = False
            self._outbox.clear()
            await asyncio.sleep(delay_s)

    async def _connect(self) -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(
            self._conninfo,
            autocommit=True,
            connect_timeout=CONNECT_S,
            application_name="rtprune-notifications",
        )

    async def _listen(self, connection: psycopg.AsyncConnection) -> None:
        for channel in (self._echo, *map(_channel, self._handlers)):
            await connection.execute(f"LISTEN {channel}".encode())
        while True:
            self._post([(self._echo, "")])
            echoed = False
            async for message in connection.notifies(timeout=ECHO_S):
                if message.channel != self._echo:
                    self._hear_from(message)
                    continue
                echoed = True
                if not self.arriving:
                    self.arriving = True
                    self._hear_all()
            if not echoed:  # the server is gone, or a connection pooler keeps our messages
                raise psycopg.OperationalError("wake-ups do not come back")

    async def _notify(self, connection: psycopg.AsyncConnection) -> None:
        query = "SELECT pg_notify(c, p) FROM unnest(%s::text[], %s::text[]) AS told (c, p)"
        while True:
            await self._posted.wait()
            self._posted.clear()
            messages, self._outbox = list(self._outbox), {}
            await connection.execute(query, ([c for c, _ in messages], [p for _, p in messages]))

    def _send(self, messages: list[Message]) -> None:
        self._post([(f"rtprune_{topic}", name) for topic, name in messages])

    def _post(self, messages: list[Message]) -> None:
        if self._connected:
            self._outbox.update(dict.fromkeys(messages))
            self._posted.set()

    def _hear_from(self, message: psycopg.Notify) -> None:
        for topic in TOPICS:
            if message.channel == _channel(topic):
                self._hear(topic, (message.payload,))


def _channel(topic: Topic) -> str:
    return f"rtprune_{topic}"


def open_notifications(settings: Settings) -> Notifications:
    """Open notifications on the running event loop. Call ``run`` and ``carry`` to reach other processes."""
    url = database_url(settings)
    return SocketNotifications() if url.startswith("sqlite") else PostgresNotifications(url)
