"""How fast ``/livez`` answers while other clients do what is expensive for the service.

    python -m benchmarks.hostile [--seconds 10] [--pages 2000] [--root CHECKOUT] [--only chunks results ...]

``idle``: nobody else. ``chunks``: four clients send bodies in chunks of a byte, 1.5 MB/s each. ``slow``: 200
clients send a byte of a body each second. ``silent``: 1,100 connections that say nothing. ``results``: 48
clients get the result of a document of ``--pages`` pages, 11 KB each. For each: percentiles of ``/livez`` in
ms, how many of its requests failed, and the most memory that the API's process has had so far, in MiB. The
reader is fake. ``--root`` serves another checkout. The last line is one JSON document.
"""

import argparse
import asyncio
import contextlib
import io
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

BYTES_PER_S = 1_500_000
NUM_CHUNKERS = 4
NUM_SLOW = 200
NUM_SILENT = 1100
NUM_RESULTS = 48
PROBE_EVERY_S = 0.02
PROBE_TIMEOUT_S = 60.0
TICK_S = 0.05
SETTLE_S = 1.0
UPLOAD = (
    b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
BEGIN = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
CHUNK = b"1\r\nx\r\n"


async def chunks(port: int, _: str) -> None:
    """Send chunks of a byte, as fast as ``BYTES_PER_S`` says."""
    num_chunks = int(BYTES_PER_S * TICK_S / len(CHUNK))
    await asyncio.gather(*(_upload(port, num_chunks, TICK_S) for _ in range(NUM_CHUNKERS)))


async def slow(port: int, _: str) -> None:
    """Send a byte of a body each second."""
    await asyncio.gather(*(_upload(port, 1, 1.0) for _ in range(NUM_SLOW)))


async def _upload(port: int, num_chunks: int, every_s: float) -> None:
    """Upload a body without end in chunks of a byte; begin again when that is refused."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(UPLOAD + b"%x\r\n%s\r\n" % (len(BEGIN), BEGIN))
            while True:
                writer.write(CHUNK * num_chunks)
                await writer.drain()
                await asyncio.sleep(every_s)


async def silent(port: int, _: str) -> None:
    """Connect and say nothing; connect again when that is ended."""

    async def client() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                await reader.read()
                writer.close()
            await asyncio.sleep(1)

    await asyncio.gather(*(client() for _ in range(NUM_SILENT)))


async def results(port: int, job_id: str) -> None:
    """Get the same large result, again and again."""

    async def client(http: httpx.AsyncClient) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                async with http.stream("GET", f"/v1/jobs/{job_id}/result") as answer:
                    async for _ in answer.aiter_raw():
                        pass

    limits = httpx.Limits(max_connections=NUM_RESULTS)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(NUM_RESULTS)))


Attack = Callable[[int, str], Coroutine[Any, Any, None]]
ATTACKS: dict[str, Attack] = {"chunks": chunks, "slow": slow, "silent": silent, "results": results}


@contextmanager
def attacking(name: str, port: int, job_id: str) -> Iterator[None]:
    """Run an attack in a process of its own, so that only the service is slow by it."""
    if name == "idle":
        yield
        return
    command = [
        sys.executable,
        "-m",
        "benchmarks.hostile",
        "--attack",
        name,
        "--port",
        str(port),
        "--job",
        job_id,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()  # type: ignore[union-attr]
            time.sleep(SETTLE_S)
            yield
        finally:
            process.kill()


def probed(http: httpx.Client, seconds: float) -> dict[str, float]:
    """Ask ``/livez`` for so long."""
    found: list[float] = []
    num_failed = 0
    ends_at = time.perf_counter() + seconds
    while time.perf_counter() < ends_at or len(found) + num_failed < 2:
        began_at = time.perf_counter()
        try:
            http.get("/livez", timeout=PROBE_TIMEOUT_S).raise_for_status()
        except httpx.HTTPError:
            num_failed += 1
        found.append((time.perf_counter() - began_at) * 1000)
        time.sleep(PROBE_EVERY_S)
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    figures = {"p50_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(found)}
    return {name: round(figure, 1) for name, figure in figures.items()} | {
        "requests": len(found),
        "failed": num_failed,
    }


def most_mib(pid: int) -> float:
    """Return the largest resident memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def read_document(http: httpx.Client, num_pages: int) -> str:
    """Have a document read whose result is large; return its job's id."""
    frame = Image.new("1", (64, 64), 1)
    buffer = io.BytesIO()
    frame.save(buffer, "TIFF", save_all=True, append_images=[frame] * (num_pages - 1))
    text = "<|ref|>text<|/ref|><|det|>[[50, 50, 900, 900]]<|/det|>" + "A sentence of words. " * 180
    fields = {"prompt": json.dumps({"text": text[:3900]})}
    job = http.post("/v1/jobs", files={"file": buffer.getvalue()}, data=fields).raise_for_status().json()
    while http.get(job["links"]["self"]).json()["status"] in {"queued", "running"}:
        time.sleep(0.5)
    return str(job["id"])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.service import serving  # noqa: PLC0415 - of which attackers need nothing, and it imports torch

    names = arguments.only or ["idle", *ATTACKS]
    rows: dict[str, Any] = {}
    with serving({"RTPRUNE_READER": "fake"}, arguments.root) as (http, pid):
        job_id = read_document(http, arguments.pages) if "results" in names else ""
        for name in names:
            with attacking(name, http.base_url.port or 0, job_id):
                rows[name] = probed(http, arguments.seconds) | {"most_mib": most_mib(pid)}
            print(f"{name:8} {rows[name]}", flush=True)
    return {"cpus": platform.processor() or platform.machine(), "seconds": arguments.seconds, "livez": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", nargs="*", choices=["idle", *ATTACKS])
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--job", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        print("begins", flush=True)
        asyncio.run(ATTACKS[arguments.attack](arguments.port, arguments.job))
        return
    print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()
