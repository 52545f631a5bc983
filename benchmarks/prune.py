"""Time pruning a page, against the way of the released code. Run: ``python -m benchmarks.prune``.

Both sides do all of it on a Large page (421 tokens of 1280 dimensions, 1280 px, 20 x 20 patches): density,
diversity and ratio, selection, transport, fold. The released way is a stand-in written from its description
(a Python loop over patches, 100 log-domain Sinkhorn iterations a page), without needless work. The pixels of
the batch lie in one tensor, as in an encoder. The sides take turns, so that a busy machine slows both. Prints
a table; the last line of stdout is one JSON document.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.report import publish
from rtprune import VisualTokens, prune_batch, prune_tokens, text_densities, text_density, transport_plan

SIDE_PX, GRID, HIDDEN = 1280, 20, 1280


class Pages(NamedTuple):
    """Pages to prune. ``pixels``: (B, 3, 1280, 1280), on the device of ``tokens``."""

    tokens: list[VisualTokens]
    pixels: Tensor


def make_pages(count: int, device: torch.device) -> Pages:
    """Make tokens with a shared direction, and pixels with text-like dashes.

    About 82 % of the patches are kept; the paper keeps 84 % on Large pages.
    """
    generator = torch.Generator().manual_seed(0)
    is_patch = torch.tensor(([True] * GRID + [False]) * GRID + [False])
    pages = []
    for _ in range(count):
        shared = torch.randn(HIDDEN, generator=generator)
        embeds = torch.randn(len(is_patch), HIDDEN, generator=generator) + 0.87 * shared
        pixels = torch.ones(3, SIDE_PX, SIDE_PX)
        lines = torch.rand(20, SIDE_PX, generator=generator) < 0.25
        pixels[:, 32::64] = torch.where(lines, -1.0, 1.0)
        pages.append((VisualTokens(embeds.to(device), is_patch), pixels))
    stacked = torch.stack([pixels for _, pixels in pages]).to(device)
    return Pages([tokens for tokens, _ in pages], stacked)


def released_density(pixels: Tensor) -> float:
    sobel_x = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=pixels.device)[None, None]
    sobel_y = sobel_x.mT.contiguous()
    gray = (0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2])[None, None]
    size, shares = SIDE_PX // GRID, []
    for top in range(0, SIDE_PX, size):
        for left in range(0, SIDE_PX, size):
            patch = gray[..., top : top + size, left : left + size]
            across = torch.nn.functional.conv2d(patch, sobel_x, padding=1)
            down = torch.nn.functional.conv2d(patch, sobel_y, padding=1)
            shares.append((torch.sqrt(across**2 + down**2) > 0.2).float().mean().item())
    return sum(shares) / len(shares)


def released_plan(scores: Tensor) -> Tensor:
    num_rows, num_columns = scores.shape
    padded = torch.nn.functional.pad(scores, (0, 1, 0, 1), value=0.2)
    norm = -torch.tensor(float(num_rows + num_columns), device=scores.device).log()
    log_rows, log_columns = norm.repeat(num_rows + 1), norm.repeat(num_columns + 1)
    log_rows[-1] += torch.tensor(float(num_columns), device=scores.device).log()
    log_columns[-1] += torch.tensor(float(num_rows), device=scores.device).log()
    u, v = torch.zeros_like(log_rows), torch.zeros_like(log_columns)
    for _ in range(100):
        u = log_rows - torch.logsumexp(padded + v[None], dim=1)
        v = log_columns - torch.logsumexp(padded + u[:, None], dim=0)
    return (padded + u[:, None] + v[None] - norm).exp()[:-1, :-1]


def released_page(tokens: VisualTokens, pixels: Tensor) -> Tensor:
    """Prune one page the released way: returns (M, D) folded patch tokens.

    The caller must place the row breaks, which is in favour of the released way.
    """
    patches = tokens.embeds[tokens.is_patch]
    units = torch.nn.functional.normalize(patches, dim=-1)
    squared = (units @ units.T) ** 2
    count = len(patches)
    diversity = 1 - ((squared.sum() - squared.diagonal().sum()) / (count * (count - 1))).item()
    density = released_density(pixels)
    num_kept = max(1, int(count * (density + diversity - density * diversity)))
    chosen = torch.zeros(count, dtype=torch.bool, device=patches.device)
    chosen[patches.norm(dim=-1).topk(num_kept).indices] = True
    kept, pruned = patches[chosen], patches[~chosen]
    plan = released_plan(units[chosen] @ units[~chosen].T)
    return kept + 0.1 * plan @ pruned


def released_pages(pages: Pages) -> list[Tensor]:
    return [released_page(tokens, pixels) for tokens, pixels in zip(*pages, strict=True)]


def ours_alone(pages: Pages) -> list[Tensor]:
    return [
        prune_tokens(tokens, text_density(pixels, GRID, GRID)).embeds
        for tokens, pixels in zip(*pages, strict=True)
    ]


def ours_batched(pages: Pages) -> list[Tensor]:
    densities = text_densities(pages.pixels, GRID, GRID)
    return [pruned.embeds for pruned in prune_batch(pages.tokens, densities)]


def prune_alone_batched(pages: Pages) -> list[Tensor]:
    """Prune with a given density, which an engine may compute while the page is encoded."""
    return [pruned.embeds for pruned in prune_batch(pages.tokens, [0.1] * len(pages.tokens))]


def stages(pages: Pages) -> dict[str, Callable[[Pages], object]]:
    """Return the two stages that the released code does in loops, each alone, on the first page."""
    tokens, pixels = pages.tokens[0], pages.pixels[0]
    units = torch.nn.functional.normalize(tokens.embeds[tokens.is_patch], dim=-1)
    num_kept = prune_tokens(tokens, text_density(pixels, GRID, GRID)).num_kept_patches
    scores = units[:num_kept] @ units[num_kept:].T
    return {
        "density, released way": lambda _: released_density(pixels),
        "density, rtprune": lambda _: text_density(pixels, GRID, GRID),
        "transport plan, released way": lambda _: released_plan(scores),
        "transport plan, rtprune": lambda _: transport_plan(scores),
    }


def milliseconds(run: Callable[[Pages], object], pages: Pages, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run(pages)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1000 / len(pages.tokens)


METHODS: dict[str, Callable[[Pages], object]] = {
    "released way": released_pages,
    "rtprune, page by page": ours_alone,
    "rtprune, one batch": ours_batched,
    "rtprune, one batch, density given": prune_alone_batched,
}


def measure(
    methods: dict[str, Callable[[Pages], object]], pages: Pages, repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Time methods in turn. Return ms a page: median, least and most of ``repeats`` rounds.

    One round before them warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repeats + 1):
        for name, run in methods.items():
            taken = milliseconds(run, pages, device)
            times[name] += [taken] if turn else []
    return {
        name: {
            "median": round(statistics.median(taken), 4),
            "min": round(min(taken), 4),
            "max": round(max(taken), 4),
        }
        for name, taken in times.items()
    }


def setting(pages: Pages) -> dict[str, object]:
    pruned = prune_tokens(pages.tokens[0], text_density(pages.pixels[0], GRID, GRID))
    return {
        "benchmark": "prune",
        "mode": "large",
        "threads": torch.get_num_threads(),
        "kept_patches": pruned.num_kept_patches,
        "patches": pruned.num_patches,
        "dtype": str(pages.tokens[0].embeds.dtype),
    }


def times_faster(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """Divide the median of the nearest row of the released way above by each row's median."""
    released, factors = 0.0, {}
    for name, taken in times.items():
        released = taken["median"] if name.endswith("released way") else released
        factors[name] = round(released / taken["median"], 2)
    return factors


def show(title: str, times: dict[str, dict[str, float]]) -> dict[str, object]:
    factors = times_faster(times)
    print(f"\n{f'ms a page, {title}':38}   median      min      max   times faster")
    for name, taken in times.items():
        figures = "".join(f"{taken[key]:9.3f}" for key in ("median", "min", "max"))
        print(f"  {name:36}{figures}{factors[name]:12.1f}")
    return {"ms_a_page": times, "times_faster": factors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pages", type=int, default=32, help="pages in the batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    pages = make_pages(options.pages, device)
    one = Pages(pages.tokens[:1], pages.pixels[:1])
    steps = measure(stages(one), one, options.repeats, device)
    alone = measure(METHODS, one, options.repeats, device)
    together = measure(METHODS, pages, options.repeats, device)
    report = {
        **setting(pages),
        "repeats": options.repeats,
        "released_ms": alone["released way"]["median"],
        "rtprune_ms": alone["rtprune, page by page"]["median"],
        "times_faster": times_faster(alone)["rtprune, page by page"],
        "stages": show("stages of one page", steps),
        "pages_1": show("1 page", alone),
        f"pages_{options.pages}": show(f"{options.pages} pages", together),
    }
    publish(report, device, options.out)


if __name__ == "__main__":
    main()
