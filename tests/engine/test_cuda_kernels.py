"""Kernels for CUDA against the library's modules: on a GPU, where there is none by Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrSamVisionLayer

from app.ocr.cuda import choose, experts
from app.ocr.cuda.decoder import FusedDecoder, chosen, num_splits
from app.ocr.cuda.sam import FusedSamLayer, pieces
from app.ocr.engine.attention import EachPrefill, RunsDecode, install
from app.ocr.engine.decode_state import DecodeState
from app.ocr.engine.decoder import NativeDecoder, chosen_logprobs
from app.ocr.engine.kv_cache import KvCache, KvPlan, KvShape
from app.ocr.engine.loops import LoopRule, NgramRule, RepeatState
from app.ocr.models.config import FULL, SLIDING

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILE = Path(__file__).resolve().parents[1] / "support" / "cuda_compile.py"
HIDDEN, HEADS, LAYERS, VOCAB = 32, 2, 2, 48
RULE = NgramRule(n=2, window=8)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32 through and through, on a GPU too."""
    monkeypatch.setattr(triton.knobs.language, "fp32_default", "ieee")


def network(kind: str = FULL, **changes: Any) -> Any:
    """A dense layer whose width is no multiple of an expert's, then experts, routed and shared."""
    text = {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 40, "moe_intermediate_size": 16,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2, "sliding_window": 4,
        "max_position_embeddings": 256, "layer_types": [kind] * LAYERS,
        "mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1), **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 64}
    vision = {
        "sam_config": small | {"mlp_dim": 16, "global_attn_indexes": [0], "output_channels": 16,
                               "downsample_channels": [16, 16]},
        "encoder_config": small | {"intermediate_size": 16, "patch_size": 16},
    }  # fmt: skip
    config = UnlimitedOcrConfig(text_config=text, vision_config=vision, image_token_id=3)
    made = UnlimitedOcrForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weights in made.model.language_model.parameters():
            weights.normal_(0, 0.3) if weights.ndim > 1 else weights.normal_(1, 0.2)
    return made.to(DEVICE)


class Pages:
    """Rows of a few prompts, as they are after prefill."""

    def __init__(self, made: Any, layers: Any, lengths: list[int]) -> None:
        text = made.config.text_config
        shape = KvShape(LAYERS, HEADS, text.head_dim, torch.float32)
        window = install(made)
        self.cache = KvCache(KvPlan(8, 64), shape, DEVICE, window)
        repeats = RepeatState(8, LoopRule(unit=2, max_period=8), RULE.max_distance, [5], VOCAB, DEVICE)
        self.rows = DecodeState.of(self.cache, repeats)
        generator = torch.Generator().manual_seed(1)
        embeds = torch.randn(1, sum(lengths), HIDDEN, generator=generator).to(DEVICE)
        gapped = [torch.arange(length) * 3 for length in lengths]
        positions = torch.cat(gapped)[None].to(DEVICE)
        self.prompts = layers(embeds, positions, EachPrefill(self.cache, lengths))
        first = self.cache.admit(lengths)
        count = len(lengths)
        self.rows.tokens[:count] = torch.randint(6, VOCAB, (count,), generator=generator).to(DEVICE)
        self.rows.positions[:count] = torch.tensor([3 * length for length in lengths], device=DEVICE)
        self.rows.is_running[:count] = 1
        for row in range(count):
            repeats.start(first + row, RULE, self.rows.tokens[row])

    def state(self) -> list[torch.Tensor]:
        rows, repeats = self.rows, self.rows.repeats
        return [rows.tokens, rows.positions, self.cache.lengths, repeats.history, repeats.runs]


def native_step(layers: Any, made: Any, pages: Pages, count: int) -> torch.Tensor:
    """What ``Decoder.run_rows`` does where there are no kernels."""
    rows, repeats = pages.rows, pages.rows.repeats
    embeds = made.get_input_embeddings()(rows.tokens[:count, None])
    hidden = layers(embeds, rows.positions[:count, None], RunsDecode(pages.cache).begin())
    logits = layers.head(hidden[:, -1])
    taken = repeats.banned(logits).argmax(dim=-1)
    extended = repeats.after(taken)
    sums = rows.logprob_sums[:count] + chosen_logprobs(logits, taken)
    fields = (taken, extended.is_repeating, taken != logits.argmax(dim=-1), sums)
    repeats.accept(extended)
    rows.tokens[:count], rows.logprob_sums[:count] = taken, sums
    rows.positions[:count] += 1
    pages.cache.lengths[:count] += 1
    return torch.stack([field.double() for field in fields])


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [(FULL, [7]), (SLIDING, [3, 9, 1]), (FULL, [5, 11, 2, 4, 1])],
    ids=["one", "sliding", "enough to gather the experts' pairs"],
)
@torch.inference_mode()
def test_pages_are_read_as_the_librarys_modules_read_them(kind: str, lengths: list[int]) -> None:
    """Prompts with gaps, then tokens: bans that fire, sums of log-probabilities, and all of the state."""
    made = network(kind)
    native = NativeDecoder(made.model.language_model, made.lm_head)
    ours = FusedDecoder(made.model.language_model, made.lm_head)
    wanted, found = Pages(made, native, lengths), Pages(made, ours, lengths)
    torch.testing.assert_close(found.prompts, wanted.prompts, atol=2e-4, rtol=2e-4)
    bans = 0.0
    for _ in range(5):
        expected = native_step(native, made, wanted, len(lengths))
        choices = ours.step(found.rows, len(lengths))
        torch.testing.assert_close(choices, expected, atol=1e-3, rtol=1e-4)
        for cache in (wanted.cache, found.cache):
            cache.advance()
        bans += float(choices[2].sum())
    for mine, theirs in zip(found.state(), wanted.state(), strict=True):
        assert torch.equal(mine[: len(lengths)], theirs[: len(lengths)])
    assert bans or len(lengths) == 1, "a rule of 2 in 8 has something to ban"


