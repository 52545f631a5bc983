"""Clients that do expensive things, in a process of their own.

A flood reports at its end what was answered; the others go on until they are killed.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.hostile.serving import on_cpus

BYTES_PER_S = 1_500_000
NUM_CHUNKERS = 4
NUM_SLOW = 200
NUM_SILENT = 1100
NUM_RESULTS = 48
TICK_S = 0.05
ANSWER_S = 600.0
MAX_UNANSWERED = 200
"""Most requests of a flood without an answer. Further ones are not sent, and are counted."""
NICENESS = 5
"""Niceness of attackers, so that the measuring process goes first."""
UPLOAD = (
    b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
BEGIN = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
CHUNK = b"1\r\nx\r\n"


async def chunks(port: int, _: dict[str, Any]) -> None:
    """Send chunks of a byte, ``BYTES_PER_S`` bytes from each client."""
    num_chunks = int(BYTES_PER_S * TICK_S / len(CHUNK))
    await asyncio.gather(*(_upload(port, num_chunks, TICK_S) for _ in range(NUM_CHUNKERS)))


async def slow(port: int, _: dict[str, Any]) -> None:
    """Send a byte of a body each second, from each client."""
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


async def silent(port: int, _: dict[str, Any]) -> None:
    """Connect and send nothing; connect again when the connection is closed."""

    async def client() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                await reader.read()
                writer.close()
            await asyncio.sleep(1)

    await asyncio.gather(*(client() for _ in range(NUM_SILENT)))


async def results(port: int, told: dict[str, Any]) -> None:
    """Download the same large result again and again."""

    async def client(http: httpx.AsyncClient) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                async with http.stream("GET", f"/v1/jobs/{told['job_id']}/result") as answer:
                    async for _ in answer.aiter_raw():
                        pass

    limits = httpx.Limits(max_connections=NUM_RESULTS)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S, limits=limits
    ) as http:
        await asyncio.gather(*(client(http) for _ in range(NUM_RESULTS)))


async def flood(port: int, told: dict[str, Any]) -> dict[str, Any]:
    """Submit ``rate`` documents a second for ``seconds``, whatever is answered."""
    document = await asyncio.to_thread(Path(told["document"]).read_bytes)
    statuses: Counter[str] = Counter()
    accepted: list[str] = []
    no_retry_after = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal no_retry_after
        try:
            answer = await http.post("/v1/jobs", files={"file": document}, data={"prompt": told["prompt"]})
        except httpx.HTTPError as error:
            statuses[type(error).__name__] += 1
            return
        statuses[str(answer.status_code)] += 1
        if answer.status_code == 202:
            accepted.append(answer.json()["id"])
        elif answer.status_code in {429, 503} and "retry-after" not in answer.headers:
            no_retry_after += 1

    limits = httpx.Limits(max_connections=MAX_UNANSWERED)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S, limits=limits
    ) as http:
        began_at = time.monotonic()
        asking: set[asyncio.Task[None]] = set()
        num_due = 0
        while (now := time.monotonic()) < began_at + told["seconds"]:
            while num_due < (now - began_at) * told["rate"]:
                num_due += 1
                if len(asking) >= MAX_UNANSWERED:
                    statuses["not sent"] += 1
                    continue
                task = asyncio.create_task(client(http))
                asking.add(task)
                task.add_done_callback(asking.discard)
            await asyncio.sleep(0.5 / told["rate"])
        await asyncio.gather(*asking)
    return {"statuses": dict(statuses), "without_retry_after": no_retry_after, "accepted": accepted}


Attack = Callable[[int, dict[str, Any]], Coroutine[Any, Any, dict[str, Any] | None]]
ATTACKS: dict[str, Attack] = {"chunks": chunks, "slow": slow, "silent": silent, "results": results}
"""Attacks that go on until they are killed."""


def _started(name: str, port: int, told: dict[str, Any]) -> subprocess.Popen[bytes]:
    with on_cpus(of_clients=True):
        command = [sys.executable, "-m", __name__, name, str(port), json.dumps(told)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)


@contextlib.contextmanager
def attacking(name: str, port: int, settle_s: float, **told: Any) -> Iterator[None]:
    """Run one of ``ATTACKS`` for as long as the context lasts, which begins ``settle_s`` after it."""
    with _started(name, port, told) as process:
        try:
            process.stdout.readline()  # type: ignore[union-attr]
            time.sleep(settle_s)
            yield
        finally:
            process.kill()


def flooded(port: int, **told: Any) -> dict[str, Any]:
    """Run a flood to its end. Return what was answered."""
    with _started("flood", port, told) as process:
        said, _ = process.communicate()
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def main() -> None:
    os.nice(NICENESS)
    print("begins", flush=True)
    name, port, told = sys.argv[1:]
    attack = flood if name == "flood" else ATTACKS[name]
    print(json.dumps(asyncio.run(attack(int(port), json.loads(told)))))


if __name__ == "__main__":
    main()
