"""The parts of the benchmark. Each starts a service, does one kind of harm, and reports the result.

``livez``: percentiles in ms, asked from a process on another processor. ``held``: memory, descriptors and
files before, and some seconds after.
"""

import asyncio
import contextlib
import io
import json
import random
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from app.processes import resident_mib
from benchmarks.hostile.clients import ATTACKS, attacking, flooded
from benchmarks.hostile.files import bombs, mutations
from benchmarks.hostile.probe import probing
from benchmarks.hostile.serving import Held, Service, serving
from benchmarks.report import ROOT

NUM_SENDERS = 6
SAMPLE_S = 0.1
RENDER_S = 5
"""``rasterize_deadline_s`` for harmful files: gives the same answers in less time than the default."""
ADMITTED_S = 4.0
"""Seconds that the admitted load is measured for before ten times as much is sent."""
OVER = 10
LEFT_PAGES = 400
MAX_RATE = 200.0
SOAK_DOCUMENT_PAGES = 100
ENDED_S = 120.0
NUM_KILLS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of all parts. ``root``: the checkout to serve."""

    attacks: tuple[str, ...] = tuple(ATTACKS)
    seconds: float = 8.0
    result_pages: int = 2000
    num_mutations: int = 400
    seed: int = 20
    overload_s: float = 120.0
    num_leaving: int = 200
    soak_pages: int = 3000
    soak_from: int = 300
    reader: str = "fake"
    num_kills: int = NUM_KILLS
    tiny: bool = False
    root: Path = ROOT
    service: Service | None = None
    """One for all parts; by default, each starts one."""


@contextlib.contextmanager
def served(plan: Plan, *, pinned: bool = True, **settings: object) -> Iterator[Service]:
    """Start a service with these settings, unless there is one for all parts."""
    if plan.service is not None:
        yield plan.service
        return
    with serving(plan.root, pinned=pinned, **settings) as service:
        yield service


def warmed(service: Service, plan: Plan) -> Held:
    """Return what a service holds that has had some work."""
    return service.warm(2) if plan.tiny else service.warm()


def frames(num_pages: int, side_px: int = 64) -> bytes:
    """Write a TIFF of small blank pages."""
    frame = Image.new("1", (side_px, side_px), 1)
    buffer = io.BytesIO()
    frame.save(buffer, "TIFF", save_all=True, append_images=[frame] * (num_pages - 1))
    return buffer.getvalue()


def large_result(service: Service, num_pages: int) -> str:
    """Have a document read whose result has 11 KB a page. Return the job's id."""
    text = "<|ref|>text<|/ref|><|det|>[[50, 50, 900, 900]]<|/det|>" + "A sentence of words. " * 180
    job_id = service.submit(frames(num_pages), {"text": text[:3900]})
    service.wait_ended(ENDED_S)
    return job_id


def livez(plan: Plan) -> dict[str, Any]:
    """Time ``/livez`` during each attack, and with no attack before each of them."""
    rows: dict[str, Any] = {}
    with served(plan) as service:
        job_id = large_result(service, plan.result_pages)
        for name in plan.attacks:
            with probing(service.port) as idle:
                time.sleep(plan.seconds / 2)
            # large results are put together one after the other: by then, all are being sent
            settle_s = 3 * plan.seconds if name == "results" else plan.seconds / 8
            with (
                attacking(name, service.port, settle_s, job_id=job_id),
                probing(service.port) as probe,
            ):
                time.sleep(plan.seconds)
            rows[name] = {**probe.figures, "before": idle.figures, "api_mib": service.held().api_mib}
            print(f"livez beside {name}: {rows[name]}", flush=True)
    return {"result_pages": plan.result_pages, "beside": rows}


