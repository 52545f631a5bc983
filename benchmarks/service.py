"""Measure what the service adds to the reader: overhead of a request, pages a second through the queue.

    python -m benchmarks.service [--reader fake|model] [--database-url postgresql://...] [--pages 400] [--a4]

``overhead_ms``: the time of a request less the time that its page took to render and read. ``queue``:
documents of many frames (TIFF, so that poppler is not measured) through ``POST /v1/jobs``, from the
acceptance of the first to the end of the last; the times are the jobs' own, so polling costs next to nothing.
``alone``: the same frames through rasterizers and reader in one process, without database and HTTP. Both run
in turn, ``--rounds`` times, because a machine's speed drifts; the median of the rates counts. ``cpu_ms``:
processor time of a page over all processes but the client's, which shows what the queue costs even on a busy
machine. The last line is one JSON document.
"""

import argparse
import asyncio
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image, ImageDraw, ImageFont

from app.document import ReadOptions
from app.documents.raster.pool import Rasterizers
from app.settings import Settings
from app.worker import open_reader, pages_in_flight
from benchmarks.report import publish

START_S = 300.0
SETTLE_S = 3.0
IDLE_S = 10.0
POLL_S = 0.25
CONCURRENCY = 8


def cpu_s(pid: int) -> float:
    """Return the processor seconds of a process and its descendants, those that live or were waited for."""
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended meanwhile
        parents[int(path.parent.name)] = int(fields[1])
        ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rate:
    """Speed and processor time a page in one round."""

    pages_per_s: float
    cpu_ms: float

    @classmethod
    def of(cls, num_pages: int, seconds: float, cpu_seconds: float) -> "Rate":
        return cls(round(num_pages / seconds, 2), round(1000 * cpu_seconds / num_pages, 2))


Frames = Callable[[int, int], bytes]
"""Makes a document of so many pages. Its bytes differ with the seed, or the service would know it already."""


def blank_frames(num_pages: int, seed: int, side_px: int) -> bytes:
    """Make a document of blank pages, each of one view."""
    return _tiff([Image.new("RGB", (side_px, side_px), (255, 255, seed % 256))] * num_pages, seed)


def a4_page(number: int, seed: int) -> bytes:
    """Make a document of the one page with this number."""
    return _tiff([a4_image(number)], seed, compression="group4")


def a4_frames(num_pages: int, seed: int) -> bytes:
    """Make a document of pages of some 2,000 characters at 150 dpi, black on white."""
    return _tiff([a4_image(number) for number in range(num_pages)], seed, compression="group4")


def note_frames(num_pages: int, seed: int) -> bytes:
    """Make a document of strips of paper with three printed lines each."""
    notes = [a4_image(number, num_lines=3).crop((0, 0, 1240, 330)) for number in range(num_pages)]
    return _tiff(notes, seed, compression="group4")


def a4_image(number: int, num_lines: int = 40) -> Image.Image:
    page = Image.new("1", (1240, 1754), 1)
    words = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps")
    lines = [
        " ".join(words[(number + line * 7 + word * (1 + line % 3)) % len(words)] for word in range(12))
        for line in range(num_lines)
    ]
    ImageDraw.Draw(page).multiline_text(
        (110, 110), "\n".join(lines), 0, ImageFont.load_default(24), spacing=10
    )
    return page


def _tiff(frames: list[Image.Image], seed: int, **save: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:], software=str(seed), **save)
    return buffer.getvalue()


