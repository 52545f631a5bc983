"""Summarise the scores of pages: means, bootstrap intervals, and groups by attribute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 20_260_101
MIN_PAGES_FOR_INTERVAL = 2

LOWER_IS_BETTER = frozenset({
    "text_edit", "formula_edit", "order_edit", "character_error", "word_error",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class PageScore:
    """The scores of one page.

    ``samples``: metric -> (sum of measured values, divisor). A metric of many pages is the total of the sums
    divided by the total of the divisors: a mean over pages, tables or characters, depending on the metric.

    ``attributes``: attribute -> value, such as the language; pages are grouped by them.
    """

    name: str
    samples: Mapping[str, tuple[float, float]]
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One metric over many pages.

    ``low``, ``high``: the 95 % interval of the bootstrap over pages; ``None`` with too few pages.
    """

    value: float
    low: float | None
    high: float | None
    count: float
    """Divisor of the sum: the number of pages, tables, formulas, characters, words or tests."""


def summarize(pages: Sequence[PageScore]) -> dict[str, Score]:
    """Compute every metric that at least one page has, and ``overall`` if possible, with intervals."""
    names = sorted({name for page in pages for name in page.samples})
    scores = {}
    draws = _draws(len(pages))
    for name in names:
        rows = np.array([page.samples.get(name, (0.0, 0.0)) for page in pages], dtype=np.float64)
        total, count = rows.sum(0)
        if count > 0:
            low, high = _interval(rows, draws)
            scores[name] = Score(float(total / count), low, high, float(count))
    overall = _overall(pages, draws)
    return scores if overall is None else {"overall": overall, **scores}


def by_attribute(pages: Sequence[PageScore]) -> dict[str, dict[str, dict[str, Score]]]:
    """Group pages by attribute. Return attribute -> value -> scores of the pages that have this value."""
    groups: dict[str, dict[str, list[PageScore]]] = {}
    for page in pages:
        for attribute, value in page.attributes.items():
            groups.setdefault(attribute, {}).setdefault(value, []).append(page)
    return {
        attribute: {value: summarize(members) for value, members in sorted(values.items())}
        for attribute, values in sorted(groups.items())
    }


OVERALL_PARTS = {"text_edit": -1.0, "formula_edit": -1.0, "teds": 1.0}
"""Metrics whose mean is OmniDocBench's Overall. 1: higher is better; -1: lower is better."""


def _overall(pages: Sequence[PageScore], draws: np.ndarray) -> Score | None:
    """Compute Overall = ((1 - text edit) + TEDS + (1 - formula edit)) / 3 * 100, with its interval.

    Return ``None`` unless all three metrics were measured.
    """
    sums = np.array([
        [page.samples.get(name, (0.0, 0.0)) for name in OVERALL_PARTS] for page in pages
    ], dtype=np.float64).reshape(len(pages), len(OVERALL_PARTS), 2)  # fmt: skip
    totals = sums.sum(0)
    if not (totals[:, 1] > 0).all():
        return None
    signs = np.array(list(OVERALL_PARTS.values()))
    value = float(_goodness(totals[None], signs)[0])
    if len(draws) == 0:
        return Score(value, None, None, len(pages))
    resampled = sums[draws].sum(1)  # (R, 3, 2)
    kept = resampled[(resampled[..., 1] > 0).all(1)]
    low, high = _quantiles(_goodness(kept, signs)) if len(kept) else (None, None)
    return Score(value, low, high, len(pages))


def _goodness(totals: np.ndarray, signs: np.ndarray) -> np.ndarray:
    means = totals[..., 0] / totals[..., 1]
    result: np.ndarray = np.where(signs > 0, means, 1 - means).mean(-1) * 100
    return result


def _draws(num_pages: int) -> np.ndarray:
    """Draw the bootstrap's page indices with replacement, the same in every run. Returns (R, pages).

    R is ``RESAMPLES``, or 0 if there are too few pages for an interval.
    """
    if num_pages < MIN_PAGES_FOR_INTERVAL:
        return np.empty((0, num_pages), dtype=np.int64)
    return np.random.default_rng(SEED).integers(0, num_pages, (RESAMPLES, num_pages))


def _interval(rows: np.ndarray, draws: np.ndarray) -> tuple[float | None, float | None]:
    if len(draws) == 0:
        return None, None
    sums = rows[draws].sum(1)  # (R, 2)
    sums = sums[sums[:, 1] > 0]
    return _quantiles(sums[:, 0] / sums[:, 1]) if len(sums) else (None, None)


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
