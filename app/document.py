"""The nouns every layer shares. Nothing here imports torch, a web framework or a queue."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

Pruning = Literal["rtprune", "none"]
FinishReason = Literal["stop", "length", "loop", "deadline", "cancelled"]
Status = Literal["succeeded", "partial", "failed"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How one page is to be read. ``None`` means the checkpoint's own default."""

    mode: str | None = None
    prune: Pruning = "rtprune"
    keep_ratio: float | None = None
    """Share of patch tokens to keep, in (0, 1]; ``None``: chosen from the page (dynamic)."""
    prompt: str | None = None
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise ValueError(f"max_output_tokens must be at least 1, got {self.max_output_tokens}")


@dataclass(frozen=True, slots=True)
class Page:
    """One rasterized page. ``index`` is 0-based; ``image`` is RGB, upright, at its rendered size."""

    index: int
    image: Image.Image
    rasterize_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """``visual`` and ``kept`` count the whole visual sequence; ``patches`` and ``kept_patches`` patch tokens alone."""

    visual: int
    kept: int
    patches: int
    kept_patches: int
    keep_ratio: float
    text_density: float
    diversity: float | None
    prompt: int
    output: int

    @property
    def retention(self) -> float:
        """Share of the visual sequence kept; 1 for a page that ended before it was encoded."""
        return self.kept / self.visual if self.visual else 1.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at reading a page: the retry ladder's rungs, in order."""

    mode: str
    prune: Pruning
    ngram_window: int
    finish_reason: FinishReason
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What the engine made of one page: raw model text, counts, and milliseconds by stage.

    ``timing_ms`` has the keys queue, preprocess, encode, prune, prefill, decode, summed over the attempts. Work
    that pages share (a batched encode, a decode step) is divided equally among the pages it served, so the sum
    over pages is the time spent and a page's own sum is below its wall time. ``queue`` is the time the page
    waited without being worked on, before each attempt. The caller that knows it adds ``total``, wall time.
    """

    text: str
    finish_reason: FinishReason
    confidence: float
    """Mean log-probability of the output tokens (natural logarithm), the end token included, at most 0.

    Before the n-gram ban; 0 for a page without output."""
    mode: str
    tokens: TokenCounts
    timing_ms: Mapping[str, float]
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A region the model grounded. ``bbox`` is x1, y1, x2, y2 in 0..999 of the page; ``text`` is its Markdown."""

    type: str
    bbox: tuple[int, int, int, int]
    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a page or a document gave nothing. Safe to show: no paths, no stack traces."""

    code: str
    detail: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class PageResult:
    """One page of the answer. ``failure`` set means nothing was read; then ``reading`` is ``None``."""

    index: int
    width: int
    height: int
    markdown: str
    blocks: tuple[Block, ...] = ()
    reading: Reading | None = None
    failure: Failure | None = None
    timing_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    id: str
    model: str
    status: Status
    pages: tuple[PageResult, ...]
    timing_ms: Mapping[str, float]
