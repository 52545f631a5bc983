"""Time each stage of the full-size architecture, with random weights on a GPU, against hardware limits.

Run through ``python -m benchmarks.engine --full-size``. For each mode and number of pages: encode all pages,
prune them, assemble their prompts, prefill them packed, and decode ``output_tokens`` of each, all in one
batch. Before that, some of the pages go through all stages but decoding, to warm up. ``pages_per_s`` counts
all stages, images included. A stage's ``share`` is its physical limit divided by the time it took. The limit
is the larger of its floating-point operations at ``FLOPS`` and the bytes it must read at ``BYTES_PER_S``.

Pages and prompts all differ, and the tokens of a step are drawn at random before the next step. Otherwise
random weights would soon write the same few tokens on every page. These would choose the same experts, and a
step would read few of them. ``experts_read`` is the share of a layer's routed experts that the last step
chose, mean over layers; the limit counts only these.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

from app.ocr.cuda.choose import native
from app.ocr.engine.decoder import Decoder, DecoderLimits, Prompt, kv_shape
from app.ocr.engine.kv_cache import KvPlan
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.retries import AttemptPlan
from app.ocr.engine.scheduler import BatchLimit, chunks_within
from app.ocr.engine.vision import Encoded, Prepared, Vision
from app.ocr.models.checkpoint_spec import CheckpointSpec, ModeSpec
from app.ocr.models.deepseek import DeepSeekOcr, suit_cuda
from app.ocr.models.model import Mode, PageViews
from app.ocr.models.preprocess import preprocess
from benchmarks.limits import BYTES_PER_S, FLOPS, ViewFlops, Weights
from benchmarks.synthetic import SyntheticOcr
from rtprune import VisualTokens

PAPER_KEEP_RATIO = 0.8425
"""Keep ratio that the dynamic rule reaches on Large pages in the paper."""

WARM_PAGES = 32
NOISE_STEP = 997
"""Numbers between the start of one page's noise and that of the next: not a multiple of a patch."""

Result = TypeVar("Result")

TINY_TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
TINY_VISION: dict[str, Any] = {
    "sam_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_dim": 64,
        "image_size": 128,
        "window_size": 4,
        "global_attn_indexes": [1],
        "output_channels": 16,
        "downsample_channels": [16, 32],
    },
    "encoder_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
}


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table. ``keep_ratio``: ``None`` for pages that are not pruned."""

    mode: Mode
    tile_columns: int
    tile_rows: int
    keep_ratio: float | None

    @property
    def name(self) -> str:
        return self.mode.name + ("" if self.keep_ratio is None else " pruned")


def cases(*, tiny: bool) -> list[Case]:
    base_px, large_px, tile_px = (128, 192, 64) if tiny else (1024, 1280, 640)
    base = Mode("base", base_px, pad=True)
    large = Mode("large", large_px, pad=True)
    gundam = Mode("gundam", base_px, pad=True, tile_px=tile_px)
    return [
        Case(base, 0, 0, None),
        Case(large, 0, 0, None),
        Case(large, 0, 0, PAPER_KEEP_RATIO),
        Case(gundam, 2, 3, None),
    ]


def build(device: torch.device, *, tiny: bool) -> Any:
    """Build the network with random weights on ``device``; in bfloat16 on CUDA.

    The SAM part's own initialisation of 1e-10 would give no signal, so it is replaced.
    """
    text = dict(TINY_TEXT) if tiny else {}
    config = UnlimitedOcrConfig(text_config=text, vision_config=TINY_VISION if tiny else {}, image_token_id=3)
    layers = config.text_config.num_hidden_layers
    config.text_config.layer_types = ["full_attention"] * layers
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            network = UnlimitedOcrForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for weights in network.model.vision_tower.sam_encoder.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.02)
        # large beside what layers add: then the next token depends on the last one, as in a trained model,
        # and pages whose tokens differ stay different
        network.model.language_model.embed_tokens.weight.normal_(0, 1)
    if device.type == "cuda":
        suit_cuda(network)  # as load_model does
    return network


class NoTokenizer:
    """A tokenizer without tokens: pages are noise, and nobody reads the output."""

    def token_id(self, token: str) -> int | None:  # noqa: ARG002
        return None


class FullSizeOcr(SyntheticOcr):
    """An ``OcrModel`` that encodes as the service does; pages are noise."""

    def __init__(self, network: Any, name: str, view_px: int = 1024) -> None:
        super().__init__(network, name)
        recipe = CheckpointSpec(
            name=name,
            modes={"base": ModeSpec(view_px=view_px, pad=True)},
            default_mode="base",
            default_prompt="",
        )
        self._encoder = DeepSeekOcr(network, NoTokenizer(), recipe)  # type: ignore[arg-type]
        self.modes, self.default_mode = recipe.view_modes(), recipe.default_mode
        self._drawn = torch.empty(0)

    def page(self, case: Case, seed: int) -> PageViews:
        """Make a page of noise that differs for each seed.

        Pages are cut from one piece of noise at different offsets, which costs nothing.
        """
        view = self._noise(seed, 3, case.mode.view_px, case.mode.view_px)
        tiles = None
        if case.mode.tile_px:
            count = case.tile_columns * case.tile_rows
            tiles = self._noise(seed, count, 3, case.mode.tile_px, case.mode.tile_px)
        return PageViews(case.mode, view, tiles, case.tile_columns, case.tile_rows)

    def text_ids(self, text: str) -> list[int]:  # noqa: ARG002 - its pages have no text layer
        return []

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return as many ids as a real prompt has; they differ for each text."""
        rng = random.Random(prompt)  # noqa: S311 - a fixed draw
        return [rng.randrange(4, self.embeddings.num_embeddings) for _ in range(12)]

    def preprocess(self, image: Image.Image, mode: str) -> PageViews:  # noqa: ARG002 - there is one
        return preprocess(image, self.modes["base"])

    def _noise(self, seed: int, *sizes: int) -> torch.Tensor:
        count, start = math.prod(sizes), seed * NOISE_STEP
        if len(self._drawn) < start + count:
            generator = torch.Generator().manual_seed(0)
            self._drawn = torch.rand(start + count + 256 * NOISE_STEP, generator=generator) * 2 - 1
        return self._drawn[start : start + count].view(sizes)

    @torch.inference_mode()
    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        return self._encoder.encode(pages)


