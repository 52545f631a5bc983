"""The training code: pages from seeds, targets that match the print, growing and resuming without a jump."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.batches import CLASS_OF, batches, to_batch
from training.errors_in_text import character_error_rate, edit_distance
from training.export import export
from training.model import fresh_network, grow_from
from training.render import CELLS_PER_PATCH, PageRenderer, PageStyle, cell_targets
from training.settings import Settings, load_settings
from training.text import TextSource
from training.train import Trainer, learning_rate
from training.vocabulary import ASCII, GROUNDED_PROMPT, PLAIN_PROMPT, build_tokenizer, tokens

REPOSITORY = Path(__file__).parent.parent
FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
STYLE = PageStyle(256, (24, 44), 9)
TEXT = st.text(alphabet=ASCII, max_size=30)

needs_font = pytest.mark.skipif(not FONT.is_file(), reason="needs the Debian package fonts-dejavu-core")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    path.write_text("page\nletter\nfold\nDustbin\nmargin\nquartz\nsphinx\n", encoding="utf-8")
    return path


@pytest.fixture
def renderer(words: Path) -> PageRenderer:
    return PageRenderer(TextSource(words), [FONT])


@pytest.fixture
def small(words: Path) -> Settings:
    """The settings file that ships, with everything small."""
    shipped = load_settings(REPOSITORY / "training/pocket.toml")
    sizes = shipped.model.model_copy(
        update={"sam_width": 32, "sam_layers": 2, "sam_heads": 2, "sam_neck": 16, "sam_downsample": (16, 32)}
        | {"vision_width": 32, "vision_layers": 1, "vision_heads": 2}
        | {"decoder_width": 64, "decoder_layers": 2, "decoder_heads": 2, "decoder_ffn": 64, "expert_ffn": 32}
    )
    run = shipped.run.model_copy(
        update={"batch": 2, "log_every": 1, "save_every": 2, "eval_pages": 2, "threads": 1}
    )
    render = shipped.render.model_copy(
        update={"fonts": (FONT.name,), "font_folder": FONT.parent, "words": words}
    )
    stages = tuple(stage.model_copy(update={"pages": 8, "warmup": 1}) for stage in shipped.stage[:2])
    return shipped.model_copy(update={"model": sizes, "run": run, "render": render, "stage": stages})


@needs_font
def test_a_seed_gives_one_page(renderer: PageRenderer) -> None:
    first, again, other = (renderer.page(seed, STYLE) for seed in (7, 7, 8))
    assert (first.pixels == again.pixels).all()
    assert first.text == again.text
    assert first.text != other.text


@needs_font
def test_every_printed_character_is_marked_in_reading_order(renderer: PageRenderer) -> None:
    for seed in range(40):
        page = renderer.page(seed, STYLE)
        assert "".join(c for _, _, c in page.marks) == "".join(page.text.split())
        assert all(0 <= x < 256 and 0 <= y < 256 for x, y, _ in page.marks)


@needs_font
def test_ink_stands_where_the_marks_are(renderer: PageRenderer) -> None:
    """Cells with a character are darker than the page's paper; a target shifted by a row would not be."""
    for seed in range(20):
        page = renderer.page(seed, STYLE)
        if not page.text:
            continue
        paper = np.median(page.pixels)
        around = [
            page.pixels[int(y) - 12 : int(y) + 12, max(0, int(x) - 8) : int(x) + 8] for x, y, _ in page.marks
        ]
        assert np.mean([patch.min() < paper - 40 for patch in around]) > 0.95


@needs_font
def test_cell_targets_hold_the_marked_characters(renderer: PageRenderer) -> None:
    page = renderer.page(3, STYLE)
    target = cell_targets(page, 256, CLASS_OF)
    assert target.shape == (16, CELLS_PER_PATCH)
    assert set(target[target > 0].tolist()) <= {CLASS_OF[c] for _, _, c in page.marks}
    assert (target > 0).sum() > 0.9 * len(page.marks), "two letters seldom share a cell"


