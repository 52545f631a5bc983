"""Interface that the engine needs from a checkpoint. Modes and sizes are data; tensors stay on ``device``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from PIL import Image

from app.ocr.engine.attention import Step
from app.ocr.engine.loops import NgramRule
from app.ocr.risk import RiskCurve
from rtprune import VisualTokens


@dataclass(frozen=True, slots=True)
class Mode:
    """A view layout: one square view of ``view_px``. With ``tile_px``, tiles precede it (Gundam)."""

    name: str
    view_px: int
    pad: bool
    """True: keep the aspect ratio and pad with gray (``ImageOps.pad``). False: stretch to the square."""
    tile_px: int | None = None
    max_tiles: int = 9
    trained: bool = True
    """False: the checkpoint was not trained on this mode. It works when asked for; nothing chooses it."""


@dataclass(frozen=True, slots=True)
class PageViews:
    """One preprocessed page. ``view``: (3, V, V) float32 in [-1, 1].

    ``tiles``: (T, 3, S, S), row by row, or ``None``.
    """

    mode: Mode
    view: torch.Tensor
    tiles: torch.Tensor | None = None
    tile_columns: int = 0
    tile_rows: int = 0

    def without_pixels(self) -> Self:
        """Return the layout alone: a page that was encoded needs its pixels no more."""
        return replace(self, view=self.view.new_empty(0), tiles=None)


@dataclass(frozen=True, slots=True)
class SeveralPages:
    """How a checkpoint was trained to read several pages in one prompt; names are those of ``OcrModel``."""

    default_mode: str
    default_prompt: str
    ngram: NgramRule
    mark: str
    """Text that the model writes in front of each page."""


class DecoderLayers(Protocol):
    """The decoder's layers and its head."""

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """Run all layers and the last norm. (B, T, D), (B, T) int64 -> (B, T, D)."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits. (..., D) -> (..., V)."""


class OcrModel(Protocol):
    """A checkpoint like DeepSeek-OCR's."""

    name: str
    modes: Mapping[str, Mode]
    has_patch_places: bool
    """Whether each patch token stands for one square of its view. Not so in DeepSeek-OCR-2."""
    default_mode: str
    default_prompt: str
    bos_id: int
    eos_id: int
    ngram_exempt_ids: frozenset[int]
    """Ids that the windowed no-repeat-n-gram rule never bans (``<td>``, ``</td>``)."""
    ngram: NgramRule
    """The no-repeat-n-gram rule that the checkpoint was published with."""
    several_pages: SeveralPages | None
    """``None``: the checkpoint reads one page a prompt."""
    strict_ngram_n: int
    """Shortest n-gram that a retry may ban. The shorter the vocabulary's pieces, the longer it must be."""
    min_confidence: float | None
    """Mean log-probability below which a stretch of output is noise; ``None``: no output counts as noise."""
    risk_curve: RiskCurve
    restore_risk: float | None
    """Risk above which a pruned page is read once more unpruned; ``None``: none is."""
    device: torch.device
    dtype: torch.dtype
    max_positions: int
    decoder_layers: DecoderLayers | None
    """Modules that compute the same as the network's decoder; ``None``: use the network's own."""

    def preprocess(self, image: Image.Image, mode: str) -> PageViews:
        """Turn an image into views, on the CPU. Thread-safe."""

    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        """Return each page's visual tokens in decoder order, row breaks and separator included.

        Views of one size run as one batch.
        """

    def prompt_ids(self, prompt: str) -> list[int]:
        """Convert a prompt to ids without bos.

        Special tokens of the vocabulary are recognised. Thread-safe.
        """

    def text_ids(self, text: str) -> list[int]:
        """Convert text that may be on a page to ids. Thread-safe. Never raises.

        Words that the vocabulary lacks are left out.
        """

    def decode_text(self, ids: Sequence[int]) -> str:
        """Convert ids to raw model text; special tokens other than bos, eos and pad are kept. Thread-safe."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up token embeddings. (...,) int64 -> (..., D)."""

    @property
    def network(self) -> torch.nn.Module:
        """transformers' ``UnlimitedOcrForConditionalGeneration`` or ``DeepseekOcr2ForConditionalGeneration``,
        unmodified, in eval mode.
        """
