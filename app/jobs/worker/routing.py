"""Decide by a page's pixels and its PDF's text layer whether and how it is read, and whether once more.

Text is never taken from the layer: it may be anything. It only says where reading is worth more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.document import Attempt, AttemptReason, Page, PageWarning, Reading, ReadOptions, TokenCounts
from app.output.checks import MIN_LAYER_WORDS, Checks
from app.output.coverage import is_blank
from app.output.cutting import Pictured
from app.reader import KnowsModes, PageReader
from app.settings import Settings

MIN_GLYPH_PX = 12.0
"""Least height, descender to ascender, of the letters that a mode's views should show."""
NOT_DRAWN = frozenset({"text_layer_unusable", "missing_glyphs", "dropped_text", "dynamic_xfa"})
"""Warnings of a page that may have print which its picture does not show."""
BLANK = PageWarning("blank_page", "The page is blank. It was not given to the model.")
NO_TOKENS = TokenCounts(0, 0, 0, 0, 1.0, 0.0, None, 0, 0)


@dataclass(frozen=True, slots=True)
class Checked:
    """A page's reading, rendered and checked. ``took_s``: seconds that the model had the page."""

    reading: Reading
    checks: Checks
    pictured: Pictured
    took_s: float

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the attempts, the last with what is in the text and what the reading took."""
        recall, ms = self.checks.text_layer_recall, round(self.took_s * 1000, 3)
        last = (replace(attempt, text_layer_recall=recall, ms=ms) for attempt in self.reading.attempts[-1:])
        return (*self.reading.attempts[:-1], *last)


@dataclass(frozen=True, slots=True)
class Route:
    """How a page is read, and why so. ``blank``: its reading, if it needs no model.

    ``before``: the reading of several pages, this one among them, that was of no use.
    """

    options: ReadOptions
    reason: AttemptReason = "asked"
    blank: Reading | None = None
    before: Reading | None = None

    def apart(self, together: Reading | None) -> "Route":
        """Return the route of a page that could not be read with others. ``together``: what came of that."""
        return replace(self, reason="apart", before=together)

    def of(self, reading: Reading) -> Reading:
        """Return the reading with the reason of its attempts, and those before it, with their times."""
        attempts = tuple(replace(attempt, reason=self.reason) for attempt in reading.attempts[:1])
        attempts = (*attempts, *reading.attempts[1:])
        if self.before is None:
            return replace(reading, attempts=attempts)
        num_pages = max((attempt.pages for attempt in self.before.attempts), default=1)
        shared = {stage: ms / num_pages for stage, ms in self.before.timing_ms.items()}
        times = _sum_of(shared, reading.timing_ms)
        return replace(reading, attempts=(*self.before.attempts, *attempts), timing_ms=times)


class Router:
    """Chooses routes for a reader that knows its modes. For any other, pages are read as asked."""

    def __init__(self, settings: Settings, reader: PageReader) -> None:
        self._settings = settings
        self._modes = reader if isinstance(reader, KnowsModes) else None
        self._names = reader.modes

    @property
    def chooses(self) -> bool:
        """Whether any page may be routed; else ``route`` gives what was asked for, and needs no thread."""
        return self._modes is not None

    def route(self, page: Page, asked: ReadOptions) -> Route:
        """Return how to read a page. Takes up to 0.2 s of numpy for a pale page: call it in a thread."""
        if self._modes is None:
            return Route(asked)
        mode = asked.mode or self._modes.default_mode
        if (
            self._settings.router_blank
            and asked.prompt is None
            and mode in self._names
            and _shows_nothing(page)
        ):
            return Route(asked, blank=Reading("", "stop", 0.0, mode, NO_TOKENS, {}))
        if self._settings.router_mode and asked.mode is None and page.glyph_px and _has_layer(page):
            sharper = sharper_mode(mode, self._modes.scales(*page.image.size), page.glyph_px)
            if sharper is not None:
                return Route(replace(asked, mode=sharper), "small_print")
        return Route(asked)

    def again(self, page: Page, asked: ReadOptions, reading: Reading, checks: Checks) -> Route | None:
        """Return how to read a page a second time; ``None`` if that is not worth it.

        Without pruning, if its text came from pruned tokens and the reader has not tried that; else in a
        sharper mode. A reading that did not end by itself is final: the reader has retried loops and noise,
        and limits stay limits.
        """
        is_worth = self._settings.recall_retry and checks.has_missed_the_layer
        if self._modes is None or not is_worth or asked.prompt is not None or reading.finish_reason != "stop":
            return None
        is_pruned = reading.tokens.kept_patches < reading.tokens.patches
        was_restored = any(attempt.prune == "none" for attempt in reading.attempts)
        if is_pruned and not was_restored and asked.keep_ratio is None:
            return Route(replace(asked, mode=reading.mode, prune="none", fixation=None), "text_layer")
        sharper = None
        if asked.mode is None:
            sharper = sharper_mode(reading.mode, self._modes.scales(*page.image.size))
        if sharper is None:
            return None
        return Route(replace(asked, mode=sharper), "text_layer")


def sharper_mode(mode: str, scales: Mapping[str, float], glyph_px: float | None = None) -> str | None:
    """Return the least mode above ``mode`` that shows letters of this height large enough, else the sharpest.

    ``None`` if ``mode`` shows them so or no mode is above it. ``glyph_px=None``: the next mode above.
    """
    if mode not in scales:
        return None
    wanted = scales[mode] if glyph_px is None else MIN_GLYPH_PX / glyph_px
    if glyph_px is not None and scales[mode] >= wanted:
        return None
    above = sorted((scale, name) for name, scale in scales.items() if scale > scales[mode])
    return next((name for scale, name in above if scale >= wanted), above[-1][1] if above else None)


def better_of(first: Checked, second: Checked) -> Checked:
    """Return the reading that has more words of the text layer, the first if in doubt, with the attempts and
    times of both.
    """
    recalls = [one.checks.text_layer_recall or 0.0 for one in (first, second)]
    better = second if second.reading.finish_reason == "stop" and recalls[1] > recalls[0] else first
    reading = replace(
        better.reading,
        attempts=(*first.attempts(), *second.attempts()),
        timing_ms=_sum_of(first.reading.timing_ms, second.reading.timing_ms),
    )
    return replace(better, reading=reading)


def _sum_of(*times: Mapping[str, float]) -> dict[str, float]:
    stages = dict.fromkeys(stage for one in times for stage in one)
    return {stage: sum(one.get(stage, 0.0) for one in times) for stage in stages}


def _shows_nothing(page: Page) -> bool:
    is_drawn = NOT_DRAWN.isdisjoint(warning.code for warning in page.warnings)
    return not page.has_text and is_drawn and is_blank(page.image)


def _has_layer(page: Page) -> bool:
    return len(page.words or ()) >= MIN_LAYER_WORDS
