"""Methods that prune inside the decoder: dense where nothing leaves, exact counts, and cases by hand."""

from collections.abc import Sequence

import pytest
import torch

from app.ocr.models.deepseek import DeepSeekOcr
from app.pocket.opening import load_pocket
from benchmarks.pruners.inside.fitprune import Cost, fit_table, follow, removable
from benchmarks.pruners.inside.layers import LayerByLayer, LayeredAttention, Prompts, Rule, Seen
from benchmarks.pruners.inside.lazy import LazyAttention
from benchmarks.pruners.inside.offline import (
    BEFORE_THE_DECODER,
    INSIDE,
    LAZYLLM,
    NONE,
    Offline,
    View,
    raters_of,
)
from benchmarks.pruners.inside.rules import (
    RULES,
    after_half,
    after_shallow_layers,
    counts_of,
    dart_choice,
    evenly_fewer,
    rollout,
)
from benchmarks.pruners.watched import WatchedAttention, prompts_of, write
from rtprune import VisualTokens
from training.vocabulary import PLAIN_PROMPT

STEPS = 12
WHOLE = 16
COUNTS = {
    "fastv": after_shallow_layers,
    "pyramiddrop": evenly_fewer,
    "sparsevlm": evenly_fewer,
    "dart": after_shallow_layers,
    "fastav": after_half,
}
TABLE = (3, 2)
EVERY_RULE: dict[str, Rule] = {**RULES, "fitprune": follow(TABLE)}


@pytest.fixture(scope="module")
def model() -> DeepSeekOcr:
    return load_pocket()


@pytest.fixture(scope="module")
def layers(model: DeepSeekOcr) -> LayerByLayer:
    return LayerByLayer(model)


def noise(seed: int) -> torch.Tensor:
    """Random visual tokens as large as real ones. (21, 256)."""
    return torch.randn(21, 256, generator=torch.Generator().manual_seed(seed)) * 8


def is_patch() -> torch.Tensor:
    """A view's four rows of four patches, each with its row break, and the separator."""
    return torch.tensor(([True] * 4 + [False]) * 4 + [False])


def view(seed: int, wanted: int) -> View:
    return View(VisualTokens(noise(seed), is_patch()), wanted, 0.1)


def prompts(model: DeepSeekOcr, embeds: Sequence[torch.Tensor], wanted: Sequence[float]) -> Prompts:
    tokens = [VisualTokens(one, is_patch()) for one in embeds]
    whole = prompts_of(model, tokens, PLAIN_PROMPT)
    places, text = (torch.zeros(whole.shape[1], dtype=torch.bool) for _ in range(2))
    places[1:22], text[22:] = is_patch(), True
    return Prompts(whole, places, text, raters_of(whole, places, text), torch.tensor(wanted))


@torch.inference_mode()
def alive_after(layers: LayerByLayer, some: Prompts, rule: Rule) -> torch.Tensor:
    """Who is left in each layer once the prompts are read by a rule. (layers, B, T)."""
    shape = (layers.config.num_hidden_layers, *some.embeds.shape[:2])
    attention = LayeredAttention(some, torch.ones(shape, dtype=torch.bool), rule, layers.norm)
    hidden = layers(some.embeds, torch.arange(shape[2]).expand(shape[1:]), attention)
    assert hidden.isfinite().all()
    return attention.alive


@pytest.mark.parametrize("method", [NONE, *BEFORE_THE_DECODER, *INSIDE])
def test_where_nothing_leaves_it_is_the_engines_decoder(model: DeepSeekOcr, method: str) -> None:
    views = [View(one.tokens, WHOLE, 1.0) for one in (view(0, WHOLE), view(1, WHOLE))]
    plain = WatchedAttention(2, 0, model.device)
    dense = write(model, prompts_of(model, [one.tokens for one in views], PLAIN_PROMPT), plain, STEPS)
    read = Offline(model, views).read(views, method, STEPS)
    assert read.ids == dense
    assert read.held == read.read == 1
    assert read.cut_off == int(plain.is_writing.sum())


