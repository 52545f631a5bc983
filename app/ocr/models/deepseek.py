"""DeepSeek-OCR and its relatives on transformers' classes: load a checkpoint, encode pages, handle text."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import nn
from transformers import (
    DeepseekOcr2Config,
    DeepseekOcr2ForConditionalGeneration,
    UnlimitedOcrForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from app.errors import BadOption
from app.ocr.cuda.choose import fuse_sam_layers
from app.ocr.engine.loops import NgramRule
from app.ocr.models.checkpoint import CheckpointError, LazyTensor, locate, open_weights, read_json, some
from app.ocr.models.checkpoint_spec import CheckpointSpec, read_checkpoint_spec
from app.ocr.models.config import SLIDING, OcrConfig, read_config
from app.ocr.models.deepseek_ocr2 import in_sequence, require_known_sides
from app.ocr.models.model import DecoderLayers, Mode, PageViews, SeveralPages
from app.ocr.models.preprocess import preprocess
from app.ocr.models.sam_attention import fold_sam_attention
from app.ocr.models.tokenizer import IMAGE_TOKEN, OcrTokenizer, read_tokenizer
from app.ocr.models.vision_graphs import VisionGraphs
from app.ocr.risk import RiskCurve
from rtprune import VisualTokens

UNUSED_KEYS = frozenset({"model.vision_model.embeddings.patch_embedding.weight"})
"""Weights that the original stores but never uses: SAM's features replace CLIP's own patch embedding."""

Network: TypeAlias = UnlimitedOcrForConditionalGeneration | DeepseekOcr2ForConditionalGeneration

EXPERT_KEY = re.compile(r"(.*\.mlp\.experts)\.\d+\.(?:gate|up|down)_proj\.weight")

SEQUENTIAL = "HF_DEACTIVATE_ASYNC_LOAD"
"""Environment variable of the library: read weights one after another, not ahead in threads."""

DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.bfloat16, torch.float32, torch.float16),
}
"""Dtypes for each device type, the default first. Cards without bfloat16 use float32.

