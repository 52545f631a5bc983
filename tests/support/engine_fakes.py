"""A tiny DeepSeek-OCR with random weights, and an ``OcrModel`` around it that needs no vision tower."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

from app.document import Page, ReadOptions
from app.errors import BadOption
from app.ocr.engine.fixation import FixationPlan
from app.ocr.engine.loops import NgramRule
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import PageTask, new_task
from app.ocr.models.model import DecoderLayers, Mode, PageViews, SeveralPages
from app.ocr.risk import UNCALIBRATED, RiskCurve
from rtprune import VisualTokens

VISION: dict[str, Any] = {
    "sam_config": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "output_channels": 8,
        "mlp_dim": 8,
        "image_size": 64,
        "window_size": 4,
        "global_attn_indexes": [0],
        "downsample_channels": [8, 8],
    },
    "encoder_config": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    },
}
TEXT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 20,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "mlp_layer_types": ["dense", "sparse", "dense"],
}


def random_network(seed: int = 0, *, dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    """Odd sizes, one mixture layer, full attention. Weights large enough that greedy output varies."""
    sizes = TEXT | text
    sizes.setdefault("layer_types", ["full_attention"] * sizes["num_hidden_layers"])
    torch.manual_seed(seed)
    config = UnlimitedOcrConfig(text_config=sizes, vision_config=VISION, image_token_id=3)
    network = UnlimitedOcrForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.ndim > 1 and "vision" not in name:
                weights.normal_(0, 1.5 / weights.shape[-1] ** 0.5)
        network.model.language_model.embed_tokens.weight.normal_()
        network.lm_head.weight.normal_()
    return network.to(dtype)


def two_modes() -> Mapping[str, Mode]:
    return {mode.name: mode for mode in (Mode("tiny", 128, pad=True), Mode("small", 192, pad=True))}


@dataclass
class FakeOcr:
    """Keeps the ``OcrModel`` contract: a page's visual tokens depend on its image alone."""

    network: Any
    name: str = "fake"
    modes: Mapping[str, Mode] = field(default_factory=two_modes)
    has_patch_places: bool = True
    default_mode: str = "tiny"
    default_prompt: str = "AB"
    bos_id: int = 0
    eos_id: int = 1
    ngram_exempt_ids: frozenset[int] = frozenset()
    ngram: NgramRule = field(default_factory=NgramRule)
    several_pages: SeveralPages | None = None
    strict_ngram_n: int = 2
    min_confidence: float | None = None
    risk_curve: RiskCurve = UNCALIBRATED
    fixation: FixationPlan | None = None
    restore_risk: float | None = None
    decoder_layers: DecoderLayers | None = None

    def __post_init__(self) -> None:
        weights = self.network.lm_head.weight
        self.device: torch.device = weights.device
        self.dtype: torch.dtype = weights.dtype
        self.max_positions: int = self.network.config.text_config.max_position_embeddings

    def preprocess(self, image: Image.Image, mode: str) -> PageViews:
        side = self.modes[mode].view_px
        red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
        pixels = torch.tensor([red, green, blue], dtype=torch.float32) / 127.5 - 1
        return PageViews(self.modes[mode], pixels[:, None, None].repeat(1, side, side))

    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        return [self.encode_one(page) for page in pages]

    def encode_one(self, page: PageViews) -> VisualTokens:
        """Rows of patch tokens with row breaks, then the separator."""
        side = page.mode.view_px // 64
        is_patch = torch.tensor(([True] * side + [False]) * side + [False])
        seed = int(((page.view[:, 0, 0] + 1) * 127.5).round().long() @ torch.tensor([65536, 256, 1]))
        generator = torch.Generator().manual_seed(seed + side)
        embeds = torch.randn(len(is_patch), self.network.lm_head.in_features, generator=generator)
        return VisualTokens(embeds.to(self.dtype), is_patch)

    def prompt_ids(self, prompt: str) -> list[int]:
        if "<image>" in prompt:
            raise BadOption("a prompt cannot hold <image>")
        return [4 + ord(character) % 90 for character in prompt]

    def text_ids(self, text: str) -> list[int]:
        """The inverse of ``decode_text``."""
        return [ord(character) - 0x100 for character in text if ord(character) >= 0x100]

    def decode_text(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x100 + token) for token in ids)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.network.model.language_model.embed_tokens(ids)
        return embedded


def ids_of(text: str) -> list[int]:
    """The inverse of ``FakeOcr.decode_text``."""
    return [ord(character) - 0x100 for character in text]


def page(number: int) -> Page:
    """A page unlike every page of another number."""
    return Page(number, Image.new("RGB", (4, 4), (number % 256, number // 256 % 256, 0)))


class Inline(Executor):
    """Runs work where it is submitted, so that a schedule has one order."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - a future carries whatever its work raised
            future.set_exception(error)
        return future


def read_page(
    loop: PageLoop,
    model: FakeOcr,
    limits: EngineSettings,
    image: Page,
    options: ReadOptions,
    document_id: str = "d",
) -> PageTask:
    """Hand a page to a loop that the test turns itself."""
    task = new_task(model, limits, image, options, document_id)
    loop.enqueue(task, 0)
    return task


def permutation_network(period: int, *, then: int | None = None) -> Any:
    """A decoder whose next token depends on the last one alone: ids 10 to 10 + period - 1 in a cycle.

    Attention and feed-forward are zero, embeddings orthonormal, the head a table. Any other id leads into
    the cycle. The second choice after each token of the cycle is ``then``, if given.
    """
    size = 110 + period + (-(110 + period) % 4)  # grouped_mm wants strides of 16 bytes
    network = random_network(
        0, vocab_size=size, hidden_size=size, num_attention_heads=1, num_key_value_heads=1
    )
    cycle = range(10, 10 + period)
    after = [10 if token not in cycle else 10 + (token - 9) % period for token in range(size)]
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weights.zero_()
        network.model.language_model.embed_tokens.weight.copy_(torch.eye(size))
        network.lm_head.weight.zero_()
        network.lm_head.weight[after, range(size)] = 1.0
        if then is not None:
            network.lm_head.weight[then, list(cycle)] = 0.5
    return network


TOGETHER = SeveralPages(
    default_mode="small", default_prompt="together", ngram=NgramRule(1000, 1000), mark="<PAGE>"
)


class WrittenOcr(FakeOcr):
    """Writes the cycle of its network, a piece for each token."""

    pieces: Sequence[str] = ()

    def decode_text(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[token - 10] for token in ids)


def two_pages_written() -> WrittenOcr:
    """A model that writes of any prompt what one trained for several pages writes of two: one, two more."""
    pieces = ("<PA", "GE>one", "<PAGE>", "two", " more")
    network = permutation_network(len(pieces) + 1)
    model = WrittenOcr(network, several_pages=TOGETHER, ngram=TOGETHER.ngram, eos_id=10 + len(pieces))
    model.pieces = pieces
    return model
