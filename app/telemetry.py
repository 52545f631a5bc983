"""Logs, metrics and stopwatches."""

import json
import logging
import os
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.document import PageResult
from app.settings import Settings, misspelt_variables

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

NOT_EXTRA = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
LOGGERS = ("rtprune", "app", "uvicorn")
"""Of which everything is logged that the level asks for."""
REPEATING = ("asyncio", "uvicorn.error")
"""What strangers can make these say, they can make them say a million times."""
REPEAT_S = 60.0
MAX_KINDS = 1000
STAGES = ("queue", "rasterize", "preprocess", "encode", "prune", "prefill", "decode")
STAGE_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the request's id, and what ``extra`` added."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request"] = current
        line.update({key: value for key, value in vars(record).items() if key not in NOT_EXTRA})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Seldom(logging.Filter):
    """Lets a message pass once in ``REPEAT_S``, told by its first line: what a stranger causes fills no disk.

    The next one that passes says how many did not.
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
    """Send log lines to standard error, as JSON. For programs, not for importers.

    Of other packages warnings alone: what else they log has addresses with signatures, and text of pages.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    level = logging.getLevelNamesMapping()[settings.log_level]
    for name in REPEATING:
        logging.getLogger(name).addFilter(Seldom())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)
    for misspelt in misspelt_variables(os.environ):
        logging.getLogger("rtprune").warning(misspelt)


class Metrics:
    """The metrics on /metrics. Label values come from fixed sets, never from a request."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rtprune_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rtprune_{name}", text, registry=self.registry)

        self.requests = counter("requests", "HTTP answers", "route", "method", "status")
        self.documents = counter(
            "documents", "Answers of /v1/parse by outcome: a status or an error code", "outcome"
        )
        self.pages = counter(
            "pages", "Pages of all jobs and machines, by finish reason or error code", "outcome"
        )
        self.page_warnings = counter("page_warnings", "Warnings of pages of all jobs and machines", "code")
        self.visual_tokens = counter("visual_tokens", "Visual tokens before pruning")
        self.kept_tokens = counter("kept_tokens", "Visual tokens after pruning")
        self.output_tokens = counter("output_tokens", "Tokens decoded")
        self.worker_starts = counter("worker_starts", "Starts of the worker process")
        self.documents_in_flight = gauge("documents_in_flight", "Documents admitted and not answered")
        self.queued_jobs = gauge("queued_jobs", "Unfinished jobs, of all machines")
        self.queued_pages = gauge("queued_pages", "Accepted pages that are not read, of all machines")
        self.pages_per_second = gauge("pages_per_second", "Pages read over the last minute, of all machines")
        self.worker_ready = gauge("worker_ready", "1 while the model is loaded")
        self.stage_seconds = Histogram(
            "rtprune_stage_seconds",
            "Time of a page in a stage",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )

    def count(self, page: PageResult) -> None:
        """Count a page, its warnings, its tokens and its stages."""
        for warning in page.warnings:
            self.page_warnings.labels(warning.code).inc()
        if page.failure is not None or page.reading is None:
            self.pages.labels(page.failure.code if page.failure else "internal_error").inc()
            return
        self.pages.labels(page.reading.finish_reason).inc()
        self.visual_tokens.inc(page.reading.tokens.visual)
        self.kept_tokens.inc(page.reading.tokens.kept)
        self.output_tokens.inc(page.reading.tokens.output)
        for stage in STAGES:
            if stage in page.timing_ms:
                self.stage_seconds.labels(stage).observe(page.timing_ms[stage] / 1000)

    def text(self) -> bytes:
        return generate_latest(self.registry)
