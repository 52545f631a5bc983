"""Choose the focal layers of a checkpoint, and write them as ``fixation.json`` beside it.

    python -m benchmarks.fixation.calibrate pocket
    python -m benchmarks.fixation.calibrate FOLDER --documents FOLDER --num-layers 2

Pages are read with plain attention. At every step each layer's attention to the patch tokens is noted, mean
over heads.

For layers l and m, ``mass[l][m]`` is the share of m's attention to patch tokens that falls on the k tokens
that l looks at most; ``before[l][m]`` is the same with l at the step before. ``recall[l]`` is the share of
the k tokens that all layers together look at most. Layers are chosen one by one, each time the one with which
the others see most: a layer sees what the last focal layer before it chose, or the last one at the step
before.
The last line of stdout is one JSON document.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch

from app.document import ReadOptions
from app.ocr.engine.fixation import FixationPlan, Fixations, FixedRow
from app.ocr.models import deepseek
from app.ocr.models.checkpoint_spec import FIXATION_FILE
from app.open_reader import folder_of
from benchmarks.accuracy.curve import open_curve_reader
from benchmarks.accuracy.pages import CLEAN, DOCUMENTS, SEEN_FONTS, Kind, RenderedPages, documents
from benchmarks.accuracy.reading import read_all
from benchmarks.report import publish
from training.settings import load_settings
from training.vocabulary import PLAIN_PROMPT

SHARE = 0.2
PAGES = 8
ENGLISH = "english"
FAMILY = "dejavu/"


class LayerMasses:
    """Sums the tables over steps. All are float64: ``mass`` and ``before`` (L, L), ``recall`` (L,)."""

    def __init__(self, num_layers: int, share: float) -> None:
        self.mass = torch.zeros(num_layers, num_layers, dtype=torch.float64)
        self.before = torch.zeros_like(self.mass)
        self.recall = torch.zeros(num_layers, dtype=torch.float64)
        self.num_steps = self.num_followed = 0
        self._share = share
        self._seen: WeakKeyDictionary[FixedRow, list[torch.Tensor]] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[FixedRow, torch.Tensor] = WeakKeyDictionary()

    def watch(self, layer: int, row: FixedRow, shares: torch.Tensor) -> None:
        """Note a layer's (H, T) attention. Layers come in order."""
        seen = self._seen.setdefault(row, [])
        if layer == 0:
            seen.clear()
        seen.append(shares[:, row.columns].double().mean(0))
        if len(seen) == len(self.recall):
            self._add(row, torch.stack(seen))

    def _add(self, row: FixedRow, masses: torch.Tensor) -> None:
        """Add a step. ``masses``: (L, N)."""
        count = math.ceil(self._share * masses.shape[1])
        shares = masses / masses.sum(1, keepdim=True).clamp_min(1e-12)  # of each layer's own patches
        most = _most(masses, count)  # (L, N) 0 or 1
        self.mass += most @ shares.T
        self.recall += most @ _most(masses.sum(0, keepdim=True), count)[0] / count
        self.num_steps += 1
        if row in self._last:
            self.before += self._last[row] @ shares.T
            self.num_followed += 1
        self._last[row] = most

    def means(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the means of ``mass``, ``before`` and ``recall``.

        Raise ``ValueError`` if nothing was read.
        """
        if not self.num_followed:
            raise ValueError("no page of the calibration has two decode steps")
        return self.mass / self.num_steps, self.before / self.num_followed, self.recall / self.num_steps


def _most(masses: torch.Tensor, count: int) -> torch.Tensor:
    largest = masses.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(masses).scatter_(1, largest, 1.0)


def seen_with(focal: Sequence[int], mass: torch.Tensor, before: torch.Tensor) -> float:
    """Sum, over the layers that are not focal, the share of their attention that they keep. (L, L) each."""
    kept = 0.0
    for layer in set(range(len(mass))) - set(focal):
        earlier = [one for one in focal if one < layer]
        kept += float(mass[max(earlier), layer] if earlier else before[max(focal), layer])
    return kept


def focal_layers(mass: torch.Tensor, before: torch.Tensor, count: int) -> list[int]:
    """Choose ``count`` layers one by one; of equal ones the earlier. Ascending.

    Compares means over the layers left, because adding a layer leaves one fewer to sum over.
    """
    focal: list[int] = []
    while len(focal) < count:
        rest = [layer for layer in range(len(mass)) if layer not in focal]
        focal = sorted(
            [*focal, max(rest, key=lambda layer: seen_with(sorted([*focal, layer]), mass, before))]
        )
    return focal


@contextmanager
def all_layers_focal(share: float) -> Iterator[list[LayerMasses]]:
    """Watch all layers of the checkpoint that is loaded inside the block."""
    found: list[LayerMasses] = []

    def plan(folder: Path, num_layers: int) -> FixationPlan:  # noqa: ARG001 - the file is not asked
        found.append(LayerMasses(num_layers, share))
        return FixationPlan(tuple(range(num_layers)))

    def watch(layer: int, row: FixedRow, shares: torch.Tensor) -> None:
        found[0].watch(layer, row, shares)

    with (
        patch.object(deepseek, "read_fixation_plan", plan),
        patch.object(Fixations, "watch", staticmethod(watch)),
    ):
        yield found


async def calibrate(checkpoint: str, kind: Kind, share: float) -> LayerMasses:
    """Read the pages with plain attention on a CPU, and return what the layers look at."""
    with all_layers_focal(share) as found:
        reader = open_curve_reader(checkpoint, "cpu")
        try:
            options = ReadOptions(prune="none", prompt=PLAIN_PROMPT, fixation=1.0)
            await read_all(reader, [sample.image for sample in kind.samples], options)
        finally:
            await reader.close()
    return found[0]


def pages(asked: argparse.Namespace, kind: str = CLEAN) -> Kind:
    """Return the pages that the command line asks for: real ones, or rendered ones of ``kind``.

    Rendered pages are in DejaVu alone, which is wherever the tests run, so they are the same on any machine.
    """
    if asked.documents:
        return documents(asked.documents, asked.pages, {ENGLISH: DOCUMENTS[ENGLISH]})[0]
    settings = load_settings(asked.settings)
    dejavu = tuple(pair for pair in settings.render.fonts if pair[0].startswith(FAMILY))
    render = settings.render.model_copy(update={"fonts": dejavu, "held_out": dejavu})
    return RenderedPages(settings.model_copy(update={"render": render})).kind(kind, asked.pages)


def add_pages_to(parser: argparse.ArgumentParser, num_pages: int) -> None:
    add = parser.add_argument
    add("--settings", type=Path, default=Path("training/pocket.toml"), help="fonts and words of the pages")
    add("--documents", type=Path, help="a folder with real pages and their truth in english/, instead")
    add("--pages", type=int, default=num_pages, help="so many (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fixation.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="pocket or a folder")
    parser.add_argument("--num-layers", type=int, help="focal layers (default: a third of them, at most 2)")
    parser.add_argument("--share", type=float, default=SHARE, help="of the patches (default: %(default)s)")
    parser.add_argument(
        "--min-patches", type=int, help="fewest patches chosen, for the file (default: the engine's)"
    )
    parser.add_argument("--out", type=Path, help="the file (default: beside the checkpoint)")
    add_pages_to(parser, PAGES)
    asked = parser.parse_args(words)
    torch.set_num_threads(asked.threads)
    kind = pages(asked, SEEN_FONTS)  # not the pages that are measured
    found = asyncio.run(calibrate(asked.checkpoint, kind, asked.share))
    mass, before, recall = found.means()
    focal = focal_layers(mass, before, asked.num_layers or max(1, min(2, len(mass) // 3)))
    table = {
        "focal_layers": focal,
        **({} if asked.min_patches is None else {"min_patches": asked.min_patches}),
        "calibration": {
            "share": asked.share,
            "pages": f"{len(kind.samples)} {kind.name}",
            "steps": found.num_steps,
            "recall": _rounded(recall),
            "mass": _rounded(mass),
            "before": _rounded(before),
        },
    }
    out = asked.out or folder_of(asked.checkpoint) / FIXATION_FILE
    out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    publish(table, torch.device("cpu"))


def _rounded(table: torch.Tensor) -> object:
    rounded: object = (table * 1e4).round().div(1e4).tolist()
    return rounded


if __name__ == "__main__":
    main()
