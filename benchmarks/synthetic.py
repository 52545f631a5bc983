"""Checkpoints for benchmarks: real decoder weights if there are any, and pages of random embeddings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

from app.ocr.engine.loops import NgramRule
from app.ocr.models.model import DecoderLayers, Mode, PageViews, SeveralPages
from app.ocr.risk import UNCALIBRATED, RiskCurve
from app.pocket.cpu_modules import PackedDecoder, is_worth_packing
from benchmarks.report import ROOT
from rtprune import VisualTokens

PACKAGED = ROOT / "app" / "pocket" / "weights"
START = ROOT.parent / "shared" / "pocket-start"
NO_TOKEN = -1


def pocket_network(path: Path | None) -> tuple[Any, str]:
    """Load the checkpoint at ``path``, else the packaged one, else random weights; also return its name.

    Raise ``FileNotFoundError`` when ``path`` has no weights.
    """
    for candidate in [path] if path else [PACKAGED, START]:
        if (candidate / "model.safetensors").exists():
            network = UnlimitedOcrForConditionalGeneration.from_pretrained(candidate, dtype=torch.float32)
            return network.eval(), candidate.name
    if path:
        raise FileNotFoundError(f"{path} has no model.safetensors")
    return random_pocket(), "random weights of the pocket size"


def random_pocket() -> Any:
    text = {
        "vocab_size": 256, "hidden_size": 256, "intermediate_size": 768, "moe_intermediate_size": 256,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "max_position_embeddings": 4096,
        "layer_types": ["full_attention"] * 4, "mlp_layer_types": ["dense", "dense", "sparse", "dense"],
    }  # fmt: skip
    vision = {
        "sam_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32,
                       "image_size": 64, "window_size": 4, "global_attn_indexes": [0],
                       "output_channels": 32, "downsample_channels": [32, 32]},
        "encoder_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "image_size": 64, "patch_size": 16},
    }  # fmt: skip
    torch.manual_seed(0)
    config = UnlimitedOcrConfig(text_config=text, vision_config=vision, image_token_id=3)
    return UnlimitedOcrForConditionalGeneration(config).eval()


class SyntheticOcr:
    """An ``OcrModel`` whose pages are random embeddings and whose output never ends by itself.

    So the cost of a page depends only on the lengths asked for, not on what the weights happen to read.
    """

    def __init__(self, network: Any, name: str, view_px: int = 512) -> None:
        self._network = network
        self.embeddings = network.get_input_embeddings()
        self.name = name
        self.modes: Mapping[str, Mode] = {"page": Mode("page", view_px, pad=True)}
        self.has_patch_places = True
        self.default_mode = "page"
        self.default_prompt = "Free OCR. "
        self.bos_id = 0
        self.eos_id = NO_TOKEN
        self.ngram_exempt_ids: frozenset[int] = frozenset()
        self.ngram: NgramRule = NgramRule()
        self.several_pages: SeveralPages | None = None
        self.strict_ngram_n: int = 2
        self.min_confidence: float | None = None
        self.risk_curve: RiskCurve = UNCALIBRATED
        self.restore_risk: float | None = None
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.dtype
        self.max_positions: int = network.config.text_config.max_position_embeddings
        language_model, head = network.model.language_model, network.lm_head
        is_small = is_worth_packing(language_model)
        self.decoder_layers: DecoderLayers | None = PackedDecoder(language_model, head) if is_small else None

    @property
    def network(self) -> torch.nn.Module:
        module: torch.nn.Module = self._network
        return module

    def preprocess(self, image: Image.Image, mode: str) -> PageViews:
        level = float(image.getpixel((0, 0))[0]) / 127.5 - 1  # type: ignore[index]
        side = self.modes[mode].view_px
        return PageViews(self.modes[mode], torch.full((3, side, side), level))

    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        return [self._tokens(page) for page in pages]

    def text_ids(self, text: str) -> list[int]:  # noqa: ARG002 - its pages have no text layer
        return []

    def prompt_ids(self, prompt: str) -> list[int]:
        return [4 + ord(character) % 90 for character in prompt]

    def decode_text(self, ids: Sequence[int]) -> str:
        return json.dumps(list(ids))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.embeddings(ids)
        return embedded

    def _tokens(self, page: PageViews) -> VisualTokens:
        side = page.mode.view_px // 64
        is_patch = torch.tensor(([True] * side + [False]) * side + [False])
        seed = round((float(page.view[0, 0, 0]) + 1) * 127.5)
        generator = torch.Generator().manual_seed(seed)
        embeds = torch.randn(len(is_patch), self._network.config.text_config.hidden_size, generator=generator)
        return VisualTokens(embeds.to(self.device, self.dtype), is_patch)
