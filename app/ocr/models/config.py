"""Read config.json into transformers' config classes, from two layouts and without remote code.

*Native*: ``model_type: unlimited_ocr`` or ``deepseek_ocr2`` with ``text_config``, as transformers itself
writes it. *Original*: DeepSeek-OCR's (``model_type: deepseek_vl_v2``, decoder under ``language_config``,
encoders under ``vision_config.width``); Unlimited-OCR's, which has the same layout and a sliding window; and
DeepSeek-OCR-2's, which has the same ``model_type`` but another second encoder, ``qwen2-0-5b``.

Traps: the config class refuses ``sliding_window=None``, so only ``layer_types`` says that attention is full;
DeepSeek-OCR-2's class has no such field, and gets one here, for the engine. Original configs leave out the
RoPE base (10,000) and the RMSNorm epsilon (1e-6). The encoders' sizes are mostly constants of the original
code: DeepSeek-OCR-2's config.json even gives SAM 1024 output channels, and its code and weights have 896.
Only fields of the config classes are passed on, because transformers also acts on others
(``quantization_config``, ``transformers_weights``, an attention "implementation" that names a repository).
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeAlias, TypeVar

from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from transformers import DeepseekOcr2Config, PreTrainedConfig, UnlimitedOcrConfig
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import (
    DeepseekOcr2SamVisionConfig,
    DeepseekOcr2TextConfig,
    DeepseekOcr2VisionEncoderConfig,
)
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import (
    UnlimitedOcrSamVisionConfig,
    UnlimitedOcrTextConfig,
    UnlimitedOcrVisionEncoderConfig,
)

from app.ocr.models.checkpoint import CheckpointError

FULL = "full_attention"
SLIDING = "reference_sliding_attention"
"""Attention to all image and prompt tokens and the last ``sliding_window`` generated ones (Unlimited-OCR)."""
NATIVE_TYPE = "unlimited_ocr"
NATIVE_TYPE_2 = "deepseek_ocr2"
DEEPSEEK_TYPES = frozenset({"deepseek_vl_v2", "DeepseekOCR", "DeepseekOCR2", "deepseek_ocr"})
"""Types as published, and as the released code's own ``save_pretrained`` writes them."""
ORIGINAL_TYPES = DEEPSEEK_TYPES | {"unlimited_ocr", "unlimited-ocr"}
LEGACY_ROPE = frozenset({"rope_theta", "rope_scaling"})
LEGACY_TEXT_FIELDS = LEGACY_ROPE | {"first_k_dense_replace"}
SECOND_ENCODER_2: Mapping[str, Any] = {
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "max_position_embeddings": 131_072,
    "vocab_size": 1,  # it has no token embeddings
}
"""DeepSeek-OCR-2's second encoder, constants of its code; config.json says its width alone."""

OcrConfig: TypeAlias = UnlimitedOcrConfig | DeepseekOcr2Config
_Config = TypeVar("_Config", bound=BaseModel)


