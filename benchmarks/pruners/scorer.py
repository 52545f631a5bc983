"""Train a small scorer of patch tokens on the pocket checkpoint, and measure it on pages it never saw.

    python -m benchmarks.pruners.scorer --train --out benchmarks/results/scorer.json
    python -m benchmarks.pruners.scorer --out benchmarks/results/scorer.json     the scorer that ships

Lessons are views of the training renderers. The scorer learns, by regression, which patches the decoder
attended to in its own unpruned readings, then, by policy gradient, which it needs to read on. Other views
choose between the two. Then whole pages are read, at RTPrune's own count of every view and at 60 % of it,
pruned by the scorer and by others. Without ``--train`` the scorer that ships is measured, and what the file
says of its training stays. The last line of stdout is one JSON document.
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch.nn import functional

from app.document import Reading, ReadOptions
from app.ocr.engine import vision
from app.ocr.models.model import OcrModel
from app.pocket.opening import load_pocket
from app.reader import PageReader
from benchmarks.accuracy.curve import open_curve_reader
from benchmarks.accuracy.pages import Kind
from benchmarks.accuracy.reading import Figures, read_all
from benchmarks.accuracy.scores import character_scores, page_errors
from benchmarks.pruners.evidence import EvidenceBook, evidence_of
from benchmarks.pruners.inside.layers import look
from benchmarks.pruners.pages import own_pages
from benchmarks.pruners.watched import layers_of, prompts_of
from benchmarks.report import commit, hardware, publish
from rtprune import METHODS, PrunedTokens, RTPruneConfig, VisualTokens, prune_tokens
from training.lines import LineStyle
from training.scorer import (
    WEIGHTS,
    Features,
    Reward,
    Scorer,
    features_of,
    fit_policy,
    fit_ranking,
    save_scorer,
    shipped_scorer,
)
from training.settings import Settings, load_settings
from training.vocabulary import EOS, ID_OF, PLAIN_PROMPT

NONE = "none"
COMPARED = ("rtprune", "norm", "ink", "oracle", "trained")
SHARES = (1.0, 0.6)
"""Shares of RTPrune's own count at which pages are read."""
LESSONS, CHECKS = 256, 48
"""Views to learn from, and views that choose between the two ways to learn."""
SEED = 20261129
MAX_STEPS = 72
"""Most tokens that a reading may have while lessons are collected: a view has four rows of print."""
VIEWS_AT_ONCE = 64
PAGES = 8
RANKING_STEPS, POLICY_STEPS = 300, 60
DROPPED = 0.4
"""Share of patches that masks of the policy gradient drop. LayoutLite's 0.5 is of models with ten times the
tokens.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """B views that the decoder wrote something of.

    ``mass``: (B, N) float64 attention of its own reading to each patch. ``tokens``, ``ids``: visual tokens
    and the true text, the end token last, of each view.
    """

    features: Features
    mass: torch.Tensor
    tokens: list[VisualTokens]
    ids: list[list[int]]


def lessons_of(model: OcrModel, settings: Settings, seed: int, count: int) -> Lessons:
    """Render ``count`` views of the last training stage, encode them, and read them unpruned."""
    styles = settings.styles(settings.stage[-1])
    style = next(style for style in styles if isinstance(style, LineStyle))
    pages = settings.renderers().lines.views(random.Random(seed), style, count)  # noqa: S311 - pages
    return learned_from(model, [
        (Image.fromarray(page.pixels), [*(ID_OF[piece] for piece, _ in page.plain), EOS]) for page in pages
    ])  # fmt: skip


@torch.inference_mode()
def learned_from(model: OcrModel, shown: Sequence[tuple[Image.Image, list[int]]]) -> Lessons:
    """Encode views with the ids of their true texts, and read them unpruned. Views of which nothing is read
    are left out.
    """
    features: list[Features] = []
    masses, tokens = list[torch.Tensor](), list[VisualTokens]()
    for start in range(0, len(shown), VIEWS_AT_ONCE):
        images = [image.convert("RGB") for image, _ in shown[start : start + VIEWS_AT_ONCE]]
        views = [model.preprocess(image, model.default_mode) for image in images]
        encoded = model.encode(views)
        found = evidence_of(model, list(zip(views, encoded, strict=True)), PLAIN_PROMPT, MAX_STEPS)
        pixels = torch.stack([view.view for view in views]).to(model.device, model.dtype)
        attention, ink, mass = (
            torch.stack([one for one in column if one is not None])
            for column in zip(*((o.class_attention, o.ink, o.decode_attention) for o in found), strict=True)
        )
        features.append(features_of(model.network, pixels, attention, ink))
        masses.append(mass)
        tokens += encoded
    depths = tuple(torch.cat(depth) for depth in zip(*(one.depths for one in features), strict=True))
    every = Features(depths, torch.cat([one.signals for one in features]))
    mass = torch.cat(masses)
    is_read = (mass.sum(1) > 0).nonzero()[:, 0]
    numbers = is_read.tolist()
    with torch.inference_mode(mode=False):  # what is learned from needs ordinary tensors
        kept = Features(tuple(depth.clone() for depth in every.depths), every.signals.clone())[
            is_read.clone()
        ]
        mass = mass.clone()[is_read.clone()]
    return Lessons(kept, mass, [tokens[i] for i in numbers], [shown[i][1] for i in numbers])


class Through:
    """A pass through the decoder in which each row sees some of the prompt. It is a ``Step`` of the engine.

    ``may_look``: (B, 1, T, T) bool.
    """

    def __init__(self, may_look: torch.Tensor) -> None:
        self._may_look = may_look

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend within one layer. (B, H, T, K) -> (B, T, H, K)."""
        del layer
        return look(query, key, value, scale, self._may_look)[0]


