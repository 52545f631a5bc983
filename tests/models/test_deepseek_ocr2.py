"""DeepSeek-OCR-2: its published layout loads, and its tokens are those of transformers' ``generate()``."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import Inline
from ocr_checkpoints import (
    IMAGE_ID,
    original_config_2,
    original_tensors,
    random_small_network,
    write_checkpoint,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import DeepseekOcr2ForConditionalGeneration
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.models.unlimited_ocr.generation_unlimited_ocr import (
    UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor as WindowedBan,
)

from app.document import Page, ReadOptions
from app.errors import BadOption
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import new_task
from app.ocr.models.checkpoint import CheckpointError
from app.ocr.models.checkpoint_spec import DEEPSEEK_OCR_2, CheckpointSpec, ModeSpec
from app.ocr.models.config import read_config
from app.ocr.models.deepseek import DeepSeekOcr, load_model
from app.ocr.models.sam_attention import fold_sam_attention
from rtprune import METHODS, MissingEvidenceError, RTPruneConfig, VisualTokens, prune_tokens, text_density

PUBLISHED_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekOCR2ForCausalLM"],
    "auto_map": {"AutoModel": "modeling_deepseekocr2.DeepseekOCR2ForCausalLM"},
    "language_config": {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "hidden_size": 1280,
        "intermediate_size": 6848,
        "kv_lora_rank": None,
        "max_position_embeddings": 8192,
        "moe_intermediate_size": 896,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 10,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 12,
        "num_key_value_heads": 10,
        "q_lora_rank": None,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": 129280,
    },
    "model_type": "deepseek_vl_v2",
    "projector_config": {"input_dim": 896, "n_embed": 1280, "projector_type": "linear"},
    "tile_tag": "2D",
    "vision_config": {
        "image_size": 1024,
        "mlp_ratio": 3.7362,
        "model_name": "deepencoderv2",
        "width": {
            "qwen2-0-5b": {"dim": 896},
            "sam_vit_b": {
                "downsample_channels": [512, 1024],  # as published; the weights have 896
                "global_attn_indexes": [2, 5, 8, 11],
                "heads": 12,
                "layers": 12,
                "width": 768,
            },
        },
    },
}
"""config.json of deepseek-ai/DeepSeek-OCR-2, less what only its own code reads."""


PUBLISHED_FILE = "model-00001-of-000001.safetensors"


def linear(name: str, out: int, into: int, *, bias: bool = False) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def gated_mlp(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    wide, narrow = linear(f"{name}.gate_proj", inner, width), linear(f"{name}.down_proj", width, inner)
    return wide | linear(f"{name}.up_proj", inner, width) | narrow


def sam_block(name: str, window: int) -> dict[str, tuple[int, ...]]:
    return {
        **norm(f"{name}.norm1", 768),
        **dict.fromkeys((f"{name}.attn.rel_pos_h", f"{name}.attn.rel_pos_w"), (2 * window - 1, 64)),
        **linear(f"{name}.attn.qkv", 3 * 768, 768, bias=True),
        **linear(f"{name}.attn.proj", 768, 768, bias=True),
        **norm(f"{name}.norm2", 768),
        **linear(f"{name}.mlp.lin1", 3072, 768, bias=True),
        **linear(f"{name}.mlp.lin2", 768, 3072, bias=True),
    }


def query_layer(name: str) -> dict[str, tuple[int, ...]]:
    return {
        **linear(f"{name}.self_attn.q_proj", 896, 896, bias=True),
        **linear(f"{name}.self_attn.k_proj", 128, 896, bias=True),
        **linear(f"{name}.self_attn.v_proj", 128, 896, bias=True),
        **linear(f"{name}.self_attn.o_proj", 896, 896),
        **gated_mlp(f"{name}.mlp", 896, 4864),
        f"{name}.input_layernorm.weight": (896,),
        f"{name}.post_attention_layernorm.weight": (896,),
    }


def decoder_layer(name: str, num_experts: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in "qkvo":
        shapes |= linear(f"{name}.self_attn.{part}_proj", 1280, 1280)
    for expert in range(num_experts):
        shapes |= gated_mlp(f"{name}.mlp.experts.{expert}", 1280, 896)
    if num_experts:
        shapes |= linear(f"{name}.mlp.gate", num_experts, 1280)
    mlp = (f"{name}.mlp.shared_experts", 2 * 896) if num_experts else (f"{name}.mlp", 6848)
    shapes |= gated_mlp(mlp[0], 1280, mlp[1])
    return shapes | {f"{name}.{at}_layernorm.weight": (1280,) for at in ("input", "post_attention")}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names in the published model.safetensors.index.json, and the shapes that the published code makes."""
    sam, second = "model.sam_model", "model.qwen2_model"
    shapes = {
        f"{sam}.pos_embed": (1, 64, 64, 768),
        f"{sam}.patch_embed.proj.weight": (768, 3, 16, 16),
        f"{sam}.patch_embed.proj.bias": (768,),
        f"{sam}.neck.0.weight": (256, 768, 1, 1),
        **norm(f"{sam}.neck.1", 256),
        f"{sam}.neck.2.weight": (256, 256, 3, 3),
        **norm(f"{sam}.neck.3", 256),
        f"{sam}.net_2.weight": (512, 256, 3, 3),
        f"{sam}.net_3.weight": (896, 512, 3, 3),
        f"{second}.model.model.norm.weight": (896,),
        f"{second}.query_768.weight": (144, 896),
        f"{second}.query_1024.weight": (256, 896),
        **linear("model.projector.layers", 1280, 896, bias=True),
        "model.view_seperator": (1280,),
        "model.embed_tokens.weight": (129280, 1280),
        "model.norm.weight": (1280,),
        "lm_head.weight": (129280, 1280),
    }
    for i in range(12):
        shapes |= sam_block(f"{sam}.blocks.{i}", 64 if i in (2, 5, 8, 11) else 14)
        shapes |= decoder_layer(f"model.layers.{i}", 64 if i else 0)
    for i in range(24):
        shapes |= query_layer(f"{second}.model.model.layers.{i}")
    return shapes


