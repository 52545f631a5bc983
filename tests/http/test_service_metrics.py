"""What Prometheus is told, and that documentation, dashboard and alert rules speak of nothing else."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from service_client import A4, ROOT, Server, eventually, pdf_bytes, serving

from app.metrics import Metrics, WorkerMetrics
from app.pocket.reader import PocketReader
from app.reader import ReaderLoad, ReportsLoad
from app.telemetry import TextFormatter

NAME = re.compile(r"\b(?:rtprune|process)_[a-z_]+\b")
SUFFIX = re.compile(r"_(bucket|sum|count|created)$")


class Busy:
    load = ReaderLoad(
        waiting=3, running=2, slots=4, kv_tokens_used=10, kv_tokens_capacity=40, steps=5, tokens=9
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A service, and the address of its worker's metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(tmp_path_factory.mktemp("data"), worker_metrics_port=port, log_format="json") as server:
        yield server.wait_ready(), f"http://127.0.0.1:{port}/metrics"


def samples(text: str) -> dict[str, float]:
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_the_api_tells_of_requests_jobs_and_pages(served: tuple[Server, str]) -> None:
    server, _ = served
    server.parse(pdf_bytes(A4, A4), pages="1")
    server.parse(pdf_bytes(A4), prompt='{"fail_on": [0]}')
    told = samples(server.http.get("/metrics").text)
    assert told['rtprune_jobs_total{status="succeeded"}'] == 1
    assert (
        told['rtprune_jobs_total{status="failed"}'] + told.get('rtprune_jobs_total{status="partial"}', 0) == 1
    )
    assert told['rtprune_page_attempts_total{finish_reason="stop"}'] == 1
    assert told["rtprune_page_risk_count"] == 1
    assert told['rtprune_request_seconds_count{method="POST",route="/v1/parse"}'] == 2
    assert told["rtprune_oldest_job_seconds"] == told["rtprune_running_pages"] == 0
    assert told["process_resident_memory_bytes"] > 2**20
    assert any(name.startswith("rtprune_build_info{") for name in told)


def test_what_waits_has_an_age(served: tuple[Server, str]) -> None:
    server, _ = served
    slow = {"data": {"prompt": '{"delay_s": 100}'}, "files": {"file": pdf_bytes(A4)}}
    job = server.http.post("/v1/jobs", **slow).json()["id"]  # type: ignore[arg-type]
    eventually(lambda: server.metric("rtprune_running_pages") == 1)
    assert server.metric("rtprune_oldest_job_seconds") > 0
    server.http.delete(f"/v1/jobs/{job}")
    eventually(lambda: server.metric('rtprune_jobs_total{status="cancelled"}') == 1)


def test_a_worker_tells_of_its_own_pages(served: tuple[Server, str]) -> None:
    server, address = served
    server.parse(pdf_bytes(A4))
    told = samples(httpx.get(address, trust_env=False).text)
    assert told['rtprune_worker_pages_total{outcome="read"}'] >= 1
    assert told["rtprune_storage_errors_total"] == told["rtprune_rasterizer_deaths_total"] == 0


def test_a_worker_tells_how_busy_its_reader_is() -> None:
    registry = WorkerMetrics(Busy()).registry
    assert registry.get_sample_value("rtprune_engine_waiting_pages") == 3
    assert registry.get_sample_value("rtprune_engine_kv_tokens_used") == 10
    assert registry.get_sample_value("rtprune_engine_tokens_total") == 9
    assert isinstance(Busy(), ReportsLoad)
    assert hasattr(PocketReader, "load")


def known() -> set[str]:
    """Every name that an API or a worker may show."""
    names: set[str] = set()
    for registry in (Metrics().registry, WorkerMetrics(Busy()).registry):
        for family in registry.collect():
            names.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return names


@pytest.mark.parametrize("name", ["grafana/rtprune.json", "prometheus/alerts.yaml"])
def test_dashboard_and_rules_speak_of_metrics_that_there_are(name: str) -> None:
    path = ROOT / "docker" / name
    expressions = list(_expressions(path))
    used = {SUFFIX.sub("", found) for text in expressions for found in NAME.findall(text)}
    assert len(used) > 8
    assert used <= known()


def _expressions(path: Path) -> Iterator[str]:
    if path.suffix == ".json":
        for panel in json.loads(path.read_text())["panels"]:
            yield from (target["expr"] for target in panel["targets"])
    else:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from (rule["expr"] for rule in group["rules"])


def test_the_documentation_has_every_metric() -> None:
    documented = set(NAME.findall((ROOT / "docs" / "metrics.md").read_text()))
    ours = {name for name in known() if name.startswith("rtprune_")}
    assert {name for name in documented if name.startswith("rtprune_")} == ours


def test_text_logs_are_lines_whatever_is_in_them() -> None:
    record = logging.makeLogRecord({"name": "rtprune.http", "levelname": "INFO", "msg": "request"})
    vars(record).update(route="/v1/parse", reason="two\nlines job=forged", status=200)
    line = TextFormatter().format(record)
    assert "\n" not in line
    assert 'reason="two\\nlines job=forged"' in line
    assert line.endswith("status=200")
