"""The whole method: against float64 loops from the formulas, and the properties that hold for any page."""

import doctest

import numpy as np
import pytest
import rtprune_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rtprune_pages import MODES, Grid, densities, evidence, fixed_ratios, grids, layout, page, ratios, seeds

import rtprune
from rtprune import METHODS, PrunedTokens, RTPruneConfig, VisualTokens, prune_batch, prune_tokens
from rtprune.tokens import _parts, _together

REWRITING = ("rtprune", "visionzip", "nuewa", "row_pooling")
"""Methods that change what they keep."""
HALVES = [torch.bfloat16, torch.float16]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def expected(tokens: VisualTokens, density: float, ratio: float | None) -> oracle.Pruned:
    return oracle.prune(tokens.embeds.double().numpy(), tokens.is_patch.tolist(), density, ratio)


@settings(max_examples=60, deadline=None)
@given(grids=grids, seed=seeds, density=densities, ratio=ratios)
def test_agrees_with_the_formulas(
    grids: tuple[Grid, ...], seed: int, density: float, ratio: float | None
) -> None:
    tokens = page(grids, seed=seed)
    pruned, right = prune_tokens(tokens, density, RTPruneConfig(ratio)), expected(tokens, density, ratio)
    if pruned.num_kept_patches != right.num_kept_patches:
        # the count truncates: where the product is a whole number, the last bit of the ratio decides
        product = right.keep_ratio * int(tokens.is_patch.sum())
        assert product == pytest.approx(round(product), abs=1e-6)
        right = expected(tokens, density, pruned.keep_ratio)
    assert pruned.kept.tolist() == right.kept
    assert pruned.num_kept_patches == right.num_kept_patches
    assert pruned.keep_ratio == pytest.approx(min(right.keep_ratio, 1), abs=1e-7)
    np.testing.assert_allclose(pruned.embeds, right.embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["tiny", "base"])
