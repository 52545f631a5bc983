"""What every rival of RTPrune promises, and choices worked out by hand."""

import pytest
import torch
from rtprune_pages import evidence, layout, page

from rtprune import (
    MERGES,
    METHODS,
    Evidence,
    MissingEvidenceError,
    PrunedTokens,
    RTPruneConfig,
    VisualTokens,
    merge_pruned,
    prune_tokens,
)
from rtprune.evidence import EVIDENCE_NAMES

GRIDS = ((4, 6), (3, 3))
BLIND = {"rtprune", "norm", "random", "uniform", "checkerboard", "row_pooling", "divprune"}


def patches_of(tokens: VisualTokens, pruned: PrunedTokens) -> list[int]:
    """Numbers of the kept patches, counted over patches alone."""
    place = tokens.is_patch.cumsum(0) - 1
    kept: list[int] = place[pruned.kept[tokens.is_patch[pruned.kept]]].tolist()
    return kept


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_what_rtprune_would(name: str) -> None:
    tokens = page(GRIDS)
    for num_kept in (1, 2, 17, 32, 33):
        pruned = METHODS[name](
            tokens, 0, RTPruneConfig((num_kept + 0.5) / 33 if num_kept < 33 else 1.0), evidence(tokens)
        )
        assert pruned.num_kept_patches == len(patches_of(tokens, pruned)) == num_kept
    dynamic = METHODS[name](tokens, 0.1, RTPruneConfig(), evidence(tokens))
    assert dynamic.num_kept_patches == prune_tokens(tokens, 0.1).num_kept_patches


@pytest.mark.parametrize("name", METHODS)
def test_equal_and_zero_tokens_are_finite(name: str) -> None:
    is_patch, config = layout(*GRIDS), RTPruneConfig(0.6)
    for embeds in (torch.zeros(len(is_patch), 4), torch.ones(len(is_patch), 4)):
        tokens = VisualTokens(embeds, is_patch)
        flat = Evidence(
            **{field: torch.ones_like(getattr(evidence(tokens), field)) for field in EVIDENCE_NAMES}
        )
        for seen in (flat, evidence(tokens)):
            pruned = METHODS[name](tokens, 0, config, seen)
            assert pruned.embeds.isfinite().all()
            assert pruned.num_kept_patches == 19


@pytest.mark.parametrize("name", METHODS)
def test_a_choice_depends_on_the_page_alone(name: str) -> None:
    tokens, other, config = page(GRIDS), page(GRIDS, seed=1), RTPruneConfig(0.6)
    first = METHODS[name](tokens, 0, config, evidence(tokens))
    METHODS[name](other, 0, config, evidence(other, 1))
    torch.manual_seed(7)
    again = METHODS[name](tokens, 0, config, evidence(tokens))
    assert again.kept.equal(first.kept)
    assert again.embeds.equal(first.embeds)


@pytest.mark.parametrize("name", sorted(set(METHODS) - BLIND))
def test_what_a_method_needs_is_named(name: str) -> None:
    with pytest.raises(MissingEvidenceError, match=r"evidence\.\w+ is needed"):
        METHODS[name](page(GRIDS), 0, RTPruneConfig(0.5))
    with pytest.raises(ValueError, match="one a patch"):
        METHODS[name](page(GRIDS), 0, RTPruneConfig(0.5), evidence(page(((2, 2),))))


@pytest.mark.parametrize("name", ["divprune", "cdpruner", "vispruner", "visionzip"])
def test_methods_of_cosines_ignore_the_scale(name: str) -> None:
    tokens, config = page(GRIDS), RTPruneConfig(0.6)
    larger = VisualTokens(tokens.embeds * 8, tokens.is_patch)
    small, large = (METHODS[name](one, 0, config, evidence(tokens)) for one in (tokens, larger))
    assert small.kept.equal(large.kept)