class _Original(BaseModel):
    """Part of an original config.

    Unknown fields are ignored. A ``Literal`` field lists all that the native classes support.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Language(_Original):
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    max_position_embeddings: PositiveInt
    moe_intermediate_size: PositiveInt
    n_routed_experts: PositiveInt
    n_shared_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    first_k_dense_replace: int = Field(ge=0)
    use_mla: Literal[False]
    n_group: PositiveInt | None = 1
    topk_group: PositiveInt | None = 1
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"
    scoring_func: Literal["softmax"] = "softmax"
    norm_topk_prob: Literal[False] = False
    moe_layer_freq: Literal[1] = 1
    routed_scaling_factor: float = 1.0
    rope_scaling: None = None
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int = Field(default=0, ge=0)
    eos_token_id: int = Field(default=1, ge=0)
    sliding_window: PositiveInt | None = None
    sliding_window_size: PositiveInt | None = None


class _Sam(_Original):
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    global_attn_indexes: list[int]
    downsample_channels: list[PositiveInt] = Field(min_length=2, max_length=2)


class _Clip(_Original):
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt


class _Encoders(_Original):
    sam_vit_b: _Sam
    clip_l_14_224: _Clip = Field(alias="clip-l-14-224")


class _Vision(_Original):
    image_size: PositiveInt
    width: _Encoders


class _Queries(_Original):
    dim: PositiveInt


class _Encoders2(_Original):
    sam_vit_b: _Sam
    qwen2_0_5b: _Queries = Field(alias="qwen2-0-5b")


class _Vision2(_Original):
    image_size: PositiveInt
    width: _Encoders2


class _Projector(_Original):
    projector_type: Literal["linear"]
    input_dim: PositiveInt
    n_embed: PositiveInt


class _OriginalConfig(_Original):
    language_config: _Language
    vision_config: _Vision
    projector_config: _Projector
    tile_tag: Literal["2D"] = "2D"
    sliding_window: PositiveInt | None = None


class _OriginalConfig2(_Original):
    language_config: _Language
    vision_config: _Vision2
    projector_config: _Projector


def read_config(raw: Mapping[str, Any]) -> OcrConfig:
    """Convert a parsed config.json of either layout to the native config.

    Raise a ``CheckpointError`` that names the field.
    """
    if raw.get("quantization_config") is not None:
        raise CheckpointError("config.json: quantization_config: quantised checkpoints are not supported")
    kind, config_class = raw.get("model_type"), UnlimitedOcrConfig
    if kind == NATIVE_TYPE and isinstance(raw.get("text_config"), dict):
        fields_by_part = _native_fields(raw)
    elif kind == NATIVE_TYPE_2 and isinstance(raw.get("text_config"), dict):
        fields_by_part, config_class = _native_fields_2(raw), DeepseekOcr2Config
    elif kind in DEEPSEEK_TYPES and "language_config" in raw and _has_queries(raw):
        fields_by_part, config_class = _translate_2(raw), DeepseekOcr2Config
    elif kind in ORIGINAL_TYPES and "language_config" in raw:
        fields_by_part = _translate(raw, sliding=kind not in DEEPSEEK_TYPES)
    else:
        raise CheckpointError(
            f"config.json: model_type {kind!r} is neither DeepSeek-OCR's nor Unlimited-OCR's layout"
        )
    try:
        config = config_class(**fields_by_part)
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"config.json: {error}") from error
    return _checked(config)


def _native_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    vision = _part(raw, "vision_config")
    return {
        **_known(raw, UnlimitedOcrConfig, without=frozenset({"text_config", "vision_config"})),
        "text_config": _known(_part(raw, "text_config"), UnlimitedOcrTextConfig, also=LEGACY_TEXT_FIELDS),
        "vision_config": {
            "sam_config": _known(_part(vision, "sam_config"), UnlimitedOcrSamVisionConfig),
            "encoder_config": _known(_part(vision, "encoder_config"), UnlimitedOcrVisionEncoderConfig),
        },
    }


def _native_fields_2(raw: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = _part(raw, "vision_config"), _part(raw, "text_config")
    encoder = _known(_part(vision, "encoder_config"), DeepseekOcr2VisionEncoderConfig, also=LEGACY_ROPE)
    return {
        **_known(raw, DeepseekOcr2Config, without=frozenset({"text_config", "vision_config"})),
        "text_config": {
            **_known(text, DeepseekOcr2TextConfig, also=LEGACY_ROPE),
            "layer_types": _full(text),
        },
        "vision_config": {
            "sam_config": _known(_part(vision, "sam_config"), DeepseekOcr2SamVisionConfig),
            "encoder_config": encoder | {"vocab_size": SECOND_ENCODER_2["vocab_size"]},
        },
    }


def _full(text: Mapping[str, Any]) -> list[str]:
    """Return ``layer_types`` of a decoder whose config class does not have that field."""
    num_layers = text.get("num_hidden_layers")
    return [FULL] * num_layers if isinstance(num_layers, int) else []


def _has_queries(raw: Mapping[str, Any]) -> bool:
    """Tell DeepSeek-OCR-2's original layout from DeepSeek-OCR's: by the encoder, as both say one type."""
    vision = raw.get("vision_config")
    encoders = vision.get("width") if isinstance(vision, dict) else None
    return isinstance(encoders, dict) and "qwen2-0-5b" in encoders


def _part(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = raw.get(name)
    if not isinstance(part, dict):
        raise CheckpointError(f"config.json: {name} must be an object")
    return part


def _known(
    raw: Mapping[str, Any],
    config_class: type,
    *,
    also: frozenset[str] = frozenset(),
    without: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Keep the entries that are fields of this class itself, not of the base class of all configs."""
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: value for name, value in raw.items() if name in (own | also) - without}


def _validated(raw: Mapping[str, Any], kind: type[_Config]) -> _Config:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"config.json: {where}: {first['msg']} ({error.error_count()} wrong in all)"
        ) from error