def test_every_published_tensor_finds_its_place_in_the_full_size_model() -> None:
    shapes = published_shapes()
    stored = {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in shapes.items()}
    assert len(stored) == 2707
    index = {"metadata": {"total_size": 6_779_249_408}, "weight_map": dict.fromkeys(shapes, PUBLISHED_FILE)}
    assert len(json.dumps(index, indent=2)) == 247_401, "characters of the published index"
    with torch.device("meta"):
        network = DeepseekOcr2ForConditionalGeneration(read_config(PUBLISHED_CONFIG))
    plan = LoadStateDictConfig(
        device_map={"": torch.device("meta")},
        dtype=torch.bfloat16,
        weight_mapping=get_model_conversion_mapping(network),
    )
    report, _ = convert_and_load_state_dict_in_model(network, dict(stored), plan, None)
    assert not report.missing_keys
    assert not report.mismatched_keys
    assert not report.conversion_errors
    assert not report.unexpected_keys
    assert sum(p.numel() for p in network.parameters()) == sum(t.numel() for t in stored.values())


def test_the_published_config_translates_to_the_sizes_it_says() -> None:
    config = read_config(PUBLISHED_CONFIG)
    text, vision = config.text_config, config.vision_config
    assert (text.layer_types, text.mlp_layer_types) == (["full_attention"] * 12, ["dense"] + ["sparse"] * 11)
    assert (text.rope_parameters["rope_theta"], text.rms_norm_eps) == (10_000, 1e-6)
    assert (text.max_position_embeddings, text.bos_token_id, text.eos_token_id) == (8192, 0, 1)
    assert (text.n_shared_experts, text.topk_method, config.image_token_id) == (2, "greedy", 128815)
    encoder = vision.encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.intermediate_size) == (896, 24, 4864)
    assert (encoder.num_attention_heads, encoder.num_key_value_heads) == (14, 2)
    assert (encoder.rope_parameters["rope_theta"], encoder.rms_norm_eps) == (1e6, 1e-6)
    assert vision.sam_config.downsample_channels == [512, 896], "as the weights, not as config.json"


def woken(network: Any) -> Any:
    """Give weights a magnitude at which greedy output varies and depends on the page."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.ndim in (2, 3) and "rel_pos" not in name:
                weights.normal_(0, 1.5 / weights.shape[-1] ** 0.5, generator=generator)
        for table in (network.lm_head, network.model.language_model.embed_tokens):
            table.weight.normal_(generator=generator)
    return network


@pytest.fixture(scope="module")
def network() -> Any:
    """A network with two layers in its second encoder, so that it reads pages in no time."""
    config = read_config(original_config_2()).to_dict()
    smaller = {"num_hidden_layers": 2, "intermediate_size": 48, "layer_types": None}
    config["vision_config"]["encoder_config"] |= smaller
    return woken(random_small_network(config=read_config(config)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, network: Any) -> Path:
    """Published names of weights, two shards, and a config.json that gives the second encoder's sizes."""
    at, config = tmp_path_factory.mktemp("ocr2"), network.config.to_dict()
    return write_checkpoint(at, original_tensors(network), config=config, recipe=None, num_shards=2)


@pytest.fixture(scope="module")
def model(folder: Path) -> DeepSeekOcr:
    return load_model(folder)


