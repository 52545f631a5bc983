"""Write logs, as JSON or as text."""

import json
import logging
import os
import re
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime

from app import tracing
from app.settings import Settings, misspelt_variables

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

NOT_EXTRA = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
LOGGERS = ("rtprune", "app", "uvicorn")
"""Loggers that follow the configured level. Others log warnings only."""
REPEATING = ("asyncio", "uvicorn.error")
"""Loggers whose messages strangers can provoke as often as they like."""
REPEAT_S = 60.0
WORD = re.compile(r"[A-Za-z0-9_./:@+-]+")
MAX_KINDS = 1000


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, request id, and what ``extra``
    added."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record), default=str)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return all fields of a log line."""
    line: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if (current := request_id.get()) is not None:
        line["request"] = current
    if trace := tracing.trace_id():
        line["trace"] = trace
    line.update({key: value for key, value in vars(record).items() if key not in NOT_EXTRA})
    if record.exc_info:
        line["exception"] = logging.Formatter().formatException(record.exc_info)
    return line


class TextFormatter(logging.Formatter):
    """Formats a record as a line for people: the fields of ``JsonFormatter``, as ``key=value`` after the
    message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        time_, level, name, message = (str(fields.pop(key)) for key in ("time", "level", "logger", "message"))
        trace = fields.pop("exception", None)
        # JSON unless it is one word, so that no value can end the line or imitate another field
        pairs = [f"{key}={_word(value)}" for key, value in fields.items()]
        line = " ".join([time_, f"{level:<7}", name, _one_line(message), *pairs])
        return f"{line}\n{trace}" if trace else line


def _word(value: object) -> str:
    text = str(value)
    return text if WORD.fullmatch(text) else json.dumps(text)


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


class Seldom(logging.Filter):
    """Lets a message pass once in ``REPEAT_S``, so that strangers cannot fill the disk with log lines.

    Messages with the same first line count as the same. The next one that passes says how many were
    dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        said = str(record.msg).partition("\n")[0][:80]
        now = time.monotonic()
        passed_at, num_held = self._passed.get(said, (-REPEAT_S, 0))
        if now - passed_at < REPEAT_S:
            self._passed[said] = (passed_at, num_held + 1)
            return False
        if len(self._passed) >= MAX_KINDS:
            self._passed.clear()
        self._passed[said] = (now, 0)
        if num_held:
            record.held_back = num_held
        return True


def log_to_stderr(settings: Settings) -> None:
    """Send log lines to standard error. Only programs call this, never importers.

    Other packages only log warnings: their other lines contain signed URLs and text of pages.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if settings.log_format == "text" else JsonFormatter())
    level = logging.getLevelNamesMapping()[settings.log_level]
    for name in REPEATING:
        logging.getLogger(name).addFilter(Seldom())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)
    for misspelt in misspelt_variables(os.environ):
        logging.getLogger("rtprune").warning(misspelt)
