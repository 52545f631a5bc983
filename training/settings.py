"""The settings file of a training run, checked on load."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSettings(_Frozen):
    seed: int
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    log_every: int = Field(ge=1)
    save_every: int = Field(ge=1)
    eval_pages: int = Field(ge=1)
    ema_decay: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    grad_clip: float = Field(gt=0)


class ModelSettings(_Frozen):
    view_px: int = Field(multiple_of=64)
    sam_width: int
    sam_layers: int
    sam_heads: int
    sam_window: int
    sam_neck: int
    sam_downsample: tuple[int, int]
    vision_width: int
    vision_layers: int
    vision_heads: int
    decoder_width: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    experts: int
    experts_per_token: int
    expert_ffn: int
    max_positions: int


class RenderSettings(_Frozen):
    fonts: tuple[str, ...] = Field(min_length=1)
    font_folder: Path
    words: Path


class Stage(_Frozen):
    """A stretch of the curriculum. ``lr`` runs from the first to the second value along a cosine."""

    name: str
    pages: int = Field(ge=1)
    lr: tuple[float, float]
    warmup: int = Field(ge=0, description="optimiser steps")
    sequence_weight: float = Field(ge=0)
    dense_weight: float = Field(ge=0)
    norm_weight: float = Field(ge=0, description="of the loss that keeps norms of text above norms of paper")
    pruned_share: float = Field(ge=0, le=1, description="share of steps whose visual tokens are pruned")
    em_px: tuple[int, int]
    max_lines: int = Field(ge=1)


class Settings(_Frozen):
    run: RunSettings
    model: ModelSettings
    render: RenderSettings
    stage: tuple[Stage, ...] = Field(min_length=1)


def load_settings(path: Path) -> Settings:
    """Raise pydantic's ``ValidationError``, naming the field that is missing, unknown or out of range."""
    with path.open("rb") as file:
        return Settings.model_validate(tomllib.load(file))
