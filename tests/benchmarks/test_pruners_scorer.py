"""The trained scorer on the pocket checkpoint: what it sees, what it is rewarded for, at which counts it is
measured.
"""

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from pocket_views import printed, view

import training.scorer
from app.ocr.engine import vision
from app.ocr.models.deepseek import DeepSeekOcr
from app.pocket.opening import load_pocket
from benchmarks.accuracy.pages import Kind, Sample
from benchmarks.pruners import scorer as command
from benchmarks.pruners.__main__ import measure
from benchmarks.pruners.evidence import EvidenceBook
from benchmarks.pruners.watched import WatchedAttention, prompts_of, write
from rtprune import RTPruneConfig, prune_tokens
from training.scorer import WEIGHTS, Scorer, encoder_depths, fit_ranking, load_scorer, view_scores
from training.vocabulary import EOS, PLAIN_PROMPT


@pytest.fixture(scope="module")
def model() -> DeepSeekOcr:
    return load_pocket()


def written(model: DeepSeekOcr, image: Image.Image) -> list[int]:
    """Ids of the unpruned greedy reading, the end token last."""
    tokens = model.encode([model.preprocess(image, model.default_mode)])
    embeds = prompts_of(model, tokens, PLAIN_PROMPT)
    return [*write(model, embeds, WatchedAttention(1, 0, model.device), 40)[0], EOS]


def test_the_shipped_scorer_fits_the_pocket_checkpoint(model: DeepSeekOcr) -> None:
    assert WEIGHTS.stat().st_size < 200_000
    shown = [model.preprocess(view(text), model.default_mode) for text in ("Nine words", "plain")]
    pixels = torch.stack([one.view for one in shown])
    depths = encoder_depths(model.network, pixels)
    assert load_scorer(WEIGHTS).widths == tuple(depth.shape[-1] for depth in depths)
    for one, tokens in zip(depths[-1], model.encode(shown), strict=True):
        torch.testing.assert_close(one, tokens.embeds[tokens.is_patch].float(), rtol=1e-3, atol=1e-3)
    flat = torch.zeros(depths[0].shape[:2])
    scores = view_scores(model.network, pixels, flat, flat)
    assert scores is not None
    assert scores.shape == flat.shape
    assert scores.isfinite().all()
    other = Scorer([width + 1 for width in load_scorer(WEIGHTS).widths])
    assert view_scores(model.network, pixels, flat, flat, other) is None


def test_the_reward_is_what_is_read_through_a_mask(model: DeepSeekOcr) -> None:
    images = [view(text) for text in ("Nine plain words", "two")]
    lessons = command.learned_from(model, [(image, written(model, image)) for image in images])
    every = torch.ones(2, 1, 16, dtype=torch.bool)
    right, likely = command.reading_on(model, lessons, [0, 1], every)
    assert right.tolist() == [[1], [1]], "its own greedy reading, with nothing hidden"
    masks = torch.cat((every, ~every), dim=1)
    reward = command.reward_of(model, lessons)(torch.tensor([1, 0]), masks)
    assert reward.shape == (2, 2)
    assert reward[:, 0].tolist() == [1, 1]
    assert (reward[:, 1] < 1).all(), "nothing can be read of hidden patches"
    alone, _ = command.reading_on(model, lessons, [0], masks[:1])
    torch.testing.assert_close(alone[0], reward[1])
    assert (likely < 0).all()
    best = command.check(model, lessons, lessons.mass)
    worst = command.check(model, lessons, -lessons.mass)
    assert best["attention_covered"] > worst["attention_covered"]
    assert best["log_probability"] > worst["log_probability"]


def test_lessons_can_be_learned_from(model: DeepSeekOcr) -> None:
    image = view("Nine plain words")
    lessons = command.learned_from(model, [(image, [EOS]), (image, [EOS])])
    torch.manual_seed(0)
    scorer = Scorer(lessons.features.widths)
    fit_ranking(scorer, lessons.features, lessons.mass, steps=40)
    with torch.no_grad():
        scores = scorer(lessons.features)
    assert float(torch.corrcoef(torch.stack((scores[0], lessons.mass[0].float().log())))[0, 1]) > 0.7


def test_counts_are_shares_of_rtprunes_own(model: DeepSeekOcr) -> None:
    [tokens] = model.encode([model.preprocess(view("Nine plain words"), model.default_mode)])
    own = prune_tokens(tokens, 0.1).num_kept_patches
    assert own < 16
    book = cast("EvidenceBook", type("NoBook", (), {"of": lambda *_: None})())
    for share in (1.0, 0.6, 0.01):
        with command.pruning_by("norm", share, book):
            [pruned] = cast("Any", vision).prune_batch([tokens], [0.1], RTPruneConfig())
        assert pruned.num_kept_patches == max(1, round(share * own))


def test_the_command_measures_the_shipped_scorer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Kind("own", (Sample("a", printed("Nine plain words"), "Nine plain words"),))
    monkeypatch.setattr(command, "own_pages", lambda _: page)
    out = tmp_path / "scorer.json"
    out.write_text(json.dumps({"training": {"views": 3}}))
    command.main(["--pages", "1", "--methods", "norm", "trained", "--out", str(out)])
    figures: dict[str, Any] = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["training"] == {"views": 3}, "what the file said of the training stays"
    rows = {(row["method"], row["share_of_own_count"]): row for row in figures["rows"]}
    assert len(rows) == len(figures["rows"]) == 5
    for share in command.SHARES:
        assert rows["norm", share]["kept_patches"] == rows["trained", share]["kept_patches"]
    assert rows["norm", 0.6]["kept_patches"] < rows["norm", 1.0]["kept_patches"]
    assert rows["none", 1.0]["kept_patches"] == rows["none", 1.0]["patches"]


def test_a_checkpoint_without_scorer_has_no_row_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.scorer, "shipped_scorer", lambda: None)
    page = Kind("own", (Sample("a", printed("Nine plain words"), "Nine plain words"),))
    figures: dict[str, Any] = asyncio.run(measure("pocket", "cpu", page, ["norm", "trained"]))
    assert [row["method"] for row in figures["rows"]] == ["none", "norm"]