@torch.inference_mode()
def reading_on(
    model: OcrModel, lessons: Lessons, views: Sequence[int], kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read views through masks with the true text before each token: (b, M, N) bool kept -> (b, M) share of
    tokens read right, (b, M) mean log-probability of the true ones.

    This takes one pass where writing takes one a token. A pruned patch is hidden from all others, as if it
    were gone and positions stayed.
    """
    num_masks = kept.shape[1]
    embeds = prompts_of(model, [lessons.tokens[view] for view in views], PLAIN_PROMPT)
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(lessons.ids[view]) for view in views], batch_first=True, padding_value=-1
    ).to(model.device)  # (b, U)
    written = model.embed(ids[:, :-1].clamp(min=0)).to(embeds.dtype)
    whole = torch.cat((embeds, written), dim=1).repeat_interleave(num_masks, 0)  # (b * M, T, D)
    length = whole.shape[1]
    is_patch = functional.pad(lessons.tokens[views[0]].is_patch, (1, 0))  # after bos
    seen = torch.ones(len(whole), length, dtype=torch.bool, device=model.device)
    seen[:, is_patch.nonzero()[:, 0]] = kept.flatten(0, 1).to(model.device)
    causal = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=model.device)
    may_look = (causal & seen[:, None, None]) | itself
    layers = layers_of(model)
    positions = torch.arange(length, device=model.device).expand(len(whole), -1)
    hidden = layers(whole, positions, Through(may_look))[:, embeds.shape[1] - 1 :]  # (b * M, U, D)
    logits = layers.head(hidden).float().view(len(views), num_masks, ids.shape[1], -1)  # (b, M, U, V)
    true = ids[:, None].expand(-1, num_masks, -1)
    counts = (true >= 0).sum(-1)
    right = ((logits.argmax(-1) == true) & (true >= 0)).sum(-1) / counts
    likely = logits.log_softmax(-1).gather(-1, true.clamp(min=0)[..., None])[..., 0]
    return right, likely.masked_fill(true < 0, 0).sum(-1) / counts


def reward_of(model: OcrModel, lessons: Lessons) -> Reward:
    """Return the reward of the policy gradient: the share of tokens read right."""

    def reward(views: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return reading_on(model, lessons, views.tolist(), kept)[0].cpu().clone()

    return reward


def check(model: OcrModel, lessons: Lessons, scores: torch.Tensor) -> dict[str, float]:
    """Return how well views are read on when (B, N) scores choose 60 % of their patches, and how much of the
    decoder's attention these had.
    """
    chosen = scores.sort(dim=1, descending=True, stable=True).indices[:, : round(SHARES[1] * scores.shape[1])]
    kept = torch.zeros(scores.shape, dtype=torch.bool).scatter(1, chosen, value=True)
    right, likely = reading_on(model, lessons, range(len(scores)), kept[:, None])
    covered = (lessons.mass * kept).sum(1) / lessons.mass.sum(1)
    return {
        "tokens_right": round(float(right.mean()), 4),
        "log_probability": round(float(likely.mean()), 4),
        "attention_covered": round(float(covered.mean()), 4),
    }


def train(model: OcrModel, settings: Settings, out: Path, num_lessons: int, num_checks: int) -> Figures:
    """Train a scorer by both ways and write the better one to ``out``; return what was seen of both."""
    start, cpu = time.perf_counter(), time.process_time()
    lessons = lessons_of(model, settings, SEED, num_lessons)
    checks = lessons_of(model, settings, SEED + 1, num_checks)
    collected = time.process_time() - cpu
    torch.manual_seed(SEED)
    ranked, seen = Scorer(lessons.features.widths), checks.features
    fit_ranking(ranked, lessons.features, lessons.mass, steps=RANKING_STEPS, seed=SEED)
    ranking = time.process_time() - cpu - collected
    policy = Scorer(ranked.widths)
    policy.load_state_dict(ranked.state_dict())
    fit_policy(
        policy, lessons.features, reward_of(model, lessons), dropped=DROPPED, steps=POLICY_STEPS, seed=SEED
    )
    ways = {"regression": ranked, "policy": policy}
    with torch.no_grad():
        scores = {name: scorer(seen) for name, scorer in ways.items()}
    scores |= {"norm": seen.depths[-1].norm(dim=-1), "ink": seen.signals[..., 2], "oracle": checks.mass}
    found = {name: check(model, checks, one) for name, one in scores.items()}
    best = max(ways, key=lambda name: found[name]["tokens_right"])
    save_scorer(ways[best], out)
    return {
        "views": len(lessons.tokens), "checks": len(checks.tokens), "checked": found, "chosen": best,
        "parameters": sum(one.numel() for one in ranked.parameters()),
        "cpu_seconds": {
            "lessons": round(collected, 1), "regression": round(ranking, 1),
            "policy": round(time.process_time() - cpu - collected - ranking, 1),
        },
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "commit": commit(), "hardware": hardware(model.device), "load": round(os.getloadavg()[0], 1),
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


@contextmanager
def pruning_by(name: str, share: float, book: EvidenceBook) -> Iterator[None]:
    """Make engines of this process prune by a method at a share of RTPrune's own count, inside the block."""

    def prune_one(tokens: VisualTokens, density: float) -> PrunedTokens:
        own = prune_tokens(tokens, density)
        count = max(1, round(share * own.num_kept_patches))
        # half a token more, so that no rounding of the product loses one
        ratio = min(1.0, (count + 0.5) / own.num_patches)
        return METHODS[name](tokens, density, RTPruneConfig(ratio), book.of(tokens))

    def prune(
        tokens: Sequence[VisualTokens], densities: Sequence[float], config: RTPruneConfig
    ) -> list[PrunedTokens]:
        del config
        return [prune_one(*page) for page in zip(tokens, densities, strict=True)]

    with patch.object(vision, "prune_batch", prune):
        yield


async def measure(reader: PageReader, kind: Kind, names: Sequence[str]) -> list[Figures]:
    """Read all pages unpruned, then by each method at each share; print each row as it is measured."""
    images, truth = [one.image for one in kind.samples], [one.text for one in kind.samples]
    book = EvidenceBook(PLAIN_PROMPT, MAX_STEPS)
    rows: list[Figures] = []
    with book.collecting():
        for name, share in [(NONE, 1.0), *((name, share) for share in SHARES for name in names)]:
            options = ReadOptions(prune="none" if name == NONE else "rtprune", prompt=PLAIN_PROMPT)
            with pruning_by(name, share, book):
                readings = await read_all(reader, images, options)
            counts = [page.tokens for page in readings.pages if isinstance(page, Reading)]
            rows.append({
                "method": name, "share_of_own_count": share,
                **character_scores(readings.texts, truth), **readings.figures(),
                "page_errors": [round(error, 4) for error in page_errors(readings.texts, truth)],
                "kept_patches": sum(one.kept_patches for one in counts),
                "patches": sum(one.patches for one in counts),
                "load": round(os.getloadavg()[0], 1),
            })  # fmt: skip
            del rows[-1]["seconds_per_page"]  # the first row's time includes collecting the evidence
            print(json.dumps(rows[-1]), flush=True)
    return rows


async def _measured(kind: Kind, names: Sequence[str]) -> list[Figures]:
    reader = open_curve_reader("pocket", "cpu")
    try:
        return await measure(reader, kind, names)
    finally:
        await reader.close()


def main(words: Sequence[str] | None = None) -> None:
    """Train if asked to, measure, and publish."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruners.scorer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--train", action="store_true", help="train anew; needs the training pages' fonts")
    add("--weights", type=Path, default=WEIGHTS, help="where the trained scorer goes (default: %(default)s)")
    add("--settings", type=Path, default=Path("training/pocket.toml"))
    add("--root", type=Path, default=Path("/"), help="folder with usr/share/fonts and usr/share/dict")
    add("--lessons", type=int, default=LESSONS)
    add("--checks", type=int, default=CHECKS)
    add("--pages", type=int, default=PAGES, help="pages to measure on; 0: none (default: %(default)s)")
    add("--methods", nargs="+", choices=COMPARED, default=COMPARED)
    add("--threads", type=int, default=1)
    add("--out", type=Path)
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    figures: Figures = {}
    if asked.train:
        settings = load_settings(asked.settings, asked.root)
        figures["training"] = train(load_pocket(), settings, asked.weights, asked.lessons, asked.checks)
        print(json.dumps(figures["training"]), flush=True)
        shipped_scorer.cache_clear()
    elif asked.out and asked.out.is_file():
        figures["training"] = json.loads(asked.out.read_text(encoding="utf-8")).get("training")
    kind = own_pages(asked.pages)
    rows = asyncio.run(_measured(kind, asked.methods)) if asked.pages else []
    publish(figures | {"kind": kind.name, "pages": asked.pages, "rows": rows}, torch.device("cpu"), asked.out)


if __name__ == "__main__":
    main()