def mutated(plan: Plan) -> dict[str, Any]:
    """Send documents with errors. Each should get an answer that names its error; no process should die."""
    with served(plan, rasterize_deadline_s=RENDER_S, max_jobs_per_client=1000) as service:
        before, begun = warmed(service, plan), time.monotonic()
        with probing(service.port) as probe, ThreadPoolExecutor(NUM_SENDERS) as senders:
            send = _sender(service)
            answers = list(senders.map(send, mutations(plan.num_mutations, plan.seed)))
        took_s = time.monotonic() - begun
        service.wait_ended(ENDED_S)
        return {
            "documents": len(answers),
            "seed": plan.seed,
            "seconds": round(took_s, 1),
            "answers": dict(Counter(answer for answer, _ in answers).most_common()),
            "defects": sum(answer.startswith(("500", "no answer")) for answer, _ in answers),
            "slowest_s": round(max(seconds for _, seconds in answers), 1),
            "worker_starts": service.metric("rtprune_worker_starts_total"),
            "livez": probe.figures,
            "held": {"before": asdict(before), "after": asdict(service.settled(before))},
        }


def _sender(service: Service) -> Callable[[bytes], tuple[str, float]]:
    """Return a function that sends a document and returns its answer ("422 unreadable_file") and seconds."""

    def send(data: bytes) -> tuple[str, float]:
        began_at = time.monotonic()
        try:
            answer = service.http.post("/v1/parse", files={"file": data}, data={"wait_seconds": "60"})
        except httpx.HTTPError as error:
            return f"no answer: {type(error).__name__}", time.monotonic() - began_at
        told = answer.json()
        of_pages = {page["failure"]["code"] for page in told.get("pages", ()) if page.get("failure")}
        said = told.get("code") or ", ".join([told["status"], *sorted(of_pages)])
        return f"{answer.status_code} {said}", time.monotonic() - began_at

    return send


def bombed(plan: Plan) -> dict[str, Any]:
    """Send files that unpack to far more than their size, one after the other."""
    rows: list[dict[str, Any]] = []
    with served(plan, rasterize_deadline_s=RENDER_S) as service:
        before = warmed(service, plan)
        send = _sender(service)
        with probing(service.port) as probe:
            for name, made in bombs(tiny=plan.tiny).items():
                data = made()
                with _most_mib(service) as most:
                    answer, seconds = send(data)
                rows.append(
                    {
                        "file": name,
                        "kb": round(len(data) / 1000, 1),
                        "answer": answer,
                        "seconds": round(seconds, 1),
                    }
                    | {"rasterizer_mib": round(max(most, default=0))}
                )
                print(rows[-1], flush=True)
        service.wait_ended(ENDED_S)
        return {
            "files": rows,
            "defects": sum(row["answer"].startswith(("500", "no answer")) for row in rows),
            "livez": probe.figures,
            "held": {"before": asdict(before), "after": asdict(service.settled(before))},
        }


@contextlib.contextmanager
def _most_mib(service: Service) -> Iterator[list[float]]:
    """Sample the memory of all rasterizers together while the context lasts."""
    samples: list[float] = []
    over = threading.Event()

    def sample() -> None:
        while not over.is_set():
            samples.append(service.held().rasterizer_mib)
            over.wait(SAMPLE_S)

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        yield samples
    finally:
        over.set()
        sampling.join()


def overloaded(plan: Plan) -> dict[str, Any]:
    """Send ten times the jobs that can be read, for long. Each should be refused politely or end."""
    num_pages, prompt = (1, "{}") if plan.tiny else (8, json.dumps({"delay_s": 0.2}))
    limits: dict[str, Any] = {
        "max_pages_in_flight": 16,
        "max_queued_pages": 400,
        "max_jobs_per_client": 100_000,
    }
    with served(plan, **limits) as service, tempfile.NamedTemporaryFile() as document:
        document.write(frames(num_pages))
        document.flush()
        told = {"document": document.name, "prompt": prompt}
        # what is queued at the start is not what is read in that time: so the rate is that of the ends
        measured = flooded(service.port, **told, rate=30.0, seconds=min(ADMITTED_S, plan.overload_s))
        service.wait_ended(ENDED_S)
        admitted = _rate(service, measured["accepted"])
        rate = min(MAX_RATE, OVER * admitted)
        before = warmed(service, plan)
        with probing(service.port) as probe:
            answered = flooded(service.port, **told, rate=rate, seconds=plan.overload_s)
        service.wait_ended(ENDED_S)
        return {
            "seconds": plan.overload_s,
            "admitted_jobs_per_s": round(admitted, 1),
            "sent_per_s": round(rate, 1),
            "answers": answered["statuses"],
            "without_retry_after": answered["without_retry_after"],
            **_ends(service, answered["accepted"]),
            "livez": probe.figures,
            "held": {"before": asdict(before), "after": asdict(service.settled(before))},
        }


