"""Encoding against the library's own ``get_image_features``, whatever the batch."""

from typing import Any

import pytest
import torch
from ocr_checkpoints import RECIPE, byte_level_tokenizer, original_config, random_small_network
from PIL import Image

from app.errors import BadOption
from app.ocr.engine.stream import TextDelta
from app.ocr.models.checkpoint_spec import CheckpointSpec
from app.ocr.models.config import read_config
from app.ocr.models.deepseek import DeepSeekOcr
from app.ocr.models.model import PageViews
from app.ocr.models.random_init import full_size_config, initialise_random, random_network
from app.ocr.models.sam_attention import FoldedSamAttention, fold_sam_attention
from app.ocr.models.tokenizer import OcrTokenizer


def small_model(seed: int = 3, **options: Any) -> DeepSeekOcr:
    tokenizer = OcrTokenizer(byte_level_tokenizer(), hidden_ids=frozenset(), image_id=3, byte_level=True)
    return DeepSeekOcr(
        random_small_network(seed), tokenizer, CheckpointSpec.model_validate(RECIPE), **options
    )


@pytest.fixture(scope="module")
def model() -> DeepSeekOcr:
    return small_model()


def page(model: DeepSeekOcr, mode: str, width: int, height: int, seed: int) -> PageViews:
    samples = torch.randint(
        0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return model.preprocess(Image.fromarray(samples.numpy()), mode)


def mixed_pages(model: DeepSeekOcr) -> list[PageViews]:
    """Plain and tiled pages, one side shared by a global view and tiles, grids of both orientations."""
    return [
        page(model, "plain", 200, 300, 1),
        page(model, "tiled", 500, 250, 2),
        page(model, "flat", 90, 90, 3),
        page(model, "tiled", 250, 700, 4),
        page(model, "tiled", 100, 100, 5),
        page(model, "tiled", 400, 390, 6),
    ]


def native_features(model: DeepSeekOcr, views: PageViews) -> torch.Tensor:
    local: dict[str, Any] = {}
    if views.tiles is not None:
        local = {
            "pixel_values_local": views.tiles,
            "num_local_patches": [len(views.tiles)],
            "patches_grid": [[views.tile_columns, views.tile_rows]],
        }
    with torch.no_grad():
        network: Any = model.network
        features: torch.Tensor = network.get_image_features(views.view[None], **local).pooler_output[0]
    return features


def test_a_mixed_batch_gives_the_librarys_features_page_by_page(model: DeepSeekOcr) -> None:
    pages = mixed_pages(model)
    grids = {(p.tile_columns, p.tile_rows) for p in pages}
    assert len(grids) >= 4, "the batch must mix grids"
    for views, tokens in zip(pages, model.encode(pages), strict=True):
        torch.testing.assert_close(tokens.embeds, native_features(model, views), rtol=1e-5, atol=1e-6)


def test_tiled_pages_of_one_native_call_agree_too(model: DeepSeekOcr) -> None:
    pages = [p for p in mixed_pages(model) if p.mode.name == "tiled"]
    tiles = [p.tiles if p.tiles is not None else torch.empty(0, 3, 128, 128) for p in pages]
    with torch.no_grad():
        network: Any = model.network
        native = network.get_image_features(
            torch.stack([p.view for p in pages]),
            torch.cat(tiles),
            [len(t) for t in tiles],
            [[p.tile_columns, p.tile_rows] for p in pages],
        ).pooler_output
    for tokens, features in zip(model.encode(pages), native, strict=True):
        torch.testing.assert_close(tokens.embeds, features, rtol=1e-5, atol=1e-6)


def test_features_tell_pages_apart(model: DeepSeekOcr) -> None:
    one, other = model.encode([page(model, "plain", 64, 64, 1), page(model, "plain", 64, 64, 2)])
    patches = one.embeds[one.is_patch], other.embeds[other.is_patch]
    assert (patches[0] - patches[1]).norm() > 1e-2 * patches[0].norm()


def test_row_breaks_and_the_separator_are_marked(model: DeepSeekOcr) -> None:
    views = page(model, "tiled", 250, 700, 4)
    tokens = model.encode([views])[0]
    network: Any = model.network
    rows = [2 * views.tile_columns] * (2 * views.tile_rows) + [3] * 3
    expected = [mark for columns in rows for mark in [True] * columns + [False]] + [False]
    assert tokens.is_patch.tolist() == expected
    others = tokens.embeds[~tokens.is_patch]
    assert torch.equal(others[-1], network.model.view_separator)
    assert torch.equal(others[:-1], network.model.image_newline.expand(len(others) - 1, -1))


def test_chunks_change_nothing_and_are_bounded(model: DeepSeekOcr) -> None:
    narrow = small_model(max_pixels_per_forward=2 * 128 * 128)
    tower: Any = narrow.network
    batches: list[tuple[int, ...]] = []
    tower.model.vision_tower.register_forward_pre_hook(lambda _, views: batches.append(tuple(views[0].shape)))
    pages = mixed_pages(model)
    for mine, theirs in zip(narrow.encode(pages), model.encode(pages), strict=True):
        torch.testing.assert_close(mine.embeds, theirs.embeds, rtol=1e-5, atol=1e-6)
    assert all(b * h * w <= 2 * 128 * 128 or b == 1 for b, _, h, w in batches)
    assert max(b for b, *_ in batches) == 2


def test_views_of_one_side_run_as_one_batch(model: DeepSeekOcr) -> None:
    wide = small_model(max_pixels_per_forward=10**9)
    tower: Any = wide.network
    batches: list[tuple[int, ...]] = []
    tower.model.vision_tower.register_forward_pre_hook(lambda _, views: batches.append(tuple(views[0].shape)))
    pages = mixed_pages(model)
    wide.encode(pages)
    assert sorted(shape[-1] for shape in batches) == [128, 192]


def test_no_pages_give_nothing(model: DeepSeekOcr) -> None:
    assert model.encode([]) == []


def test_tiles_that_do_not_fill_their_grid_are_refused(model: DeepSeekOcr) -> None:
    whole = page(model, "tiled", 500, 250, 2)
    assert whole.tiles is not None
    torn = PageViews(whole.mode, whole.view, whole.tiles[:-1], whole.tile_columns, whole.tile_rows)
    with pytest.raises(ValueError, match="tiles do not fill"):
        model.encode([torn])


def test_an_unknown_mode_is_refused_by_name(model: DeepSeekOcr) -> None:
    with pytest.raises(BadOption, match="'huge' is not one of plain, flat, tiled"):
        model.preprocess(Image.new("RGB", (5, 5)), "huge")


def test_streamed_text_is_the_whole_text(model: DeepSeekOcr) -> None:
    """A character of several tokens is held back until it is whole."""
    ids = model.prompt_ids("\nnaïve 世界 🙂")
    delta = TextDelta(model.decode_text)
    pieces = [delta.add([i]) for i in ids]
    assert "".join(pieces) == model.decode_text(ids) == "\nnaïve 世界 🙂"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("side", [192, 128, 256])
def test_folded_sam_attention_is_the_native_one(side: int) -> None:
    """Windowed and global layers, at the trained grid and at interpolated ones."""
    native: Any = random_small_network(seed=5)
    sam = native.model.vision_tower.sam_encoder
    for layer in sam.layers:
        for table in (layer.attn.rel_pos_h, layer.attn.rel_pos_w, layer.attn.qkv.weight):
            table.normal_(0, 0.5, generator=torch.Generator().manual_seed(side))
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hidden = torch.randn(2, side // 16, side // 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for layer in sam.layers:
            expected, folded = layer.attn(hidden)[0], FoldedSamAttention(layer.attn)
            unbiased = expected - _without_positions(layer.attn, hidden)
            assert unbiased.abs().max() > 1e-2, "positions must matter, or this test could not fail"
            for _ in range(2):  # built, then cached
                torch.testing.assert_close(folded(hidden)[0], expected, rtol=1e-5, atol=1e-5)
        before = native.model.vision_tower(pixels).last_hidden_state
        fold_sam_attention(native)
        after = native.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def _without_positions(attention: Any, hidden: torch.Tensor) -> torch.Tensor:
    attention.use_rel_pos = False
    output: torch.Tensor = attention(hidden)[0]
    torch.testing.assert_close(FoldedSamAttention(attention)(hidden)[0], output, rtol=1e-5, atol=1e-5)
    attention.use_rel_pos = True
    return output


def test_bfloat16_features_stay_close_to_float32(model: DeepSeekOcr) -> None:
    half: Any = small_model()
    views = page(model, "plain", 200, 300, 1)
    exact = model.encode([views])[0].embeds
    half.network.to(torch.bfloat16)
    cast = DeepSeekOcr(half.network, half.tokenizer, CheckpointSpec.model_validate(RECIPE))
    coarse = cast.encode([views])[0].embeds
    assert coarse.dtype == torch.bfloat16
    assert (coarse.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_experts_agree_with_the_eager_loop(dtype: torch.dtype) -> None:
    network: Any = random_network(read_config(original_config()), 4, dtype=dtype)
    embeds = torch.randn(1, 30, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert network.config.text_config._experts_implementation == "grouped_mm"
    with torch.no_grad():
        grouped = network(inputs_embeds=embeds).logits.float()
        network.config.text_config._experts_implementation = "eager"
        eager = network(inputs_embeds=embeds).logits.float()
    assert (grouped - eager).norm() < (1e-5 if dtype == torch.float32 else 0.03) * eager.norm()


def test_random_weights_are_repeatable_and_alive() -> None:
    one, again, other = (random_small_network(seed) for seed in (1, 1, 2))
    pairs = list(zip(one.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.get_parameter("lm_head.weight"), other.get_parameter("lm_head.weight"))
    for name, parameter in one.named_parameters():
        assert parameter.isfinite().all()
        if not name.endswith("bias") and "norm" not in name:
            assert parameter.std() > 5e-3, name
    before = random_small_network(1)
    initialise_random(before, 2)
    assert torch.equal(before.get_parameter("lm_head.weight"), other.get_parameter("lm_head.weight"))


def test_the_full_size_config_has_deepseek_ocrs_parameter_count() -> None:
    from transformers import UnlimitedOcrForConditionalGeneration

    with torch.device("meta"):
        network = UnlimitedOcrForConditionalGeneration(full_size_config())
    assert sum(p.numel() for p in network.parameters()) == 3_335_504_128
