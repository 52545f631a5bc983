"""The database of jobs: SQLite in the data folder, or PostgreSQL for many machines.

One database has two engines. Ours begins writing transactions with the write lock, so that what a
transaction read still holds when it writes. DBOS begins transactions differently and gets its own engine.
"""

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from dbos import DBOS
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from app.errors import StorageFull, StorageUnavailable
from app.metrics import STORAGE_ERRORS
from app.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

BUSY_MS = 4000
"""Longest wait for SQLite's write lock in our own transactions. After it the client gets 503."""
DBOS_BUSY_MS = 30_000
CONNECT_S = 3
ANSWER_S = 8.0
"""Longest time for a short query.

It exceeds the limits for a lock and a connection, so that those fail first.
"""
KEEPALIVES = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""How soon a dead machine is noticed. It sends nothing, and the system's default timeout is hours."""
IDLE_IN_TRANSACTION_MS = 5000
"""After this the server ends the transaction of a stopped process and frees its locks.

It is shorter than a lease, so that the process that takes over does not wait for the locks.
"""
SUBSEC_SINCE = (3, 42)
"""Version of SQLite that knows ``unixepoch('subsec')``, by which DBOS asks for the time since Python 3.12.

Older versions, such as Debian 12's, return NULL: connections get a function of that name there.
"""
POOL_SIZE = 10
PING_AFTER_S = 1.0
"""A connection unused for this long is tested before use, because servers restart.

Without the test, a transaction on a lost connection fails, and so do all others of that moment.
"""
FULL_MESSAGES = ("disk is full", "disk full", "No space left", "could not extend file", "disk I/O error")

logger = logging.getLogger("rtprune.database")


def database_url(settings: Settings) -> str:
    """Return the URL with our driver. Accept ``postgres://``, which hosting services write."""
    if not settings.database_url:
        folder = settings.data_dir.resolve()
        return f"sqlite:///{folder / 'jobs.sqlite'}"
    url = make_url(settings.database_url)
    if url.get_backend_name() in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


def open_engine(settings: Settings) -> sa.Engine:
    """Open our database. ``for_writing`` and ``for_reading`` derive engines for transactions and queries."""
    url = database_url(settings)
    if not url.startswith("sqlite"):
        return _postgres_engine(url)
    _folder(url)
    engine = sa.create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE)
    _on_connect(engine, isolation_level=None, busy_ms=BUSY_MS)

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("reads", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes", False) else "BEGIN")

    return engine


def for_writing(engine: sa.Engine) -> sa.Engine:
    """Return an engine whose transactions begin with the write lock, where the database has a single one."""
    return engine.execution_options(writes=True)


def for_reading(engine: sa.Engine) -> sa.Engine:
    """Return an engine without transactions. Each query sees what is committed when it begins.

    A query then costs one round trip.
    """
    if engine.dialect.name == "sqlite":  # its connections have only the transactions that we begin
        return engine.execution_options(reads=True)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def open_dbos_engine(settings: Settings) -> sa.Engine:
    """Open the engine for DBOS. On SQLite it uses Python's implicit transactions, which DBOS expects."""
    url = database_url(settings)
    if not url.startswith("sqlite"):
        return _postgres_engine(url)
    engine = sa.create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE)
    _on_connect(engine, isolation_level="IMMEDIATE", busy_ms=DBOS_BUSY_MS)
    return engine


def migrate_dbos(settings: Settings) -> None:
    """Create or upgrade the tables of DBOS. Processes that do so at the same time wait for each other."""
    url = database_url(settings)
    if url.startswith("sqlite"):
        _folder(url)
        with sqlite3.connect(make_url(url).database or "", timeout=DBOS_BUSY_MS / 1000) as connection:
            # Both are properties of the file. The first takes effect only before there are tables.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
    DBOS.migrate(url)


def _folder(url: str) -> None:
    Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)


def _postgres_engine(url: str) -> sa.Engine:
    engine = sa.create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=POOL_SIZE,
        pool_timeout=CONNECT_S,
        connect_args={"connect_timeout": CONNECT_S, "application_name": "rtprune", **KEEPALIVES},
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        # set here, not in the URL: connection poolers refuse unknown start-up options
        connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}")
        connection.commit()

    @event.listens_for(engine, "checkin")
    def checkin(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, record: Any, _proxy: Any) -> None:
        """Test a connection only where it may be broken: ``pool_pre_ping`` costs a round trip each time."""
        if time.monotonic() - record.info.get("used_at", math.inf) > PING_AFTER_S:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise sa.exc.InvalidatePoolError from error

    return engine


def _on_connect(engine: sa.Engine, *, isolation_level: str | None, busy_ms: int) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = isolation_level
        connection.execute(f"PRAGMA busy_timeout={busy_ms}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # erase the text of deleted documents
        if sqlite3.sqlite_version_info < SUBSEC_SINCE:
            connection.create_function("unixepoch", -1, _unixepoch)
        # Only acceptance uses FULL. With WAL, a power cut under NORMAL loses work that is then done again,
        # and the next FULL commit also makes all earlier commits durable.
        connection.execute("PRAGMA synchronous=NORMAL")


def _unixepoch(*arguments: str) -> float | int:
    """Return the time as ``unixepoch('subsec')`` does; without arguments, in whole seconds."""
    if not set(arguments) <= {"now", "subsec", "subsecond"}:
        raise ValueError("unixepoch is known here for the present time alone")
    return time.time() if {"subsec", "subsecond"} & set(arguments) else int(time.time())


async def promptly(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a short query in a thread. A database that hangs counts as unavailable.

    Raise ``StorageUnavailable`` or ``StorageFull``.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            return await asyncio.to_thread(read, *args, **kwargs)
    except TimeoutError as error:
        raise StorageUnavailable("the database of jobs does not answer") from error


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn errors of database drivers and disks into ``StorageFull`` or ``StorageUnavailable``."""
    try:
        yield
    except (OperationalError, InterfaceError, sa.exc.TimeoutError) as error:
        raise _storage_error(error) from error
    except DBAPIError as error:
        if error.connection_invalidated or "DatabaseError" in type(error).__name__:
            raise _storage_error(error) from error
        raise
    except OSError as error:
        logger.exception("the data folder fails")
        raise StorageFull("no space or no access where documents are kept") from error


def _storage_error(error: Exception) -> StorageFull | StorageUnavailable:
    text = str(error)
    STORAGE_ERRORS.inc()
    logger.warning("the database fails", extra={"reason": text.splitlines()[0][:300]})
    if any(message in text for message in FULL_MESSAGES):
        return StorageFull("no space where jobs are kept")
    return StorageUnavailable("the database of jobs does not answer")
