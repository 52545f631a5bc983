"""Measure how well a checkpoint knows what it cannot read; fit the curve that turns doubt into risk.

    python -m benchmarks.confidence --documents FOLDER --out benchmarks/results/confidence.json --write

Reads real pages whose text is known, and the same pages turned, blurred, made smaller and dirtied. A page is
bad when more than ``BAD_SHARE`` of its words are missing from the text. Compares the mean and quantiles of
the tokens' log-probabilities by how well they separate bad pages from good ones (area under the ROC curve).
Fits ``app.ocr.risk.RiskCurve`` on every other page and tests it on the rest. ``--write`` puts the curve into
the checkpoint, and the figures into docs/checkpoints.md and docs/risk-curve.svg.
"""

import argparse
import asyncio
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import optimize

from app.document import Page, ReadOptions
from app.ocr.models.checkpoint_spec import SPEC_FILE
from app.ocr.risk import LOW_QUANTILE, Evidence, RiskCurve
from app.open_reader import folder_of, open_reader
from app.output.checks import MAX_RISK, check_page
from app.output.markdown import render
from benchmarks.accuracy.pages import DOCUMENTS, Kind, documents
from benchmarks.accuracy.plot import risk_plot
from benchmarks.accuracy.report import DOCS, measured, replace_section
from benchmarks.accuracy.scores import character_scores
from benchmarks.report import publish

BAD_SHARE = 0.3
"""Share of a page's words missing from its text above which the page is bad."""
UNREADABLE = {"chinese": ".150.png", "tables": ".png"}
"""Kinds that the pocket checkpoint reads badly, in addition to those of ``benchmarks.accuracy``."""
QUANTILES = (0.02, 0.05, LOW_QUANTILE, 0.2, 0.5)
STEEPNESS_PENALTY = 0.02
"""Penalty that keeps the curve from becoming a step where pages are separated without an error."""
LEAST_CHANCE = 0.01
"""Lower bound of a page's likelihood, so that a page whose truth is wrong does not decide the curve."""
IN_FLIGHT = 2
PLOT = "risk-curve.svg"
TAG = re.compile(r"<[^<>]*>")
Figures = dict[str, Any]


def _turned(image: Image.Image) -> Image.Image:
    return image.rotate(10, Image.Resampling.BICUBIC, expand=True, fillcolor="white")


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.7))


def _small(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * 0.4), round(image.height * 0.4)), Image.Resampling.LANCZOS)


def _dirty(image: Image.Image) -> Image.Image:
    grain = np.random.default_rng(0).normal(0, 18, (image.height, image.width))
    levels = 110 + 0.4 * np.asarray(image.convert("L")) + grain
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert("RGB")


WEAR: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "turned": _turned,
    "blurred": _blurred,
    "small": _small,
    "dirty": _dirty,
}


@dataclass(frozen=True, slots=True)
class ReadPage:
    """A page that was read. ``missing``: share of the page's words that are not in the text."""

    kind: str
    name: str
    missing: float
    evidence: Evidence
    confidence: float
    finish_reason: str
    warnings: tuple[str, ...]
    unread_ink: float | None

    @property
    def is_bad(self) -> bool:
        return self.missing > BAD_SHARE

    @property
    def is_unseen(self) -> bool:
        """Whether print was overlooked although what was seen was read to its end."""
        return self.finish_reason == "stop" and "unread_print" in self.warnings


def kinds_of(folder: Path, most: int | None) -> list[Kind]:
    """Return real pages as they are, and English ones each worn in one of the ways in turn."""
    kinds = documents(folder, most, DOCUMENTS | UNREADABLE)
    clean = next((kind for kind in kinds if kind.name == "english"), kinds[0])
    for number, (name, worn) in enumerate(WEAR.items()):
        chosen = clean.samples[number :: len(WEAR)]
        samples = tuple(type(one)(one.name, worn(one.image), one.text) for one in chosen)
        kinds.append(Kind(f"{clean.name}, {name}", samples))
    return [kind for kind in kinds if kind.samples]


