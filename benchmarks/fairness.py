"""Time single pages beside a job of 60 pages, with and without high priority, against single pages alone.

    python -m benchmarks.fairness [--pages 60] [--samples 4] [--baseline REVISION] [--out FILE]

Starts the service on SQLite and times jobs of one page by the service's own clock, from accepted to finished.
Some run alone, before and after the large job. Others run at different moments beside it, in turn with the
default priority and with priority 9. Medians count; ``times`` are medians divided by the median alone.

``memory_mib``: resident memory of the worker before the large job, at its peak, and after the job.
``delete_s``: time from the request that cancels a large job until none of its pages is with the model.
``after_delete_s``: time of a page submitted right after that. ``unread_pages``: pages not read within their
deadline. ``pages_per_s`` and ``cpu_ms``: speed of a job of ``--pages-alone`` pages with nothing beside it,
measured ``--rounds`` times, in turn with the baseline, because a machine's speed drifts.

``--baseline`` also measures another commit, which is checked out beside this one.
"""

import argparse
import json
import sqlite3
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import torch

from app.processes import resident_mib
from benchmarks.report import ROOT, publish
from benchmarks.service import Rate, a4_frames, a4_page, cpu_s, serving

POLL_S = 0.1
JOB_PATIENCE_S = 1800.0
HIGH_PRIORITY = 9
FIRST_PAGES = 3
"""Pages of the large job that are read before anything is timed beside it."""
FAKE_SETTINGS = {"RTPRUNE_MAX_PAGES_IN_FLIGHT": "8"}
FAKE_PROMPT = json.dumps({"delay_s": 0.2})
SETTLE_S = 2.0


@dataclass(frozen=True)
class Plan:
    """Sizes of a measurement. ``root``: the checkout that is served."""

    root: Path
    reader: str
    num_pages: int
    num_samples: int
    num_alone: int


@dataclass
class Felt:
    """Seconds of single pages, in the order measured."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    high_priority: list[float] = field(default_factory=list)


class Service:
    """Client of one running service; knows its process and its folder."""

    def __init__(self, http: httpx.Client, pid: int, folder: Path, reader: str) -> None:
        self._http, self._pid, self._folder = http, pid, folder
        self._is_fake = reader == "fake"
        self._seed = 0
        self.num_unread = 0

    def submit(self, data: bytes, priority: int | None = None) -> str:
        form = {} if priority is None else {"priority": str(priority)}
        if self._is_fake:
            form["prompt"] = FAKE_PROMPT
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._http.post("/v1/jobs", files={"file": data}, data=form, headers=headers)
        return str(answer.raise_for_status().json()["id"])

    def page_s(self, priority: int | None = None) -> float:
        """Return the seconds that a job of one page takes."""
        self._seed += 1
        return seconds(self.ended(self.submit(a4_page(self._seed % 7, self._seed), priority)))

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        return job

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended and return it. Count its pages that were not read in time."""
        deadline = time.monotonic() + JOB_PATIENCE_S
        while (job := self.job(job_id))["status"] in {"queued", "running"}:
            if time.monotonic() > deadline:
                raise SystemExit("a job does not end")
            time.sleep(POLL_S)
        self.num_unread += int(job["pages"]["failed"])
        return job

    def large(self, num_pages: int) -> str:
        """Submit a job of ``num_pages`` pages; return its id when the first pages are read."""
        self._seed += 1
        job_id = self.submit(a4_frames(num_pages, self._seed))
        while self.job(job_id)["pages"]["done"] < min(FIRST_PAGES, num_pages):
            time.sleep(POLL_S)
        return job_id

    def rate(self, num_pages: int) -> Rate:
        """Measure the speed of one job with nothing beside it."""
        self._seed += 1
        before = cpu_s(self._pid)
        job = self.ended(self.submit(a4_frames(num_pages, self._seed)))
        return Rate.of(num_pages, seconds(job), cpu_s(self._pid) - before)

    def delete_s(self, job_id: str) -> float:
        """Cancel a job; return the seconds until it has no page with the model."""
        began = time.monotonic()
        self._http.delete(f"/v1/jobs/{job_id}").raise_for_status()
        while self._num_with_model(job_id):
            time.sleep(0.01)
        return time.monotonic() - began

    def _num_with_model(self, job_id: str) -> int:
        query = "SELECT count(*) FROM rtprune_tries WHERE job_id = ? AND worker IS NOT NULL"
        database = sqlite3.connect(self._folder / "jobs.sqlite", timeout=30)
        try:
            return int(database.execute(query, (job_id,)).fetchone()[0])
        finally:
            database.close()

    @property
    def worker_pid(self) -> int:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self._pid and b"app.worker" in (path / "cmdline").read_bytes():
                    return int(path.name)
            except OSError:
                continue  # the process has ended meanwhile
        raise SystemExit("the service has no worker")

    def memory_mib(self) -> int:
        return round(resident_mib(self.worker_pid) or 0)

    def peak_mib(self) -> int:
        """Return the peak of the worker's resident memory."""
        for line in Path(f"/proc/{self.worker_pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024)
        return 0


def seconds(job: dict[str, Any]) -> float:
    """Return the seconds from accepted to finished, by the service's clock."""
    times = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
    created, finished = times
    return (finished - created).total_seconds()


@contextmanager
def started(plan: Plan) -> Iterator[Service]:
    settings = {"RTPRUNE_READER": plan.reader} | (FAKE_SETTINGS if plan.reader == "fake" else {})
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"RTPRUNE_DATA_DIR": folder}
        with serving(settings, plan.root) as (http, pid):
            service = Service(http, pid, Path(folder), plan.reader)
            service.page_s()  # warm
            yield service