def test_agrees_with_the_formulas_at_full_size(mode: str) -> None:
    tokens = page(MODES[mode][0], hidden=64)
    pruned, right = prune_tokens(tokens, 0.1), expected(tokens, 0.1, None)
    assert pruned.kept.tolist() == right.kept
    np.testing.assert_allclose(pruned.embeds, right.embeds, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    pages=st.lists(st.tuples(grids, seeds, densities), min_size=1, max_size=5),
    ratio=ratios,
    solver=st.sampled_from(["sinkhorn", "pot"]),
    as_tensor=st.booleans(),
)
def test_a_batch_gives_each_page_its_own_answer(
    pages: list[tuple[tuple[Grid, ...], int, float]], ratio: float | None, solver: str, as_tensor: bool
) -> None:
    config = RTPruneConfig(ratio, solver="pot" if solver == "pot" else "sinkhorn")
    tokens = [page(grids, seed=seed) for grids, seed, _ in pages]
    given_densities = [density for _, _, density in pages]
    values = torch.tensor(given_densities, dtype=torch.float64) if as_tensor else given_densities
    for one, density, together in zip(
        tokens, given_densities, prune_batch(tokens, values, config), strict=True
    ):
        alone = prune_tokens(one, density, config)
        assert together.kept.tolist() == alone.kept.tolist()
        assert (together.num_patches, together.num_kept_patches) == (
            alone.num_patches,
            alone.num_kept_patches,
        )
        assert (together.keep_ratio, together.diversity) == (alone.keep_ratio, alone.diversity)
        torch.testing.assert_close(together.embeds, alone.embeds, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(grids=grids, seed=seeds, ratio=fixed_ratios)
def test_pot_is_a_second_opinion(grids: tuple[Grid, ...], seed: int, ratio: float) -> None:
    tokens = page(grids, seed=seed)
    ours, theirs = (prune_tokens(tokens, 0, RTPruneConfig(ratio, solver)) for solver in ("sinkhorn", "pot"))
    assert ours.kept.tolist() == theirs.kept.tolist()
    torch.testing.assert_close(ours.embeds, theirs.embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=20, deadline=None)
@given(grids=grids, seed=seeds, density=densities, ratio=ratios)
def test_contract_of_every_method(
    name: str, grids: tuple[Grid, ...], seed: int, density: float, ratio: float | None
) -> None:
    tokens = page(grids, seed=seed)
    before = bits(tokens.embeds), bits(tokens.is_patch)
    pruned = METHODS[name](tokens, density, RTPruneConfig(ratio), evidence(tokens, seed))
    assert (bits(tokens.embeds), bits(tokens.is_patch)) == before, "inputs are never changed"
    check_contract(tokens, pruned)
    assert pruned.num_kept_patches == max(1, int(pruned.num_patches * pruned.keep_ratio))
    assert (pruned.diversity is None) == (ratio is not None)
    if name not in REWRITING:
        assert bits(pruned.embeds) == bits(tokens.embeds[pruned.kept]), "no fold"


def check_contract(tokens: VisualTokens, pruned: PrunedTokens) -> None:
    kept = pruned.kept.tolist()
    assert pruned.kept.dtype == torch.int64
    assert kept == sorted(set(kept)), "page order"
    assert kept[-1] == len(tokens.embeds) - 1, "the separator stays"
    assert pruned.embeds.shape == (len(kept), tokens.embeds.shape[1])
    assert pruned.embeds.dtype == tokens.embeds.dtype
    assert pruned.num_tokens == len(tokens.embeds)
    patches = tokens.is_patch[pruned.kept]
    assert (int(patches.sum()), int(tokens.is_patch.sum())) == (pruned.num_kept_patches, pruned.num_patches)
    if pruned.num_kept_patches < pruned.num_patches:
        assert not (~patches[:-2] & ~patches[1:-1]).any(), "no two row breaks are neighbours"
    others = pruned.kept[~patches]
    assert bits(pruned.embeds[~patches]) == bits(tokens.embeds[others]), "only patch tokens receive"


@pytest.mark.parametrize("mode", MODES)
def test_sequence_lengths_of_the_modes(mode: str) -> None:
    shapes, length = MODES[mode]
    tokens = page(shapes, hidden=4)
    pruned = prune_tokens(tokens, 0, RTPruneConfig(0.5))
    assert pruned.num_tokens == length
    assert pruned.num_patches == sum(rows * columns for rows, columns in shapes)
    assert pruned.num_kept_patches == pruned.num_patches // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("solver", ["sinkhorn", "pot"])
def test_a_ratio_of_one_changes_no_bit(
    dtype: torch.dtype, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = page(((3, 4), (2, 2)), dtype=dtype), page(((5, 5),), dtype=dtype)
    whole.embeds[::3, ::2] = -0.0
    pruned = prune_tokens(whole, 0.3, RTPruneConfig(1.0, "pot" if solver == "pot" else "sinkhorn"))
    assert bits(pruned.embeds) == bits(whole.embeds)
    assert pruned.kept.tolist() == list(range(len(whole.embeds)))
    # the same beside a page that does lose tokens: orthogonal tokens have diversity 1, so all of them stay
    embeds = torch.where(torch.eye(len(whole.embeds), 16).bool(), 1.0, -0.0)
    orthogonal = VisualTokens(embeds.to(dtype), whole.is_patch)
    for gather_in in (_parts, _together):
        monkeypatch.setattr(rtprune.tokens, "_parts", gather_in)
        beside = prune_batch([orthogonal, part], [0.0, 0.0])
        assert beside[1].num_kept_patches < beside[1].num_patches
        assert bits(beside[0].embeds) == bits(orthogonal.embeds)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    tokens = page(((6, 6),), dtype=dtype)
    pruned, right = prune_tokens(tokens, 0, RTPruneConfig(0.4)), expected(tokens, 0, 0.4)
    exact = torch.from_numpy(right.embeds)
    assert pruned.kept.tolist() == right.kept
    # half a unit in the last place, and what float32 may turn at a tie
    error = (pruned.embeds.double() - exact).abs()
    assert (error <= exact.abs() * torch.finfo(dtype).eps * 0.501 + 1e-6).all()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_global_precision_and_autocast_change_nothing_that_matters(precision: str) -> None:
    tokens = page(MODES["small"][0], hidden=256)
    right = expected(tokens, 0.1, None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pruned = prune_tokens(tokens, 0.1)
    finally:
        torch.set_float32_matmul_precision(before)
    assert pruned.kept.tolist() == right.kept
    np.testing.assert_allclose(pruned.embeds, right.embeds, rtol=0, atol=1e-5)


def test_a_precision_that_cannot_be_asked_for_is_taken_as_coarse() -> None:
    tokens = page(MODES["small"][0], hidden=256)
    right = expected(tokens, 0.1, None)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # after this torch refuses the older question
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        pruned = prune_tokens(tokens, 0.1)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert pruned.kept.tolist() == right.kept
    np.testing.assert_allclose(pruned.embeds, right.embeds, rtol=0, atol=1e-5)


@given(count=st.integers(1, 40), ratio=fixed_ratios)
def test_count_is_pythons_truncation(count: int, ratio: float) -> None:
    pruned = prune_tokens(page(((1, count),), hidden=2), 0, RTPruneConfig(ratio))
    assert pruned.num_kept_patches == max(1, int(count * ratio))


def test_count_where_decimal_and_binary_differ() -> None:
    assert int(100 * 0.29) == 28, "0.29 is a little less than 29 hundredths"
    assert prune_tokens(page(((10, 10),)), 0, RTPruneConfig(0.29)).num_kept_patches == 28


def test_ties_go_to_the_earlier_token() -> None:
    is_patch = layout((20, 20))
    embeds = torch.ones(len(is_patch), 8)
    embeds[::2] *= -1  # other tokens, equal norms
    pruned = prune_tokens(VisualTokens(embeds, is_patch), 0, RTPruneConfig(0.5))
    assert pruned.kept[is_patch[pruned.kept]].tolist() == is_patch.nonzero()[:200, 0].tolist()


@pytest.mark.parametrize(
    ("strong", "kept"),
    [
        ([0, 1], [0, 1, 2, 12]),  # rows behind emptied: their breaks follow the first row's
        ([9, 10], [2, 9, 10, 11, 12]),  # rows in front emptied: one leading break stays
        ([0, 10], [0, 2, 10, 11, 12]),  # rows between emptied
        ([4], [2, 4, 5, 12]),
    ],
)
def test_emptied_rows_leave_no_trace(strong: list[int], kept: list[int]) -> None:
    is_patch = layout((4, 2))  # patches 0 1 | 3 4 | 6 7 | 9 10, breaks 2 5 8 11, separator 12
    embeds = torch.full((13, 3), 0.1)
    embeds[strong] = 1.0
    pruned = prune_tokens(VisualTokens(embeds, is_patch), 0, RTPruneConfig(len(strong) / 8))
    assert pruned.kept.tolist() == kept


def test_views_are_ranked_in_one_pool() -> None:
    is_patch = layout((2, 2), (1, 2))  # tiles 0 1 | 3 4, global view 6 7
    embeds = torch.full((10, 3), 0.1)
    embeds[[6, 7]] = 1.0
    pruned = prune_tokens(VisualTokens(embeds, is_patch), 0, RTPruneConfig(0.5))
    assert pruned.kept.tolist() == [0, 2, 6, 7, 8, 9]


def test_tokens_of_norm_zero_are_pruned_without_a_nan() -> None:
    tokens = page(((3, 3),))
    tokens.embeds[:3] = 0
    assert prune_tokens(tokens, 0).embeds.isfinite().all()
    tokens.embeds[:] = 0
    assert prune_tokens(tokens, 0, RTPruneConfig(0.5)).embeds.count_nonzero() == 0


def test_random_choice_depends_on_the_seed_alone() -> None:
    tokens, config = page(((8, 8),)), RTPruneConfig(0.5)
    first, again, other = (
        rtprune.baselines.select_at_random(tokens, 0, config, seed=seed).kept.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_diverse_choice_skips_duplicates() -> None:
    embeds = torch.eye(4)[[0, 0, 0, 1, 2, 3, 3]] * torch.tensor([9.0, 9, 9, 1, 1, 1, 1])[:, None]
    is_patch = torch.tensor([True] * 5 + [False] * 2)
    pruned = METHODS["divprune"](VisualTokens(embeds, is_patch), 0, RTPruneConfig(0.6))
    assert {tuple(row) for row in pruned.embeds[:3].sign().tolist()} == {
        tuple(r) for r in torch.eye(4)[:3].tolist()
    }


def test_no_page_gives_no_page() -> None:
    assert prune_batch([], []) == []


@pytest.mark.parametrize("module", [rtprune, rtprune.ratio, rtprune.transport])
def test_examples_in_docstrings(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0


@given(grids, seeds, ratios)
def test_a_trace_says_of_each_pruned_patch_where_it_went_and_changes_nothing(
    shapes: tuple[Grid, ...], seed: int, ratio: float | None
) -> None:
    one = page(shapes, seed=seed)
    plain = prune_tokens(one, 0.2, RTPruneConfig(keep_ratio=ratio))
    traced = prune_tokens(one, 0.2, RTPruneConfig(keep_ratio=ratio, trace=True))
    assert plain.folds is None
    assert torch.equal(plain.embeds, traced.embeds)
    kept = set(traced.kept.tolist())
    patches = set(one.is_patch.nonzero()[:, 0].tolist())
    if traced.folds is None:
        assert patches <= kept
        return
    assert traced.folds.pruned.tolist() == sorted(patches - kept)
    assert set(traced.folds.into.tolist()) <= kept & patches
    assert ((traced.folds.share > 0) & (traced.folds.share <= 1)).all()
