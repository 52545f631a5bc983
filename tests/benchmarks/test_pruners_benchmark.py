"""The comparison of pruners, on a small page: what it reports, and what its evidence is."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image, ImageDraw

from app.ocr.models.deepseek import DeepSeekOcr
from app.pocket.layout.page import cut_page
from app.pocket.opening import load_pocket
from benchmarks.accuracy.report import DOCS
from benchmarks.pruners import inside
from benchmarks.pruners.__main__ import NONE, ROWS, correlations, main
from benchmarks.pruners.evidence import EvidenceBook, evidence_of, rank_correlation
from benchmarks.pruners.report import main as write_docs
from benchmarks.pruners.report import table
from benchmarks.pruners.watched import WatchedAttention, decode_attention, prompts_of, write
from rtprune import METHODS, Evidence, RTPruneConfig
from training.vocabulary import PLAIN_PROMPT

METHODS_TRIED = ("rtprune", "visionzip", "oracle", "norm + gtp")


@pytest.fixture(scope="module")
def model() -> DeepSeekOcr:
    return load_pocket()


def printed(text: str) -> Image.Image:
    image = Image.new("RGB", (420, 60), "white")
    ImageDraw.Draw(image).text((20, 18), text, fill="black", font_size=22)
    return image


def view(text: str) -> Image.Image:
    """The page's one view, as the reader cuts it."""
    return cut_page(printed(text)).views[0].image.convert("RGB")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "english").mkdir()
    printed("Nine plain words").save(folder / "english" / "a.150.png")
    (folder / "english" / "a.txt").write_text("Nine plain words")
    out = folder / "out.json"
    words = ["--documents", str(folder), "--pages", "1", "--methods", *METHODS_TRIED, "--device", "cpu"]
    main([*words, "--threads", "1", "--out", str(out)])
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def test_every_method_has_a_row_at_rtprunes_own_count(run: dict[str, Any]) -> None:
    [checkpoint] = run["checkpoints"]
    rows = {row["method"]: row for row in checkpoint["rows"]}
    assert list(rows) == [NONE, *METHODS_TRIED]
    assert rows[NONE]["kept_patches"] == rows[NONE]["patches"]
    assert len({rows[name]["kept_patches"] for name in METHODS_TRIED}) == 1
    assert rows["rtprune"]["kept_patches"] < rows["rtprune"]["patches"]
    assert rows["rtprune"]["kv_bytes"] < rows[NONE]["kv_bytes"]
    assert all(row["read_again"] == 0 for row in rows.values())
    assert rows[NONE]["prune_ms"] == 0 < rows["rtprune"]["prune_ms"]
    assert set(checkpoint["rank_correlation"]) == {"norm", "class_attention", "ink"}
    assert set(METHODS) < set(ROWS)
    assert "hardware" in run
    assert "commit" in run


