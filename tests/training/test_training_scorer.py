"""The trained scorer: it learns a ranking that is known, and reads no file but its own kind."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.scorer import (
    MASKS,
    NUM_SIGNALS,
    Features,
    Scorer,
    ScorerError,
    fit_policy,
    fit_ranking,
    importance,
    load_scorer,
    save_scorer,
    signals_of,
)

WIDTHS, VIEWS, PATCHES = (12, 8), 96, 16


def features(seed: int, views: int = VIEWS) -> Features:
    generator = torch.Generator().manual_seed(seed)
    depths = tuple(torch.randn(views, PATCHES, width, generator=generator) for width in WIDTHS)
    return Features(depths, torch.randn(views, PATCHES, NUM_SIGNALS, generator=generator))


def known(some: Features) -> torch.Tensor:
    """The ranking to learn: one channel of the second depth and one signal."""
    return (2 * some.depths[1][..., 3] + some.signals[..., 0]).exp()


def scorer_of(seed: int = 0) -> Scorer:
    torch.manual_seed(seed)
    return Scorer(WIDTHS, hidden=16)


def overlap(scores: torch.Tensor, mass: torch.Tensor, count: int = 8) -> float:
    """Share of each view's ``count`` patches of most mass that are among those of the highest scores."""
    best, chosen = (torch.zeros_like(mass).scatter(1, one.topk(count).indices, 1) for one in (mass, scores))
    return float((best * chosen).sum() / best.sum())


def test_regression_learns_a_known_ranking() -> None:
    lessons, unseen = features(1), features(2)
    scorer = scorer_of()
    with torch.no_grad():
        before = overlap(scorer(unseen), known(unseen))
    fit_ranking(scorer, lessons, known(lessons), steps=150, views=32, lr=1e-2)
    with torch.no_grad():
        scores = scorer(unseen)
    assert before < 0.7
    assert overlap(scores, known(unseen)) > 0.85, "of views it never saw"
    again = scorer_of()
    fit_ranking(again, lessons, known(lessons), steps=150, views=32, lr=1e-2)
    with torch.no_grad():
        assert again(unseen).equal(scores), "the same seeds, the same scorer"


def test_policy_gradient_learns_what_readings_need() -> None:
    lessons, unseen = features(1), features(2)
    needed = known(lessons) > known(lessons).median(1, keepdim=True).values  # half of the patches

    def reward(views: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        assert kept.shape == (len(views), MASKS, PATCHES)
        return (kept & needed[views, None]).sum(-1) / needed[views, None].sum(-1)

    scorer = scorer_of()
    with torch.no_grad():
        before = overlap(scorer(unseen), known(unseen))
    fit_policy(scorer, lessons, reward, dropped=0.5, steps=300, views=64, lr=1e-2)
    with torch.no_grad():
        after = overlap(scorer(unseen), known(unseen))
    assert after > max(0.75, before + 0.1)


def test_what_is_learned_is_a_share_within_the_view() -> None:
    mass = torch.tensor([[1.0, 2, 4, 8], [10, 20, 40, 80], [0, 0, 0, 0]])
    learned = importance(mass)
    torch.testing.assert_close(learned[0], learned[1])
    assert (learned[0].diff() > 0).all()
    assert learned[2].tolist() == [0] * 4, "of a view that nothing was read of"


def test_scores_do_not_depend_on_the_batch() -> None:
    scorer, some = scorer_of(), features(3, views=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        together = scorer(some)
        torch.testing.assert_close(scorer(some[order]), together[order])
        torch.testing.assert_close(scorer(some[torch.tensor([2])])[0], together[2])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_and_zero_tokens_are_finite(value: float) -> None:
    depths = tuple(torch.full((2, PATCHES, width), value) for width in WIDTHS)
    flat = torch.full((2, PATCHES), value)
    scores = scorer_of()(Features(depths, signals_of(depths[1], flat, flat)))
    assert scores.isfinite().all()


def test_a_scorer_is_read_as_it_was_written(tmp_path: Path) -> None:
    scorer, some = scorer_of(4), features(5, views=3)
    save_scorer(scorer, tmp_path / "scorer.safetensors")
    with torch.no_grad():
        assert load_scorer(tmp_path / "scorer.safetensors")(some).equal(scorer(some))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    right = {name: tensor.clone() for name, tensor in scorer_of().state_dict().items()}

    def refused(tensors: dict[str, torch.Tensor], why: str) -> None:
        save_file(tensors, path)
        with pytest.raises(ScorerError, match=why):
            load_scorer(path)

    with pytest.raises(ScorerError, match="cannot be read"):
        load_scorer(path)
    torch.save(right, path)  # a pickle
    with pytest.raises(ScorerError, match="cannot be read"):
        load_scorer(path)
    refused({}, "has not the tensors of a scorer")
    refused({"signals.weight": torch.zeros(2)}, "has not the tensors of a scorer")
    refused(right | {"score.weight": torch.zeros(1, 3)}, "do not fit together")
    refused(right | {"more": torch.zeros(1)}, "do not fit together")
    refused({name: one for name, one in right.items() if name != "norm.bias"}, "do not fit together")
    refused(right | {"score.bias": torch.full((1,), torch.nan)}, "finite")
    refused({name: one.half() for name, one in right.items()}, "float32")
    refused(right | {"more": torch.zeros(1 << 19)}, "larger")


def test_features_of_another_encoder_are_refused() -> None:
    other = Features(tuple(torch.zeros(1, PATCHES, width) for width in (12, 9)), features(0, 1).signals)
    with pytest.raises(ScorerError, match="trained on widths"):
        scorer_of()(other)
