"""Loading: a folder that is broken is refused by the name of what is wrong in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ocr_checkpoints import original_tensors, random_small_network, write_checkpoint
from safetensors.torch import load_file, save_file

from app.ocr.models.checkpoint import CheckpointError
from app.ocr.models.deepseek import load_model


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return original_tensors(random_small_network(seed=1))


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", tensors)


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change entries of a JSON file, ``a__b`` for nested ones; ``...`` removes one."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            at = content
            for parent in parents:
                at = at[parent]
            at.pop(last) if value is ... else at.__setitem__(last, value)
        (folder / name).write_text(json.dumps(content))

    return apply


def retensor(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (remove("config.json"), "config.json is missing"),
    "config is no JSON": (overwrite("config.json", b"{"), "config.json is not JSON"),
    "config is deeply nested": (overwrite("config.json", b"[" * 200_000), "config.json is not JSON"),
    "config is a list": (overwrite("config.json", b"[]"), "must hold a JSON object"),
    "config is no UTF-8": (overwrite("config.json", b"\xff\xfe{}"), "config.json cannot be read"),
    "another architecture": (edit("config.json", model_type="llama"), "model_type 'llama'"),
    "DeepSeek-VL2": (
        edit("config.json", vision_config__width={"siglip": {}}),
        "vision_config.width.sam_vit_b",
    ),
    "latent attention": (edit("config.json", language_config__use_mla=True), "language_config.use_mla"),
    "scaled RoPE": (edit("config.json", language_config__rope_scaling={"type": "yarn"}), "rope_scaling"),
    "other routing": (edit("config.json", language_config__topk_method="noaux_tc"), "topk_method"),
    "no layer count": (edit("config.json", language_config__num_hidden_layers=...), "num_hidden_layers"),
    "heads that do not divide": (edit("config.json", language_config__num_attention_heads=3), "heads"),
    "eos outside": (edit("config.json", language_config__eos_token_id=10_000), "eos_token_id"),
    "projector of another width": (edit("config.json", projector_config__input_dim=41), "projector_config"),
    "quantised": (edit("config.json", quantization_config={"quant_method": "awq"}), "quantization_config"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json is missing"),
    "broken tokenizer": (overwrite("tokenizer.json", b"{}"), "tokenizer.json is not a tokenizer"),
    "tokenizer that joins words": (
        edit("tokenizer.json", decoder={"type": "WordPiece", "prefix": "#", "cleanup": True}),
        "decoder WordPiece",
    ),
    "tokenizer too large": (edit("config.json", language_config__vocab_size=300), "300 embeddings"),
    "no weights": (remove("model.safetensors"), "neither model.safetensors nor"),
    "pickle only": (only_a_pickle, "pytorch_model.bin is a pickle"),
    "weights cut short": (cut_short, "model.safetensors is corrupt or cut short"),
    "weights are noise": (overwrite("model.safetensors", b"noise" * 99), "model.safetensors is corrupt"),
    "weights are empty": (overwrite("model.safetensors", b""), "model.safetensors is corrupt"),
    "missing key": (
        retensor(lambda t: t.pop("model.norm.weight")),
        "missing: model.language_model.norm.weight",
    ),
    "missing head": (retensor(lambda t: t.pop("lm_head.weight")), "missing: lm_head.weight"),
    "missing separator": (retensor(lambda t: t.pop("model.view_seperator")), "missing: model.view_separator"),
    "missing expert matrix": (retensor(lambda t: t.pop(GATE)), f"missing: {GATE}"),
    "unexpected key": (
        retensor(lambda t: t.update({"model.extra": torch.ones(2)})),
        "unexpected: model.extra",
    ),
    "unexpected key the library hides": (
        retensor(lambda t: t.update({"lm_head.bias": torch.ones(2)})),
        "lm_head.bias|values",
    ),
    "unexpected patch_embedding": (
        retensor(lambda t: t.update({"model.vision_model.patch_embedding": torch.ones(2)})),
        "patch_embedding|values",
    ),
    "another shape": (
        retensor(lambda t: t.update({"model.norm.weight": torch.ones(33)})),
        r"norm.weight \(33,\) instead of \(32,\)",
    ),
    "expert of another shape": (
        retensor(lambda t: t.update({GATE: torch.ones(25, 32)})),
        r"gate_proj.weight \(25, 32\) instead of \(24, 32\)",
    ),
    "one expert too many": (
        retensor(lambda t: t.update({GATE.replace(".2.", ".12."): torch.ones(24, 32)})),
        "experts",
    ),
    "integer weights": (
        retensor(lambda t: t.update({GATE: torch.ones(24, 32, dtype=torch.int8)})),
        "quantised weights",
    ),
    "recipe is no JSON": (overwrite("rtprune.json", b"{"), "rtprune.json"),
    "recipe with an unknown field": (edit("rtprune.json", temperature=1), "temperature"),
    "recipe with a misspelt mode field": (edit("rtprune.json", modes__plain__size=1), "modes.plain.size"),
    "recipe with an odd view": (edit("rtprune.json", modes__plain__view_px=100), "modes.plain.view_px"),
    "recipe whose default is no mode": (edit("rtprune.json", default_mode="huge"), "huge"),
    "recipe with max_tiles alone": (
        edit("rtprune.json", modes__plain__max_tiles=4),
        "max_tiles without tile_px",
    ),
    "recipe with an unknown token": (edit("rtprune.json", ngram_exempt_tokens=["<tr>"]), "<tr>"),
    "recipe with an image in the prompt": (edit("rtprune.json", default_prompt="<image>\nread"), "<image>"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_by_name(folder: Path, case: str) -> None:
    load_model(folder)
    break_it, named = BROKEN[case]
    break_it(folder)
    with pytest.raises(CheckpointError, match=named):
        load_model(folder)


INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def move_in_index(name: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["model.norm.weight"] = name
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def list_more(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.more"] = SHARD
    (folder / INDEX).write_text(json.dumps(index))


def duplicate_key(folder: Path) -> None:
    shard = load_file(folder / SHARD)
    first = load_file(folder / "model-00001-of-00003.safetensors")
    key = next(iter(first))
    save_file(shard | {key: first[key]}, folder / SHARD)


BROKEN_SHARDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (remove(SHARD), f"{SHARD} is missing"),
    "corrupt shard": (overwrite(SHARD, b"x" * 100), f"{SHARD} is corrupt"),
    "no weight map": (overwrite(INDEX, b"{}"), "has no weight_map"),
    "index to a parent folder": (move_in_index("../model.safetensors"), "no file of this folder"),
    "index to an absolute path": (move_in_index("/etc/passwd.safetensors"), "no file of this folder"),
    "index to a subfolder": (move_in_index("a/b.safetensors"), "no file of this folder"),
    "index to a pickle": (move_in_index("weights.bin"), "no file of this folder"),
    "index to a number": (move_in_index(3), "no file of this folder"),
    "index to the wrong shard": (move_in_index("model-00001-of-00003.safetensors"), "model.norm.weight"),
    "index lists more": (list_more, "model.more"),
    "key in two shards": (duplicate_key, "model-0000[12]-of-00003.safetensors"),
}


@pytest.mark.parametrize("case", BROKEN_SHARDS)
def test_a_broken_sharded_folder_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], case: str
) -> None:
    folder = write_checkpoint(tmp_path, tensors, num_shards=3)
    break_it, named = BROKEN_SHARDS[case]
    break_it(folder)
    with pytest.raises(CheckpointError, match=named):
        load_model(folder)