def noise(width: int, height: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(samples.numpy())


PAGES = (noise(900, 1700, 1), noise(700, 500, 2))
"""A page with two tiles, and one that is no larger than a tile and has none."""


@pytest.fixture(scope="module")
def encoded(model: DeepSeekOcr) -> list[VisualTokens]:
    return model.encode([model.preprocess(image, "gundam") for image in PAGES])


def test_the_small_checkpoint_of_these_tests_has_the_published_names(network: Any) -> None:
    small, published = (
        {re.sub(r"\.\d+\.", ".N.", name) for name in names}
        for names in (original_tensors(network), published_shapes())
    )
    assert small == published


def test_the_published_layout_gives_the_weights_it_was_written_from(tmp_path: Path) -> None:
    written = random_small_network(config=read_config(original_config_2()))
    tensors = original_tensors(written)
    model = load_model(write_checkpoint(tmp_path, tensors, config=original_config_2(), recipe=None))
    loaded = dict(model.network.named_parameters())
    assert loaded.keys() == dict(written.named_parameters()).keys()
    assert all(torch.equal(loaded[name], weights) for name, weights in written.named_parameters())
    assert (model.name, model.default_mode) == ("DeepSeek-OCR-2", "gundam")
    assert set(model.modes) == {"base", "gundam"}
    assert model.ngram == NgramRule(20, 90)
    assert len(model.ngram_exempt_ids) == 2
    assert (model.layer_types, model.sliding_window) == (("full_attention",) * 3, None)


def test_the_native_layout_loads(tmp_path: Path, network: Any) -> None:
    network.save_pretrained(tmp_path / "native")
    saved = load_file(tmp_path / "native" / "model.safetensors")
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config["model_type"] == "deepseek_ocr2"
    loaded = load_model(write_checkpoint(tmp_path / "folder", saved, config=config, recipe=None))
    assert loaded.name == "DeepSeek-OCR-2"
    for mine, theirs in zip(network.parameters(), loaded.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_features_are_the_librarys(model: DeepSeekOcr, encoded: list[VisualTokens]) -> None:
    pages = [model.preprocess(image, "gundam") for image in PAGES]
    tiles = [page.tiles for page in pages]
    assert tiles[0] is not None
    assert tiles[1] is None
    library: Any = model.network
    with torch.no_grad():
        native = library.get_image_features(
            torch.stack([page.view for page in pages]), tiles[0], [len(tiles[0]), 0]
        ).pooler_output
    for tokens, features in zip(encoded, native, strict=True):
        torch.testing.assert_close(tokens.embeds, features, rtol=1e-4, atol=1e-5)
    assert (encoded[0].embeds[-257:] - encoded[1].embeds).norm() > 0.1 * encoded[1].embeds.norm()


def test_tiles_come_before_the_view_and_nothing_breaks_rows(
    model: DeepSeekOcr, encoded: list[VisualTokens]
) -> None:
    assert [len(tokens.embeds) for tokens in encoded] == [2 * 144 + 256 + 1, 256 + 1]
    for tokens in encoded:
        assert tokens.is_patch.tolist() == [True] * (len(tokens.embeds) - 1) + [False]
        library: Any = model.network
        assert torch.equal(tokens.embeds[-1], library.model.view_separator)


def test_folded_sam_attention_is_the_native_one(folder: Path, encoded: list[VisualTokens]) -> None:
    folded: Any = load_model(folder)
    fold_sam_attention(folded.network)
    again = folded.encode([folded.preprocess(PAGES[1], "gundam")])[0]
    torch.testing.assert_close(again.embeds, encoded[1].embeds, rtol=1e-3, atol=1e-4)


NO_BAN = NgramRule(1000, 1000)
BAN = NgramRule(3, 24)
NUM_NEW = 40


def read_by_the_engine(model: DeepSeekOcr, options: ReadOptions, ban: NgramRule) -> list[list[int]]:
    """Read both pages together. Returns the ids of each."""
    limits = EngineSettings(
        max_running_pages=2, max_page_tokens=1024, kv_memory_mib=64, ngram=ban, strict_ngram=ban,
        loops=LoopRule(unit=10**6),
    )  # fmt: skip
    loop = PageLoop(model, limits, Inline(), Inline())
    tasks = [new_task(model, limits, Page(i, image), options, "d") for i, image in enumerate(PAGES)]
    for task in tasks:
        loop.enqueue(task, 0)
    while not all(task.done.done() for task in tasks):
        loop.turn()
    return [task.best().ids for task in tasks]


def generated(model: DeepSeekOcr, ban: NgramRule = NO_BAN, **inputs: Any) -> list[int]:
    library: Any = model.network
    processors = [] if ban is NO_BAN else [WindowedBan(ban.n, ban.window)]
    with torch.no_grad():
        output = library.generate(
            **inputs, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=model.eos_id,
            logits_processor=processors,
        )  # fmt: skip
    ids: list[int] = output[0].tolist()
    return ids[:-1] if ids[-1] == model.eos_id else ids


def test_tokens_are_those_of_generate_from_pixels(folder: Path, model: DeepSeekOcr) -> None:
    options = ReadOptions(prune="none", max_output_tokens=NUM_NEW)
    found = read_by_the_engine(load_model(folder), options, NO_BAN)
    library: Any = model.network
    library.config.image_token_id = IMAGE_ID
    for image, ids in zip(PAGES, found, strict=True):
        page = model.preprocess(image, "gundam")
        num_tiles = 0 if page.tiles is None else len(page.tiles)
        visual = [IMAGE_ID] * (144 * num_tiles + 256 + 1)
        asked = torch.tensor([[model.bos_id, *visual, *model.prompt_ids(model.default_prompt)]])
        wanted = generated(
            model, input_ids=asked, attention_mask=torch.ones_like(asked), pixel_values=page.view[None],
            pixel_values_local=page.tiles, num_local_patches=[num_tiles],
        )  # fmt: skip
        assert ids == wanted[asked.shape[1] :]
    assert found[0] != found[1], "output that does not depend on the page proves nothing"


@pytest.mark.parametrize("keep_ratio", [None, 0.4])
def test_pruned_tokens_are_those_of_generate_at_their_places(
    folder: Path, model: DeepSeekOcr, encoded: list[VisualTokens], keep_ratio: float | None
) -> None:
    options = ReadOptions(keep_ratio=keep_ratio, max_output_tokens=NUM_NEW, ngram_exempt=())
    found = read_by_the_engine(load_model(folder), options, BAN)
    views = [model.preprocess(image, "gundam").view for image in PAGES]
    prompt = model.prompt_ids(model.default_prompt)
    text = model.embed(torch.tensor([model.bos_id, *prompt]))
    for tokens, view, ids in zip(encoded, views, found, strict=True):
        pruned = prune_tokens(tokens, text_density(view, 16, 16), RTPruneConfig(keep_ratio=keep_ratio))
        after = 1 + len(tokens.embeds) + torch.arange(len(prompt))
        places = torch.cat((torch.zeros(1).long(), 1 + pruned.kept, after))
        wanted = generated(
            model, BAN, inputs_embeds=torch.cat((text[:1], pruned.embeds, text[1:]))[None],
            position_ids=places[None], attention_mask=torch.ones(1, len(places), dtype=torch.int64),
        )  # fmt: skip
        assert ids == wanted


def test_pruning_keeps_page_order_and_the_separator(encoded: list[VisualTokens]) -> None:
    for tokens in encoded:
        pruned = prune_tokens(tokens, 0.1, RTPruneConfig(keep_ratio=0.4))
        assert pruned.num_kept_patches == int(0.4 * (len(tokens.embeds) - 1))
        assert len(pruned.kept) == pruned.num_kept_patches + 1
        assert (pruned.kept.diff() > 0).all()
        assert pruned.kept[-1] == pruned.num_tokens - 1
        assert torch.equal(pruned.embeds[-1], tokens.embeds[-1])


@pytest.mark.parametrize("name", ["fastervlm", "visionzip", "vispruner", "nuewa"])
def test_methods_that_need_a_class_token_are_undefined(name: str, encoded: list[VisualTokens]) -> None:
    with pytest.raises(MissingEvidenceError, match="class_attention"):
        METHODS[name](encoded[1], 0.1, RTPruneConfig(keep_ratio=0.5))


def test_what_became_of_each_token_has_no_place_on_the_page(model: DeepSeekOcr) -> None:
    options = ReadOptions(tokens="detail")
    with pytest.raises(BadOption, match="DeepSeek-OCR-2 stand for no places"):
        new_task(model, EngineSettings(), Page(0, PAGES[1]), options, "d")


@pytest.mark.parametrize(
    "mode", [ModeSpec(view_px=1280, pad=True), ModeSpec(view_px=1024, pad=True, tile_px=640)]
)
def test_views_without_queries_are_refused(tmp_path: Path, folder: Path, mode: ModeSpec) -> None:
    recipe = DEEPSEEK_OCR_2.model_dump() | {"modes": {"gundam": mode.model_dump(exclude_unset=True)}}
    assert CheckpointSpec.model_validate(recipe)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "rtprune.json").write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match=r"mode gundam: views of (1280|640) px"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "wrong"),
    [
        ("projector_config", {"input_dim": 2048}, "projector_config must map 896"),
        ("language_config", {"use_mla": True}, "language_config.use_mla"),
        ("vision_config", {"width": {"qwen2-0-5b": {"dim": 896}}}, "vision_config.width.sam_vit_b"),
    ],
)
def test_other_configs_are_refused_by_name(part: str, change: dict[str, Any], wrong: str) -> None:
    with pytest.raises(CheckpointError, match=wrong):
        read_config(PUBLISHED_CONFIG | {part: PUBLISHED_CONFIG[part] | change})
