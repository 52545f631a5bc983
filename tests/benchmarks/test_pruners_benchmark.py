"""The comparison of pruners, on a small page: what it reports, and what its evidence is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pocket_views import printed, view

from app.ocr.models.deepseek import DeepSeekOcr
from app.pocket.opening import load_pocket
from benchmarks.accuracy.report import DOCS
from benchmarks.pruners.__main__ import NONE, correlations, main
from benchmarks.pruners.before import PAGES_SEEN, NoHistoryError, export_before
from benchmarks.pruners.evidence import EvidenceBook, evidence_of, rank_correlation
from benchmarks.pruners.pages import own_pages, sample_page
from benchmarks.pruners.report import main as write_docs
from benchmarks.pruners.report import table
from benchmarks.pruners.rows import ROWS
from benchmarks.pruners.watched import decode_attention
from rtprune import METHODS, Evidence, RTPruneConfig
from training.vocabulary import PLAIN_PROMPT

METHODS_TRIED = ("rtprune", "visionzip", "oracle", "norm + gtp")
INSIDE_TRIED = ("fastv", "fitprune")


@pytest.fixture(scope="module")
def model() -> DeepSeekOcr:
    return load_pocket()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "english").mkdir()
    printed("Nine plain words").save(folder / "english" / "a.150.png")
    (folder / "english" / "a.txt").write_text("Nine plain words")
    out = folder / "out.json"
    words = ["--documents", str(folder), "--pages", "1", "--methods", *METHODS_TRIED, *INSIDE_TRIED]
    main([*words, "--checkpoint", "pocket", "--device", "cpu", "--threads", "1", "--out", str(out)])
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
    assert [row["method"] for row in checkpoint["inside"]["rows"]] == [NONE, "norm", "rtprune", *INSIDE_TRIED]
    assert checkpoint["inside"]["rows"][0]["error_to_unpruned"] == 0
    assert "hardware" in run
    assert "commit" in run


def test_figures_become_tables_in_the_documentation(run: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(DOCS / "pruning.md", tmp_path)
    (tmp_path / "pruners.json").write_text(json.dumps(run))
    write_docs([str(tmp_path / "pruners.json"), "--docs", str(tmp_path)])
    written = (tmp_path / "pruning.md").read_text()
    assert all(f"| {name} | " in written for name in (NONE, *METHODS_TRIED, *INSIDE_TRIED))
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


def test_a_page_is_encoded_once_whatever_prunes_it(
    model: DeepSeekOcr, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = DeepSeekOcr.encode, []

    def counted(model: DeepSeekOcr, pages: Any) -> Any:
        encoded.append(len(pages))
        return encode(model, pages)

    monkeypatch.setattr(DeepSeekOcr, "encode", counted)
    views = [model.preprocess(view(text), model.default_mode) for text in ("Nine", "words", "Nine")]
    book = EvidenceBook(PLAIN_PROMPT, max_steps=1)
    with book.collecting():
        first, second, again = model.encode(views)
        assert first is again
        assert model.encode(views[1:2]) == [second]
    assert encoded == [2]
    assert book.of(first) is not book.of(second)
    assert len(book.found) == len(book.norms) == 2


def test_pages_of_its_own_need_no_fonts_and_are_the_same_in_every_run() -> None:
    first, again = (own_pages(2).samples for _ in range(2))
    assert [page.text for page in first] == [page.text for page in again]
    assert [page.image.tobytes() for page in first] == [page.image.tobytes() for page in again]
    [sample] = sample_page().samples
    assert len({page.text for page in (*first, sample)}) == 3
    assert all(page.text.isascii() and 1_000 < len(page.text) < 5_000 for page in (*first, sample))


def test_weights_from_before_pruning_come_out_of_the_history(tmp_path: Path) -> None:
    with pytest.raises(NoHistoryError, match="history"):
        export_before(tmp_path / "nothing", root=tmp_path)
    try:
        folder = export_before(tmp_path / "before")
    except NoHistoryError:
        return  # a shallow checkout: the command reports it
    assert json.loads((folder / "training.json").read_text())["pages_seen"] == PAGES_SEEN
    assert load_pocket(folder=folder).name


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