def test_a_missing_font_is_named(words: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ttf"):
        PageRenderer(TextSource(words), [Path("/nowhere.ttf")])


@needs_font
def test_batches_resume_at_any_step(renderer: PageRenderer) -> None:
    stream = batches(renderer, STYLE, 5, 2, 0)
    straight = [next(stream) for _ in range(12)]
    for first_step in (3, 8, 11):
        step, batch = next(batches(renderer, STYLE, 5, 2, first_step))
        assert step == first_step
        assert batch.texts == straight[first_step][1].texts


@given(TEXT)
def test_tokenizer_round_trip(text: str) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_each_prompt_is_short_and_ids_are_the_vocabulary_order() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.encode(GROUNDED_PROMPT, add_special_tokens=False).tokens == [
        "\n",
        "<|grounding|>",
        "Convert the document to markdown.",
    ]
    assert len(tokenizer.encode(PLAIN_PROMPT, add_special_tokens=False).ids) == 2
    assert [tokenizer.token_to_id(token) for token in tokens()] == list(range(len(tokens())))


@given(TEXT, TEXT, TEXT)
@settings(max_examples=50)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_character_error_rate_weighs_pages_by_length_and_ignores_line_breaks() -> None:
    assert character_error_rate(["ab  cd\n"], ["ab\ncd"]) == 0
    assert character_error_rate(["", "abc"], ["x", "abc"]) == pytest.approx(1 / 4)


def test_learning_rate_warms_up_then_falls_to_its_last_value(small: Settings) -> None:
    stage = small.stage[0].model_copy(update={"warmup": 10, "lr": (1.0, 0.1)})
    rates = [learning_rate(stage, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == 1.0
    assert math.isclose(rates[-1], 0.1, rel_tol=0.02)


@needs_font
def test_growing_keeps_the_function_of_the_earlier_network(small: Settings, tmp_path: Path) -> None:
    """A dense decoder with fewer tokens becomes a mixture with more: known tokens keep their scores."""
    grown = fresh_network(small.model, seed=2)
    config = grown.config.__class__.from_dict(grown.config.to_dict())
    config.text_config.mlp_layer_types = ["dense"] * small.model.decoder_layers
    config.text_config.vocab_size = 100
    earlier = grown.__class__(config).eval()
    earlier.save_pretrained(tmp_path)
    grow_from(grown, tmp_path)
    ids = torch.arange(4, 30)[None]
    with torch.inference_mode():
        before, after = earlier(input_ids=ids).logits, grown.eval()(input_ids=ids).logits[..., :100]
    assert (before - after).abs().max() < 0.05 * before.abs().max()


@needs_font
def test_a_run_resumes_where_it_was_killed_and_exports(small: Settings, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    assert Trainer(small, straight, None).train(minutes=10)

    assert not Trainer(small, broken, None).train(minutes=0), "one step, then the budget is spent"
    resumed = Trainer(small, broken, None)
    resumed.resume()
    assert resumed.progress.step == 1
    assert resumed.train(minutes=10)

    states = [torch.load(run / "state.pt", weights_only=True) for run in (straight, broken)]
    for name, tensor in states[0]["network"].items():
        torch.testing.assert_close(states[1]["network"][name], tensor, msg=name)

    export(small, straight, tmp_path / "checkpoint")
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {
        "config.json",
        "model.safetensors",
        "rtprune.json",
        "tokenizer.json",
        "training.json",
    }


@needs_font
def test_pixels_are_normalised_and_texts_end(renderer: PageRenderer) -> None:
    batch = to_batch([renderer.page(seed, STYLE) for seed in range(4)], 256)
    assert batch.pixels.shape == (4, 3, 256, 256)
    assert batch.pixels.min() >= -1
    assert batch.pixels.max() <= 1
    for row, text in zip(batch.text_ids, batch.texts, strict=True):
        assert row[len(text)] == 1, "the end token follows the text"
        assert (row >= 0).sum() == len(text) + 1