def png(side_px: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px + seed % 97), (255, 255, seed % 256)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(settings: dict[str, str], root: Path | None = None) -> Iterator[tuple[httpx.Client, int]]:
    """Run ``rtprune serve`` with its worker; yield a client and the process id once it is ready.

    ``root``: another checkout to serve.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        variables = {"RTPRUNE_DATA_DIR": folder, "RTPRUNE_PORT": str(port), "RTPRUNE_LOG_LEVEL": "WARNING"}
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"],
            cwd=root,
            env={**os.environ, **({"PYTHONPATH": str(root)} if root else {}), **variables, **settings},
            stdin=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as http:
                _wait_ready(http)
                yield http, process.pid
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


def idle_cores(pid: int) -> float:
    """Measure how much of a core API, worker and rasterizers take together while nothing is asked of them."""
    time.sleep(SETTLE_S)
    before = cpu_s(pid)
    time.sleep(IDLE_S)
    return round((cpu_s(pid) - before) / IDLE_S, 4)


def overheads_ms(http: httpx.Client, num_requests: int, side_px: int) -> dict[str, float]:
    """Time requests of one page, one at a time."""
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
    """Measure one-page requests a second, with ``CONCURRENCY`` at a time."""

    def ask(seed: int) -> None:
        http.post("/v1/parse", files={"file": png(side_px, 1000 + seed)}).raise_for_status()

    started = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        list(pool.map(ask, range(num_requests)))
    return round(num_requests / (time.perf_counter() - started), 2)


def queue_rate(http: httpx.Client, pid: int, documents: list[bytes], num_pages: int) -> Rate:
    """Measure the speed of the queue on documents of ``num_pages`` pages together."""
    cpu_before = cpu_s(pid)
    # a key of its own: without it, a database used before would return the old job of the same document
    posts = (
        http.post("/v1/jobs", files={"file": data}, headers={"Idempotency-Key": uuid.uuid4().hex})
        for data in documents
    )
    ids = [answer.raise_for_status().json()["id"] for answer in posts]
    jobs = [_ended(http, job_id) for job_id in ids]
    begun = min(datetime.fromisoformat(job["created_at"]) for job in jobs)
    ended = max(datetime.fromisoformat(job["finished_at"]) for job in jobs)
    return Rate.of(num_pages, (ended - begun).total_seconds(), cpu_s(pid) - cpu_before)


def _ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
        if job["status"] == "succeeded":
            return job
        if job["status"] not in {"queued", "running"}:
            raise SystemExit(f"a job ended as {job['status']}")
        time.sleep(POLL_S)


async def alone_rate(settings: Settings, documents: list[bytes], num_pages: int) -> Rate:
    """Measure the speed of the same frames through rasterizers and reader in this process."""
    per_document = num_pages // len(documents)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"document {number}" for number in range(len(documents))]
        for path, data in zip(paths, documents, strict=True):
            path.write_bytes(data)
        rasterizers = Rasterizers(settings, Path(folder))
        await rasterizers.start()
        reader = open_reader(settings)
        slots = asyncio.Semaphore(pages_in_flight(settings))

        async def read(path: Path, index: int) -> None:
            async with slots:
                page = await rasterizers.page(path, "TIFF", index, 150)
                await reader.submit(page, ReadOptions(), document_id=str(path)).result()

        await asyncio.gather(*(read(paths[0], index) for index in range(min(8, per_document))))  # warm
        started, cpu_before = time.perf_counter(), cpu_s(os.getpid())
        await asyncio.gather(*(read(path, index) for path in paths for index in range(per_document)))
        rate = Rate.of(num_pages, time.perf_counter() - started, cpu_s(os.getpid()) - cpu_before)
        await reader.close()
        await rasterizers.close()
    return rate


@dataclass
class Measured:
    """Figures of one database; lists have one entry a round."""

    overhead_ms: dict[str, float] = field(default_factory=dict)
    one_page_requests_per_s: float = 0.0
    idle_cores: float = 0.0
    queue: list[Rate] = field(default_factory=list)


def measure(
    arguments: argparse.Namespace, database_url: str, frames: Frames, number: int, of: Measured
) -> None:
    """Run round ``number``: pages through the queue; only the first round also measures requests."""
    settings = {"RTPRUNE_READER": arguments.reader, "RTPRUNE_DATABASE_URL": database_url}
    settings |= {"RTPRUNE_MAX_PAGES": "10000", "RTPRUNE_MAX_QUEUED_PAGES": "100000"}
    settings["RTPRUNE_ROUTER_BLANK"] = "false"  # blank pages are given to the reader here
    per_document = arguments.pages_per_document
    with serving(settings) as (http, pid):
        queue_rate(http, pid, [frames(min(8, per_document), 1000 + number)], 1)  # warm
        if number == 0:
            of.idle_cores = idle_cores(pid)
            of.overhead_ms = overheads_ms(http, arguments.requests, arguments.side_px)
            of.one_page_requests_per_s = requests_per_s(http, arguments.requests, arguments.side_px)
        seeds = range(number * 100, number * 100 + arguments.pages // per_document)
        documents = [frames(per_document, seed) for seed in seeds]
        of.queue.append(queue_rate(http, pid, documents, len(documents) * per_document))
    print(f"{database_url.partition(':')[0] or 'sqlite'}: {of}", flush=True)


def summary(measured: Measured, alone: list[Rate]) -> dict[str, Any]:
    """Summarise the rounds of one database.

    ``queue_costs``: share of the reader's speed that is lost, each round compared with the reader's own
    round. ``cpu_costs``: share of processor time that is added.
    """
    pairs = list(zip(measured.queue, alone, strict=True))
    slower = statistics.median(1 - queue.pages_per_s / reader.pages_per_s for queue, reader in pairs)
    dearer = statistics.median(queue.cpu_ms / reader.cpu_ms - 1 for queue, reader in pairs)
    return {
        "overhead_ms": measured.overhead_ms,
        "one_page_requests_per_s": measured.one_page_requests_per_s,
        "idle_cores": measured.idle_cores,
        "queue_pages_per_s": statistics.median(rate.pages_per_s for rate in measured.queue),
        "queue_costs": round(slower, 3),
        "cpu_costs": round(dearer, 3),
        "queue_rounds": list(map(asdict, measured.queue)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reader", choices=["fake", "model"], default="fake")
    parser.add_argument("--database-url", default="", help="PostgreSQL to measure beside SQLite; left empty")
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--pages-per-document", type=int, default=50)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side-px", type=int, default=64)
    parser.add_argument("--a4", action="store_true", help="pages of text in the queue, instead of blank ones")
    arguments = parser.parse_args()
    settings = Settings.model_validate({"reader": arguments.reader})
    frames: Frames = a4_frames if arguments.a4 else partial(blank_frames, side_px=arguments.side_px)
    per_document = arguments.pages_per_document
    documents = [frames(per_document, seed) for seed in range(arguments.pages // per_document)]
    load_before = os.getloadavg()[0]
    alone: list[Rate] = []
    databases = {"sqlite": ""}
    if arguments.database_url:
        databases["postgresql"] = arguments.database_url
    measured = {name: Measured() for name in databases}
    for number in range(arguments.rounds):
        reading = alone_rate(settings, documents, len(documents) * per_document)
        alone.append(asyncio.run(reading))
        print(f"rasterizers and reader alone: {alone[-1]}", flush=True)
        for name, url in databases.items():
            measure(arguments, url, frames, number, measured[name])
    report: dict[str, Any] = {
        "benchmark": "service",
        "reader": arguments.reader,
        "page": "a4" if arguments.a4 else f"blank, {arguments.side_px} px",
        "load_before": load_before,
        "pages": arguments.pages,
        "alone_pages_per_s": statistics.median(rate.pages_per_s for rate in alone),
        "alone_rounds": list(map(asdict, alone)),
        **{name: summary(of, alone) for name, of in measured.items()},
    }
    publish(report, torch.device("cpu"))


if __name__ == "__main__":
    main()