On a CPU, bfloat16 is only used if the caller asks for it: without AVX-512 its products take 50 times as long.
"""

EXPERTS = "grouped_mm"
"""Implementation of the experts on every device. On CPU it agrees with the eager loop to 3e-7 (float32) and
was never slower: 1 to 421 tokens, 4 and 64 experts, float32 and bfloat16. batched_mm copies expert weights
for each token: up to 60 times slower on CPU, and far too slow on CUDA, where generate() would pick it for
decoding.
"""

MAX_PIXELS_PER_FORWARD = {"cpu": 2 * 1024 * 1024, "cuda": 32 * 1024 * 1024}
"""Limit of peak memory: on CPU the native SAM attention holds a bias of 0.8 GB for each full-size 1024 px
view.
"""


class DeepSeekOcr:
    """A loaded checkpoint: the ``OcrModel`` of app/ocr/models/model.py, with the facts that an engine needs.

    ``layer_types``: ``full_attention`` or ``reference_sliding_attention`` for each decoder layer, as the
    checkpoint says.

    ``sliding_window``: number of generated tokens that a sliding layer sees, besides all of the page and
    prompt; ``None`` when no layer slides. The engine takes either kind, but not both in one checkpoint.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: OcrTokenizer,
        spec: CheckpointSpec,
        *,
        max_pixels_per_forward: int | None = None,
    ) -> None:
        text = network.config.text_config
        self._network = network
        self.has_patch_places: bool = not isinstance(network.config, DeepseekOcr2Config)
        self.tokenizer = tokenizer
        self.name: str = spec.name
        self.modes: Mapping[str, Mode] = spec.view_modes()
        self.default_mode: str = spec.default_mode
        self.default_prompt: str = spec.default_prompt
        self.bos_id: int = text.bos_token_id
        self.eos_id: int = text.eos_token_id
        self.ngram_exempt_ids: frozenset[int] = _exempt_ids(spec, tokenizer)
        self.ngram: NgramRule = spec.ngram.rule()
        self.several_pages: SeveralPages | None = spec.together()
        self.strict_ngram_n: int = spec.strict_ngram_n
        self.min_confidence: float | None = spec.min_confidence
        self.risk_curve: RiskCurve = spec.risk_curve()
        self.restore_risk: float | None = spec.restore_risk
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.dtype
        self.max_positions: int = text.max_position_embeddings
        self.layer_types: tuple[str, ...] = tuple(text.layer_types)
        self.sliding_window: int | None = text.sliding_window if SLIDING in text.layer_types else None
        self.max_pixels_per_forward: int = max_pixels_per_forward or MAX_PIXELS_PER_FORWARD[self.device.type]
        self.decoder_layers: DecoderLayers | None = None
        self._embeddings = network.get_input_embeddings()  # kept: the library searches for it at every call
        self._vision_tower = network.model.vision_tower
        self._graphs = VisionGraphs(self._project, self.device) if self.device.type == "cuda" else None

    @property
    def network(self) -> nn.Module:
        """transformers' ``UnlimitedOcrForConditionalGeneration`` or ``DeepseekOcr2ForConditionalGeneration``
        in eval mode.

        On CUDA its SAM layers are replaced or hold ``FoldedSamAttention`` around their own attention modules.
        """
        module: nn.Module = self._network
        return module

    def preprocess(self, image: Image.Image, mode: str) -> PageViews:
        """Turn an image into views, on the CPU.

        Thread-safe. Raise ``BadOption`` for a mode this checkpoint lacks.
        """
        if mode not in self.modes:
            raise BadOption(f"mode: {mode!r} is not one of {', '.join(self.modes)}")
        return preprocess(image, self.modes[mode])

    def compute_with(self, vision_tower: nn.Module, decoder_layers: DecoderLayers | None) -> None:
        """Use other modules that compute the same as the network's own. Call this before any page."""
        self._vision_tower = vision_tower
        self.decoder_layers = decoder_layers

    @torch.no_grad()
    def encode(self, pages: Sequence[PageViews]) -> list[VisualTokens]:
        """Return each page's visual tokens in decoder order: tiles, global view, separator.

        DeepSeek-OCR's tiles are one grid, and each row of a grid ends with a row break. DeepSeek-OCR-2's
        tiles follow each other, and it has no row breaks. Views of one side run as one batch, whichever pages
        they belong to, in chunks of ``max_pixels_per_forward``.
        """
        features = self._features([view for page in pages for view in _views(page)])
        tokens, start = [], 0
        for page in pages:
            end = start + len(_views(page))
            tokens.append(self._assemble(page, features[start:end]))
            start = end
        return tokens

    def prompt_ids(self, prompt: str) -> list[int]:
        """Convert a prompt as people write it to ids without bos; special tokens are recognised.

        Raise ``BadOption`` if that is impossible.
        """
        return self.tokenizer.prompt_ids(as_trained(prompt, self.default_prompt))

    def text_ids(self, text: str) -> list[int]:
        """Convert text that may be on a page to ids. Words that the vocabulary lacks are left out."""
        return self.tokenizer.text_ids(text)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Convert ids to raw model text. bos, eos and pad give nothing; invalid bytes give U+FFFD."""
        return self.tokenizer.decode(ids)

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up token embeddings. (...,) int64 -> (..., D)."""
        embedded: torch.Tensor = self._embeddings(ids)
        return embedded

    def _features(self, views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encode (3, S, S) views of any sides into (rows, columns, D) projected patch tokens each, in
        order.
        """
        by_side: dict[int, list[int]] = defaultdict(list)
        for i, view in enumerate(views):
            by_side[view.shape[-1]].append(i)
        features: dict[int, torch.Tensor] = {}
        for side, members in by_side.items():
            most = max(1, self.max_pixels_per_forward // (side * side))
            if self._graphs is not None:
                most = min(most, self._graphs.most(side))
            for start in range(0, len(members), most):
                chunk = members[start : start + most]
                features.update(zip(chunk, self._forward([views[i] for i in chunk]), strict=True))
        return [features[i] for i in range(len(views))]

    def _forward(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Run the library's vision tower and projector. B views (3, S, S) -> (B, rows, columns, D)."""
        pixels = self._on_host(views)
        flat = self._project(pixels) if self._graphs is None else self._graphs(pixels)
        side = round(flat.shape[1] ** 0.5)
        grid: torch.Tensor = flat.view(len(flat), side, side, -1)
        return grid

    def _project(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the vision tower and the projector on a batch. (B, 3, S, S) -> (B, rows * columns, D)."""
        features = self._vision_tower(pixels.to(self.device)).last_hidden_state
        projected: torch.Tensor = self._network.model.multi_modal_projector(features)
        return projected

    def _on_host(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack views into one host tensor, (B, 3, S, S).

        They are cast before the copy to the device, which bfloat16 halves. For CUDA the memory is pinned: a
        copy from ordinary memory is a third as fast and waits for everything before it.
        """
        is_pinned = self.device.type == "cuda"
        pixels = torch.empty((len(views), *views[0].shape), dtype=self.dtype, pin_memory=is_pinned)
        for place, view in zip(pixels, views, strict=True):
            place.copy_(view)
        return pixels

    def _assemble(self, page: PageViews, features: Sequence[torch.Tensor]) -> VisualTokens:
        """Build a page's visual sequence from its views, (rows, columns, D) each, tiles first and
        row-major.
        """
        model = self._network.model
        if not self.has_patch_places:
            return in_sequence(features, model.view_separator)
        *tiles, view = features
        grids = [view]
        if tiles:
            tile_rows = [
                tiles[r * page.tile_columns : (r + 1) * page.tile_columns] for r in range(page.tile_rows)
            ]
            grids.insert(0, torch.cat([torch.cat(row, dim=1) for row in tile_rows], dim=0))
        embeds = [_with_row_breaks(grid, model.image_newline) for grid in grids]
        is_patch = [_patch_mask(grid) for grid in grids]
        separator = model.view_separator[None]  # (1, D)
        return VisualTokens(
            embeds=torch.cat([*embeds, separator]), is_patch=torch.cat([*is_patch, is_patch[-1].new_zeros(1)])
        )


def as_trained(prompt: str, default_prompt: str) -> str:
    """Put a prompt into the form that the checkpoint was trained on.

    Published prompts begin with ``<image>``, whose place the page takes here, and a newline. White space at
    the end is stripped, as the released code does. Checkpoints whose own prompt begins without a newline get
    none.
    """
    text = prompt.strip().removeprefix(IMAGE_TOKEN).strip()
    return f"\n{text}" if default_prompt.startswith("\n") else text


def _views(page: PageViews) -> list[torch.Tensor]:
    """Return a page's views in decoder order: tiles row-major, then the global view.

    Raise ``ValueError`` if the tiles do not fill their grid.
    """
    tiles = [] if page.tiles is None else list(page.tiles)
    if len(tiles) != page.tile_columns * page.tile_rows:
        raise ValueError(f"{len(tiles)} tiles do not fill a grid of {page.tile_columns} x {page.tile_rows}")
    return [*tiles, page.view]


def _with_row_breaks(grid: torch.Tensor, row_break: torch.Tensor) -> torch.Tensor:
    """Append a row break to each row. (rows, columns, D) -> (rows * (columns + 1), D)."""
    rows, _, dim = grid.shape
    return torch.cat([grid, row_break.expand(rows, 1, dim)], dim=1).flatten(0, 1)


def _patch_mask(grid: torch.Tensor) -> torch.Tensor:
    """Mark patch tokens: (rows, columns, D) -> (rows * (columns + 1),) bool, false at the row breaks."""
    rows, columns, _ = grid.shape
    mask = torch.ones(rows, columns + 1, dtype=torch.bool, device=grid.device)
    mask[:, -1] = False
    return mask.flatten()


def _exempt_ids(spec: CheckpointSpec, tokenizer: OcrTokenizer) -> frozenset[int]:
    ids = {token: tokenizer.token_id(token) for token in spec.ngram_exempt_tokens}
    unknown = [token for token, token_id in ids.items() if token_id is None]
    if unknown:
        raise CheckpointError(f"ngram_exempt_tokens: the vocabulary has no {', '.join(unknown)}")
    return frozenset(token_id for token_id in ids.values() if token_id is not None)


def load_model(
    path_or_id: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    fold_sam: bool | None = None,
    max_pixels_per_forward: int | None = None,
) -> DeepSeekOcr:
    """Load a folder or a hub id into a model that is ready to serve.

    Raise ``CheckpointError`` for any defect. ``dtype``: one of ``DTYPES``, by default float32 on CPU,
    bfloat16 on CUDA. ``fold_sam`` chooses SAM's attention. By default it is folded on CUDA, where it then
    needs no bias in memory and can use flash kernels, and native on CPU, where that is faster (one thread,
    1024 px, one layer: 1.40 s against 1.73 s in float32, 1.03 s against 1.52 s in bfloat16).
    """
    device = torch.device(device)
    dtype = supported_dtype(device, dtype)
    folder = locate(path_or_id)
    config = read_config(read_json(folder, "config.json"))
    spec = read_checkpoint_spec(folder, config)
    if isinstance(config, DeepseekOcr2Config):
        require_known_sides(spec.view_modes().values())
    tokenizer = _matching_tokenizer(folder, config, spec)
    with open_weights(folder) as tensors:
        network = build_network(config, tensors, dtype)
    network.requires_grad_(False).to(device)
    if fold_sam:
        fold_sam_attention(network)
    elif fold_sam is None and device.type == "cuda":
        suit_cuda(network)
    return DeepSeekOcr(network, tokenizer, spec, max_pixels_per_forward=max_pixels_per_forward)


def suit_cuda(network: Any) -> None:
    """Speed up the vision tower on CUDA without changing its result.

    Its SAM layers are replaced, and its convolutions laid out channels-last, so that matrix units take them.
    In the default layout one convolution takes as long as four layers.
    """
    if not fuse_sam_layers(network):
        fold_sam_attention(network)
    for module in network.model.vision_tower.sam_encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.to(memory_format=torch.channels_last)


def supported_dtype(device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    choices = DTYPES.get(device.type)
    if choices is None:
        raise ValueError(f"device must be cpu or cuda, got {device}")
    if dtype is not None and dtype not in choices:
        raise ValueError(f"dtype on {device.type} must be {' or '.join(map(str, choices))}, got {dtype}")
    return default_dtype(device) if dtype is None else dtype


def default_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that a device computes in unless the caller says otherwise."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return DTYPES[device.type][0]


def _matching_tokenizer(folder: Path, config: OcrConfig, spec: CheckpointSpec) -> OcrTokenizer:
    text = config.text_config
    tokenizer = read_tokenizer(
        folder,
        bos_id=text.bos_token_id,
        eos_id=text.eos_token_id,
        pad_id=text.pad_token_id,
        image_id=config.image_token_id,
    )
    if tokenizer.highest_id >= text.vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer.json has id {tokenizer.highest_id}, the model {text.vocab_size} embeddings"
        )
    try:
        tokenizer.prompt_ids(spec.default_prompt)
    except BadOption as error:
        raise CheckpointError(f"{folder}: the default prompt {spec.default_prompt!r}: {error}") from error
    return tokenizer


def network_class(config: OcrConfig) -> Any:
    """Return transformers' class of networks, one of ``Network``, for a config."""
    if isinstance(config, DeepseekOcr2Config):
        return DeepseekOcr2ForConditionalGeneration
    return UnlimitedOcrForConditionalGeneration


def build_network(config: OcrConfig, tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> Network:
    """Build the network on the CPU, in eval mode, from tensors under original or native keys.

    The library renames original keys and fuses experts. It also fills missing weights with fresh random
    values and only logs that. So its report is read and the values are counted before the network is
    returned. Raise ``CheckpointError`` if anything does not fit.
    """
    used = {key: tensor for key, tensor in tensors.items() if key not in UNUSED_KEYS}
    _require_whole_experts(config, used)
    try:
        with _without_progress_bars(), _one_tensor_after_another():
            # From a state dict, not from the folder: the library would also follow adapters and other files
            # there.
            network, report = network_class(config).from_pretrained(
                None,
                config=config,
                state_dict=used,
                dtype=dtype,
                attn_implementation="sdpa",
                experts_implementation=EXPERTS,
                ignore_mismatched_sizes=True,  # reported below with our own words
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"the weights do not fit the configuration: {error}") from error
    _require_complete(network, used, report)
    return network


def _require_whole_experts(config: OcrConfig, tensors: Mapping[str, LazyTensor]) -> None:
    """Check experts stored one matrix at a time.

    The library stacks them, and its error would name none of them.
    """
    text = config.text_config
    wide = (text.moe_intermediate_size, text.hidden_size)
    shape_of = {"gate_proj": wide, "up_proj": wide, "down_proj": wide[::-1]}
    found = {key: match[1] for key in tensors if (match := EXPERT_KEY.fullmatch(key))}
    wanted = {
        f"{layer}.{expert}.{matrix}.weight": shape
        for layer in set(found.values())
        for expert in range(text.n_routed_experts)
        for matrix, shape in shape_of.items()
    }
    shapes = {key: tuple(tensors[key].get_shape()) for key in found}
    _refuse("missing", wanted.keys() - shapes.keys())
    _refuse("unexpected", shapes.keys() - wanted.keys())
    _refuse(
        "of another shape",
        (_resized(key, shapes[key], shape) for key, shape in wanted.items() if shapes[key] != shape),
    )


def _refuse(what: str, keys: Iterable[str]) -> None:
    if keys := sorted(keys):
        raise CheckpointError(f"weights {what}: {some(keys)}")


def _resized(key: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{key} {tuple(found)} instead of {tuple(wanted)}"


def _require_complete(network: nn.Module, used: Mapping[str, LazyTensor], report: Mapping[str, Any]) -> None:
    """Check that every parameter comes from the checkpoint and every tensor of it went into a parameter."""
    _refuse("missing", report["missing_keys"])
    _refuse("of another shape", (_resized(*mismatch) for mismatch in report["mismatched_keys"]))
    _refuse("unexpected", report["unexpected_keys"])
    _refuse("not convertible", map(str, report["error_msgs"]))
    # The library drops some unexpected keys from its report by pattern (lm_head, patch_embedding): count
    # values too.
    stored = sum(torch.Size(tensor.get_shape()).numel() for tensor in used.values())
    held = sum(parameter.numel() for parameter in network.parameters())
    if stored != held:
        raise CheckpointError(f"the weights hold {stored:,} values, the model {held:,}")


@contextmanager
def _one_tensor_after_another() -> Iterator[None]:
    """Make the library read weights one after the other.

    Its threads read far ahead of the joining: the peak is then 1.9 times the weights instead of 1.13 (float32
    from bfloat16), and glibc keeps most of that.
    """
    before = os.environ.get(SEQUENTIAL)
    os.environ[SEQUENTIAL] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SEQUENTIAL]
        else:
            os.environ[SEQUENTIAL] = before


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