@pytest.mark.parametrize("name", EVERY_RULE)
def test_every_rule_keeps_exactly_its_count(model: DeepSeekOcr, layers: LayerByLayer, name: str) -> None:
    some = prompts(model, [noise(0), noise(1)], [12, 14])
    alive = alive_after(layers, some, EVERY_RULE[name])
    assert alive[:, :, ~some.is_patch].all(), "bos, row breaks, separator and text stay"
    assert (alive[1:] <= alive[:-1]).all(), "what left does not come back"
    for row, wanted in enumerate((12, 14)):
        numbers = alive[:, row, some.is_patch].sum(1).tolist()
        if name == "fitprune":
            assert numbers == [16, 13, 11]
        else:
            expected = COUNTS[name](16, wanted, 3)
            assert numbers == [round(one) for one in expected]
            assert sum(expected) == pytest.approx(3 * wanted)
    assert (alive_after(layers, some, EVERY_RULE[name]) == alive).all(), "the same again"
    turned = alive_after(layers, prompts(model, [noise(1), noise(0)], [14, 12]), EVERY_RULE[name])
    assert (turned == alive.flip(1)).all(), "a view's choice is its own"


@pytest.mark.parametrize("name", EVERY_RULE)
def test_equal_and_empty_tokens_are_finite(model: DeepSeekOcr, layers: LayerByLayer, name: str) -> None:
    some = prompts(model, [torch.ones(21, 256), torch.zeros(21, 256)], [12, 12])
    alive = alive_after(layers, some, EVERY_RULE[name])
    assert len({tuple(row) for row in alive[:, :, some.is_patch].sum(2).T.tolist()}) == 1


@torch.inference_mode()
def test_a_token_that_left_is_as_if_it_were_gone(model: DeepSeekOcr, layers: LayerByLayer) -> None:
    some = prompts(model, [noise(0)], [12])
    stays = torch.ones(some.embeds.shape[1], dtype=torch.bool)
    stays[[2, 8, 9]] = False
    masked = LayeredAttention(some, stays.expand(3, 1, -1).clone())
    places = torch.arange(len(stays))[None]
    whole = layers(some.embeds, places, masked)[:, stays]
    engines = model.decoder_layers
    assert engines is not None
    gone = engines(some.embeds[:, stays], places[:, stays], WatchedAttention(1, 0, model.device))
    torch.testing.assert_close(whole, gone, rtol=1e-4, atol=1e-4)


def test_lazyllm_begins_every_step_with_all_and_counts_exactly(model: DeepSeekOcr) -> None:
    views = [view(0, 12), view(1, 14)]
    read = Offline(model).read(views, LAZYLLM, STEPS)
    assert read.ids == Offline(model).read(views, LAZYLLM, STEPS).ids
    assert read.read == pytest.approx(13 / 16), "a step reads RTPrune's count, on average over layers"
    assert 13 / 16 <= read.held <= 1, "what came back is held, too"
    turned = Offline(model).read(views[::-1], LAZYLLM, STEPS)
    assert turned.ids == read.ids[::-1]


@torch.inference_mode()
def test_lazyllm_revives_a_token_as_dense_reading_had_it(model: DeepSeekOcr, layers: LayerByLayer) -> None:
    some = prompts(model, [noise(0), noise(1)], [16, 16])
    length = some.embeds.shape[1]
    places = torch.arange(length).expand(2, -1)
    dense, lazy = LazyAttention(some, 3), LazyAttention(some, 3)
    layers(some.embeds, places, dense)
    lazy.counts[1:] = 15
    layers(some.embeds, places, lazy)
    left = ~lazy.has_kv[1]
    assert left.sum(1).tolist() == [1, 1]
    assert (some.is_patch | ~left).all(), "a patch"
    before = of_prompt(lazy, 1)
    lazy.counts[:] = 16
    layers(some.embeds[:, -1:], torch.full((2, 1), length), lazy)
    assert lazy.has_kv.all()
    assert (of_prompt(lazy, 1)[:, ~left] == before[:, ~left]).all(), "no layer computes a token twice"
    torch.testing.assert_close(of_prompt(lazy, 1), of_prompt(dense, 1), rtol=1e-4, atol=1e-4)
    both = (of_prompt(one, 2)[:, left] for one in (lazy, dense))
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


def of_prompt(attention: LazyAttention, layer: int) -> torch.Tensor:
    """Keys and values of the prompt's tokens in one layer. (2, B, T, H, K)."""
    length = attention.has_kv.shape[2]
    return torch.stack([one[:, :, :length].transpose(1, 2) for one in attention.held[layer]])