def test_plain_patterns_by_hand() -> None:
    tokens = page(((2, 4),))

    def kept(name: str, count: int) -> list[int]:
        return patches_of(tokens, METHODS[name](tokens, 0, RTPruneConfig(count / 8)))

    assert kept("uniform", 4) == [0, 2, 4, 6]
    assert kept("checkerboard", 4) == [0, 2, 5, 7]
    assert kept("checkerboard", 6) == [0, 1, 2, 4, 5, 7]
    assert kept("row_pooling", 4) == [0, 2, 4, 6]
    pooled = METHODS["row_pooling"](tokens, 0, RTPruneConfig(0.5)).embeds
    torch.testing.assert_close(pooled[0], tokens.embeds[:2].mean(0))


def test_attention_of_the_class_token_by_hand() -> None:
    tokens = page(((4, 4),))
    attention = torch.arange(16.0)  # the windows' largest: 5 7 13 15
    seen = Evidence(class_attention=attention, hidden=torch.ones(16, 2))
    assert patches_of(tokens, METHODS["fastervlm"](tokens, 0, RTPruneConfig(0.25), seen)) == [12, 13, 14, 15]
    nuewa = METHODS["nuewa"](tokens, 0, RTPruneConfig(0.25), seen)
    assert patches_of(tokens, nuewa) == [5, 7, 13, 15]
    visionzip = METHODS["visionzip"](tokens, 0, RTPruneConfig(0.25), seen)
    assert patches_of(tokens, visionzip) == [0, 7, 14, 15], "two dominant, every seventh of the rest"
    assert torch.equal(visionzip.embeds[[-3, -4]], tokens.embeds[[18, 17]]), "dominant tokens are unchanged"


def test_visionzip_adds_the_mean_of_what_it_merges() -> None:
    is_patch = layout((1, 4))
    embeds = torch.tensor([[1.0, 0], [3.0, 0], [0, 5.0], [9.0, 9.0], [0, 0], [0, 0]])
    seen = Evidence(class_attention=torch.tensor([0.0, 1, 2, 3]))
    pruned = METHODS["visionzip"](VisualTokens(embeds, is_patch), 0, RTPruneConfig(0.5), seen)
    # 3 is dominant; 0 is contextual and takes in 1 and 2
    assert pruned.embeds[:2].tolist() == [[1 + 1.5, 2.5], [9.0, 9.0]]


def test_cdpruner_takes_no_second_of_two_equal_features() -> None:
    tokens = page(((1, 3),))
    features = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    seen = Evidence(features=features, text=torch.zeros(1, 16))  # of equal relevance
    assert patches_of(tokens, METHODS["cdpruner"](tokens, 0, RTPruneConfig(0.67), seen)) == [0, 2]


def test_merges_by_hand() -> None:
    kept, pruned = torch.eye(2).double(), torch.tensor([[4.0, 0], [2.0, 0], [0, 3.0]]).double()
    assert MERGES["none"](kept, pruned).tolist() == [[0, 0], [0, 0]]
    assert MERGES["argmax_mean"](kept, pruned).tolist() == [[3, 0], [0, 3]]
    assert MERGES["sparsevlm"](kept, pruned).tolist() == [[3, 0], [0, 3]]
    torch.testing.assert_close(MERGES["gtp"](kept, pruned), torch.tensor([[6 / 2**0.5, 0], [0, 3]]).double())


def test_norm_with_the_transport_merge_is_rtprune() -> None:
    tokens, config = page(GRIDS), RTPruneConfig(0.6)
    chosen = METHODS["norm"](tokens, 0, config)
    merged, right = merge_pruned(tokens, chosen, MERGES["transport"]), prune_tokens(tokens, 0, config)
    torch.testing.assert_close(merged.embeds, right.embeds, rtol=0, atol=1e-6)
    for merge in MERGES.values():
        assert merge_pruned(tokens, chosen, merge).embeds.isfinite().all()
        whole = METHODS["norm"](tokens, 0, RTPruneConfig(1.0))
        assert merge_pruned(tokens, whole, merge).embeds.equal(tokens.embeds)
