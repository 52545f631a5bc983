"""Data types that every layer shares. Nothing here imports torch, a web framework or a queue."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from PIL import Image

from app.errors import BadOption, PageNotFound, ParseError, error_named

Pruning = Literal["rtprune", "none"]
FinishReason = Literal["stop", "length", "loop", "low_confidence", "deadline", "cancelled"]
AttemptReason = Literal["asked", "small_print", "loop", "low_confidence", "risk", "text_layer", "apart"]
"""Why a page was read. ``asked``: it was asked for. ``small_print``: so too, in a mode chosen for its print.
``loop``, ``low_confidence``: so the reading before ended. ``risk``: that one was pruned, and too risky.
``text_layer``: too few words of the PDF's text layer were in its text. ``apart``: it could not be read in one
prompt with other pages.
"""
TokenReport = Literal["counts", "detail"]
Status = Literal["succeeded", "partial", "failed", "running"]
"""Status of a whole document. ``running``: the pages so far of a job that has not ended."""

WarningCode = Literal[
    "length",
    "loop",
    "low_confidence",
    "deadline",
    "doubtful_text",
    "unread_print",
    "text_layer_mismatch",
    "text_layer_unusable",
    "blank_page",
    "missing_glyphs",
    "dropped_text",
    "dynamic_xfa",
    "attachments_not_read",
    "low_resolution",
    "figure_scaled",
    "figures_left_out",
]
"""Why an answer may say less than the page. The first four are finish reasons of pages not read to the end.

``docs/api.md`` explains each; a test compares.
"""


Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in thousandths of the page."""
FARTHEST = 999
"""Coordinate of the right and lower edges of a page in boxes."""


@dataclass(frozen=True, slots=True)
class PageWarning:
    """A warning about the text of a page. ``detail`` is one sentence, safe to show."""

    code: WarningCode
    detail: str


FINISH_WARNINGS: Mapping[FinishReason, PageWarning] = {
    "length": PageWarning("length", "The text was cut off at the limit of output tokens."),
    "loop": PageWarning("loop", "The model repeated itself; the text ends where the repetition began."),
    "low_confidence": PageWarning("low_confidence", "The model was guessing; what is noise is left out."),
    "deadline": PageWarning("deadline", "The page's time ran out; the text ends where it had come to."),
}
"""The warning of a page that was not read to its end, by finish reason."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How one page is read. ``None`` means the checkpoint's own default."""

    mode: str | None = None
    prune: Pruning = "rtprune"
    keep_ratio: float | None = None
    """Share of patch tokens to keep, in (0, 1]; ``None``: chosen from the page (dynamic)."""
    prompt: str | None = None
    max_output_tokens: int | None = None
    tokens: TokenReport = "counts"
    """Whether a reading also tells what became of each patch token."""
    ngram: tuple[int, int] | None = None
    """n and window, both in tokens, of the no-repeat n-gram rule for a page's first attempt."""
    ngram_exempt: tuple[int, ...] | None = None
    """Token ids that the n-gram rule never bans; ``None``: the checkpoint's own."""
    fixation: float | None = None
    """Share of a page's patch tokens that most layers attend to at a decode step, in (0, 1]; ``None``: all
    of them, by plain attention."""

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise ValueError(f"max_output_tokens must be at least 1, got {self.max_output_tokens}")
        if self.fixation is not None and not 0 < self.fixation <= 1:
            raise ValueError(f"fixation must be in (0, 1], got {self.fixation}")
        if self.ngram is not None and not 2 <= self.ngram[0] <= self.ngram[1]:
            raise ValueError(f"ngram must be n from 2 and a window that holds it, got {self.ngram}")


PAGE_RANGE = re.compile(r"([0-9]{1,9})(-([0-9]{1,9})?)?")
MAX_SELECTION_CHARS = 1000


@dataclass(frozen=True, slots=True)
class PageSelection:
    """The pages to read: 1-based inclusive ranges, never expanded. An end of ``None`` means the last page."""

    ranges: tuple[tuple[int, int | None], ...] = ((1, None),)
    is_clamped: bool = False
    """Whether a range that begins within the document may end after its last page."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a selection such as ``"1-3,7,9-"``. Raise ``BadOption`` that names the invalid part."""
        if len(text) > MAX_SELECTION_CHARS:
            raise BadOption(f"pages is longer than {MAX_SELECTION_CHARS} characters")
        return cls(tuple(_page_range(part.strip()) for part in text.split(",")))

    def within(self, num_pages: int) -> tuple[range, ...]:
        """Return 0-based disjoint ranges in document order, with each page once, whatever the order and
        overlap.

        Raise ``PageNotFound`` for a page after the last.
        """
        merged: list[range] = []
        for first, last in sorted(
            (first, num_pages if last is None else self._end(last, num_pages)) for first, last in self.ranges
        ):
            if max(first, last) > num_pages:
                raise PageNotFound(f"page {max(first, last)} was asked for, the document has {num_pages}")
            if merged and first - 1 <= merged[-1].stop:
                merged[-1] = range(merged[-1].start, max(merged[-1].stop, last))
            else:
                merged.append(range(first - 1, last))
        return tuple(merged)

    def _end(self, last: int, num_pages: int) -> int:
        return min(last, num_pages) if self.is_clamped else last


