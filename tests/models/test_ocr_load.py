"""Loading: both layouts give the network they were written from, and nothing else ever loads."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ocr_checkpoints import (
    IMAGE_ID,
    RECIPE,
    original_config,
    original_tensors,
    random_small_network,
    shared_folder,
    write_checkpoint,
)
from safetensors.torch import load_file
from transformers import UnlimitedOcrForConditionalGeneration
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from app.errors import NotReady
from app.ocr.engine.loops import NgramRule
from app.ocr.models import deepseek
from app.ocr.models.checkpoint import CheckpointError, locate
from app.ocr.models.checkpoint_spec import (
    DEEPSEEK_OCR,
    DEEPSEEK_OCR_2,
    UNLIMITED_OCR,
    CheckpointSpec,
    ModeSpec,
)
from app.ocr.models.config import read_config
from app.ocr.models.deepseek import UNUSED_KEYS, load_model
from app.ocr.models.model import OcrModel, SeveralPages
from app.ocr.sizing import require_memory

DEEPSEEK = shared_folder() / "deepseek-ocr"
POCKET_START = shared_folder() / "pocket-start"
needs_deepseek = pytest.mark.skipif(
    not DEEPSEEK.is_dir(), reason="the real checkpoint's facts are not on this machine"
)
needs_pocket_start = pytest.mark.skipif(
    not POCKET_START.is_dir(), reason="the early pocket weights are not here"
)


@pytest.fixture(scope="module")
def network() -> Any:
    return random_small_network(seed=1)


@pytest.fixture(scope="module")
def tensors(network: Any) -> dict[str, torch.Tensor]:
    return original_tensors(network)


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", tensors)


def logits(network: Any) -> torch.Tensor:
    """Of a page with tiles and a prompt, so that every part of the network has its say."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.tensor([[0] + [IMAGE_ID] * (2 * 5 + 3 * 4 + 1) + list(range(20, 40))])
    with torch.no_grad():
        output: torch.Tensor = network(
            input_ids=ids,
            pixel_values=torch.rand(1, 3, 192, 192, generator=generator) * 2 - 1,
            pixel_values_local=torch.rand(2, 3, 128, 128, generator=generator) * 2 - 1,
            num_local_patches=[2],
            patches_grid=[[2, 1]],
        ).logits
    return output


