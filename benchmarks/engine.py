"""Compare the engine with transformers' own ``generate()``, in one run, on the same pages.

    python -m benchmarks.engine                      the packaged checkpoint, on CPU
    python -m benchmarks.engine --full-size          the full architecture with random weights, on a GPU

Measures pages per second of four ways: the engine with 16 pages in flight and with one, ``generate()`` one
page at a time, and ``generate()`` on padded batches of 16 in order of arrival. Output lengths are forced
(20 to 400 tokens, the end token ignored) and the same for all, so the figures do not depend on what the
weights make of a page. Each repeat runs all four in turn; medians over the repeats are reported. The last
line of stdout is one JSON document.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from app.document import Page, ReadOptions
from app.ocr.engine.decoder import Prompt
from app.ocr.engine.engine import Engine
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.scheduler import BatchLimit
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import new_task
from app.ocr.engine.vision import Encoded, Vision, prepare
from benchmarks import measuring
from benchmarks.isolated import measure
from benchmarks.report import ROOT, publish
from benchmarks.synthetic import SyntheticOcr, pocket_network, random_pocket

NEVER_LOOPS = LoopRule(unit=10**6)
NEVER_BANS = NgramRule(n=1000, window=1000)
"""A rule that never fires. It costs the engine what any rule costs; ``generate()`` runs without one."""

FULL_SIZE_OUT = ROOT / "benchmarks" / "results" / "engine-h200.json"
Ids = list[list[int]]


@dataclass(frozen=True, slots=True)
class Workload:
    pages: list[Page]
    output_tokens: list[int]

    @classmethod
    def of(cls, num_pages: int, shortest: int, longest: int) -> "Workload":
        rng = random.Random(0)  # noqa: S311 - a fixed draw
        pages = [Page(i, Image.new("RGB", (8, 8), (i % 256, 0, 0))) for i in range(num_pages)]
        return cls(pages, [rng.randint(shortest, longest) for _ in pages])


def settings(num_running: int) -> EngineSettings:
    return EngineSettings(
        max_running_pages=num_running,
        max_page_tokens=1024,
        ngram=NEVER_BANS,
        strict_ngram=NEVER_BANS,
        loops=NEVER_LOOPS,
        max_attempts=1,
    )


async def read_all(engine: Engine, work: Workload) -> Ids:
    streams = [
        engine.submit(page, ReadOptions(prune="none", max_output_tokens=length), document_id="bench")
        for page, length in zip(work.pages, work.output_tokens, strict=True)
    ]
    return [json.loads((await stream.result()).text) for stream in streams]


def engine_run(model: SyntheticOcr, num_running: int) -> tuple[Callable[[Workload], Ids], Engine]:
    engine = Engine(model, settings(num_running))
    return lambda work: asyncio.run(read_all(engine, work)), engine


def prompts_of(model: SyntheticOcr, work: Workload) -> list[Prompt]:
    """Make the prompts that the engine prefills, for its rivals.

    Making prompts is timed for the engine but not for its rivals.
    """
    limits = settings(1)
    tasks = [new_task(model, limits, page, ReadOptions(prune="none"), "bench") for page in work.pages]
    prepared = [prepare(model, task.page.image, task.attempt_plan, task.prompt_ids) for task in tasks]
    encoded = Vision(model, BatchLimit(8)).encode(prepared)
    return [page.prompt for page in encoded if isinstance(page, Encoded)]


def generate(network: Any, prompts: Sequence[Prompt], lengths: Sequence[int]) -> Ids:
    """Generate one batch, padded on the left, until its longest page is done.

    Each output is cut to its page's own length.
    """
    longest = max(len(prompt) for prompt in prompts)
    embeds = torch.zeros(len(prompts), longest, prompts[0].embeds.shape[1])
    positions = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        embeds[i, -len(prompt) :], positions[i, -len(prompt) :] = prompt.embeds, prompt.positions
        mask[i, -len(prompt) :] = 1
    output = network.generate(
        inputs_embeds=embeds, position_ids=positions, attention_mask=mask, max_new_tokens=max(lengths),
        do_sample=False,
    )  # fmt: skip
    return [ids[:length] for ids, length in zip(output.tolist(), lengths, strict=True)]


def generate_run(network: Any, prompts: Sequence[Prompt], batch: int) -> Callable[[Workload], Ids]:
    def run(work: Workload) -> Ids:
        ids: Ids = []
        for start in range(0, len(prompts), batch):
            some = slice(start, start + batch)
            ids += generate(network, prompts[some], work.output_tokens[some])
        return ids

    return run


def rival(network: Any) -> Any:
    other = deepcopy(network)
    other.set_attn_implementation("sdpa")
    other.generation_config.eos_token_id = None
    other.generation_config.pad_token_id = 2
    return other


def compare(args: argparse.Namespace) -> dict[str, object]:
    network, name = (random_pocket(), "random weights") if args.random else pocket_network(args.model)
    work = Workload.of(args.pages, args.shortest, args.longest)
    model = SyntheticOcr(network, name)
    prompts = prompts_of(model, work)
    other = rival(network)
    run_16, engine_16 = engine_run(model, 16)
    run_1, engine_1 = engine_run(SyntheticOcr(deepcopy(network), name), 1)
    runs = {
        "engine_16": run_16,
        "engine_1": run_1,
        "generate_serial": generate_run(other, prompts, 1),
        "generate_padded_16": generate_run(other, prompts, 16),
    }
    seconds: dict[str, list[float]] = {run: [] for run in runs}
    outputs: dict[str, Ids] = {}
    warm = Workload(work.pages[:2], [8, 8])
    for run in (run_16, run_1):
        run(warm)
    for _ in range(args.repeats):
        for run_name, run in runs.items():
            start = time.perf_counter()
            outputs[run_name] = run(work)
            seconds[run_name].append(time.perf_counter() - start)
    for engine in (engine_16, engine_1):
        engine.shut_down()
    rates = {run: len(work.pages) / statistics.median(times) for run, times in seconds.items()}
    return {
        **{f"pages_per_s_{run}": round(rate, 3) for run, rate in rates.items()},
        "engine_16_over_generate_serial": round(rates["engine_16"] / rates["generate_serial"], 2),
        "engine_16_over_generate_padded_16": round(rates["engine_16"] / rates["generate_padded_16"], 2),
        "engine_1_over_generate_serial": round(rates["engine_1"] / rates["generate_serial"], 2),
        "seconds": {run: [round(s, 3) for s in times] for run, times in seconds.items()},
        "pages_equal_to_generate": sum(
            a == b for a, b in zip(outputs["engine_16"], outputs["generate_serial"], strict=True)
        ),
        "pages": len(work.pages),
        "output_tokens": sum(work.output_tokens),
        "output_tokens_each": [args.shortest, args.longest],
        "prompt_tokens_each": len(prompts[0]),
        "repeats": args.repeats,
        "model": name,
        "dtype": str(model.dtype),
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[measuring.options()],
    )
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the packaged one)")
    parser.add_argument("--random", action="store_true", help="random weights of the pocket size")
    parser.add_argument("--pages", type=int, default=96)
    parser.add_argument("--shortest", type=int, default=20)
    parser.add_argument("--longest", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path)
    full = parser.add_argument_group("full size")
    full.add_argument("--full-size", action="store_true", help="the full architecture with random weights")
    full.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 100, 256], help="pages at once")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    args = parse(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.full_size:
        publish(compare(args), torch.device("cpu"), args.out)
        return
    publish(measure(args), torch.device(args.device), args.out or FULL_SIZE_OUT)


if __name__ == "__main__":
    main()
