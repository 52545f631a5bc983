"""Metrics of the API and of workers, for Prometheus. A test compares ``docs/metrics.md`` with them.

Label values come from fixed sets, never from a request.
"""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.document import PageResult
from app.reader import ReaderLoad, ReportsLoad

STAGES = ("queue", "rasterize", "preprocess", "encode", "prune", "prefill", "decode")
STAGE_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
HTTP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RISK_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)

# counters of the whole process, shown by each registry
STORAGE_ERRORS = Counter("rtprune_storage_errors", "Failures of the database or its disk", registry=None)
RASTERIZER_DEATHS = Counter(
    "rtprune_rasterizer_deaths", "Rasterizers that died or were ended over a page", registry=None
)
WEBHOOK_TRIES = Counter(
    "rtprune_webhook_tries", "Tries to deliver a webhook, by outcome", ["outcome"], registry=None
)
WORKER_PAGES = Counter(
    "rtprune_worker_pages",
    "Pages this worker finished, by how they ended",
    ["outcome"],
    registry=None,
)


def _of_process(registry: CollectorRegistry) -> None:
    """Register the metrics that every process has."""
    ProcessCollector(registry=registry)
    build = Gauge(
        "rtprune_build_info", "1, with the versions as labels", ["version", "python"], registry=registry
    )
    try:
        ours = version("rtprune")
    except PackageNotFoundError:
        ours = "not installed"
    build.labels(ours, python_version()).set(1)
    registry.register(STORAGE_ERRORS)
    registry.register(RASTERIZER_DEATHS)


class Metrics:
    """The metrics at ``/metrics`` of the API."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        _of_process(self.registry)

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
        self.drafted_tokens = counter("drafted_tokens", "Tokens proposed from text layers")
        self.accepted_tokens = counter("accepted_tokens", "Proposed tokens that the model chose, too")
        self.worker_starts = counter("worker_starts", "Starts of the worker process")
        self.documents_in_flight = gauge("documents_in_flight", "Documents admitted and not answered")
        self.queued_jobs = gauge("queued_jobs", "Unfinished jobs, of all machines")
        self.queued_pages = gauge("queued_pages", "Accepted pages that are not read, of all machines")
        self.pages_per_second = gauge("pages_per_second", "Pages read over the last minute, of all machines")
        self.worker_ready = gauge("worker_ready", "1 while the model is loaded")
        self.running_pages = gauge("running_pages", "Pages that are with a model now, of all machines")
        self.oldest_job_seconds = gauge("oldest_job_seconds", "Age of the oldest unfinished job")
        self.jobs = counter("jobs", "Jobs of all machines that ended, by status", "status")
        self.page_attempts = counter(
            "page_attempts",
            "Times that a model read a page, by how it ended; more than pages: it was read again",
            "finish_reason",
        )

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"rtprune_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.stage_seconds = histogram("stage_seconds", "Time of a page in a stage", STAGE_BUCKETS_S, "stage")
        self.request_seconds = histogram(
            "request_seconds",
            "Time from a request to the end of its answer",
            HTTP_BUCKETS_S,
            "route",
            "method",
        )
        self.page_risk = histogram("page_risk", "How likely a text is wrong in many places", RISK_BUCKETS)

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
        self.drafted_tokens.inc(page.reading.tokens.drafted)
        self.accepted_tokens.inc(page.reading.tokens.accepted)
        self.page_risk.observe(page.reading.risk)
        for attempt in page.reading.attempts:
            self.page_attempts.labels(attempt.finish_reason).inc()
        for stage in STAGES:
            if stage in page.timing_ms:
                self.stage_seconds.labels(stage).observe(page.timing_ms[stage] / 1000)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class WorkerMetrics(Collector):
    """The metrics of a worker, at a separate port. A reader that reports no load shows zeros."""

    def __init__(self, reader: object) -> None:
        self._reader = reader
        self.registry = CollectorRegistry()
        _of_process(self.registry)
        for counter in (WEBHOOK_TRIES, WORKER_PAGES):
            self.registry.register(counter)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Read the reader's load when metrics are requested."""
        load = self._reader.load if isinstance(self._reader, ReportsLoad) else ReaderLoad()
        gauges = {
            "waiting_pages": ("Pages that wait for the model, or are prepared for it", load.waiting),
            "running_pages": ("Pages decoded together now", load.running),
            "page_slots": ("Pages that could be decoded together", load.slots),
            "kv_tokens_used": ("Tokens of keys and values that running pages have", load.kv_tokens_used),
            "kv_tokens_capacity": ("Tokens of keys and values there is room for", load.kv_tokens_capacity),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"rtprune_engine_{name}", text, value)
        yield CounterMetricFamily("rtprune_engine_steps", "Decode steps", load.steps)
        yield CounterMetricFamily("rtprune_engine_tokens", "Tokens decoded, one a page and step", load.tokens)

    def serve(self, host: str, port: int) -> None:
        """Serve ``/metrics`` in a thread for as long as the process lives. Raise ``OSError``."""
        start_http_server(port, host, self.registry)