def _page_range(part: str) -> tuple[int, int | None]:
    match = PAGE_RANGE.fullmatch(part)
    if match is None:
        raise BadOption(f"pages must look like 1-3,7,9- and {part[:40]!r} does not")
    first = int(match[1])
    last = int(match[3]) if match[3] else (None if match[2] else first)
    if first < 1 or (last is not None and last < first):
        raise BadOption(f"pages are counted from 1 and ranges ascend, {part[:40]!r} does not")
    return first, last


Images = Literal["relative", "link", "embed", "none"]
FormatName = Literal["json", "markdown", "text", "html", "docling", "doctags", "zip", "pdf"]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How an answer is shown. These options do not change how pages are read."""

    math: Literal["latex", "dollar"] | None = None
    """Delimiters of math; ``None``: dollars in ``text/markdown``, and the model's own in JSON."""
    headers: Literal["drop", "keep"] = "drop"
    """Whether the document's Markdown keeps running heads, feet and page numbers."""
    join_pages: bool = True
    """Whether a paragraph or table that continues on the next page is joined."""
    page_marks: Literal["none", "comment", "rule"] = "comment"
    """What marks a page that was not read, or not to its end. ``rule`` also puts a rule between pages."""
    images: Images | None = None
    """How an answer refers to figures: below the job's address, by address, as data, or not at all.

    ``None``: as its format does by default.
    """
    format: FormatName | None = None
    """Format of the result for a client that names none; ``None``: JSON."""


