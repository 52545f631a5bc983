"""Measure error against keep ratio, for RTPrune and the methods it is compared with, through the engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from unittest.mock import patch

from app.document import Reading, ReadOptions
from app.ocr.engine import vision
from app.ocr.engine.settings import EngineSettings
from app.open_reader import open_reader
from app.reader import PageReader
from benchmarks.accuracy.pages import Kind
from benchmarks.accuracy.reading import Figures, read_all
from benchmarks.accuracy.scores import character_scores, page_errors
from rtprune import METHODS, PrunedTokens, RTPruneConfig, VisualTokens
from training.vocabulary import PLAIN_PROMPT

METHOD_NAMES = ("rtprune", "norm", "random")
KEEP_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, None)
"""Keep ratios; ``None`` is dynamic: every method gets the ratio that RTPrune chooses for the page."""
ONE_ATTEMPT = EngineSettings(max_attempts=1)
"""Settings without second attempts. The service reads a looping page again, at last unpruned, which would
hide the cost of pruning.
"""


def open_curve_reader(checkpoint: str, device: str) -> PageReader:
    """Open a reader with ``ONE_ATTEMPT``."""
    return open_reader(checkpoint, device, ONE_ATTEMPT)


@contextmanager
def pruning_by(name: str) -> Iterator[None]:
    """Make engines of this process prune by a method of ``rtprune.METHODS``. Not while pages are being read.

    The service knows RTPrune alone. So only its call of RTPrune is replaced; all else stays as it is.
    """
    method = METHODS[name]

    def prune(
        tokens: Sequence[VisualTokens], densities: Sequence[float], config: RTPruneConfig
    ) -> list[PrunedTokens]:
        return [method(page, density, config) for page, density in zip(tokens, densities, strict=True)]

    with patch.object(vision, "prune_batch", prune):
        yield


async def curve(
    reader: PageReader,
    kind: Kind,
    keep_ratios: Sequence[float | None] = KEEP_RATIOS,
    show: Callable[[Figures], object] = lambda _: None,
) -> list[Figures]:
    """Measure a row for each method and ratio. The first row, no pruning (ratio 1), belongs to every method.

    ``reader``: from ``open_curve_reader``. Pages are read with the plain prompt.
    """
    rows = [await _point(reader, kind, "none", ReadOptions(prune="none", prompt=PLAIN_PROMPT))]
    show(rows[0])
    for ratio in keep_ratios:
        for name in METHOD_NAMES:
            with pruning_by(name):
                options = ReadOptions(prune="rtprune", keep_ratio=ratio, prompt=PLAIN_PROMPT)
                rows.append(await _point(reader, kind, name, options))
            show(rows[-1])
    return rows


async def _point(reader: PageReader, kind: Kind, method: str, options: ReadOptions) -> Figures:
    readings = await read_all(reader, [sample.image for sample in kind.samples], options)
    tokens = [page.tokens for page in readings.pages if isinstance(page, Reading)]
    ratios = [page.keep_ratio for page in tokens]
    is_dynamic = options.prune == "rtprune" and options.keep_ratio is None
    figures: Figures = {
        "method": method,
        "ratio": "dynamic" if is_dynamic else options.keep_ratio or 1.0,
        "keep_ratio": round(fmean(ratios), 4) if ratios else None,
    }
    truth = [sample.text for sample in kind.samples]
    figures |= character_scores(readings.texts, truth) | readings.figures()
    figures["page_errors"] = [round(error, 4) for error in page_errors(readings.texts, truth)]
    del figures["seconds_per_page"]  # not comparable: only the first row includes encoding
    return figures
