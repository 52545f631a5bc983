"""Measure full-size configurations in a process of its own.

    python -m benchmarks.measuring --device cuda --configurations '[["base", 1], ["base", 16]]'

``isolated`` starts this process, reads what it reports, and starts another when it dies.
"""

import argparse
import json
import os
import signal
import sys
from typing import Any

import torch

from app.ocr.cuda import choose
from app.ocr.engine.device import give_back_memory, is_lost, is_out_of_memory
from benchmarks.full_size import FullSize, cases
from benchmarks.limits import BYTES_PER_S, FLOPS
from benchmarks.whole import measure_whole


def describe(bench: FullSize) -> dict[str, object]:
    plan = bench.decoder.cache.plan
    return {
        "parameters": sum(weights.numel() for weights in bench.model.network.parameters()),
        "output_tokens": bench.output_tokens,
        "dtype": str(bench.model.dtype),
        "attention": "packed" if bench.decoder.is_packed else "runs of rows",
        "flops_limit": FLOPS,
        "bytes_per_s_limit": BYTES_PER_S,
        "slots": plan.num_slots,
        "slot_tokens": plan.slot_tokens,
        "kv_gib": round(bench.decoder.cache.num_bytes / 2**30, 2),
    }


class Measuring:
    """Measures configurations one by one. One that fails becomes a row with its error.

    Raises ``SystemExit`` if the device is lost and nothing can follow.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._device = torch.device(args.device)
        self._warm: set[str] = set()
        if args.native:
            choose.HAS_KERNELS = False
        self._cases = {case.name: case for case in cases(tiny=args.tiny_sizes)}

    def run(self, todo: list[tuple[str, int]]) -> None:
        bench, todo = self._built(todo)
        if bench is None:
            return
        tell("about", describe(bench))
        for name, num_pages in todo:
            tell("begun", [name, num_pages])
            try:
                tell("row", self._measured(bench, name, num_pages))
            except Exception as error:  # noqa: BLE001 - it is told, and the others go on
                tell("row", failed(name, num_pages, f"{type(error).__name__}: {error}"))
                if is_lost(self._device):
                    sys.exit("the device is lost")
            give_back_memory(self._device)

    def _built(self, todo: list[tuple[str, int]]) -> tuple[FullSize | None, list[tuple[str, int]]]:
        """Build the model with slots for as many pages as fit into memory; larger configurations fail."""
        while todo:
            most = max(num_pages for _, num_pages in todo)
            try:
                bench = FullSize(
                    self._device, tiny=self._args.tiny_sizes, most_pages=most,
                    output_tokens=self._args.output_tokens,
                )  # fmt: skip
                return bench, todo
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            for name, num_pages in todo:
                if num_pages == most:
                    tell("row", failed(name, num_pages, f"no memory for {most} slots"))
            todo = [one for one in todo if one[1] < most]
            give_back_memory(self._device)
        return None, []

    def _measured(self, bench: FullSize, name: str, num_pages: int) -> dict[str, Any]:
        if f"{name}:{num_pages}" == self._args.raise_at:
            raise RuntimeError("as asked")
        if f"{name}:{num_pages}" == self._args.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        case = self._cases.get(name)
        at_once = self._args.encode_pages, self._args.prefill_tokens
        if case is None:
            return measure_whole(bench.model, num_pages, self._args.output_tokens)
        if case.name not in self._warm:
            bench.measure(case, 1, *at_once)  # warm up: kernels are loaded and chosen
            self._warm.add(case.name)
        return bench.measure(case, num_pages, *at_once)


def failed(name: str, num_pages: int, why: str) -> dict[str, Any]:
    return {"mode": name, "pages": num_pages, "error": why[:500]}


def tell(what: str, value: object) -> None:
    """Report to the parent process, one line each."""
    print(json.dumps({what: value}), flush=True)


def options() -> argparse.ArgumentParser:
    """Make a parser of the options that parent and child share."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output-tokens", type=int, default=1000)
    parser.add_argument("--encode-pages", type=int, default=8, help="pages encoded at once")
    parser.add_argument("--prefill-tokens", type=int, default=32768, help="tokens prefilled at once")
    parser.add_argument(
        "--native", action="store_true", help="the library's modules instead of kernels of our own"
    )
    parser.add_argument(
        "--tiny-sizes", action="store_true", help="shrink it, to try this script on any machine"
    )
    # for tests: a configuration, such as "base:16", that raises or kills its process
    parser.add_argument("--raise-at", default="", help=argparse.SUPPRESS)
    parser.add_argument("--die-at", default="", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, parents=[options()])
    parser.add_argument("--configurations", type=json.loads, required=True)
    args = parser.parse_args()
    Measuring(args).run([(name, num_pages) for name, num_pages in args.configurations])


if __name__ == "__main__":
    main()
