"""Record traces with OpenTelemetry, switched on by ``OTEL_EXPORTER_OTLP_ENDPOINT=http://host:4318``.

A request is a span, and so is each page of its job, in whatever process it is read: the job's row carries the
trace. Without that variable, or without the packages of the extra ``otel``, this module does nothing.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

logger = logging.getLogger("rtprune.tracing")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_MS = 2000
"""Longest time that the end of a process waits for a collector."""

Attribute = str | int | float | bool


class _Tracing:
    """The process's tracer and its provider."""

    tracer: Any = None
    provider: Any = None


class Span:
    """A span, or a placeholder that does nothing when traces are off."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        """Change the name, when it becomes known only later."""
        if self._span is not None:
            self._span.update_name(name)

    def set(self, **attributes: Attribute) -> None:
        """Add attributes. In their names, ``__`` stands for a dot."""
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute(name.replace("__", "."), value)

    def fail(self, why: str) -> None:
        """Mark the span as failed. ``why`` is a code, never text of a document."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - of an extra

            self._span.set_status(Status(StatusCode.ERROR, why))


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment names somewhere to send traces to."""
    return (
        any(environment.get(name) for name in ENDPOINTS)
        and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"
    )


def configure(service: str) -> None:
    """Switch traces on if the environment asks for them.

    ``service``: the name unless the environment sets one.
    """
    if not is_wanted(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        logger.warning(
            "no traces: OTEL_* is set, but a package is missing; pip install 'rtprune[otel]'",
            extra={"package": error.name},
        )
        return
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    with suppress(PackageNotFoundError):
        named["service.version"] = version("rtprune")
    # not the library's global provider, to which other packages would add their spans
    _Tracing.provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    _Tracing.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _Tracing.tracer = _Tracing.provider.get_tracer("rtprune")


def flush() -> None:
    """Send traces that were not sent yet, for at most ``FLUSH_MS``."""
    if _Tracing.provider is not None:
        _Tracing.provider.force_flush(FLUSH_MS)


@contextmanager
def span(name: str, *, parent: str = "", is_server: bool = False, **attributes: Attribute) -> Iterator[Span]:
    """Time the body as a span. ``parent``: a ``traceparent`` from elsewhere; by default the current span."""
    if _Tracing.tracer is None:
        yield Span()
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - of an extra
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    kind = SpanKind.SERVER if is_server else SpanKind.INTERNAL
    with _Tracing.tracer.start_as_current_span(
        name, context=context, kind=kind, record_exception=False, set_status_on_exception=False
    ) as opened:
        wrapped = Span(opened)
        wrapped.set(**attributes)
        yield wrapped


def traceparent() -> str:
    """Return the current span as a header, to continue it in another process; empty without one."""
    if _Tracing.tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """Return the current trace's id in the form that logs use; empty without one."""
    parts = traceparent().split("-")
    return parts[1] if len(parts) == 4 else ""