def patch_mask(page: PageViews) -> torch.Tensor:
    """Mark patch tokens, (L,) bool: rows of patches with a row break each; tiles, view, then separator."""
    grids = [(page.mode.view_px // 64, page.mode.view_px // 64)]
    if page.mode.tile_px and page.tile_rows:
        side = page.mode.tile_px // 64
        grids.insert(0, (page.tile_rows * side, page.tile_columns * side))
    flags = [flag for rows, columns in grids for _ in range(rows) for flag in [*[True] * columns, False]]
    return torch.tensor([*flags, False])


class Stopwatch:
    """Times work with the device idle before and after."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Callable[[], Result]) -> tuple[Result, float]:
        self._settle()
        start = time.perf_counter()
        result = work()
        self._settle()
        return result, time.perf_counter() - start

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class FullSize:
    """One model and one decoder, large enough for every case."""

    def __init__(self, device: torch.device, *, tiny: bool, most_pages: int, output_tokens: int) -> None:
        self.device = device
        self.output_tokens = output_tokens
        self.model = FullSizeOcr(build(device, tiny=tiny), "full size, random weights")
        self._view_flops = ViewFlops(build(torch.device("meta"), tiny=tiny))
        self.watch = Stopwatch(device)
        self.weights = Weights.of(self.model.network)
        self._vocab = int(self.model.embeddings.num_embeddings)
        longest = max(len(patch_mask(self.model.page(case, 0))) for case in cases(tiny=tiny))
        slot_tokens = longest + len(self.model.prompt_ids(self.model.default_prompt)) + 2 + output_tokens
        limits = DecoderLimits(
            KvPlan(most_pages, slot_tokens), LoopRule(unit=10**6), NgramRule().max_distance
        )
        self.decoder = Decoder(self.model, limits)
        self.decoder.warm_up()

    def measure(self, case: Case, num_pages: int, encode_pages: int, prefill_tokens: int) -> dict[str, Any]:
        pages = [self._prepared(case, seed) for seed in range(num_pages)]
        # warm up: kernels are loaded and chosen before the timed run
        self._until_prefill(pages[:WARM_PAGES], encode_pages, prefill_tokens)
        encoded, seconds = self._until_prefill(pages, encode_pages, prefill_tokens)
        prompts = [page.prompt for page in encoded]
        try:
            _, decode_s = self.watch(self._decode)
            experts_read = self._experts_read()
        finally:  # the next configuration needs an empty cache, even if this one failed
            self._empty()
        seconds["decode"] = decode_s
        visual = encoded[0].counts.visual
        limits = self._limits(case, prompts, visual, experts_read)
        total = sum(seconds.values())
        return {
            "mode": case.name,
            "pages": num_pages,
            "visual_tokens": visual,
            "kept_tokens": encoded[0].counts.kept,
            **{f"{stage}_ms": round(s * 1e3, 3) for stage, s in seconds.items()},
            **{f"{stage}_ms_a_page": round(s * 1e3 / num_pages, 4) for stage, s in seconds.items()},
            **{
                f"{stage}_share": round(limits[stage] / s, 4)
                for stage, s in seconds.items()
                if s and limits.get(stage)
            },
            "decode_tok_per_s": round(num_pages * (self.output_tokens - 1) / decode_s, 1),
            "pages_per_s": round(num_pages / total, 4),
            "experts_read": round(experts_read, 3),
            "memory_gib": round(self._memory_gib(), 2),
        }

    def _until_prefill(
        self, pages: Sequence[Prepared], encode_pages: int, prefill_tokens: int
    ) -> tuple[list[Encoded], dict[str, float]]:
        """Turn the pages into running rows. Return them with the seconds of each stage."""
        self._empty()
        tokens, vision_s = self.watch(lambda: self._encode(pages, encode_pages))
        encoded, prompts_s = self.watch(lambda: self._prompts(pages, tokens))
        try:
            _, prefill_s = self.watch(
                lambda: self._prefill([page.prompt for page in encoded], prefill_tokens)
            )
        except Exception:
            self._empty()
            raise
        prune_s = math.fsum(page.prune_ms for page in encoded) / 1e3
        seconds = {
            "vision": vision_s,
            "prune": prune_s,
            "assemble": prompts_s - prune_s,
            "prefill": prefill_s,
        }
        return encoded, seconds

    def _prepared(self, case: Case, seed: int) -> Prepared:
        prune = case.keep_ratio is not None
        attempt_plan = AttemptPlan(
            case.mode.name, "rtprune" if prune else "none", case.keep_ratio, NgramRule()
        )
        ids = self.model.prompt_ids(f"page {seed}")
        return Prepared(self.model.page(case, seed), 0.2, ids, attempt_plan, 0.0, 0.0)

    def _encode(self, pages: Sequence[Prepared], at_once: int) -> list[VisualTokens]:
        tokens: list[VisualTokens] = []
        for start in range(0, len(pages), at_once):
            tokens += self.model.encode([page.views for page in pages[start : start + at_once]])
        return tokens

    def _prompts(self, pages: Sequence[Prepared], tokens: Sequence[VisualTokens]) -> list[Encoded]:
        """Do all that the engine does between vision and prefill."""
        vision = Vision(Recorded(self.model, list(tokens)), BatchLimit(len(pages)))
        encoded = [page for page in vision.encode(pages) if isinstance(page, Encoded)]
        if len(encoded) != len(pages):
            raise RuntimeError(f"{len(pages) - len(encoded)} of {len(pages)} pages failed")
        return encoded

    def _prefill(self, prompts: Sequence[Prompt], budget: int) -> None:
        for chunk in chunks_within([len(prompt) for prompt in prompts], budget):
            some = [prompts[i] for i in chunk]
            self.decoder.prefill(some, [NgramRule()] * len(some)).read()

    def _decode(self) -> None:
        """Decode all tokens. Reads each step's choices one step late, as the engine does."""
        pending = None
        for _ in range(self.output_tokens - 1):
            self.decoder.rows.tokens.random_(4, self._vocab)
            choices = self.decoder.step()
            if pending is not None:
                pending.read()
            pending = choices
        if pending is not None:
            pending.read()

    def _empty(self) -> None:
        while self.decoder.num_rows:
            self.decoder.release(self.decoder.num_rows - 1)

    @torch.inference_mode()
    def _experts_read(self) -> float:
        """Return the share of a layer's routed experts that one more step would choose, mean over layers."""
        network: Any = self.model.network
        gates = [
            layer.mlp.gate for layer in network.model.language_model.layers if hasattr(layer.mlp, "gate")
        ]
        shares: list[float] = []
        hooks = [
            gate.register_forward_hook(
                lambda gate, _, output: shares.append(output[2].unique().numel() / gate.num_experts)
            )
            for gate in gates
        ]
        count, rows = self.decoder.num_rows, self.decoder.rows
        embeds = self.model.embed(rows.tokens[:count, None])
        step = self.decoder.attention().begin()
        native(network.model.language_model, embeds, rows.positions[:count, None], step)
        for hook in hooks:
            hook.remove()
        return math.fsum(shares) / len(shares)

    def _limits(
        self, case: Case, prompts: Sequence[Prompt], visual: int, experts_read: float
    ) -> dict[str, float]:
        """Return the least seconds that the hardware allows for each stage."""
        num_pages = len(prompts)
        page = self.model.page(case, 0)
        sides = [view.shape[-1] for view in (page.view, *(() if page.tiles is None else page.tiles))]
        hidden_bytes = visual * prompts[0].embeds.shape[1] * self.weights.itemsize
        kv_token = kv_shape(self.model).bytes_per_token
        kv = [num_pages * (len(prompts[0]) + i) * kv_token for i in range(1, self.output_tokens)]
        return {
            "vision": num_pages * sum(map(self._view_flops.of, sides)) / FLOPS,
            "prune": num_pages * hidden_bytes / BYTES_PER_S if case.keep_ratio is not None else 0.0,
            "prefill": self.weights.limit_s(sum(len(prompt) for prompt in prompts)),
            "decode": math.fsum(self.weights.limit_s(num_pages, kv_bytes, experts_read) for kv_bytes in kv),
        }

    def _memory_gib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return self.decoder.cache.num_bytes / 2**30


class Recorded(FullSizeOcr):
    """Returns tokens that were encoded before, so that pruning is timed alone."""

    def __init__(self, model: FullSizeOcr, tokens: list[VisualTokens]) -> None:
        super().__init__(model.network, model.name)
        self._recorded = tokens

    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        return self._recorded[: len(pages)]