def felt(service: Service, plan: Plan) -> dict[str, Any]:
    """Measure single pages and memory around and beside one large job, then what cancelling one frees."""
    pages = Felt()
    pages.alone += [service.page_s() for _ in range(plan.num_samples)]
    before_mib = service.memory_mib()
    job_id = service.large(plan.num_pages)
    for number in range(2 * plan.num_samples):
        if service.job(job_id)["status"] != "running":
            break  # single pages were too slow for more to fit beside it
        if number % 2:
            pages.high_priority.append(service.page_s(HIGH_PRIORITY))
            time.sleep(pages.alone[0])
        else:
            pages.beside.append(service.page_s())
    service.ended(job_id)
    if not pages.high_priority:
        raise SystemExit("the large job ended before anything was timed beside it: give it more pages")
    time.sleep(SETTLE_S)
    memory_mib = {"before": before_mib, "most": service.peak_mib(), "after": service.memory_mib()}
    job_id = service.large(plan.num_pages)
    delete_s = service.delete_s(job_id)
    after_delete_s = service.page_s()
    pages.alone += [service.page_s() for _ in range(plan.num_samples)]
    return {
        **medians(pages),
        "unread_pages": service.num_unread,
        "memory_mib": memory_mib,
        "delete_s": round(delete_s, 3),
        "after_delete_s": round(after_delete_s, 3),
        "samples_s": {name: [round(one, 2) for one in values] for name, values in asdict(pages).items()},
    }


def medians(pages: Felt) -> dict[str, float]:
    alone = statistics.median(pages.alone)
    beside, high = statistics.median(pages.beside), statistics.median(pages.high_priority)
    return {
        "alone_s": round(alone, 3),
        "beside_s": round(beside, 3),
        "beside_times": round(beside / alone, 2),
        "high_priority_s": round(high, 3),
        "high_priority_times": round(high / alone, 2),
    }


def measure(plans: dict[str, Plan], num_rounds: int) -> dict[str, Any]:
    """Measure checkouts in turn: a round of speed, then what single pages take, then more rounds of speed."""
    figures: dict[str, Any] = {}
    rates: dict[str, list[Rate]] = {name: [] for name in plans}
    for number in range(max(1, num_rounds)):
        for name, plan in plans.items():
            with started(plan) as service:
                if number < num_rounds:
                    rates[name].append(service.rate(plan.num_alone))
                    print(f"{name}: {rates[name][-1]}", flush=True)
                if number == 0:
                    figures[name] = felt(service, plan)
                    print(f"{name}: {figures[name]}", flush=True)
    for name, rounds in rates.items():
        if rounds:
            figures[name]["pages_per_s"] = statistics.median(rate.pages_per_s for rate in rounds)
            figures[name]["cpu_ms"] = statistics.median(rate.cpu_ms for rate in rounds)
            figures[name]["rounds"] = list(map(asdict, rounds))
    if all(len(rounds) for rounds in rates.values()) and len(rates) > 1:
        now, baseline = rates.values()
        pairs = zip(now, baseline, strict=True)
        ratios = [one.pages_per_s / other.pages_per_s for one, other in pairs]
        figures["speed_over_baseline"] = round(statistics.median(ratios), 3)
    return figures


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Check out another commit of this repository in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", "--format=tar", revision], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reader", choices=["model", "fake"], default="model")
    parser.add_argument("--pages", type=int, default=60, help="of the large job")
    parser.add_argument("--samples", type=int, default=4, help="single pages of each kind")
    parser.add_argument("--pages-alone", type=int, default=24, help="of the job whose speed is measured")
    parser.add_argument("--rounds", type=int, default=2, help="of speed; 0 measures none")
    parser.add_argument("--baseline", default="", help="commit to measure beside this one")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sizes = (arguments.reader, arguments.pages, arguments.samples, arguments.pages_alone)
    plans = {"now": Plan(ROOT, *sizes)}
    figures: dict[str, Any] = {
        "benchmark": "fairness",
        "reader": arguments.reader,
        "pages": arguments.pages,
        "pages_alone": arguments.pages_alone,
    }
    if arguments.baseline:
        with checked_out(arguments.baseline) as root:
            measured = measure(plans | {"baseline": Plan(root, *sizes)}, arguments.rounds)
        figures["baseline_commit"] = arguments.baseline
    else:
        measured = measure(plans, arguments.rounds)
    publish({**figures, **measured}, torch.device("cpu"), arguments.out)


if __name__ == "__main__":
    main()
