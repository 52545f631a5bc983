"""Small random checkpoints on disk, in the original key names and config layout or in the native one."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from app.ocr.models.config import OcrConfig, read_config
from app.ocr.models.random_init import random_network

SPECIAL_TOKENS = [
    "<bos>",
    "<eos>",
    "<pad>",
    "<image>",
    "<|grounding|>",
    "<|ref|>",
    "<td>",
    "</td>",
    "<\uff5cfim\u2581hole\uff5c>",
]
IMAGE_ID = 3
VOCAB_SIZE = 400

RECIPE: dict[str, Any] = {
    "name": "small",
    "modes": {
        "plain": {"view_px": 192, "pad": True},
        "flat": {"view_px": 128, "pad": False},
        "tiled": {"view_px": 192, "pad": True, "tile_px": 128, "max_tiles": 6},
    },
    "default_mode": "plain",
    "default_prompt": "\n<|grounding|>read.",
    "ngram_exempt_tokens": ["<td>", "</td>"],
}


def shared_folder() -> Path:
    """Real-world material that is not part of the repository; it may be absent."""
    return Path(os.environ.get("RTPRUNE_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def original_config() -> dict[str, Any]:
    """DeepSeek-OCR's layout at a size that runs in milliseconds."""
    return {
        "model_type": "deepseek_vl_v2",
        "auto_map": {"AutoModel": "modeling_evil.Evil"},
        "tile_tag": "2D",
        "language_config": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "moe_intermediate_size": 24,
            "n_routed_experts": 12,  # beyond 9: experts must not be stacked in the order of their names
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "use_mla": False,
            "kv_lora_rank": None,
            "v_head_dim": 0,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "projector_config": {"input_dim": 40, "n_embed": 32, "projector_type": "linear"},
        "vision_config": {
            "image_size": 192,
            "mlp_ratio": 3.7362,
            "width": {
                "clip-l-14-224": {"heads": 2, "image_size": 224, "layers": 2, "patch_size": 14, "width": 20},
                "sam_vit_b": {
                    "downsample_channels": [24, 20],
                    "global_attn_indexes": [1],
                    "heads": 2,
                    "layers": 2,
                    "width": 16,
                },
            },
        },
    }


def original_config_2() -> dict[str, Any]:
    """DeepSeek-OCR-2's layout. The sizes of its second encoder but the width are constants: 24 layers."""
    config = original_config()
    width = {
        "qwen2-0-5b": {"dim": 28},  # 14 heads of 2
        "sam_vit_b": {
            "downsample_channels": [24, 1024],
            "global_attn_indexes": [1],
            "heads": 1,
            "layers": 2,
            "width": 8,
        },
    }
    config["language_config"] |= {"max_position_embeddings": 2048}
    return config | {
        "projector_config": {"input_dim": 28, "n_embed": 32, "projector_type": "linear"},
        "vision_config": {"image_size": 1024, "model_name": "deepencoderv2", "width": width},
    }


def random_small_network(seed: int = 0, *, config: OcrConfig | None = None) -> Any:
    return random_network(config or read_config(original_config()), seed)


def original_tensors(network: Any) -> dict[str, torch.Tensor]:
    """A native network's weights under the original names: per-expert matrices, and for DeepSeek-OCR joint
    qkv in CLIP and the CLIP patch embedding that nothing computes with."""
    native = dict(network.state_dict())
    tensors: dict[str, torch.Tensor] = {}
    if any("vision_encoder.encoder." in key for key in native):
        tensors["model.vision_model.embeddings.patch_embedding.weight"] = torch.randn(20, 3, 14, 14)
    for key in list(native):
        if key.endswith("experts.gate_up_proj"):
            for expert, gate_up in enumerate(native.pop(key)):
                at = _renamed(key.removesuffix("gate_up_proj")) + str(expert)
                tensors[f"{at}.gate_proj.weight"], tensors[f"{at}.up_proj.weight"] = gate_up.chunk(2)
        elif key.endswith("experts.down_proj"):
            for expert, down in enumerate(native.pop(key)):
                tensors[f"{_renamed(key.removesuffix('down_proj'))}{expert}.down_proj.weight"] = down
        elif "vision_encoder.encoder" in key and ".q_proj." in key:
            parts = [native.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            tensors[_renamed(key).replace(".q_proj.", ".qkv_proj.")] = torch.cat(parts)
    tensors |= {_renamed(key): tensor for key, tensor in native.items()}
    return {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}


RENAMES = [
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.", "model.projector.layers."),
    (r"^model\.view_separator$", "model.view_seperator"),
    (r"^model\.vision_tower\.vision_encoder\.(layers|norm)\.", r"model.qwen2_model.model.model.\1."),
    (r"^model\.vision_tower\.query_(\d+)_resolution\.", r"model.qwen2_model.query_\1."),
    (r"^model\.vision_tower\.vision_encoder\.encoder\.", "model.vision_model.transformer."),
    (r"^model\.vision_tower\.vision_encoder\.", "model.vision_model."),
    (r"^model\.vision_tower\.sam_encoder\.layers\.(\d+)\.layer_norm", r"model.sam_model.blocks.\1.norm"),
    (r"^model\.vision_tower\.sam_encoder\.layers\.", "model.sam_model.blocks."),
    (r"^model\.vision_tower\.sam_encoder\.patch_embed\.projection\.", "model.sam_model.patch_embed.proj."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv1\.", "model.sam_model.neck.0."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm1\.", "model.sam_model.neck.1."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv2\.", "model.sam_model.neck.2."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm2\.", "model.sam_model.neck.3."),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv1\.", "model.sam_model.net_2."),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv2\.", "model.sam_model.net_3."),
    (r"^model\.vision_tower\.sam_encoder\.", "model.sam_model."),
]


def _renamed(key: str) -> str:
    for pattern, replacement in RENAMES:
        renamed, matched = re.subn(pattern, replacement, key)
        if matched:
            return renamed
    return key


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE like DeepSeek's, over all 256 bytes, with a few merges that end inside UTF-8
    sequences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the table の表 世界 🙂🙃 naïve café | 12.5 |"] * 4, trainer)
    return tokenizer


def character_tokenizer(
    characters: str = "abcdefghijklmnopqrstuvwxyz .é世\n", *, fuse: bool = True
) -> Tokenizer:
    """One id for each character, a closed vocabulary, like the pocket checkpoint's."""
    vocabulary = SPECIAL_TOKENS + sorted(set(characters))
    # No unknown token: a WordLevel model then fails on what it lacks, where it could drop it.
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="\0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    if fuse:
        tokenizer.decoder = decoders.Fuse()
    return tokenizer


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = RECIPE,
    num_shards: int = 1,
) -> Path:
    """A complete folder; with several shards, keys are dealt out in turn and an index says where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or original_config()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    if recipe is not None:
        (folder / "rtprune.json").write_text(json.dumps(recipe))
    if num_shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[shard::num_shards]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