async def read_pages(checkpoint: str, device: str, kinds: Sequence[Kind]) -> list[ReadPage]:
    reader = open_reader(checkpoint, device)
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def read(kind: Kind, number: int) -> ReadPage:
        sample = kind.samples[number]
        page = Page(number, sample.image.convert("RGB"))
        async with gate:
            stream = reader.submit(page, ReadOptions(), document_id="confidence")
            reading = await stream.result()
        rendered = render(reading)
        checks = check_page(page, reading, rendered.markdown, rendered.blocks)
        text = TAG.sub(" ", rendered.markdown)
        scores = character_scores([text], [sample.text], ignores_case=kind.ignores_case)
        done = ReadPage(
            kind.name,
            sample.name,
            1 - float(scores["words_read"]),
            stream.evidence,
            reading.confidence,
            reading.finish_reason,
            tuple(warning.code for warning in checks.warnings),
            checks.unread_ink,
        )
        print(
            f"{done.kind}: {done.name}: {done.missing:.2f} of the words are missing;"
            f" {done.evidence.nats():.4f} nats, {done.finish_reason}, {', '.join(done.warnings)}",
            flush=True,
        )
        return done

    try:
        tasks = [read(kind, number) for kind in kinds for number in range(len(kind.samples))]
        return list(await asyncio.gather(*tasks))
    finally:
        await reader.close()


def fitted(pages: Sequence[ReadPage]) -> RiskCurve:
    """Fit a logistic curve over log nats; all bad pages together weigh as much as all good ones.

    Pages with overlooked print are left out: tokens cannot tell of it, and the page gets a warning anyway.
    Raise ``ValueError`` without bad or without good pages.
    """
    pages = [page for page in pages if not page.is_unseen]
    is_bad = np.array([page.is_bad for page in pages])
    if is_bad.all() or not is_bad.any():
        raise ValueError("a curve needs pages that were read badly and pages that were read well")
    weights = np.where(is_bad, 0.5 / is_bad.mean(), 0.5 / (1 - is_bad.mean()))
    logs = np.log(np.maximum([page.evidence.nats() for page in pages], 1e-6))
    noise = np.array([page.evidence.noise_share for page in pages])

    def loss(constants: "np.typing.NDArray[np.float64]") -> float:
        log_half, steepness = constants
        risks = 1 - (1 - noise) / (1 + np.exp(np.clip(steepness * (logs - log_half), -50, 50)))
        misses = -np.log(np.maximum(np.where(is_bad, risks, 1 - risks), LEAST_CHANCE))
        return float((weights * misses).mean() + STEEPNESS_PENALTY * steepness)

    best = optimize.minimize(loss, (math.log(0.3), 2.0), method="Nelder-Mead").x
    return RiskCurve(half_nats=round(math.exp(best[0]), 3), steepness=round(max(0.1, float(best[1])), 2))


def separation(scores: Sequence[float], is_bad: Sequence[bool]) -> float | None:
    """Return the area under the ROC curve: how often a bad page scores higher than a good one.

    Return ``None`` without bad or without good pages.
    """
    bad = [score for score, one in zip(scores, is_bad, strict=True) if one]
    good = [score for score, one in zip(scores, is_bad, strict=True) if not one]
    if not bad or not good:
        return None
    return round(fmean((b > g) + 0.5 * (b == g) for b in bad for g in good), 4)


def figures_of(pages: Sequence[ReadPage]) -> tuple[RiskCurve, Figures]:
    """Fit the curve on every other page and measure it on the rest."""
    shuffled = random.Random(0).sample(pages, len(pages))  # noqa: S311 - halves, not secrets
    fit, held_out = shuffled[::2], shuffled[1::2]
    curve = fitted(fit)
    is_bad = [page.is_bad for page in held_out]
    scores = {"mean": [-page.confidence for page in held_out]}
    for quantile in QUANTILES:
        scores[f"p{100 * quantile:g}"] = [page.evidence.nats(quantile) for page in held_out]
    scores["risk"] = risks = [curve.risk(page.evidence) for page in held_out]
    figures: Figures = {
        "curve": {"half_nats": curve.half_nats, "steepness": curve.steepness},
        "bad_share": BAD_SHARE,
        "pages": {"fit": len(fit), "held_out": len(held_out), "bad": sum(is_bad)},
        "separation": {name: separation(values, is_bad) for name, values in scores.items()},
        "doubtful": {
            "of_bad": sum(risk > MAX_RISK for risk, bad in zip(risks, is_bad, strict=True) if bad),
            "of_good": sum(risk > MAX_RISK for risk, bad in zip(risks, is_bad, strict=True) if not bad),
        },
        "bands": [_band(risks, held_out, low, low + 0.2) for low in (0.0, 0.2, 0.4, 0.6, 0.8)],
        "kinds": [_kind(name, pages, curve) for name in dict.fromkeys(page.kind for page in pages)],
        "points": {
            f"{page.kind}/{page.name}": [
                round(page.evidence.nats(), 4),
                round(page.missing, 3),
                page.unread_ink,
                round(page.evidence.noise_share, 3),
                page.finish_reason,
            ]
            for page in pages
        },
    }
    return curve, figures


