"""Turn an image into the start of a page's sequence.

The host preprocesses it; the device encodes and prunes pages in batches; then the prompt is assembled.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

import torch
from PIL import Image
from torch.nn import functional

from app.document import TokenCounts, ViewPatches
from app.errors import PageFailed, ParseError
from app.ocr.engine.decoder import Prompt
from app.ocr.engine.device import adopt, give_back_memory, is_lost, is_out_of_memory, wait_for
from app.ocr.engine.fixation import Patches
from app.ocr.engine.patches import PATCH_PX, Grid, grids_of, sides_of, view_patches
from app.ocr.engine.retries import AttemptPlan
from app.ocr.engine.scheduler import BatchLimit, chunks_within
from app.ocr.models.model import OcrModel, PageViews
from rtprune import Folds, RTPruneConfig, VisualTokens, prune_batch, text_density

logger = logging.getLogger(__name__)
MAX_TEXTS = 64
"""Prompts whose embeddings are kept. None is evicted, because another stream may be reading it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A page after preprocessing on the host. ``density``: text density of its global view, in [0, 1]."""

    views: PageViews
    density: float
    prompt_ids: list[int]
    attempt_plan: AttemptPlan
    started_s: float
    """When preprocessing began, by ``time.monotonic``."""
    preprocess_ms: float
    grids: tuple[Grid, ...] | None = None
    """Where its patch tokens lie on the page; ``None`` unless they are traced."""
    more: tuple["Prepared", ...] = ()
    """The pages that follow it in the same prompt."""

    @property
    def pages(self) -> tuple["Prepared", ...]:
        """All pages of the prompt."""
        return (self, *self.more)

    @property
    def num_pixels(self) -> int:
        """Pixels of all views of all pages together."""
        views = [view for page in self.pages for view in (page.views.view, *_tiles(page.views))]
        return sum(view.shape[-2] * view.shape[-1] for view in views)

    def without_pixels(self) -> "Prepared":
        more = tuple(replace(page, views=page.views.without_pixels()) for page in self.more)
        return replace(self, views=self.views.without_pixels(), more=more)

    def planned(self, attempt_plan: AttemptPlan) -> "Prepared":
        more = tuple(replace(page, attempt_plan=attempt_plan) for page in self.more)
        return replace(self, attempt_plan=attempt_plan, more=more)


@dataclass(frozen=True, slots=True)
class VisualCounts:
    """Counts of a page's visual tokens before and after pruning, with its density and views.

    ``of_pages``: those of each page, where several are in one prompt.
    """

    visual: int
    kept: int
    patches: int
    kept_patches: int
    keep_ratio: float
    density: float
    diversity: float | None
    views: tuple[ViewPatches, ...] = ()
    of_pages: tuple["VisualCounts", ...] = ()

    def reported(self, *, prompt: int, output: int) -> TokenCounts:
        """Return the counts of a reading whose prompt and output have so many tokens."""
        return TokenCounts(
            visual=self.visual, kept=self.kept, patches=self.patches, kept_patches=self.kept_patches,
            keep_ratio=self.keep_ratio, text_density=self.density, diversity=self.diversity,
            prompt=prompt, output=output,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A page ready for prefill, or several in one prompt. Its times are its share of the batch it was encoded
    and pruned with.

    ``page``: without its pixels. ``tokens``: visual tokens of each page before pruning, for an unpruned
    attempt.
    """

    prompt: Prompt
    counts: VisualCounts
    encode_ms: float
    prune_ms: float
    page: Prepared
    tokens: tuple[VisualTokens, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    embeds: torch.Tensor
    positions: torch.Tensor
    counts: VisualCounts


NOT_PRUNED = PageFailed("the page was not pruned")
"""Placeholder for each page's result until it is replaced."""


def prepare(
    model: OcrModel,
    image: Image.Image,
    attempt_plan: AttemptPlan,
    prompt_ids: list[int],
    *,
    trace: bool = False,
) -> Prepared:
    """Preprocess a page. Runs in a thread of its own, beside decoding.

    ``trace``: keep what is needed to report each patch token.
    """
    start = time.monotonic()
    views = model.preprocess(image, attempt_plan.mode)
    side = views.view.shape[-1] // PATCH_PX
    density = text_density(views.view, side, side)
    grids = grids_of(views, image.size) if trace else None
    return Prepared(views, density, prompt_ids, attempt_plan, start, (time.monotonic() - start) * 1e3, grids)


class Vision:
    """Encoding and pruning of pages of one mode together. If a page cannot be encoded, only that page
    fails.
    """

    def __init__(self, model: OcrModel, limit: BatchLimit) -> None:
        self._model = model
        self._limit = limit
        self._texts: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def encode(self, pages: Sequence[Prepared]) -> list[Encoded | ParseError]:
        """Encode and prune pages. Returns one result per page, in order."""
        start = time.perf_counter()
        each = [page for prompt in pages for page in prompt.pages]
        tokens = self._each(each, self._encode_views)
        wait_for(self._model.device)
        encode_ms = (time.perf_counter() - start) * 1e3 / len(each)
        start = time.perf_counter()
        kept = self._prune_all(each, tokens)
        wait_for(self._model.device)
        prune_ms = (time.perf_counter() - start) * 1e3 / len(each)
        self._limit.succeeded()
        results, first = [], 0
        for page in pages:
            own = slice(first, first + len(page.pages))
            results.append(self._encoded(page, kept[own], tokens[own], encode_ms, prune_ms))
            first = own.stop
        return results

    @torch.inference_mode()
    def again(self, encoded: Encoded, attempt_plan: AttemptPlan) -> Encoded:
        """Prune the same page for another attempt in the same mode, without encoding it again."""
        page = encoded.page.planned(attempt_plan)
        before = encoded.page.attempt_plan
        if replace(before, ngram=attempt_plan.ngram) == attempt_plan:
            return replace(encoded, page=page)
        for tokens in encoded.tokens:
            adopt(tokens.embeds)
        kept = _joined(_sound(self._prune_all(page.pages, encoded.tokens)))
        return replace(
            encoded, page=page, prompt=self._prompt(page, kept, encoded.tokens), counts=kept.counts
        )

    def _encoded(
        self,
        page: Prepared,
        kept: Sequence[_Kept | ParseError],
        tokens: Sequence[VisualTokens | ParseError],
        encode_ms: float,
        prune_ms: float,
    ) -> Encoded | ParseError:
        """``encode_ms``, ``prune_ms``: of one page."""
        try:
            whole = tuple(_sound(tokens))
            joined = _joined(_sound(kept))
        except ParseError as error:
            return error
        num_pages = len(whole)
        try:
            prompt = self._prompt(page, joined, whole)
            page = page.without_pixels()  # ten times the size of its tokens
            return Encoded(prompt, joined.counts, encode_ms * num_pages, prune_ms * num_pages, page, whole)
        except Exception as error:
            if is_lost(self._model.device):
                raise
            logger.exception("a page's visual tokens do not fit the decoder")
            return failure_of(error)

    def _encode_views(self, pages: Sequence[Prepared]) -> list[VisualTokens]:
        tokens = self._model.encode([page.views for page in pages])
        if len(tokens) != len(pages):
            raise ValueError(f"{len(pages)} pages were encoded into {len(tokens)}")
        return tokens

    def _prune_all(
        self, pages: Sequence[Prepared], tokens: Sequence[VisualTokens | ParseError]
    ) -> list[_Kept | ParseError]:
        """Prune pages that share a keep ratio in one call."""
        results: list[_Kept | ParseError] = [NOT_PRUNED] * len(pages)
        by_way: dict[tuple[float | None, bool], list[int]] = {}
        for i, (page, one) in enumerate(zip(pages, tokens, strict=True)):
            if isinstance(one, ParseError):
                results[i] = one
            elif page.attempt_plan.prune == "rtprune":
                by_way.setdefault((page.attempt_plan.keep_ratio, page.grids is not None), []).append(i)
            else:
                results[i] = keep_all(one, page)
        for (ratio, trace), members in by_way.items():
            config = RTPruneConfig(keep_ratio=ratio, trace=trace)
            pairs = [(t, pages[i]) for i in members if isinstance(t := tokens[i], VisualTokens)]
            pruned = self._each(pairs, lambda some, config=config: prune_some(some, config))  # type: ignore[misc]
            for i, result in zip(members, pruned, strict=True):
                results[i] = result
        return results

    def _prompt(self, page: Prepared, kept: _Kept, tokens: Sequence[VisualTokens]) -> Prompt:
        """Assemble bos, the kept visual tokens at their original positions, and the prompt.

        The prompt's positions follow those of all visual tokens, pruned ones included.
        """
        text = self._text(tuple(page.prompt_ids))
        after = 1 + kept.counts.visual
        written = torch.arange(after, after + len(page.prompt_ids), device=self._model.device)
        positions = torch.cat((functional.pad(kept.positions + 1, (1, 0)), written))
        embeds = torch.cat((text[:1], kept.embeds.to(text.dtype), text[1:]))
        share = page.attempt_plan.fixation
        patches = None if share is None else patches_of(page.views, tokens[0], kept.positions, share)
        return Prompt(embeds, positions, after + len(page.prompt_ids), patches)

    def _text(self, prompt_ids: tuple[int, ...]) -> torch.Tensor:
        """Return the embeddings of bos and the prompt, (1 + P, D).

        They are cached: most pages share a prompt.
        """
        known = self._texts.get(prompt_ids)
        if known is not None:
            return known
        text = self._model.embed(torch.tensor([self._model.bos_id, *prompt_ids], device=self._model.device))
        wait_for(self._model.device)  # other threads use it on streams of their own
        if len(self._texts) < MAX_TEXTS:
            self._texts[prompt_ids] = text
        return text

    def _each(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result | ParseError]:
        """Run ``work`` on all items together.

        If that fails, retry on halves (out of memory) or on each item alone.
        """
        results: list[Result | ParseError] = []
        for chunk in chunks_within([1] * len(items), self._limit.value):
            answers = self._chunk([items[i] for i in chunk], work)
            results.extend(answers)
        return results

    def _chunk(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result | ParseError]:
        try:
            return [*work(items)]
        except Exception as error:
            if is_lost(self._model.device):
                raise
            no_memory = is_out_of_memory(error)
            if no_memory:
                self._limit.shrink(len(items))
            if len(items) == 1:
                logger.exception("a page could not be encoded")
                return [failure_of(error)]
        # outside the handler: its traceback keeps tensors alive, and their memory is needed
        if no_memory:
            give_back_memory(self._model.device)
        size = len(items) // 2 if no_memory else 1
        chunks = [items[i : i + size] for i in range(0, len(items), size)]
        return [result for chunk in chunks for result in self._chunk(chunk, work)]


def patches_of(views: PageViews, tokens: VisualTokens, kept: torch.Tensor, share: float) -> Patches:
    """Find the kept patch tokens in the prompt and on the page. ``kept``: (K,) places in ``tokens``.

    Raise ``ValueError`` if the views do not have as many patches as there are tokens.
    """
    places = torch.tensor(
        [
            (view, row, column)
            for view, (columns, rows) in enumerate(sides_of(views))
            for row in range(rows)
            for column in range(columns)
        ]
    )  # (N, 3)
    if len(places) != int(tokens.is_patch.sum()):
        raise ValueError(f"{int(tokens.is_patch.sum())} patch tokens do not fill {sides_of(views)}")
    is_patch = tokens.is_patch[kept]
    ordinals = (tokens.is_patch.cumsum(0) - 1)[kept][is_patch]
    return Patches(share, 1 + is_patch.nonzero()[:, 0], places[ordinals])  # bos stands before them


def keep_all(tokens: VisualTokens, page: Prepared) -> _Kept:
    length, patches = len(tokens.embeds), int(tokens.is_patch.sum())
    kept = torch.arange(length, device=tokens.embeds.device)
    views = _views(tokens, page, kept, None)
    counts = VisualCounts(length, length, patches, patches, 1.0, page.density, None, views)
    return _Kept(tokens.embeds, kept, counts)


def prune_some(pages: Sequence[tuple[VisualTokens, Prepared]], config: RTPruneConfig) -> list[_Kept]:
    pruned = prune_batch([tokens for tokens, _ in pages], [page.density for _, page in pages], config)
    kept = []
    for (tokens, page), result in zip(pages, pruned, strict=True):
        counts = VisualCounts(
            visual=len(tokens.embeds), kept=len(result.kept), patches=result.num_patches,
            kept_patches=result.num_kept_patches, keep_ratio=result.keep_ratio, density=page.density,
            diversity=result.diversity, views=_views(tokens, page, result.kept, result.folds),
        )  # fmt: skip
        kept.append(_Kept(result.embeds, result.kept, counts))
    return kept


def _views(
    tokens: VisualTokens, page: Prepared, kept: torch.Tensor, folds: Folds | None
) -> tuple[ViewPatches, ...]:
    """Return where the page's patch tokens lie and what became of them; empty unless the page is traced.

    Waits for the device if it is traced.
    """
    if page.grids is None:
        return ()
    positions = tokens.is_patch.nonzero()[:, 0].tolist()
    return view_patches(page.grids, positions, kept.tolist(), folds)


def _tiles(views: PageViews) -> Sequence[torch.Tensor]:
    return () if views.tiles is None else tuple(views.tiles)


def _sound(results: Sequence[Result | ParseError]) -> list[Result]:
    """Return the results. Raise the first that is an error."""
    sound: list[Result] = []
    for result in results:
        if isinstance(result, ParseError):
            raise result
        sound.append(result)
    return sound


def _joined(pages: Sequence[_Kept]) -> _Kept:
    """Put pages behind each other in one prompt: a page's positions follow all tokens of those before it."""
    if len(pages) == 1:
        return pages[0]
    counts = [page.counts for page in pages]
    starts = accumulate((one.visual for one in counts[:-1]), initial=0)
    positions = [page.positions + start for page, start in zip(pages, starts, strict=True)]
    patches, kept_patches = sum(one.patches for one in counts), sum(one.kept_patches for one in counts)
    together = VisualCounts(
        visual=sum(one.visual for one in counts), kept=sum(one.kept for one in counts), patches=patches,
        kept_patches=kept_patches, keep_ratio=kept_patches / patches,
        density=sum(one.density for one in counts) / len(counts), diversity=None, of_pages=tuple(counts),
    )  # fmt: skip
    return _Kept(torch.cat([page.embeds for page in pages]), torch.cat(positions), together)


def failure_of(error: BaseException) -> ParseError:
    """Return the error to show a client: the page's own, or that the model failed. No trace and no path."""
    if isinstance(error, ParseError):
        return error
    if is_out_of_memory(error):
        return PageFailed("the page alone does not fit the device's memory")
    return PageFailed(f"the model failed on this page ({type(error).__name__})")