def seen_by_hand(shares: Sequence[torch.Tensor], candidates: torch.Tensor, num_text: int = 2) -> Seen:
    """One view of patches followed by text, about to enter the layer above those of ``shares`` (T, T)."""
    length = candidates.shape[1]
    places = torch.arange(length) < length - num_text
    embeds = torch.zeros(1, length, 2)
    some = Prompts(embeds, places, ~places, ~places[None], torch.tensor([2.0]))
    layers = [one[None, None] for one in shares]
    return Seen(len(shares), len(shares) + 1, some, candidates, layers, [], embeds)


def test_darts_pivots_by_hand() -> None:
    # patches 0 to 7 point at these degrees; 0, 1, 2, 3 have the largest keys, in the order 3, 1, 0, 2
    degrees = torch.tensor([0.0, 0, 0, 90, 10, 80, 170, 200])
    states = torch.stack((degrees.deg2rad().cos(), degrees.deg2rad().sin()), dim=1)
    states = torch.cat((states, torch.tensor([[0.0, -1.0], [1.0, 0.0]])))  # two text tokens
    sizes = torch.tensor([6.0, 8, 5, 9, 1, 2, 3, 4, 1, 2])
    patches, text = torch.arange(8), torch.tensor([8, 9])
    pivots = [3, 1, 0, 2]
    assert dart_choice(sizes, states, patches, text, 4).tolist() == pivots
    # pivot 3, at 90 degrees, is least like 200; pivot 1, at 0 degrees, then least like 170
    assert dart_choice(sizes, states, patches, text, 6).tolist() == [*pivots, 7, 6]
    assert sorted(dart_choice(sizes, states, patches, text, 8).tolist()) == [*range(8)]
    assert dart_choice(sizes, states, patches, text, 1).tolist() == [3]


def test_what_fitprune_may_remove_by_hand() -> None:
    looks = torch.tensor([[4.0, 1, 3, 2]])
    every = torch.ones(1, 4, dtype=torch.bool)
    # 9, 7, 4 and 0 are left after one, two, three and four: two leave 6 at least, less the last of them
    assert removable(looks, every, torch.tensor([6.0])).tolist() == [[False, True, False, False]]
    assert removable(looks, every, torch.tensor([4.0])).tolist() == [[False, True, False, True]]
    assert not removable(looks, every, torch.tensor([10.0])).any()
    assert not removable(looks, every, torch.tensor([99.0])).any(), "less is left than was allowed"
    some = torch.tensor([[True, False, True, True]])
    assert removable(looks, some, torch.tensor([4.0])).tolist() == [[False, False, False, True]]


def test_fitprunes_table_by_hand() -> None:
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4, 0, 0]).expand(6, 6)
    candidates = torch.arange(6)[None] < 4
    runs = []

    def run(rule: Rule) -> None:
        runs.append(rule(seen_by_hand([shares], candidates)))

    cost = Cost(width=1, mlps=(1, 1), others=0)
    assert cost.of([4, 4]) == 120  # n (4 + 2 n + 3) a layer
    # 90 are allowed, and 60 + 39, 60 + 22 cost three and two in the second layer: two must leave
    assert fit_table(run, 4, cost, target=0.25) == [2]
    assert len(runs) == 2 + 7 + 1, "dense, alpha of 1, seven halvings down to a hundredth, the table"
    assert fit_table(run, 4, cost, target=0) == [0]
    with pytest.raises(ValueError, match="no level"):
        fit_table(run, 4, cost, target=0.9)
    stays = follow([2])(seen_by_hand([shares], candidates))
    assert stays.tolist() == [[False, False, True, True, False, False]]


def test_a_rollout_by_hand() -> None:
    first = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.2, 0.6]])
    second = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    candidates = torch.ones(1, 3, dtype=torch.bool)
    one = rollout(seen_by_hand([first], candidates, num_text=1))
    assert one[0].tolist() == pytest.approx([1.35, 0.85, 0.8])  # (sums of columns + 1) / 2
    both = rollout(seen_by_hand([first, second], candidates, num_text=1))
    # rows of half of both layers with the identity: (1 0 0), (.25 .75 0), and .5 of (1 0 0) + (.1 .1 .8)
    assert both[0].tolist() == pytest.approx([1.8, 0.8, 0.4])
    assert counts_of(after_half, seen_by_hand([first], candidates, num_text=1)).tolist() == [2]
