"""On CPU the network runs repacked: what it computes stays what transformers' own modules compute."""

from typing import Any

import pytest
import torch
from engine_fakes import random_network
from torch.nn.functional import scaled_dot_product_attention

from app.ocr.engine.attention import install
from app.ocr.engine.decoder import NativeDecoder
from app.ocr.models.random_init import initialise_random
from app.pocket.cpu_modules import MAX_EXPERTS, PackedDecoder, is_worth_packing, with_packed_linears

GROUPED_ROUTING = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "group_limited_greedy",
}


class Causal:
    """A ``Step`` over whole sequences, without a cache."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        return mixed.transpose(1, 2)


def hidden_of(network: Any, num_rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, T, V) of the library's modules and of the packed ones, on gapped positions."""
    install(network)
    language_model, head = network.model.language_model, network.lm_head
    assert is_worth_packing(language_model)
    generator = torch.Generator().manual_seed(num_rows)
    embeds = torch.randn(num_rows, length, head.in_features, generator=generator).to(network.dtype)
    positions = torch.randint(0, 1000, (num_rows, length), generator=generator).sort(dim=1).values
    native, packed = NativeDecoder(language_model, head), PackedDecoder(language_model, head)
    with torch.inference_mode():
        logits = [layers.head(layers(embeds, positions, Causal())) for layers in (native, packed)]
    return logits[0], logits[1]


@pytest.mark.parametrize("rows", [(1, 1), (5, 1), (2, 9)], ids=["one row", "a step", "a prefill"])
@pytest.mark.parametrize(
    "text",
    [
        {},
        {"num_attention_heads": 6, "num_key_value_heads": 2},
        {"n_shared_experts": 3, "routed_scaling_factor": 2.5},
        {"n_routed_experts": MAX_EXPERTS + 4, "num_experts_per_tok": 3},
        GROUPED_ROUTING,
    ],
    ids=["as trained", "grouped heads", "scaled experts", "many experts", "grouped experts"],
)
def test_the_packed_decoder_is_the_librarys(text: dict[str, Any], rows: tuple[int, int]) -> None:
    native, packed = hidden_of(random_network(4, **text), *rows)
    torch.testing.assert_close(packed, native, rtol=1e-4, atol=2e-4)


HAS_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@pytest.mark.skipif(HAS_BFLOAT16, reason="this processor computes in bfloat16")
def test_bfloat16_is_left_to_the_library_where_onednn_refuses_it() -> None:
    assert not is_worth_packing(random_network(0, dtype=torch.bfloat16).model.language_model)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="oneDNN has no bfloat16 on this processor")
def test_in_bfloat16_it_is_as_near_to_float32_as_the_library_is() -> None:
    exact, _ = hidden_of(random_network(4), 5, 1)
    native, packed = hidden_of(random_network(4, dtype=torch.bfloat16), 5, 1)
    assert (packed - exact).norm() < 1.5 * (native - exact).norm()


def test_no_module_or_weight_of_the_network_is_changed() -> None:
    network = random_network(4)
    before = {name: weights.clone() for name, weights in network.state_dict().items()}
    kinds = [type(module) for module in network.modules()]
    PackedDecoder(network.model.language_model, network.lm_head)
    with_packed_linears(network.model.vision_tower)
    assert kinds == [type(module) for module in network.modules()]
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weights, after[name]) for name, weights in before.items())


@pytest.mark.parametrize(
    "text",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}},
    ],
    ids=["attention bias", "mlp bias", "positions that depend on the length"],
)
def test_what_it_cannot_compute_is_left_to_the_library(text: dict[str, Any]) -> None:
    assert not is_worth_packing(random_network(0, **text).model.language_model)


def test_double_precision_is_left_to_the_library() -> None:
    assert not is_worth_packing(random_network(0, dtype=torch.float64).model.language_model)


def test_the_packed_vision_part_is_the_librarys() -> None:
    network = random_network(0)
    initialise_random(network, 1)
    tower = network.model.vision_tower
    packed = with_packed_linears(tower)
    assert packed is not tower
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        wanted = tower(pixels).last_hidden_state
        torch.testing.assert_close(packed(pixels).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.std() > 0.1, "features that tell something"


def test_a_vision_part_in_bfloat16_stays_as_it_is() -> None:
    tower = random_network(0, dtype=torch.bfloat16).model.vision_tower
    assert with_packed_linears(tower) is tower
