"""Define what the engine needs from a checkpoint. Modes and sizes are data; tensors stay on ``device``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from app.ocr.engine.attention import Step
from app.ocr.engine.loops import NgramRule
from app.ocr.risk import RiskCurve
from rtprune import VisualTokens


@dataclass(frozen=True, slots=True)
class Mode:
    """A view layout: one square ``view_px`` view; with ``tile_px``, tiles of that side before it (Gundam)."""

    name: str
    view_px: int
    pad: bool
    """True: keep the aspect ratio and pad with gray (``ImageOps.pad``). False: resize to the square."""
    tile_px: int | None = None
    max_tiles: int = 9
    trained: bool = True
    """False: it works when asked for, but the checkpoint has never seen it; no retry goes there."""


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


class DecoderLayers(Protocol):
    """The decoder between its embeddings and the choice of a token."""

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, step: Step) -> torch.Tensor:
        """(B, T, D), (B, T) int64 -> (B, T, D), normed."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V)."""


class OcrModel(Protocol):
    """A DeepSeek-OCR-like checkpoint."""

    name: str
    modes: Mapping[str, Mode]
    default_mode: str
    default_prompt: str
    bos_id: int
    eos_id: int
    ngram_exempt_ids: frozenset[int]
    """Ids the windowed no-repeat-n-gram rule never bans (``<td>``, ``</td>``)."""
    ngram: NgramRule
    """The no-repeat-n-gram rule that the checkpoint was published with."""
    strict_ngram_n: int
    """Shortest n-gram that a retry may ban: the shorter the vocabulary's pieces, the longer."""
    min_confidence: float | None
    """Mean log-probability below which a stretch of output is noise; ``None``: nothing is."""
    risk_curve: RiskCurve
    device: torch.device
    dtype: torch.dtype
    max_positions: int
    decoder_layers: DecoderLayers | None
    """Modules that compute the same as the network's decoder; ``None``: the network's own."""

    def preprocess(self, image: Image.Image, mode: str) -> PageViews:
        """Image -> views, on the CPU. Thread-safe."""

    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        """Visual tokens in decoder order, row breaks and separator included.

        Views of one size run as one batch.
        """

    def prompt_ids(self, prompt: str) -> list[int]:
        """Text -> ids, no bos. Special tokens of the vocabulary are recognised in ``prompt``. Thread-safe."""

    def decode_text(self, ids: Sequence[int]) -> str:
        """Ids -> raw model text, special tokens other than bos, eos and pad kept. Thread-safe."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """(...,) int64 -> (..., D)."""

    @property
    def network(self) -> torch.nn.Module:
        """transformers' ``UnlimitedOcrForConditionalGeneration``, unmodified, in eval mode."""
