"""Read a checkpoint's ``rtprune.json``.

It has the view modes, prompt and rules for which ``config.json`` has no place.
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import DeepseekOcr2Config

from app.ocr.engine.loops import NgramRule
from app.ocr.models.checkpoint import CheckpointError, read_text
from app.ocr.models.config import SLIDING, OcrConfig
from app.ocr.models.model import Mode, SeveralPages
from app.ocr.risk import UNCALIBRATED, RiskCurve

SPEC_FILE = "rtprune.json"
TOKEN_PX = 64
"""Side in pixels of the square that one patch token covers: patches of 16, then two stride-2 convolutions."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModeSpec(_Strict):
    """One view layout.

    Sides are in pixels and hold whole patch tokens. With tiles of ``tile_px`` it is a Gundam mode.
    """

    view_px: int = Field(ge=TOKEN_PX, le=4096, multiple_of=TOKEN_PX)
    pad: bool
    tile_px: int | None = Field(default=None, ge=TOKEN_PX, le=4096, multiple_of=TOKEN_PX)
    max_tiles: int = Field(default=9, ge=2, le=64)
    trained: bool = True

    @model_validator(mode="after")
    def _tiles_need_a_side(self) -> Self:
        if self.tile_px is None and "max_tiles" in self.model_fields_set:
            raise ValueError("max_tiles without tile_px")
        return self


class NgramSpec(_Strict):
    """The no-repeat-n-gram rule: no ``n`` tokens may occur twice among the last ``window``."""

    n: int = Field(default=30, ge=2, le=1000)
    window: int = Field(default=90, ge=2, le=8192)

    @model_validator(mode="after")
    def _window_holds_one(self) -> Self:
        if self.window < self.n:
            raise ValueError("the window must hold one n-gram")
        return self

    def rule(self) -> NgramRule:
        return NgramRule(self.n, self.window)


class SeveralPagesSpec(_Strict):
    """How several pages are read in one prompt."""

    mode: str
    prompt: str
    mark: str = Field(min_length=1)
    """Text that the model writes in front of each page."""
    ngram: NgramSpec


class RiskSpec(_Strict):
    """The two constants of a ``RiskCurve``, as fitted by ``benchmarks.confidence``."""

    half_nats: float = Field(gt=0, le=100)
    steepness: float = Field(gt=0, le=100)


class CheckpointSpec(_Strict):
    """Schema of ``rtprune.json``. docs/checkpoints.md describes it for people."""

    name: str = Field(min_length=1)
    reader: str | None = None
    """Which reader splits pages for the model; ``None``: the model sees whole pages."""
    modes: dict[str, ModeSpec] = Field(min_length=1)
    default_mode: str
    default_prompt: str
    ngram_exempt_tokens: list[str] = []
    ngram: NgramSpec = NgramSpec()
    several_pages: SeveralPagesSpec | None = None
    strict_ngram_n: int = Field(default=2, ge=2, le=200)
    min_confidence: float | None = Field(default=None, lt=0)
    risk: RiskSpec | None = None
    restore_risk: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _default_mode_exists(self) -> Self:
        if self.default_mode not in self.modes:
            raise ValueError(f"default_mode {self.default_mode!r} is not among the modes")
        if self.several_pages is not None and self.several_pages.mode not in self.modes:
            raise ValueError(f"several_pages: mode {self.several_pages.mode!r} is not among the modes")
        return self

    def risk_curve(self) -> RiskCurve:
        return UNCALIBRATED if self.risk is None else RiskCurve(**self.risk.model_dump())

    def together(self) -> SeveralPages | None:
        several = self.several_pages
        if several is None:
            return None
        return SeveralPages(several.mode, several.prompt, several.ngram.rule(), several.mark)

    def view_modes(self) -> dict[str, Mode]:
        return {name: Mode(name, **spec.model_dump()) for name, spec in self.modes.items()}


DEEPSEEK_OCR = CheckpointSpec(
    name="DeepSeek-OCR",
    modes={
        "tiny": ModeSpec(view_px=512, pad=False),
        "small": ModeSpec(view_px=640, pad=False),
        "base": ModeSpec(view_px=1024, pad=True),
        "large": ModeSpec(view_px=1280, pad=True),
        "gundam": ModeSpec(view_px=1024, pad=True, tile_px=640, max_tiles=9),
    },
    default_mode="large",
    default_prompt="\n<|grounding|>Convert the document to markdown.",
    ngram_exempt_tokens=["<td>", "</td>"],  # ids 128821 and 128822 in its vocabulary
)
DEEPSEEK_OCR_2 = CheckpointSpec(
    name="DeepSeek-OCR-2",
    modes={
        "base": ModeSpec(view_px=1024, pad=True),
        "gundam": ModeSpec(view_px=1024, pad=True, tile_px=768, max_tiles=6),
    },
    default_mode="gundam",
    default_prompt="\n<|grounding|>Convert the document to markdown.",
    ngram_exempt_tokens=["<td>", "</td>"],
    ngram=NgramSpec(n=20, window=90),
)
UNLIMITED_OCR = CheckpointSpec(
    name="Unlimited-OCR",
    modes={
        "base": ModeSpec(view_px=1024, pad=True),
        "gundam": ModeSpec(view_px=1024, pad=True, tile_px=640, max_tiles=32),
    },
    default_mode="gundam",
    default_prompt="document parsing.",
    ngram=NgramSpec(n=35, window=128),
    several_pages=SeveralPagesSpec(
        mode="base", prompt="Multi page parsing.", mark="<PAGE>", ngram=NgramSpec(n=35, window=1024)
    ),
)


def read_checkpoint_spec(folder: Path, config: OcrConfig) -> CheckpointSpec:
    """Read the folder's ``rtprune.json``, or return the spec that its architecture was published with.

    Raise ``CheckpointError`` if the file is not valid.
    """
    if not (folder / SPEC_FILE).is_file():
        if isinstance(config, DeepseekOcr2Config):
            return DEEPSEEK_OCR_2
        return UNLIMITED_OCR if SLIDING in config.text_config.layer_types else DEEPSEEK_OCR
    try:
        return CheckpointSpec.model_validate_json(read_text(folder, SPEC_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{folder}: {SPEC_FILE}: {where}: {first['msg']}") from error
