"""What the service costs beside the reader: overhead of one request, pages per second through the queue.

    python -m benchmarks.service [--reader fake|model] [--database-url postgresql://...] [--pages 400]

``overhead_ms``: a request's time less what its page says it took to render and read. ``queue``: documents of
many tiny frames (TIFF, so that poppler is not measured) through ``POST /v1/jobs``; ``alone``: the same frames
through rasterizers and reader in one process, without database and HTTP. The last line is one JSON document.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from app.document import ReadOptions
from app.rasterizers import Rasterizers
from app.settings import Settings
from app.worker import open_reader

START_S = 300.0
POLL_S = 0.02
CONCURRENCY = 8


def tiff(num_pages: int, side_px: int, seed: int) -> bytes:
    """A document whose bytes differ with ``seed``, or the service would take it for one it knows."""
    frames = [Image.new("RGB", (side_px, side_px), (255, 255, seed % 256)) for _ in range(num_pages)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:], software=str(seed))
    return buffer.getvalue()


def png(side_px: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px + seed % 97), (255, 255, seed % 256)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(settings: dict[str, str]) -> Iterator[httpx.Client]:
    """``rtprune serve`` with its worker, ready."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        variables = {"RTPRUNE_DATA_DIR": folder, "RTPRUNE_PORT": str(port), "RTPRUNE_LOG_LEVEL": "WARNING"}
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"],
            env={**os.environ, **variables, **settings},
            stdin=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as http:
                _wait_ready(http)
                yield http
        finally:
            process.terminate()
            process.wait(60)


def _free_port() -> int:

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(http: httpx.Client) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the service does not become ready")


def overheads_ms(http: httpx.Client, num_requests: int, side_px: int) -> dict[str, float]:
    """One request at a time."""
    totals, overheads = [], []
    for seed in range(num_requests + 3):
        data = png(side_px, seed)
        started = time.perf_counter()
        answer = http.post("/v1/parse", files={"file": data}).raise_for_status().json()
        total_ms = (time.perf_counter() - started) * 1000
        if seed >= 3:  # the first ones open connections
            totals.append(total_ms)
            overheads.append(total_ms - answer["pages"][0]["timing_ms"]["total"])
    return {
        "requests": num_requests,
        "total_p50": _percentile(totals, 50),
        "overhead_p50": _percentile(overheads, 50),
        "overhead_p95": _percentile(overheads, 95),
    }


def _percentile(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)


def requests_per_s(http: httpx.Client, num_requests: int, side_px: int) -> float:
    """One-page requests, some at a time."""

    def ask(seed: int) -> None:
        http.post("/v1/parse", files={"file": png(side_px, 1000 + seed)}).raise_for_status()

    started = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        list(pool.map(ask, range(num_requests)))
    return round(num_requests / (time.perf_counter() - started), 2)


def queue_pages_per_s(http: httpx.Client, num_documents: int, num_pages: int, side_px: int) -> float:
    """Documents of many pages, from the first POST to the end of the last."""
    documents = [tiff(num_pages, side_px, seed) for seed in range(num_documents)]
    started = time.perf_counter()
    left = {http.post("/v1/jobs", files={"file": data}).raise_for_status().json()["id"] for data in documents}
    while left:
        left = {job_id for job_id in left if http.get(f"/v1/jobs/{job_id}").json()["status"] in OPEN}
        time.sleep(POLL_S)
    return round(num_documents * num_pages / (time.perf_counter() - started), 2)


OPEN = {"queued", "running"}


async def alone_pages_per_s(settings: Settings, num_pages: int, side_px: int) -> float:
    """The same frames through rasterizers and reader of one process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "document"
        path.write_bytes(tiff(num_pages, side_px, 0))
        rasterizers = Rasterizers(settings, Path(folder))
        await rasterizers.start()
        reader = open_reader(settings)
        slots = asyncio.Semaphore(settings.max_pages_in_flight)

        async def read(index: int) -> None:
            async with slots:
                page = await rasterizers.page(path, "TIFF", index, 150)
                await reader.submit(page, ReadOptions(), document_id="x").result()

        await asyncio.gather(*(read(index) for index in range(8)))  # warm
        started = time.perf_counter()
        await asyncio.gather(*(read(index) for index in range(num_pages)))
        seconds = time.perf_counter() - started
        await reader.close()
        await rasterizers.close()
    return round(num_pages / seconds, 2)


def measured(arguments: argparse.Namespace, database_url: str) -> dict[str, Any]:
    settings = {"RTPRUNE_READER": arguments.reader, "RTPRUNE_DATABASE_URL": database_url}
    settings |= {"RTPRUNE_MAX_PAGES": "10000", "RTPRUNE_MAX_QUEUED_PAGES": "100000"}
    num_documents = max(1, arguments.pages // arguments.pages_per_document)
    with serving(settings) as http:
        overhead = overheads_ms(http, arguments.requests, arguments.side_px)
        print(f"{database_url.partition(':')[0] or 'sqlite'}: overhead {overhead}", flush=True)
        parallel = requests_per_s(http, arguments.requests, arguments.side_px)
        queue = queue_pages_per_s(http, num_documents, arguments.pages_per_document, arguments.side_px)
        print(f"one-page requests/s {parallel}, queue pages/s {queue}", flush=True)
    return {
        "overhead_ms": overhead,
        "one_page_requests_per_s": parallel,
        "queue_pages_per_s": queue,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reader", choices=["fake", "model"], default="fake")
    parser.add_argument("--database-url", default="", help="PostgreSQL to measure beside SQLite; left empty")
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--pages-per-document", type=int, default=50)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--side-px", type=int, default=64)
    arguments = parser.parse_args()
    settings = Settings.model_validate({"reader": arguments.reader})
    alone = asyncio.run(alone_pages_per_s(settings, arguments.pages, arguments.side_px))
    print(f"rasterizers and reader alone: {alone} pages/s", flush=True)
    report: dict[str, Any] = {
        "benchmark": "service",
        "reader": arguments.reader,
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": _commit(),
        "pages": arguments.pages,
        "alone_pages_per_s": alone,
        "sqlite": measured(arguments, ""),
    }
    if arguments.database_url:
        report["postgresql"] = measured(arguments, arguments.database_url)
    print(json.dumps(report))


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
