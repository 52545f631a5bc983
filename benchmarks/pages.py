"""Time A4 pages of text through the service, one at a time and several at once.

    python -m benchmarks.pages [--pages 6] [--rounds 3] [--out benchmarks/results/pages-cpu.json]

Starts the service with the packaged checkpoint and posts the same pages to ``/v1/parse``, each as a request
of its own: first each after the last was answered, then all together. Rounds of both alternate, because a
machine's speed drifts; the median of the rounds counts. Seconds are the client's. Pages have some 2,500
characters at 150 dpi, black on white.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from benchmarks.report import publish
from benchmarks.service import a4_page, serving


def seconds_of(http: httpx.Client, pages: Sequence[bytes], *, at_once: int) -> float:
    """Return the seconds from the first request to the last answer."""

    def ask(page: bytes) -> None:
        answer = http.post("/v1/parse", files={"file": page}).raise_for_status().json()
        if answer["status"] != "succeeded":
            raise SystemExit(f"a page ended as {answer['status']}")

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(ask, pages))
    return time.perf_counter() - started


def measure(num_pages: int, num_rounds: int) -> dict[str, object]:
    alone, together = [], []
    with serving({"RTPRUNE_READER": "model"}) as (http, _):
        seconds_of(http, [a4_page(0, seed=0)], at_once=1)  # warm
        for number in range(num_rounds):
            # seeds change no pixel, only bytes: the service would not read a document that it knows again
            first, second = (
                [a4_page(at, seed) for at in range(num_pages)] for seed in (2 * number + 1, 2 * number + 2)
            )
            alone.append(round(seconds_of(http, first, at_once=1) / num_pages, 3))
            together.append(round(seconds_of(http, second, at_once=num_pages) / num_pages, 3))
            print(f"a page alone {alone[-1]} s, together {together[-1]} s", flush=True)
    ratios = [one / other for one, other in zip(alone, together, strict=True)]
    return {
        "benchmark": "pages",
        "pages": num_pages,
        "seconds_a_page_alone": statistics.median(alone),
        "seconds_a_page_together": statistics.median(together),
        "times_faster_together": round(statistics.median(ratios), 3),
        "rounds": {"alone": alone, "together": together},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pages", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    publish(measure(arguments.pages, arguments.rounds), torch.device("cpu"), arguments.out)


if __name__ == "__main__":
    main()
