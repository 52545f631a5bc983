"""Settings of a training run, checked on load."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from training.batches import Renderers, Style
from training.layout import Family
from training.lines import LineRenderer, LineStyle
from training.render import PageRenderer, PageStyle
from training.text import TextSource


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSettings(_Frozen):
    seed: int
    megapixels: float = Field(
        gt=0, description="of views in one optimiser step of one process; a page at least"
    )
    render_processes: int = Field(ge=0, description="that render pages ahead; 0: the training process itself")
    log_every: int = Field(ge=1)
    save_every: int = Field(ge=1)
    eval_every: int = Field(ge=1)
    eval_pages: int = Field(ge=1)
    ema_decay: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    grad_clip: float = Field(gt=0)


class ModelSettings(_Frozen):
    view_px: int = Field(multiple_of=64, description="largest view")
    sam_width: int
    sam_layers: int
    sam_heads: int
    sam_window: int
    sam_global: tuple[int, ...] = Field(description="layers that attend to the whole view")
    sam_table_px: int = Field(multiple_of=64, description="view that the position table is made for")
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
    """Fonts and text of the pages. ``fonts``, ``held_out``: (regular, bold) of each family in ``folders``."""

    folders: tuple[Path, ...] = Field(min_length=1)
    fonts: tuple[tuple[str, str], ...] = Field(min_length=1)
    held_out: tuple[tuple[str, str], ...]
    words: Path
    common: float = Field(
        0.0, ge=0, le=1, description="share of paragraphs with ordinary English's common words"
    )
    ledger: float = Field(
        0.0, ge=0, le=1, description="share of paragraphs of labels and amounts, as on receipts"
    )

    technical: float = Field(
        0.0, ge=0, le=1, description="share of paragraphs with citations, identifiers and addresses"
    )

    signs: float = Field(
        0.0, ge=0, le=1, description="share of paragraphs with digits and signs that words seldom have"
    )

    def families(self, *, held_out: bool = False) -> list[Family]:
        """Return the families of training pages, or those held out for measuring."""
        pairs = self.held_out if held_out else self.fonts
        return [Family(self._found(regular), self._found(bold)) for regular, bold in pairs]

    def _found(self, name: str) -> Path:
        places = [folder / name for folder in self.folders]
        return next((place for place in places if place.is_file()), places[0])


class View(_Frozen):
    """Pages of one view size. ``em_px``: of body text in the view; ``scale``: upload pixels for each
    pixel.
    """

    px: int = Field(multiple_of=64)
    em_px: tuple[float, float]
    scale: tuple[float, float]
    weight: int = Field(1, ge=1)
    square: bool = False


class Lines(_Frozen):
    """Lines cut from pages as the service does. ``em_px``: size of body text on the page as uploaded."""

    em_px: tuple[float, float]
    weight: int = Field(1, ge=1)
    worn: float = Field(ge=0, le=1, description="share of one-bit and low-resolution copies")
    stretched: float = Field(0.0, ge=0, le=1, description="share of print narrower or wider than its font")


class Stage(_Frozen):
    """A stage of the curriculum. ``lr`` runs from the first to the second value along a cosine."""

    name: str
    steps: int = Field(ge=1)
    megapixels: float | None = Field(None, gt=0, description="a step of this stage; None: as the run says")
    lr: tuple[float, float]
    warmup: int = Field(ge=0, description="optimiser steps")
    sequence_weight: float = Field(ge=0)
    dense_weight: float = Field(ge=0)
    dense_warmup: int = Field(
        0, ge=0, description="steps in which a fresh dense head learns and the network nothing from it"
    )
    guide_weight: float = Field(ge=0, description="of the loss that shows attention where it reads")
    norm_weight: float = Field(ge=0, description="of the loss that keeps norms of text above norms of paper")
    pruned_share: float = Field(ge=0, le=1, description="share of steps whose visual tokens are pruned")
    views: tuple[View | Lines, ...] = Field(min_length=1, description="one of them a step")
    tagged_share: float = Field(
        ge=0,
        le=1,
        description="share of steps answered with Markdown and tags; 0: both prompts get plain text",
    )
    structured: float = Field(ge=0, le=1)
    degraded: float = Field(ge=0, le=1)
    max_characters: int = Field(ge=1)


class Settings(_Frozen):
    run: RunSettings
    model: ModelSettings
    render: RenderSettings
    stage: tuple[Stage, ...] = Field(min_length=1)

    def renderers(self, *, held_out: bool = False) -> Renderers:
        """Make the renderers. Raise ``FileNotFoundError`` that names the fonts which are not installed."""
        render = self.render
        text = TextSource(render.words, render.common, render.ledger, render.technical, render.signs)
        families = self.render.families(held_out=held_out)
        return Renderers(PageRenderer(text, families), LineRenderer(text, families))

    def styles(self, stage: Stage) -> list[Style]:
        """Return the styles of a stage, each as often as its weight says."""
        return [_style(view, stage) for view in stage.views for _ in range(view.weight)]


def _style(view: View | Lines, stage: Stage) -> Style:
    if isinstance(view, Lines):
        return LineStyle(view.em_px, stage.structured, stage.degraded, view.worn, view.stretched)
    return PageStyle(
        view_px=view.px,
        em_px=view.em_px,
        scale=view.scale,
        structured=stage.structured,
        degraded=stage.degraded,
        max_characters=stage.max_characters,
        square=view.square,
    )


def load_settings(path: Path, root: Path = Path("/")) -> Settings:
    """Read settings. Raise pydantic's ``ValidationError`` that names a missing, unknown or wrong field.

    ``root``: folder to look for fonts and words in, for machines that bring their own.
    """
    with path.open("rb") as file:
        settings = Settings.model_validate(tomllib.load(file))
    render = settings.render
    found = {
        "folders": tuple(root / folder.relative_to("/") for folder in render.folders),
        "words": root / render.words.relative_to("/"),
    }
    return settings.model_copy(update={"render": render.model_copy(update=found)})