def test_figures_become_tables_in_the_documentation(run: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(DOCS / "pruning.md", tmp_path)
    (tmp_path / "pruners.json").write_text(json.dumps(run))
    write_docs([str(tmp_path / "pruners.json"), "--docs", str(tmp_path)])
    written = (tmp_path / "pruning.md").read_text()
    assert all(f"| {name} | " in written for name in (NONE, *METHODS_TRIED))
    assert len({line.count("|") for line in table(run["checkpoints"][0]).splitlines()}) == 1
    assert "Rank correlation with what the decoder looks at" in written


def test_evidence_fits_every_method(model: DeepSeekOcr) -> None:
    views = [model.preprocess(view(text), model.default_mode) for text in ("Nine words", "two more")]
    tokens = model.encode(views)
    found = evidence_of(model, list(zip(views, tokens, strict=True)), PLAIN_PROMPT, max_steps=4)
    alone = evidence_of(model, [(views[1], tokens[1])], PLAIN_PROMPT, max_steps=4)[0]
    for name in ("class_attention", "features", "hidden", "ink", "decode_attention"):
        torch.testing.assert_close(getattr(found[1], name), getattr(alone, name), rtol=1e-3, atol=1e-4)
    network: Any = model.network
    num_heads = network.config.vision_config.encoder_config.num_attention_heads
    class_attention = found[0].class_attention
    assert class_attention is not None
    assert 0 < float(class_attention.sum()) < num_heads, "shares of every head, without the class token's own"
    for name, method in METHODS.items():
        pruned = method(tokens[0], 0.1, RTPruneConfig(0.6), found[0])
        assert pruned.embeds.isfinite().all(), name


def test_what_the_decoder_looks_at_is_of_its_own_greedy_output(model: DeepSeekOcr) -> None:
    views = model.preprocess(view("Nine plain words"), model.default_mode)
    [tokens] = model.encode([views])
    [one] = decode_attention(model, [tokens], PLAIN_PROMPT, max_steps=1)
    [many] = decode_attention(model, [tokens], PLAIN_PROMPT, max_steps=20)
    network: Any = model.network
    per_step = network.config.text_config.num_hidden_layers * network.config.text_config.num_attention_heads
    assert 0 < float(one.sum()) <= per_step
    assert float(many.sum()) > float(one.sum())
    assert (many >= one - 1e-9).all(), "later steps add"


def test_pruning_inside_the_decoder(model: DeepSeekOcr, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [view(text) for text in ("Nine", "plain words")]
    tokens = model.encode([model.preprocess(image, model.default_mode) for image in shown])
    is_patch = torch.nn.functional.pad(tokens[0].is_patch, (1, 0))
    views = [inside.View(one, wanted, 0.1) for one, wanted in zip(tokens, (12, 14), strict=True)]
    whole, kept = inside.read(model, views, inside.NONE, max_steps=12)
    assert kept == 1
    plain = WatchedAttention(2, 0, model.device)
    assert write(model, prompts_of(model, tokens, PLAIN_PROMPT), plain, 12) == whole, "as without masks"
    every = [inside.View(one.tokens, 16, 0.1) for one in views]
    seen = []
    attention = inside.LayeredAttention

    def noted(*given: Any) -> inside.LayeredAttention:
        seen.append(attention(*given))
        return seen[-1]

    monkeypatch.setattr(inside, "LayeredAttention", noted)
    for name, rule in inside.RULES.items():
        assert inside.read(model, every, name, max_steps=12) == (whole, 1.0), "nothing to drop"
        _, kept = inside.read(model, views, name, max_steps=2)
        assert kept == pytest.approx(13 / 16, abs=1 / 32), name
        alive = seen[-1].alive
        assert (alive[1:] <= alive[:-1]).all(), "what left does not come back"
        assert alive[:, :, : len(is_patch)][..., ~is_patch].all(), "bos, row breaks and separator stay"
        assert alive[:, :, len(is_patch) :].all(), "text stays"
        assert rule.counts(16, 12, 3)[0] == 16
        assert sum(rule.counts(16, 12, 3)) == pytest.approx(3 * 12)
    for name in inside.BEFORE:
        assert 0 < inside.read(model, views, name, max_steps=2)[1] < 1


def test_a_masked_token_is_as_if_it_were_gone(model: DeepSeekOcr) -> None:
    [tokens] = model.encode([model.preprocess(view("Nine words"), model.default_mode)])
    embeds = prompts_of(model, [tokens], PLAIN_PROMPT)
    stays = torch.ones(embeds.shape[1], dtype=torch.bool)
    stays[[2, 5, 9]] = False
    layers, network = model.decoder_layers, cast("Any", model.network)
    assert layers is not None
    alive = stays.expand(network.config.text_config.num_hidden_layers, 1, -1)
    masked = inside.LayeredAttention(alive, stays, torch.ones(1), stays[None], None)
    at = torch.arange(len(stays))[None]
    with torch.inference_mode():
        whole = layers(embeds, at, masked)[:, -1]
        gone = layers(embeds[:, stays], at[:, stays], WatchedAttention(1, 0, model.device))[:, -1]
    torch.testing.assert_close(whole, gone, rtol=1e-4, atol=1e-4)


def test_rank_correlation_by_hand() -> None:
    order = torch.tensor([1.0, 2, 3, 4])
    assert rank_correlation(order, order * 7) == pytest.approx(1)
    assert rank_correlation(order, -order) == pytest.approx(-1)
    assert rank_correlation(order, torch.ones(4)) is None
    # ranks 1 2.5 2.5 4 against 1 2 3 4
    assert rank_correlation(torch.tensor([1.0, 5, 5, 9]), order) == pytest.approx(0.9487, abs=1e-4)
    book = EvidenceBook(PLAIN_PROMPT)
    book.norms.append(order)
    book.found.append(Evidence(decode_attention=order, ink=-order))
    assert correlations(book) == {"norm": 1.0, "class_attention": None, "ink": -1.0}