@dataclass(frozen=True, slots=True)
class ParseOptions:
    """How a document is parsed. ``dpi`` applies to PDF pages only, because an image has its own pixels.

    ``None``: the resolution is chosen from the page.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    pages: PageSelection = field(default_factory=PageSelection)
    dpi: int | None = None
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    is_live: bool = False
    """Whether the text of pages is told while it is decoded."""
    pages_per_prompt: int = 1
    """Most pages shown to the model in one prompt."""


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word of a text layer and where it is printed, in pixels of the page's image."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Page:
    """One rasterized page. ``index`` is 0-based; ``image`` is RGB, upright, at its rendered size."""

    index: int
    image: Image.Image
    rasterize_ms: float = 0.0
    dpi: float | None = None
    """Resolution at which a PDF page was rendered; ``None``: the image's own pixels."""
    words: tuple[str, ...] | None = None
    """Words of a PDF page's usable text layer, in its order; ``None`` without one."""
    has_text: bool = False
    """Whether a PDF page has a text layer of any kind, usable or not."""
    glyph_px: float | None = None
    """Height in pixels of ``image`` that a quarter of the letters of a usable text layer do not exceed, from
    descender to ascender; ``None`` where that was not measured.
    """
    placed_words: tuple[PlacedWord, ...] = ()
    """The words of a usable text layer where they are printed, in no order; parted unlike ``words``."""
    warnings: tuple[PageWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token counts of a page. ``visual`` and ``kept`` count the whole sequence.

    ``patches`` and ``kept_patches`` count only patch tokens.
    """

    visual: int
    kept: int
    patches: int
    kept_patches: int
    keep_ratio: float
    text_density: float
    diversity: float | None
    prompt: int
    output: int
    attended_patches: float | None = None
    """Patch tokens attended to at a decode step, mean over steps and layers; ``None`` without fixation."""
    drafted: int = 0
    """Tokens proposed from the page's text layer, over all attempts."""
    accepted: int = 0
    """Those of them that the model chose, too; each saved a decoder step."""

    @property
    def attended_share(self) -> float | None:
        """``attended_patches`` as a share of ``kept_patches``; ``None`` without fixation."""
        if self.attended_patches is None:
            return None
        return self.attended_patches / self.kept_patches if self.kept_patches else 1.0

    @property
    def retention(self) -> float:
        """Share of the visual sequence that was kept; 1 for a page that ended before it was encoded."""
        return self.kept / self.visual if self.visual else 1.0


@dataclass(frozen=True, slots=True)
class ViewPatches:
    """What became of the patch tokens of one grid, numbered row by row from 0.

    Tokens that are neither kept nor folded were dropped. ``bbox``: the part of the page under the grid,
    beyond 0..999 where the view is padded. ``shown``: the part of the page that the grid shows. Both are
    ``None`` for a grid that shows nothing of the page.
    """

    bbox: Box | None
    shown: Box | None
    columns: int
    rows: int
    kept: tuple[int, ...]
    folded: tuple[tuple[int, int, int], ...] = ()
    """(patch, view, into): a pruned token, and the view and patch that took most of it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at reading a page. An answer lists them in order."""

    mode: str
    prune: Pruning
    ngram_window: int
    finish_reason: FinishReason
    output_tokens: int
    reason: AttemptReason = "asked"
    text_layer_recall: float | None = None
    """As in ``PageResult``, where two readings were compared by it; ``None`` where there was one."""
    ms: float | None = None
    """Wall time in milliseconds of the reading that ends with this attempt, where there were two."""
    pages: int = 1
    """Pages in its prompt. If their text could not be divided among them, ``output_tokens`` are of all."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture region that was cut from the page. ``width`` and ``height``: pixels of the stored image."""

    name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image of a page: a figure, or the whole page if ``bbox`` is ``None``."""

    name: str
    media_type: str
    data: bytes
    width: int
    height: int
    bbox: Box | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A region that the model grounded. ``bbox``: x1, y1, x2, y2 in 0..999 of the page.

    ``text``: what the model wrote, without escapes. ``markdown``: the same as it stands in the page's
    Markdown; ``None`` if they do not differ.
    """

    type: str
    bbox: Box
    text: str
    markdown: str | None = None
    figure: Figure | None = None
    """The figure cut from the page here; ``None`` for text, and for a picture that is not kept."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The engine's result for one page: raw model text, counts, and milliseconds by stage.

    ``timing_ms`` has the keys queue, preprocess, encode, prune, prefill, decode, summed over the attempts.
    Work that pages share (a batched encode, a decode step) is divided equally among the pages it served. So
    the sum over pages is the time spent, and a page's own sum is below its wall time. ``queue`` is the time
    the page waited idle before each attempt. The caller adds ``total``, the wall time.
    """

    text: str
    finish_reason: FinishReason
    confidence: float
    """Mean log-probability of the output tokens (natural logarithm), the end token included, at most 0.

    It is taken before the n-gram ban; 0 for a page without output.
    """
    mode: str
    tokens: TokenCounts
    timing_ms: Mapping[str, float]
    risk: float = 0.0
    """Probability in [0, 1] that the text is wrong in many places, from a low quantile of token
    probabilities."""
    attempts: tuple[Attempt, ...] = ()
    left_out: tuple[tuple[int, int, int, int], ...] = ()
    """Boxes, as a ``Block``'s, of print that the reader saw but did not read, or not completely."""
    blocks: tuple[Block, ...] | None = None
    """The whole text in blocks, from a reader that knows its positions; ``None``: they are tags in
    ``text``."""
    views: tuple[ViewPatches, ...] = ()
    """The patch tokens of the attempt that gave the text, with ``tokens="detail"``."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a page or a document gave nothing. Safe to show: no paths, no stack traces."""

    code: str
    detail: str
    retryable: bool = False

    @classmethod
    def of(cls, error: ParseError) -> Self:
        return cls(error.code, str(error), error.retryable)

    def error(self) -> ParseError:
        return error_named(self.code)(self.detail)


@dataclass(frozen=True, slots=True)
class PageResult:
    """One page of the answer. If ``failure`` is set, nothing was read and ``reading`` is ``None``."""

    index: int
    width: int
    height: int
    markdown: str
    blocks: tuple[Block, ...] = ()
    reading: Reading | None = None
    failure: Failure | None = None
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[PageWarning, ...] = ()
    dpi: float | None = None
    unread_ink: float | None = None
    """Share of the page's ink outside everything that was read; ``None`` if unknown."""
    text_layer_recall: float | None = None
    """Share of the words of the PDF's text layer that are in the text; ``None`` without a usable layer."""
    pictures: tuple[Picture, ...] = ()
    """Images of the page on their way to the store. A stored page has none here: they are read one by one."""

    @property
    def shortfall(self) -> str | None:
        """Why the page was not read completely: an error code or a finish reason; ``None`` for a whole
        page."""
        if self.failure is not None:
            return self.failure.code
        if self.reading is not None and self.reading.finish_reason != "stop":
            return self.reading.finish_reason
        return None


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    id: str
    model: str
    status: Status
    pages: tuple[PageResult, ...]
    timing_ms: Mapping[str, float]