def _rate(service: Service, job_ids: list[str]) -> float:
    """Return how many of these jobs were read a second."""
    rows = service.query("SELECT id, created_at, finished_at FROM rtprune_jobs")
    times = [row[1:] for row in rows if row[0] in job_ids]
    begun, ended = zip(*times, strict=True)
    return float(len(times) / (max(ended) - min(begun)))


def _ends(service: Service, job_ids: list[str]) -> dict[str, Any]:
    """Count how accepted jobs ended. ``lost``: those that the service does not know."""
    known = dict(service.query("SELECT id, status FROM rtprune_jobs"))
    ends = Counter(known.get(job_id, "lost") for job_id in job_ids)
    return {"accepted": len(job_ids), "ends": dict(ends), "lost": ends["lost"]}


def left(plan: Plan) -> dict[str, Any]:
    """Let clients disconnect in the middle of an upload, of a wait, and of an answer."""
    with served(plan, max_documents=2 * plan.num_leaving + 64, max_jobs_per_client=10_000) as service:
        job_id = large_result(service, min(plan.result_pages, LEFT_PAGES))
        before = warmed(service, plan)
        with probing(service.port) as probe:
            for leaving in (_leave_upload, _leave_waiting, _leave_answer):
                asyncio.run(_leave_all(leaving, service.port, job_id, plan.num_leaving))
        service.wait_ended(ENDED_S)
        after = service.settled(before)
        return {
            "clients_each": plan.num_leaving,
            "documents_in_flight": service.metric("rtprune_documents_in_flight"),
            "livez": probe.figures,
            "held": {"before": asdict(before), "after": asdict(after)},
        }


Leaving = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Any]


async def _leave_all(leaving: Leaving, port: int, job_id: str, num: int) -> None:
    async def client(number: int) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await leaving(reader, writer, job_id)
            if number % 2:  # close with a reset
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    await asyncio.gather(*map(client, range(num)))


def _upload(document: bytes, more: int) -> bytes:
    """Write a request of which ``more`` bytes are missing."""
    fields = json.dumps({"delay_s": 30})
    body = (
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + fields.encode() + b"\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        + document
        + b"\r\n--b--\r\n"
    )
    head = b"POST /v1/parse HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) + more) + body


