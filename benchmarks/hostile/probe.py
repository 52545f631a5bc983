"""Time ``/livez`` from a process of its own, until its standard input ends.

The last line is one JSON document.
"""

import contextlib
import http.client
import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.hostile.serving import on_cpus

EVERY_S = 0.02
ANSWER_S = 60.0


@dataclass
class Probe:
    """A running probe. ``figures``: set when the probe has ended."""

    figures: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def probing(port: int) -> Iterator[Probe]:
    """Ask ``/livez`` for as long as the context lasts, from the clients' processor."""
    probe = Probe()
    with on_cpus(of_clients=True):
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    with process:
        process.stdout.readline()  # type: ignore[union-attr]
        try:
            yield probe
        finally:
            said, _ = process.communicate(timeout=2 * ANSWER_S)
            probe.figures = json.loads(said)


def asked(port: int) -> dict[str, Any]:
    """Ask ``/livez`` until standard input ends. Return times in ms and failures."""
    times_ms: list[float] = []
    num_failed = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    while len(times_ms) < 2 or not select.select([sys.stdin], [], [], EVERY_S)[0]:
        began_at = time.perf_counter()
        try:
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
            num_failed += answer.status != 200
        except (OSError, http.client.HTTPException):
            num_failed += 1
            connection.close()
        times_ms.append((time.perf_counter() - began_at) * 1000)
    cuts = statistics.quantiles(times_ms, n=100, method="inclusive")
    figures = {"p50_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(times_ms)}
    rounded = {name: round(figure, 1) for name, figure in figures.items()}
    return {**rounded, "requests": len(times_ms), "failed": num_failed}


if __name__ == "__main__":
    print("begins", flush=True)
    print(json.dumps(asked(int(sys.argv[1]))))