def _translate(raw: Mapping[str, Any], *, sliding: bool) -> dict[str, Any]:
    original = _validated(raw, _OriginalConfig)
    sam, clip = original.vision_config.width.sam_vit_b, original.vision_config.width.clip_l_14_224
    joined = sam.downsample_channels[-1] + clip.width
    if sam.downsample_channels[-1] != clip.width:
        raise CheckpointError(
            "config.json: SAM's last downsample_channels must be the second encoder's width"
        )
    _require_projector(original.projector_config, joined, original.language_config)
    text = _text_fields(original.language_config)
    text["layer_types"] = [SLIDING if sliding else FULL] * original.language_config.num_hidden_layers
    language = original.language_config
    window = language.sliding_window or original.sliding_window or language.sliding_window_size
    return {
        "text_config": text | ({"sliding_window": window} if window else {}),
        "vision_config": {
            "sam_config": _sam_fields(sam, original.vision_config.image_size, sam.downsample_channels),
            "encoder_config": _clip_fields(clip),
        },
        "tie_word_embeddings": original.language_config.tie_word_embeddings,
    }


def _translate_2(raw: Mapping[str, Any]) -> dict[str, Any]:
    original = _validated(raw, _OriginalConfig2)
    language, vision = original.language_config, original.vision_config
    sam, dim = vision.width.sam_vit_b, vision.width.qwen2_0_5b.dim
    _require_projector(original.projector_config, dim, language)
    text = _text_fields(language)
    num_dense = min(text.pop("first_k_dense_replace"), language.num_hidden_layers)
    num_sparse = language.num_hidden_layers - num_dense
    text["mlp_layer_types"] = ["dense"] * num_dense + ["sparse"] * num_sparse
    text["layer_types"] = [FULL] * language.num_hidden_layers
    channels = [sam.downsample_channels[0], dim]
    return {
        "text_config": text,
        "vision_config": {
            "sam_config": _sam_fields(sam, vision.image_size, channels),
            "encoder_config": {**SECOND_ENCODER_2, "hidden_size": dim},
        },
        "tie_word_embeddings": language.tie_word_embeddings,
    }


def _require_projector(projector: _Projector, input_dim: int, language: _Language) -> None:
    if (projector.input_dim, projector.n_embed) != (input_dim, language.hidden_size):
        raise CheckpointError(
            f"config.json: projector_config must map {input_dim} to the decoder's hidden_size"
        )


def _text_fields(language: _Language) -> dict[str, Any]:
    checked_only = {
        "use_mla",
        "scoring_func",
        "norm_topk_prob",
        "moe_layer_freq",
        "rope_scaling",
        "rope_theta",
    }
    text = language.model_dump(exclude=checked_only | {"sliding_window", "sliding_window_size"})
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": language.rope_theta}
    return text


def _sam_fields(sam: _Sam, image_size: int, channels: list[int]) -> dict[str, Any]:
    """Add what the original code fixes: neck 256, patch 16, window 14, MLP ratio 4."""
    return {
        "hidden_size": sam.width,
        "num_hidden_layers": sam.layers,
        "num_attention_heads": sam.heads,
        "global_attn_indexes": sam.global_attn_indexes,
        "downsample_channels": channels,
        "mlp_dim": 4 * sam.width,
        "image_size": image_size,
    }


def _clip_fields(clip: _Clip) -> dict[str, Any]:
    return {
        "hidden_size": clip.width,
        "intermediate_size": 4 * clip.width,
        "num_hidden_layers": clip.layers,
        "num_attention_heads": clip.heads,
        "image_size": clip.image_size,
        "patch_size": clip.patch_size,
    }


def _checked(config: OcrConfig) -> OcrConfig:
    """Refuse what the config classes accept but the model or our decoding cannot serve."""
    text = config.text_config
    unknown = sorted(set(text.layer_types) - {FULL, SLIDING})
    if unknown:
        raise CheckpointError(f"config.json: text_config.layer_types: {', '.join(unknown)} is not supported")
    for name in ("layer_types", "mlp_layer_types"):
        if len(getattr(text, name) or ()) != text.num_hidden_layers:
            raise CheckpointError(
                f"config.json: text_config.{name} must have {text.num_hidden_layers} entries"
            )
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(text, name)
        if not isinstance(value, int) or not 0 <= value < text.vocab_size:
            raise CheckpointError(
                f"config.json: text_config.{name} must be one id of the vocabulary, not {value!r}"
            )
    if config.vision_config.sam_config.patch_size != 16:
        raise CheckpointError("config.json: sam_config.patch_size must be 16: view modes count on it")
    return config
