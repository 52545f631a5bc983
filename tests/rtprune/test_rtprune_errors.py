"""Bad pages: each error names the value, and in a batch the page."""

import re

import pytest
import torch
from rtprune_pages import evidence, layout, page

from rtprune import METHODS, InvalidPagesError, RTPruneConfig, VisualTokens, prune_batch, prune_tokens

NAN = float("nan")


@pytest.mark.parametrize(
    ("shape", "is_patch", "message"),
    [
        ((3,), [True, False, False], "(3,)"),
        ((0, 4), [], "(0, 4)"),
        ((3, 0), [True, False, False], "(3, 0)"),
        ((3, 4), [True, False], "(2,)"),
        ((3, 4), [True, False, True], "separator"),
        ((3, 4), [True, True, True], "separator"),
        ((3, 4), [False, False, False], "no patch"),
    ],
)
def test_wrong_layouts(shape: tuple[int, ...], is_patch: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        VisualTokens(torch.zeros(shape), torch.tensor(is_patch, dtype=torch.bool))


@pytest.mark.parametrize(("embeds", "mask"), [(torch.int64, torch.bool), (torch.float32, torch.int64)])
def test_wrong_dtypes(embeds: torch.dtype, mask: torch.dtype) -> None:
    with pytest.raises(ValueError, match="int64"):
        VisualTokens(torch.ones(3, 4, dtype=embeds), torch.tensor([1, 1, 0], dtype=mask))


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, NAN, float("inf")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"keep_ratio must be in (0, 1], got {ratio}")):
        RTPruneConfig(ratio)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("density", [-0.01, 1.01, NAN])
@pytest.mark.parametrize("ratio", [None, 0.5])
def test_density_out_of_range(name: str, density: float, ratio: float | None) -> None:
    with pytest.raises(ValueError, match=re.escape(f"density must be in [0, 1], got {density}")):
        METHODS[name](page(((3, 3),)), density, RTPruneConfig(ratio), evidence(page(((3, 3),))))


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 3, 12])  # a patch, a row break, the separator
def test_tokens_that_are_not_finite(value: float, position: int) -> None:
    tokens = page(((3, 3),))
    tokens.embeds[position, 1] = value
    with pytest.raises(ValueError, match="finite"):
        prune_tokens(tokens, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_finite_tokens_are_finite(dtype: torch.dtype) -> None:
    embeds = torch.full((4, 2), torch.finfo(dtype).max, dtype=dtype)
    pruned = prune_tokens(VisualTokens(embeds, torch.tensor([True, True, False, False])), 1.0)
    assert torch.equal(pruned.embeds, embeds)


def test_a_batch_names_its_bad_pages_and_the_others_can_go_on() -> None:
    pages = [page(((3, 3),), seed=seed) for seed in range(4)]
    pages[1].embeds[0, 0] = NAN
    densities = [0.1, 0.1, 0.1, 7.0]
    with pytest.raises(InvalidPagesError, match=r"page 1: .*finite.*; page 3: .*7\.0") as caught:
        prune_batch(pages, densities)
    assert caught.value.indices == (1, 3)
    good = [index for index in range(4) if index not in caught.value.indices]
    assert len(prune_batch([pages[i] for i in good], [densities[i] for i in good])) == 2


def test_a_layout_that_only_the_device_knows_is_found_when_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisualTokens, "__post_init__", lambda _: None)  # as for a mask on a GPU
    good, missing = page(((2, 2),)), VisualTokens(torch.ones(3, 16), torch.ones(3, dtype=torch.bool))
    empty = VisualTokens(torch.ones(3, 16), torch.zeros(3, dtype=torch.bool))
    for config in (RTPruneConfig(), RTPruneConfig(0.5)):
        with pytest.raises(InvalidPagesError) as caught:
            prune_batch([missing, good, empty], [0.1] * 3, config)
        assert set(caught.value.reasons) == {0, 2}
        assert "separator" in caught.value.reasons[0]
        assert "no patch" in caught.value.reasons[2]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_an_empty_layout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisualTokens, "__post_init__", lambda _: None)
    with pytest.raises(ValueError, match="no patch"):
        METHODS[name](VisualTokens(torch.ones(3, 4), torch.zeros(3, dtype=torch.bool)), 0.1, RTPruneConfig())


def test_pages_that_make_no_batch() -> None:
    narrow = VisualTokens(torch.ones(5, 3), layout((1, 3)))
    half = page(((1, 3),), dtype=torch.float16)
    for other in (narrow, half):
        with pytest.raises(ValueError, match="page 1 has"):
            prune_batch([page(((1, 3),)), other], [0, 0])


@pytest.mark.parametrize("densities", [[], [0.1, 0.1], torch.zeros(2), torch.zeros(1, 1)])
def test_one_density_a_page(densities: list[float] | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="densities"):
        prune_batch([page(((2, 2),))], densities)