def _band(risks: Sequence[float], pages: Sequence[ReadPage], low: float, high: float) -> Figures:
    inside = [
        page for risk, page in zip(risks, pages, strict=True) if low <= risk < high or risk == high == 1
    ]
    return {
        "risk": [round(low, 1), round(high, 1)],
        "pages": len(inside),
        "bad": sum(page.is_bad for page in inside),
        "missing": round(fmean(page.missing for page in inside), 3) if inside else None,
    }


def _kind(name: str, pages: Sequence[ReadPage], curve: RiskCurve) -> Figures:
    own = [page for page in pages if page.kind == name]
    codes = Counter(code for page in own for code in page.warnings if code != "doubtful_text")
    codes["doubtful_text"] = sum(curve.risk(page.evidence) > MAX_RISK for page in own)
    return {
        "kind": name,
        "pages": len(own),
        "bad": sum(page.is_bad for page in own),
        "missing": round(fmean(page.missing for page in own), 3),
        "finish_reasons": dict(sorted(Counter(page.finish_reason for page in own).items())),
        "warnings": dict(sorted((+codes).items())),
    }


def section(figures: Mapping[str, Any]) -> str:
    """Format the figures as the section of docs/checkpoints.md."""
    curve, pages, doubtful = figures["curve"], figures["pages"], figures["doubtful"]
    rows = ["| risk | pages | bad | words missing, mean |", "| --- | --- | --- | --- |"]
    for band in figures["bands"]:
        low, high = band["risk"]
        missing = "" if band["missing"] is None else f"{band['missing']:.2f}"
        rows.append(f"| {low:g} to {high:g} | {band['pages']} | {band['bad']} | {missing} |")
    kinds = ["| kind | pages | bad | ended by | warned of |", "| --- | --- | --- | --- | --- |"]
    for kind in figures["kinds"]:
        ends, codes = (
            ", ".join(f"{count} {name}" for name, count in kind[field].items())
            for field in ("finish_reasons", "warnings")
        )
        kinds.append(f"| {kind['kind']} | {kind['pages']} | {kind['bad']} | {ends} | {codes} |")
    parted = ", ".join(f"{name} {value}" for name, value in figures["separation"].items())
    num_good = pages["held_out"] - pages["bad"]
    return "\n".join([
        f"Curve: `half_nats` {curve['half_nats']}, `steepness` {curve['steepness']}, fitted on {pages['fit']}"
        " pages, but for those whose print was overlooked, which `unread_print` tells of. On the"
        f" {pages['held_out']} others, of which {pages['bad']} are bad (over {figures['bad_share']:.0%} of"
        f" their words are missing), a risk over {MAX_RISK} marks {doubtful['of_bad']} of the bad and"
        f" {doubtful['of_good']} of the {num_good} good ones.",
        "",
        *rows,
        "",
        f"How well a figure parts bad pages from good (area under the ROC curve): {parted}.",
        "",
        *kinds,
        "",
        measured(figures),
    ])  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.confidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", default="pocket", help="name or folder (default: %(default)s)")
    add("--device", default="auto")
    add("--documents", type=Path, required=True, help="folder of real pages with their truth")
    add("--limit", type=int, help="of each kind (default: all)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--out", type=Path)
    add("--write", action="store_true", help="the curve into the checkpoint, the figures into the docs")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    kinds = kinds_of(arguments.documents, arguments.limit)
    pages = asyncio.run(read_pages(arguments.checkpoint, arguments.device, kinds))
    curve, figures = figures_of(pages)
    if arguments.write:
        write_curve(folder_of(arguments.checkpoint), curve)
    publish({"checkpoint": arguments.checkpoint, **figures}, torch.device("cpu"), arguments.out)
    if arguments.write and arguments.out:
        write_docs(json.loads(arguments.out.read_text(encoding="utf-8")))


def write_curve(folder: Path, curve: RiskCurve) -> None:
    path = folder / SPEC_FILE
    recipe = json.loads(path.read_text(encoding="utf-8"))
    recipe["risk"] = {"half_nats": curve.half_nats, "steepness": curve.steepness}
    path.write_text(json.dumps(recipe, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_docs(figures: Mapping[str, Any], docs: Path = DOCS) -> None:
    replace_section(docs / "checkpoints.md", "confidence", section(figures))
    (docs / PLOT).write_text(risk_plot(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
