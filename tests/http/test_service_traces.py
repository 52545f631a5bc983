"""One trace from a request to the stages of its pages, as a collector receives it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from service_client import A4, eventually, pdf_bytes, serving

from app.tracing import is_wanted, span, traceparent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "words0faprompt"  # noqa: S105


class Collector:
    """Keeps every span that is sent to it: service, name, ids, attributes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        kept = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kept.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def spans(self) -> dict[str, tuple[str, str, str, str]]:
        """Return spans by name: service, trace, own id, parent's id."""
        found = {}
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for one in scope.spans:
                        ids = (one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex())
                        found[one.name] = (service["service.name"], *ids)
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def test_a_request_and_the_pages_of_its_job_are_one_trace(collector: Collector, tmp_path: Path) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serving(tmp_path, env=environment) as server:
        server.wait_ready()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert server.parse(pdf_bytes(A4), headers, prompt=SECRET).status_code == 200
        wanted = {"POST /v1/parse", "page", "rasterize", "read", "render", "store"}
        eventually(lambda: wanted <= set(collector.spans()))
        [line] = [line for line in server.log if line.get("route") == "/v1/parse"]
        assert line["trace"] == TRACE
    spans = collector.spans()
    request, page = spans["POST /v1/parse"], spans["page"]
    assert request[:2] == ("rtprune-api", TRACE)
    assert request[3] == PARENT
    assert page[:2] == ("rtprune-worker", TRACE)
    assert page[3] == request[2]
    assert {spans[stage][3] for stage in ("rasterize", "read", "render", "store")} == {page[2]}
    assert not any(SECRET.encode() in body for body in collector.bodies)
    assert "GET /readyz" not in spans


def test_nothing_is_traced_unless_it_is_asked_for() -> None:
    assert not is_wanted({})
    assert not is_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"})
    assert not is_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"})
    assert is_wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"})
    with span("nothing", rtprune__page=1) as nothing:
        nothing.rename("still nothing")
        nothing.fail("no")
        assert traceparent() == ""