@torch.inference_mode()
def test_rows_beyond_those_that_run_are_left_alone() -> None:
    """As where a captured step has more rows than there are pages."""
    made = network()
    ours = FusedDecoder(made.model.language_model, made.lm_head)
    few, more = Pages(made, ours, [4, 6]), Pages(made, ours, [4, 6])
    torch.testing.assert_close(ours.step(few.rows, 2), ours.step(more.rows, 5)[:, :2], atol=1e-4, rtol=1e-4)
    assert more.cache.lengths.tolist()[2:] == [0] * 6
    assert more.rows.positions.tolist()[2:] == [0] * 6


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@torch.inference_mode()
def test_a_page_of_nan_says_so_and_harms_no_other() -> None:
    made = network()
    ours = FusedDecoder(made.model.language_model, made.lm_head)
    pages, alone = Pages(made, ours, [2, 4, 3, 1, 1]), Pages(made, ours, [2, 4, 3, 1, 1])
    pages.cache.values[0][1, 2] = torch.nan
    choices, expected = ours.step(pages.rows, 5), ours.step(alone.rows, 5)
    assert choices[3].isnan().tolist() == [False, True, False, False, False]
    assert 0 <= choices[0, 1] < VOCAB
    others = [0, 2, 3, 4]
    torch.testing.assert_close(choices[:, others], expected[:, others])


@torch.inference_mode()
def test_of_equal_logits_the_first_is_taken_and_a_banned_one_passed_over() -> None:
    made = network()
    pages = Pages(made, NativeDecoder(made.model.language_model, made.lm_head), [3, 3])
    repeats = pages.rows.repeats
    # 9 followed 7, and 7 was the last: 9 would complete the pair again
    repeats.history[:2, :3] = torch.tensor([7, 9, 7], dtype=torch.int32, device=DEVICE)
    repeats.runs[0, 1] = 1
    logits = torch.zeros(2, VOCAB, device=DEVICE)
    logits[:, [9, 11, 20]] = 3.0
    choices = chosen(logits, pages.rows)
    assert choices[0].tolist() == [11, 9]
    assert choices[2].tolist() == [1, 0]
    assert pages.rows.tokens.tolist()[:2] == [11, 9]


