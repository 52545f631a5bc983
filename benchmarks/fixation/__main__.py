"""Measure what ``fixation`` costs: error and covered attention against share, with RTPrune and without.

    python -m benchmarks.fixation --out benchmarks/results/fixation.json
    python -m benchmarks.fixation --documents FOLDER

Pages are read by the engine on a CPU, each once: the service would read a page that loops again, at last
without fixation. Each row is printed as it is measured. `attended_share`: patch tokens attended to, mean over
steps and layers, of those kept. Of the layers and steps that do not attend to everything: `sparse_calls`,
their share of all; `covered_patch_mass`, the share of their plain attention to patch tokens that falls on
those attended to; `covered_mass`, the same of all their attention, text included. `unlike_plain`: pages whose
text is not that of plain attention. The last line of stdout is one JSON document, which also has what could
be saved on a GPU, on paper.
"""

import argparse
import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import torch

from app.document import Pruning, Reading, ReadOptions
from app.ocr.engine.fixation import FixationPlan, Fixations, FixedRow
from app.ocr.models.checkpoint import read_json
from app.ocr.models.checkpoint_spec import read_fixation_plan
from app.ocr.models.config import read_config
from app.open_reader import folder_of
from app.reader import PageReader
from benchmarks.accuracy.curve import open_curve_reader
from benchmarks.accuracy.pages import Kind
from benchmarks.accuracy.reading import Figures, read_all
from benchmarks.accuracy.scores import character_scores
from benchmarks.fixation.calibrate import add_pages_to, pages
from benchmarks.fixation.paper import SHARES, figures
from benchmarks.report import publish
from training.vocabulary import PLAIN_PROMPT

PAGES = 12
PRUNINGS: tuple[Pruning, ...] = ("none", "rtprune")


class Covered:
    """Sums up how much of plain attention falls on what is attended to."""

    def __init__(self, focal_layers: Sequence[int]) -> None:
        self._focal = focal_layers
        self._num_calls = self._num_sparse = 0
        self._patch_mass = self._mass = 0.0

    def watch(self, layer: int, row: FixedRow, shares: torch.Tensor) -> None:
        self._num_calls += 1
        if row.is_dense or layer in self._focal:
            return
        of_patches = shares[:, row.columns].mean(0)  # (N,)
        hidden = float(of_patches[~row.attended].sum())
        self._num_sparse += 1
        self._mass += 1 - hidden
        self._patch_mass += 1 - hidden / max(1e-12, float(of_patches.sum()))

    def figures(self) -> Figures:
        sparse = self._num_sparse
        return {
            "sparse_calls": round(sparse / self._num_calls, 4) if self._num_calls else None,
            "covered_patch_mass": round(self._patch_mass / sparse, 4) if sparse else None,
            "covered_mass": round(self._mass / sparse, 4) if sparse else None,
        }


@contextmanager
def watching(covered: Covered) -> Iterator[None]:
    with patch.object(Fixations, "watch", staticmethod(covered.watch)):
        yield


async def row(
    reader: PageReader,
    kind: Kind,
    prune: Pruning,
    share: float | None,
    focal: Sequence[int],
    plain: list[str],
) -> Figures:
    """Read all pages once and return the row's figures.

    ``plain``: the texts of plain attention; the row without a share writes them.
    """
    options = ReadOptions(prune=prune, prompt=PLAIN_PROMPT, fixation=share)
    covered = Covered(focal)
    with watching(covered):
        readings = await read_all(reader, [sample.image for sample in kind.samples], options)
    if share is None:
        plain[:] = readings.texts
    read = [page for page in readings.pages if isinstance(page, Reading)]
    attended = [page.tokens.attended_share for page in read if page.tokens.attended_share is not None]
    found: Figures = {"prune": prune, "share": share}
    found |= character_scores(readings.texts, [sample.text for sample in kind.samples])
    found |= readings.figures()
    del found["seconds_per_page"]  # masking, and what watches it, take longer than plain attention
    found["unlike_plain"] = sum(one != other for one, other in zip(readings.texts, plain, strict=True))
    found["attended_share"] = round(fmean(attended), 4) if attended else None
    return found | covered.figures()


async def measure(checkpoint: str, kind: Kind, shares: Sequence[float]) -> Figures:
    """Measure all rows, and print each as it is measured. Raise ``ValueError`` without a calibration."""
    plan = fixation_plan(checkpoint)
    reader = open_curve_reader(checkpoint, "cpu")
    rows = []
    try:
        for prune in PRUNINGS:
            plain: list[str] = []
            for share in (None, *shares):
                rows.append(await row(reader, kind, prune, share, plan.focal_layers, plain))
                print(json.dumps(rows[-1]), flush=True)
    finally:
        await reader.close()
    return {"checkpoint": checkpoint, "plan": asdict(plan), "rows": rows}


def fixation_plan(checkpoint: str) -> FixationPlan:
    folder = folder_of(checkpoint)
    num_layers = read_config(read_json(folder, "config.json")).text_config.num_hidden_layers
    plan = read_fixation_plan(folder, num_layers)
    if plan is None:
        raise ValueError(
            f"{checkpoint} is not calibrated: python -m benchmarks.fixation.calibrate {checkpoint}"
        )
    return plan


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fixation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default="pocket", help="pocket or a folder")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="default: %(default)s")
    parser.add_argument("--out", type=Path)
    add_pages_to(parser, PAGES)
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    kind = pages(asked)
    measured = asyncio.run(measure(asked.checkpoint, kind, asked.shares))
    publish(
        {"kind": kind.name, **measured, "on_paper": figures(), "threads": asked.threads},
        torch.device("cpu"),
        asked.out,
    )


if __name__ == "__main__":
    main()
