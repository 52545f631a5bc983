"""Limit connections: their number, their silence, and the work that one read may cause.

A connection is parsed by h11, whose answers to malformed requests stay as they are.
"""

import asyncio
import logging
import resource
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.settings import Settings

logger = logging.getLogger("rtprune.connections")

EVENTS_PER_TURN = 32
"""Most h11 events of one connection in a row; about a millisecond."""
MIN_REST_S = 0.0005
"""Least pause between two turns of connections with more to parse.

A pause is also at least as long as a turn.
"""
ANSWER_CHECK_S = 60.0
MIN_TAKEN_BYTES = 16_384
"""Least number of bytes that a client must take of a waiting answer between two checks."""
TCP_INFO_BYTES, ACKED_AT = 128, 120
"""Length of Linux's ``struct tcp_info``, and the offset of the number of acknowledged bytes in it."""
MAX_CONNECTIONS = 10_000
RESERVED_DESCRIPTORS = 128
"""File descriptors kept for databases, wake-ups, processes and libraries."""
DESCRIPTORS_PER_DOCUMENT = 2  # the spooled file, and the socket it is fetched by
WARN_EVERY_S = 60.0
LATE_HEAD = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n"
)


def connection_limit(settings: Settings) -> int:
    """Return how many connections are served at a time.

    By default it follows from the limit of descriptors.
    """
    if settings.max_connections:
        return settings.max_connections
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    reserved = RESERVED_DESCRIPTORS + DESCRIPTORS_PER_DOCUMENT * settings.max_documents
    return min(MAX_CONNECTIONS, descriptors - min(reserved, descriptors // 2))


def connection_class(settings: Settings) -> type[asyncio.Protocol]:
    """Return the factory that uvicorn calls for each new connection."""
    made = partial(Connection, settings=settings, limit=connection_limit(settings), turns=Turns())
    return cast("type[asyncio.Protocol]", made)


class Turns:
    """Gives connections with much to parse one turn each in rotation, with rests between turns.

    So together they take half of the event loop's time, however many there are.
    """

    def __init__(self) -> None:
        self._waiting: deque[Connection] = deque()
        self.warned_at = -WARN_EVERY_S
        """When the warning of too many connections was last logged."""

    def wait(self, connection: "Connection") -> None:
        """Queue another turn for a connection."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            connection.loop.call_later(MIN_REST_S, self._next)

    def _next(self) -> None:
        connection = self._waiting[0]
        began_at = connection.loop.time()
        try:
            connection.go_on()
        finally:
            self._waiting.popleft()
            if self._waiting:
                rest_s = max(MIN_REST_S, connection.loop.time() - began_at)
                connection.loop.call_later(rest_s, self._next)


class BoundedH11(h11.Connection):
    """An h11 state that gives a limited number of events a turn.

    Then it asks for more data and calls ``held``.
    """

    def __init__(self, held: Callable[[], None]) -> None:
        super().__init__(h11.SERVER)
        self._held = held
        self._left = EVENTS_PER_TURN

    def new_turn(self) -> None:
        self._left = EVENTS_PER_TURN

    def next_event(self) -> Any:
        if self._left == 0:
            self._held()
            return h11.NEED_DATA
        self._left -= 1
        return super().next_event()


class Flow(FlowControl):
    """Flow control that reads nothing while the connection is held."""

    is_held = False

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()


class Connection(H11Protocol):
    """uvicorn's connection, with limits."""

    flow: Flow
    conn: BoundedH11

    def __init__(self, *args: Any, settings: Settings, limit: int, turns: Turns, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = BoundedH11(self._hold)
        self._settings = settings
        self._limit = limit
        self._turns = turns
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._head_began = False
        self._was_behind = False
        self._num_taken = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        if len(self.connections) > self._limit:
            self._refuse()
            return
        self._head_timer = self.loop.call_later(self._settings.head_s, self._head_is_late)
        self._answer_timer = self.loop.call_later(ANSWER_CHECK_S, self._check_answer)

    def _refuse(self) -> None:
        now = self.loop.time()
        if now - self._turns.warned_at >= WARN_EVERY_S:
            self._turns.warned_at = now
            logger.warning("too many connections: more are refused", extra={"limit": self._limit})
        self.transport.write(TOO_MANY % self._settings.retry_after_s)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_answer_timer()
        super().connection_lost(exc)

    # --- reading

    def data_received(self, data: bytes) -> None:
        if self.flow.is_held:  # data that arrived before reading stopped
            self._unset_keepalive_if_required()
            self.conn.receive_data(data)
            self.transport.pause_reading()
            return
        if self.cycle is None or self.cycle.response_complete:
            self._head_began = True
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(self._settings.head_s, self._head_is_late)
        self.conn.new_turn()
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._head_began = False
            self._stop_head_timer()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over. Its head is complete, so the head's time limit ends."""
        self._stop_head_timer()
        super().handle_websocket_upgrade(event)

    def _hold(self) -> None:
        if not self.flow.is_held:
            self.flow.pause_reading()
            self.flow.is_held = True
            self._turns.wait(self)

    def go_on(self) -> None:
        """Parse the next events of the data that was read."""
        self.flow.is_held = False
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.conn.new_turn()
        self.handle_events()

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            if self._head_began:
                self.transport.write(LATE_HEAD)
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # --- writing

    def _check_answer(self) -> None:
        """Close the connection of a client that takes nothing, or next to nothing, of a waiting answer."""
        before, self._num_taken = self._num_taken, self._taken()
        is_behind = self.transport.get_write_buffer_size() > 0
        if is_behind and self._was_behind and self._num_taken - before < MIN_TAKEN_BYTES:
            self._answer_timer = None
            self.transport.abort()
            return
        self._was_behind = is_behind
        self._answer_timer = self.loop.call_later(ANSWER_CHECK_S, self._check_answer)

    def _taken(self) -> int:
        """Return how many bytes the client has acknowledged; where unknown, minus the number of unsent
        bytes."""
        connection = self.transport.get_extra_info("socket")
        try:
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            return int(struct.unpack_from("=Q", told, ACKED_AT)[0])
        except (AttributeError, OSError, struct.error):
            return -self.transport.get_write_buffer_size()

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