@pytest.mark.parametrize("num_shards", [1, 3])
def test_original_layout_gives_the_logits_of_the_weights_it_was_written_from(
    tmp_path: Path,
    network: Any,
    tensors: dict[str, torch.Tensor],
    num_shards: int,
) -> None:
    model = load_model(write_checkpoint(tmp_path, tensors, num_shards=num_shards))
    network.config.image_token_id = model.network.config.image_token_id = IMAGE_ID  # type: ignore[union-attr]
    for (name, mine), (_, theirs) in zip(
        network.named_parameters(), model.network.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    torch.testing.assert_close(logits(model.network), logits(network), rtol=1e-6, atol=1e-7)
    assert logits(network).std() > 1e-4, "a dead network would agree with anything"


@pytest.mark.parametrize("writer", ["save_pretrained", "state_dict"])
def test_the_native_layout_loads(tmp_path: Path, network: Any, writer: str) -> None:
    network.save_pretrained(tmp_path / "native")
    saved = load_file(tmp_path / "native" / "model.safetensors")
    folder = write_checkpoint(
        tmp_path / "checkpoint", saved if writer == "save_pretrained" else network.state_dict()
    )
    shutil.copy(tmp_path / "native" / "config.json", folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "unlimited_ocr"
    model = load_model(folder)
    for mine, theirs in zip(network.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["DeepseekOCR", "deepseek_ocr"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_what_the_released_codes_save_pretrained_writes_loads(
    tmp_path: Path, network: Any, tensors: dict[str, torch.Tensor], kind: str, num_shards: int
) -> None:
    positions = {"model.vision_model.embeddings.position_ids": torch.arange(257)[None]}
    config = original_config() | {"model_type": kind}
    folder = write_checkpoint(tmp_path, tensors | positions, config=config, num_shards=num_shards)
    loaded = load_model(folder).network
    assert all(torch.equal(loaded.get_parameter(name), weight) for name, weight in network.named_parameters())


@pytest.mark.parametrize("positions", [torch.arange(1, 258)[None], torch.arange(257), torch.zeros(1, 257)])
def test_a_buffer_that_is_no_row_of_positions_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], positions: torch.Tensor
) -> None:
    buffer = {"model.vision_model.embeddings.position_ids": positions}
    with pytest.raises(CheckpointError, match="position_ids"):
        load_model(write_checkpoint(tmp_path, tensors | buffer))


def test_a_loaded_model_keeps_the_protocol(folder: Path) -> None:
    model: OcrModel = load_model(folder, dtype=torch.bfloat16)
    assert (model.name, model.default_mode, set(model.modes)) == (
        "small",
        "plain",
        {"plain", "flat", "tiled"},
    )
    assert (model.bos_id, model.eos_id, model.max_positions) == (0, 1, 512)
    assert (model.device.type, model.dtype) == ("cpu", torch.bfloat16)
    assert model.ngram_exempt_ids == {6, 7}
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert model.embed(torch.tensor([[1, 2, 3]])).shape == (1, 3, 32)
    assert model.embed(torch.tensor([1])).dtype == torch.bfloat16


@pytest.mark.parametrize(("has_bfloat16", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_card_without_bfloat16_computes_in_float32(
    has_bfloat16: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    assert deepseek.supported_dtype(torch.device("cuda"), None) is wanted
    assert deepseek.supported_dtype(torch.device("cpu"), None) is torch.float32


def test_dtypes_and_devices_that_cannot_serve_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype on cpu"):
        load_model(folder, dtype=torch.float16)
    with pytest.raises(ValueError, match="dtype on cuda"):
        load_model(folder, device="cuda", dtype=torch.float64)
    with pytest.raises(ValueError, match="device must be"):
        load_model(folder, device="meta")


def test_without_its_own_recipe_an_original_checkpoint_reads_as_deepseek_ocr(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    model = load_model(write_checkpoint(tmp_path, tensors, recipe=None))
    assert model.name == "DeepSeek-OCR"
    assert {name: (mode.view_px, mode.pad) for name, mode in model.modes.items()} == {
        "tiny": (512, False),
        "small": (640, False),
        "base": (1024, True),
        "large": (1280, True),
        "gundam": (1024, True),
    }
    assert (model.modes["gundam"].tile_px, model.modes["gundam"].max_tiles) == (640, 9)
    assert model.default_mode == "large"
    assert model.default_prompt == "\n<|grounding|>Convert the document to markdown."
    assert model.layer_types == ("full_attention",) * 3
    assert model.sliding_window is None


@pytest.mark.parametrize("model_type", ["unlimited_ocr", "unlimited-ocr"])
def test_unlimited_ocr_keeps_its_sliding_window(
    tmp_path: Path, tensors: dict[str, torch.Tensor], model_type: str
) -> None:
    config = original_config() | {"model_type": model_type, "sliding_window": 96}
    model = load_model(write_checkpoint(tmp_path, tensors, config=config, recipe=None))
    assert (model.name, model.default_prompt) == ("Unlimited-OCR", "document parsing.")
    assert model.ngram == NgramRule(35, 128)
    assert model.several_pages == SeveralPages("base", "Multi page parsing.", NgramRule(35, 1024), "<PAGE>")
    assert model.layer_types == ("reference_sliding_attention",) * 3
    assert model.sliding_window == 96


@pytest.mark.parametrize("where", ["language_config", "both"])
def test_the_window_is_found_where_unlimited_ocr_publishes_it(where: str) -> None:
    """Its config.json has ``sliding_window_size`` in both parts and ``sliding_window`` at the top."""
    raw = original_config() | {"model_type": "unlimited-ocr", "architectures": ["UnlimitedOCRForCausalLM"]}
    raw["language_config"] |= {"max_position_embeddings": 32768, "v_head_dim": 128, "sliding_window_size": 96}
    if where == "both":
        raw |= {"sliding_window_size": 96, "sliding_window": 96}
    text = read_config(raw).text_config
    assert (text.layer_types, text.sliding_window) == (["reference_sliding_attention"] * 3, 96)
    assert text.max_position_embeddings == 32768


def test_a_checkpoints_own_layer_types_are_kept(tmp_path: Path, network: Any) -> None:
    config = network.config.to_dict()
    kinds = ["full_attention", "reference_sliding_attention", "full_attention"]
    config["text_config"] |= {"layer_types": kinds, "sliding_window": 17}
    model = load_model(write_checkpoint(tmp_path, original_tensors(network), config=config))
    assert model.layer_types == tuple(kinds)
    assert model.sliding_window == 17


def test_what_a_config_could_smuggle_in_has_no_effect(folder: Path, network: Any) -> None:
    """Fields that transformers would act on: another weights file, kernels from a repository, an adapter."""
    config = network.config.to_dict() | {"transformers_weights": "../evil.safetensors"}
    config["text_config"]["attn_implementation"] = "someone/kernels"
    config["_attn_implementation"] = "someone/kernels"
    config["text_config"]["num_labels"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    (folder / "generation_config.json").write_text("{ not json")
    model = load_model(folder)
    assert model.network.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert model.network.config.text_config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", ["no/such/folder", "/no/such/folder", "nothing", "", "..", "a/b/c", "https://x/y"]
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError):
        load_model(tmp_path / name if name == ".." else name)


LOAD_IN_CHILD = """
import sys
from app.ocr.models.checkpoint import CheckpointError
from app.ocr.models.deepseek import load_model
for hub_id in sys.argv[1:]:
    try:
        print("loaded", hub_id, load_model(hub_id).name)
    except CheckpointError as error:
        print("refused", error)
"""


def load_offline(hub_ids: list[str], cache: Path) -> str:
    """In a fresh process, because the hub library reads its environment once."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-c", LOAD_IN_CHILD, *hub_ids]
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_download_tells_how_many_bytes_have_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def download(repository: str, *, tqdm_class: Any, **_: Any) -> str:
        files, transfer = tqdm_class(total=3, unit="it"), tqdm_class(total=0, unit="B")
        for size in (100, 50):
            transfer.total += size
            transfer.update(size)
            files.update(1)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    told: list[tuple[int, int]] = []
    assert locate("owner/name", lambda here, in_all: told.append((here, in_all))) == folder
    assert told == [(100, 100), (150, 150)]
    assert "B/s" not in capfd.readouterr().err


def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder: Path) -> None:
    require_memory(folder, "cpu", math.inf)
    with pytest.raises(NotReady, match=r"GiB of memory.*RTPRUNE_MAX_WORKER_RSS_MIB.*GPU"):
        require_memory(folder, "cpu", 500.0)


def test_weights_that_the_machine_has_no_room_for_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ocr.sizing.available_mib", lambda: 500.0)
    with pytest.raises(NotReady, match="this machine has free"):
        require_memory(folder, "cpu", math.inf)


def test_offline_a_hub_id_must_be_in_the_cache(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    repository, commit = tmp_path / "models--someone--small", "a" * 40
    blobs = write_checkpoint(repository / "blobs", tensors)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    said = load_offline(["deepseek-ai/DeepSeek-OCR", "someone/small", f"someone/small@{commit}"], tmp_path)
    assert said.splitlines() == [
        "refused deepseek-ai/DeepSeek-OCR: HF_HUB_OFFLINE is set and it is not in the cache",
        "loaded someone/small small",
        f"loaded someone/small@{commit} small",
    ]


@needs_deepseek
def test_every_tensor_of_the_real_checkpoint_finds_its_place_in_the_full_size_model() -> None:
    lines = (DEEPSEEK / "tensors.tsv").read_text().splitlines()[1:]
    shapes = {name: tuple(map(int, shape.split(","))) for name, shape in (line.split("\t") for line in lines)}
    stored = {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in shapes.items()}
    assert len(stored) == 2710
    assert sum(tensor.numel() for tensor in stored.values()) == 3_336_106_240
    config = read_config(json.loads((DEEPSEEK / "config.json").read_text()))
    with torch.device("meta"):
        network = UnlimitedOcrForConditionalGeneration(config)
    plan = LoadStateDictConfig(
        device_map={"": torch.device("meta")},
        dtype=torch.bfloat16,
        weight_mapping=get_model_conversion_mapping(network),
    )
    report, _ = convert_and_load_state_dict_in_model(network, dict(stored), plan, None)
    assert not report.missing_keys
    assert not report.mismatched_keys
    assert not report.conversion_errors
    assert len(report.unexpected_keys) == len(UNUSED_KEYS) == 1
    assert next(iter(report.unexpected_keys)).endswith("embeddings.patch_embedding.weight")
    unused = sum(stored[key].numel() for key in UNUSED_KEYS)
    assert sum(p.numel() for p in network.parameters()) == 3_336_106_240 - unused


def test_what_original_configs_leave_out_is_filled_in() -> None:
    config = read_config(original_config())
    text, vision = config.text_config, config.vision_config
    assert (text.rope_parameters["rope_theta"], text.rms_norm_eps) == (10_000, 1e-6)
    assert (text.layer_types, text.mlp_layer_types) == (["full_attention"] * 3, ["dense", "sparse", "sparse"])
    assert (vision.sam_config.mlp_dim, vision.encoder_config.intermediate_size) == (4 * 16, 4 * 20)
    assert (vision.sam_config.output_channels, vision.sam_config.window_size) == (256, 14)
    raw = original_config()
    raw["language_config"] |= {"rope_theta": 5e5, "rms_norm_eps": 1e-5, "routed_scaling_factor": 2.5}
    text = read_config(raw).text_config
    assert (text.rope_parameters["rope_theta"], text.rms_norm_eps, text.routed_scaling_factor) == (
        5e5,
        1e-5,
        2.5,
    )


@needs_deepseek
def test_the_real_config_translates_to_the_sizes_it_says() -> None:
    config = read_config(json.loads((DEEPSEEK / "config.json").read_text()))
    text, vision = config.text_config, config.vision_config
    assert (text.layer_types, text.mlp_layer_types) == (["full_attention"] * 12, ["dense"] + ["sparse"] * 11)
    assert (text.rope_parameters["rope_theta"], text.rms_norm_eps) == (10_000, 1e-6)
    assert (text.n_shared_experts, text.n_group, text.topk_group, text.topk_method) == (2, 1, 1, "greedy")
    assert (text.max_position_embeddings, text.bos_token_id, text.eos_token_id) == (8192, 0, 1)
    assert (config.image_token_id, vision.encoder_config.intermediate_size) == (128815, 4096)
    assert (vision.sam_config.mlp_dim, vision.sam_config.image_size) == (3072, 1024)


@needs_deepseek
def test_the_small_checkpoint_of_these_tests_has_the_real_key_names(tensors: dict[str, torch.Tensor]) -> None:
    lines = (DEEPSEEK / "tensors.tsv").read_text().splitlines()[1:]
    real = {re.sub(r"\.\d+\.", ".N.", line.split("\t")[0]) for line in lines}
    assert {re.sub(r"\.\d+\.", ".N.", name) for name in tensors} == real


@needs_pocket_start
def test_an_early_pocket_checkpoint_loads(tmp_path: Path) -> None:
    from ocr_checkpoints import character_tokenizer

    for name in ("config.json", "model.safetensors"):
        shutil.copy(POCKET_START / name, tmp_path)
    character_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "rtprune.json").write_text(json.dumps(RECIPE | {"default_prompt": "read."}))
    model = load_model(tmp_path)
    assert model.layer_types == ("full_attention",) * 3
    assert sum(p.numel() for p in model.network.parameters()) > 5_000_000


def test_a_dense_checkpoint_loads(tmp_path: Path) -> None:
    raw = original_config()
    raw["language_config"] |= {"first_k_dense_replace": 3}
    tensors = original_tensors(random_small_network(config=read_config(raw)))
    assert not any("experts" in key for key in tensors)
    model = load_model(write_checkpoint(tmp_path, tensors, config=raw))
    assert torch.equal(model.network.get_parameter("lm_head.weight"), tensors["lm_head.weight"])


def test_the_documentation_names_every_field_of_the_recipe() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md").read_text()
    fields = [*CheckpointSpec.model_fields, *(f"modes.*.{name}" for name in ModeSpec.model_fields)]
    assert [name for name in fields if f"| `{name}` |" not in text] == []
    example = text.split("```json\n")[1].split("```")[0]
    assert CheckpointSpec.model_validate_json(example).name == "pocket"
    for recipe in (DEEPSEEK_OCR, DEEPSEEK_OCR_2, UNLIMITED_OCR):
        assert f"| {recipe.name} |" in text
        assert recipe.default_prompt.replace("\n", "\\n").replace("|", "\\|") in text