@pytest.mark.parametrize("num_rows", [1, 40])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@torch.inference_mode()
def test_experts_are_chosen_whatever_the_scores(num_rows: int) -> None:
    """Equal scores, and scores that are no numbers: each row has as many experts as it must, none twice."""
    made = network()
    layer = FusedDecoder(made.model.language_model, made.lm_head)._layers[1].experts
    layer.router = torch.zeros(layer.num_experts, HIDDEN, device=DEVICE)
    hidden = torch.randn(num_rows, HIDDEN, device=DEVICE)
    hidden[-1] = torch.nan
    scratch = experts.Scratch(
        torch.zeros(num_rows, dtype=torch.int32, device=DEVICE), 1, layer.num_experts, num_rows
    )
    routes = experts.Routes.of(num_rows, layer, scratch)
    layer._normed(hidden, torch.zeros_like(hidden), made.model.language_model.norm, routes, scratch)
    assert routes.ids.tolist() == [[0, 1]] * num_rows
    if experts.is_listed(num_rows):
        assert routes.counts.tolist() == [num_rows, num_rows, 0, 0, 0, 0]
        parts = layer.num_parts
        assert sorted(routes.pairs[1].tolist()) == [row * parts + 1 for row in range(num_rows)]
    assert not scratch.arrived.any(), "zero again for whoever counts next"


def sam_layer(window: int, side: int) -> UnlimitedOcrSamVisionLayer:
    torch.manual_seed(window + side)
    config = UnlimitedOcrConfig(
        vision_config={
            "sam_config": {
                "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 64,
                "image_size": side * 16, "window_size": window, "global_attn_indexes": [0],
            }
        }
    ).vision_config.sam_config  # fmt: skip
    config._attn_implementation = "sdpa"
    layer = UnlimitedOcrSamVisionLayer(config, window).eval().requires_grad_(False)
    for weights in layer.parameters():
        weights.normal_(0, 0.5)
    return layer.to(DEVICE)


@pytest.mark.parametrize(
    ("window", "height", "width"),
    [(0, 8, 8), (0, 6, 20), (4, 8, 8), (4, 9, 6), (14, 15, 3)],
    ids=["whole", "two pieces", "windows", "windows that reach beyond", "a window larger than the grid"],
)
@torch.inference_mode()
def test_sams_attention_finds_its_windows_in_the_grid(window: int, height: int, width: int) -> None:
    layer = sam_layer(window, max(height, width))
    hidden = torch.randn(2, height, width, 32, device=DEVICE)
    torch.testing.assert_close(FusedSamLayer(layer)(hidden), layer(hidden), atol=1e-3, rtol=1e-3)


def test_a_row_of_keys_is_held_in_two_powers_of_two() -> None:
    for wide in range(1, 129):
        first, rest = pieces(wide)
        assert first + rest >= wide
        assert first + rest < 2 * wide + 32
        assert all(size & (size - 1) == 0 for size in (first, rest))
        assert rest == 0 or first < wide


@pytest.mark.parametrize(("capability", "shared_kib"), [(89, 99), (90, 227)], ids=["L4", "H100"])
def test_every_kernel_compiles_for_a_card_and_fits_it(
    capability: int, shared_kib: int, tmp_path: Path
) -> None:
    """No card is needed for it. The interpreter takes what the compiler refuses."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(COMPILE), str(capability), str(shared_kib * 1024)],
        cwd=COMPILE.parent.parent, env=env | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    assert all(taken < shared_kib * 1024 for taken in shared.values())
    names = {name.split()[0] for name in shared}
    assert names >= {"expand", "contract", "add_norm", "attend", "norm_route", "scan", "choose", "relate"}


def test_attention_is_spread_over_the_card_by_powers_of_two() -> None:
    for num_rows in range(1, 600):
        splits = num_splits(num_rows, 10)
        assert 1 <= splits <= 16
        assert splits & (splits - 1) == 0
        assert splits == 1 or num_rows * 10 * splits <= 512


def test_what_the_kernels_were_not_written_for_is_left_to_the_library() -> None:
    made = network().bfloat16()
    decoder = made.model.language_model
    assert choose.fits_decoder(decoder, made.lm_head)
    assert not choose.fits_decoder(decoder, made.lm_head.float())
    grouped = network(num_key_value_heads=1).bfloat16()
    assert not choose.fits_decoder(grouped.model.language_model, grouped.lm_head)
    biased = network(attention_bias=True).bfloat16()
    assert not choose.fits_decoder(biased.model.language_model, biased.lm_head)
    odd = network(moe_intermediate_size=24).bfloat16()
    assert not choose.fits_decoder(odd.model.language_model, odd.lm_head)
    shape = KvShape(LAYERS, HEADS, decoder.config.head_dim, torch.bfloat16)
    if DEVICE.type == "cpu":
        assert choose.decoder_for(decoder, made.lm_head, shape) is None
        assert not choose.fuse_sam_layers(made)