async def _leave_upload(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(_upload(bytes(200_000), 10**6))
    await writer.drain()
    await asyncio.sleep(0.5)


async def _leave_waiting(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(_upload(frames(1), 0))
    await writer.drain()
    await asyncio.sleep(2)


async def _leave_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, job_id: str) -> None:
    writer.write(f"GET /v1/jobs/{job_id}/result HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await asyncio.wait_for(reader.read(2**16), 60)


def soaked(plan: Plan) -> dict[str, Any]:
    """Read many pages. The memory of each process should grow little after the first few hundred.

    The fake reader gets pages of A4. The pocket model gets three lines a page, or it would take an hour.
    """
    from benchmarks.service import a4_frames, note_frames  # noqa: PLC0415 - of no use to other parts

    drawn = a4_frames if plan.reader == "fake" else note_frames
    samples: list[tuple[int, dict[str, float]]] = []
    limits: dict[str, Any] = {"max_queued_pages": 100_000, "max_jobs_per_client": 1000}
    with served(plan, pinned=False, reader=plan.reader, **limits) as service:
        job_ids: list[tuple[str, int]] = []
        num_before, num_done = _num_pages(service), 0
        begun = time.monotonic()
        while num_done < plan.soak_pages:
            if service.num_open() < 2 and sum(pages for _, pages in job_ids) < plan.soak_pages:
                num = min(SOAK_DOCUMENT_PAGES, plan.soak_pages)
                job_ids.append((service.submit(drawn(num, len(job_ids))), num))
            time.sleep(SAMPLE_S)
            num_done = _num_pages(service) - num_before
            samples.append((num_done, _memory(service)))
        took_s = time.monotonic() - begun
        ends = _ends(service, [job_id for job_id, _ in job_ids])
    return {
        "pages": num_done,
        "first_pages": plan.soak_from,
        "reader": plan.reader,
        "pages_per_s": round(num_done / took_s, 1),
        **ends,
        "memory": _growth(samples, plan.soak_from, plan.soak_pages),
    }


def _num_pages(service: Service) -> int:
    return int(service.query("SELECT count(*) FROM rtprune_pages")[0][0])


def _memory(service: Service) -> dict[str, float]:
    """Return resident memory in MiB of API, worker, and the largest rasterizer."""
    rasterizers = [resident_mib(pid) or 0.0 for pid in service.rasterizer_pids]
    return {
        "api": resident_mib(service.pid) or 0.0,
        "worker": resident_mib(service.worker_pid) or 0.0,
        "rasterizer": max(rasterizers, default=0.0),
    }


def _growth(samples: list[tuple[int, dict[str, float]]], begin: int, end: int) -> dict[str, dict[str, float]]:
    """Compare medians of the first and the last tenth of the pages after ``begin``."""
    tenth = max(1, (end - begin) // 10)
    first = [one for pages, one in samples if begin <= pages <= begin + tenth] or [samples[0][1]]
    last = [one for pages, one in samples if pages >= end - tenth]
    grown = {}
    for name in samples[0][1]:
        before, after = (statistics.median(one[name] for one in some) for some in (first, last))
        growth = round(after / before - 1, 3)
        grown[name] = {"first_mib": round(before, 1), "last_mib": round(after, 1), "growth": growth}
    return grown


def killed(plan: Plan) -> dict[str, Any]:
    """Kill all processes at once while pages are read and start again, several times on one folder."""
    chance = random.Random(plan.seed)  # noqa: S311
    num_pages, num_jobs = (12, 2) if plan.tiny else (60, 6)
    num_killed, num_changed, restart_s = [], 0, []
    with served(plan, max_pages_in_flight=8) as service:
        accepted = [service.submit(frames(num_pages), {"delay_s": 0.05}) for _ in range(num_jobs)]
        for _ in range(plan.num_kills):
            time.sleep(chance.uniform(0.2, 0.5) if plan.tiny else chance.uniform(0.5, 2))
            num_killed.append(service.kill())
            stored = _stored(service)
            began_at = time.monotonic()
            service.start()
            restart_s.append(round(time.monotonic() - began_at, 1))
            accepted.append(service.submit(frames(num_pages), {"delay_s": 0.05}))
            time.sleep(0.5)
            now = _stored(service)
            num_changed += sum(now.get(page) != row for page, row in stored.items())
        service.wait_ended(ENDED_S)
        num_missing = len(accepted) * num_pages - sum(page[0] in accepted for page in _stored(service))
        integrity = service.query("PRAGMA integrity_check")[0][0]
        return {
            "kills": plan.num_kills,
            "processes": num_killed,
            "restart_s": restart_s,
            **_ends(service, accepted),
            "pages": len(accepted) * num_pages,
            "pages_missing": num_missing,
            "pages_read_twice": num_changed,
            "database": integrity,
            "temp_files": service.settled(Held(0, 0, 0, 10**6, 0)).temp_files,
        }


def _stored(service: Service) -> dict[tuple[str, int], tuple[int, float]]:
    """Return every page that was written, with its place in the order and its time."""
    rows = service.query("SELECT job_id, page, seq, done_at FROM rtprune_pages")
    return {(job_id, page): (seq, done_at) for job_id, page, seq, done_at in rows}


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "livez": livez,
    "mutations": mutated,
    "bombs": bombed,
    "leaving": left,
    "kill": killed,
    "soak": soaked,
    "overload": overloaded,
}
