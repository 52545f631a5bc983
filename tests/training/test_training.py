"""The training code: what it reads and is taught by, growing, resuming without a jump."""

import io
import math
import os
import random
import socket
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from training_pages import FAMILY, FONT, FULL, LINES, SMALL, needs_font, page_renderer, word_list

from app.ocr.models.deepseek import load_model
from app.ocr.models.sam_attention import fused
from training.attention import blocked_causal, plain
from training.batches import CLASS_OF, Renderers, Steps, batches, to_batch
from training.errors_in_text import character_error_rate, edit_distance
from training.export import export
from training.facts import read_facts
from training.lines import LineRenderer
from training.losses import dense_loss
from training.model import fresh_network, grow_from
from training.render import CELLS_PER_PATCH, PageStyle
from training.seen import Seen, attention_masks, prune
from training.settings import Settings, View, load_settings
from training.text import TextSource
from training.train import Trainer, learning_rate
from training.vocabulary import ASCII, BOS, GROUNDED_PROMPT, PLAIN_PROMPT, build_tokenizer, tokens

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = st.text(alphabet=ASCII, max_size=30)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return word_list(tmp_path)


@pytest.fixture
def renderers(words: Path) -> Renderers:
    return Renderers(page_renderer(words), LineRenderer(TextSource(words), [FAMILY]))


@pytest.fixture
def small(words: Path) -> Settings:
    """The settings file that ships, with everything small."""
    shipped = load_settings(REPOSITORY / "training/pocket.toml")
    sizes = shipped.model.model_copy(
        update={
            "view_px": 2048,
            "sam_width": 32,
            "sam_layers": 2,
            "sam_heads": 2,
            "sam_neck": 16,
            "sam_downsample": (16, 32),
        }
        | {"vision_width": 32, "vision_layers": 1, "vision_heads": 2}
        | {"decoder_width": 64, "decoder_layers": 2, "decoder_heads": 2, "decoder_ffn": 64, "expert_ffn": 32}
    )
    run = shipped.run.model_copy(
        update={
            "megapixels": 0.1,
            "render_processes": 0,
            "log_every": 1,
            "save_every": 2,
            "eval_every": 3,
            "eval_pages": 2,
        }
    )
    pair = (FONT.name, FONT.name)
    render = shipped.render.model_copy(
        update={"fonts": (pair,), "held_out": (pair,), "folders": (FONT.parent,), "words": words}
    )
    views = (View(px=256, em_px=(24, 44), scale=(0.8, 1.0)), View(px=512, em_px=(24, 44), scale=(0.6, 0.8)))
    stages = tuple(
        stage.model_copy(
            update={"steps": 4, "warmup": 1, "views": views, "max_characters": 60, "pruned_share": 0.5}
        )
        for stage in shipped.stage[:2]
    )
    return shipped.model_copy(update={"model": sizes, "run": run, "render": render, "stage": stages})


@needs_font
def test_batches_resume_at_any_step(renderers: Renderers) -> None:
    steps = Steps(renderers, [SMALL, FULL, LINES], 3 * 256**2, 5)
    straight = list(batches(steps, 0, 6, processes=0))
    assert {len(batch) for _, batch in straight} == {3, 1}
    for first_step, processes in ((2, 0), (5, 1)):
        step, batch = next(batches(steps, first_step, 6, processes))
        assert step == first_step
        assert (batch.views == straight[first_step][1].views).all()
        assert [len(answer.ids) for answer in batch.plain] == [
            len(answer.ids) for answer in straight[first_step][1].plain
        ]


@needs_font
def test_a_batch_holds_no_more_files_open_the_more_pages_it_has(renderers: Renderers) -> None:
    """A tensor that a process hands over holds a file open: dozens of processes with large batches."""
    handed: list[torch.Tensor] = []

    def tensors_in(pages: int) -> int:
        steps = Steps(renderers, [LINES], pages * 256**2, 5)
        ((_, batch),) = batches(steps, 0, 1, processes=0)
        assert len(batch) == pages
        handed.clear()
        pickler = ForkingPickler(io.BytesIO())
        pickler.dispatch_table = dict(pickler.dispatch_table) | {torch.Tensor: noted}
        pickler.dump(batch)
        return len(handed)

    def noted(tensor: torch.Tensor) -> tuple[type, tuple[()]]:
        handed.append(tensor)
        return torch.Tensor, ()

    assert tensors_in(1) == tensors_in(5) > 0


@needs_font
def test_a_stage_may_have_larger_steps_than_the_run(small: Settings, tmp_path: Path) -> None:
    first, *others = small.stage
    one_view = 256**2 / 1e6
    larger = first.model_copy(
        update={"steps": 1, "megapixels": 3 * one_view, "views": (small.stage[0].views[0],)}
    )
    settings = small.model_copy(update={"stage": (larger, *others)})
    trainer = Trainer(settings, tmp_path, None, render_processes=0)
    trainer.train(minutes=0)
    assert trainer.progress.pages == 3


@pytest.mark.parametrize("length", [1, 5, 640, 1500])
def test_blocked_attention_is_causal_attention(length: int) -> None:
    torch.manual_seed(length)
    query, key, value = torch.randn(3, 2, 2, length, 16)
    blocked, _ = blocked_causal(nn.Identity(), query, key, value, None, scaling=0.25)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(blocked.transpose(1, 2), expected)


def test_hidden_keys_are_as_if_they_were_not_there() -> None:
    query, key, value = torch.randn(3, 1, 2, 9, 16)
    hidden = torch.tensor([[False, True, True, False, False, True, False, False, False]])
    masked, _ = blocked_causal(
        nn.Identity(), query, key, value, attention_masks(hidden)["full_attention"], scaling=0.25
    )
    seen = (~hidden[0]).nonzero().squeeze(1)
    without, _ = blocked_causal(
        nn.Identity(), query[:, :, seen], key[:, :, seen], value[:, :, seen], None, scaling=0.25
    )
    torch.testing.assert_close(masked[:, seen], without)


def test_plain_attention_is_the_fused_one() -> None:
    query, key, value = torch.randn(2, 3, 20, 24), torch.randn(2, 3, 20, 24), torch.randn(2, 3, 20, 8)
    torch.testing.assert_close(plain(query, key, value), fused(query, key, value))


def test_dense_loss_falls_when_the_right_characters_are_named() -> None:
    cells = torch.zeros(4, CELLS_PER_PATCH, dtype=torch.int64)
    cells[0, :5] = torch.arange(1, 6)
    right = functional.one_hot(cells, len(CLASS_OF)).float() * 9
    loss, share = dense_loss(right, cells)
    wrong_loss, wrong_share = dense_loss(right.roll(1, dims=-1), cells)
    assert loss < wrong_loss
    assert (share, wrong_share) == (1.0, 0.0)


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
    stage = small.stage[0].model_copy(update={"warmup": 10, "lr": (1.0, 0.1), "steps": 100})
    rates = [learning_rate(stage, step) for step in range(100)]
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


def test_growing_deeper_keeps_the_function(small: Settings, tmp_path: Path) -> None:
    earlier = fresh_network(small.model, seed=1).eval()
    earlier.save_pretrained(tmp_path)
    deeper = fresh_network(small.model.model_copy(update={"decoder_layers": 4}), seed=2)
    grow_from(deeper, tmp_path)
    ids = torch.arange(4, 30)[None]
    with torch.inference_mode():
        torch.testing.assert_close(deeper.eval()(input_ids=ids).logits, earlier(input_ids=ids).logits)


@needs_font
def test_a_run_resumes_where_it_was_killed_and_exports(small: Settings, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    assert _trainer(small, straight).train(minutes=10)

    assert not _trainer(small, broken).train(minutes=0), "one step, then the budget is spent"
    resumed = _trainer(small, broken)
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
def test_a_checkpoint_knows_all_runs_behind_it(small: Settings, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    start: Path | None = None
    for run in (first, second):
        run.mkdir()
        _trainer(small, run, start).train(minutes=0)
        resumed = _trainer(small, run)
        resumed.resume()
        resumed.train(minutes=0)
        start = run / "checkpoint"
        export(small, run, start)
    (one,), (of_first, of_second) = read_facts(first / "checkpoint"), read_facts(second / "checkpoint")
    assert of_first == one
    assert (of_second.stage, of_second.step) == (0, 2)
    assert of_second.pages_seen > 0
    assert read_facts(tmp_path) == ()


def _trainer(settings: Settings, run: Path, start: Path | None = None) -> Trainer:
    torch.manual_seed(0)
    return Trainer(settings, run, start)


@needs_font
@pytest.mark.parametrize("style", [SMALL, FULL])
def test_the_service_sees_what_training_showed(small: Settings, tmp_path: Path, style: PageStyle) -> None:
    """The exported checkpoint, given the page as an upload, makes the visual tokens that were trained on."""
    sizes = small.model.model_copy(update={"view_px": style.view_px})
    settings = small.model_copy(update={"model": sizes})
    trainer = _trainer(settings, tmp_path)
    trainer.save()
    export(settings, tmp_path, tmp_path / "checkpoint")
    model = load_model(tmp_path / "checkpoint")
    for seed in range(3):
        page = trainer.renderers.pages.page(seed, style)
        views = model.preprocess(page.native.convert("RGB"), model.default_mode)
        shown = (views.view[0] * 127.5 + 127.5).round()
        assert (shown == torch.from_numpy(page.pixels.copy())).all()
        batch = to_batch([page])
        with torch.no_grad():
            expected = trainer.visual_tokens(trainer.patches(batch.views))[0].to(torch.bfloat16)
        (seen,) = model.encode([views])
        assert len(seen.embeds) == len(expected)
        assert functional.cosine_similarity(seen.embeds.float(), expected.float()).min() > 0.99


@needs_font
def test_training_reads_through_what_the_service_prunes(small: Settings, tmp_path: Path) -> None:
    """Hidden tokens say the same as left out ones whose neighbours keep their positions."""
    trainer = _trainer(small, tmp_path)
    trainer.network.eval()
    batch = to_batch(trainer.renderers.views(random.Random(1), LINES, 3 * 256**2))
    text, prompt = torch.tensor([[5, 6, 7]]), trainer.prompts[False]
    with torch.no_grad():
        visual = trainer.visual_tokens(trainer.patches(batch.views)).float()
        seen = prune(visual, batch.views)
        assert seen.kept is not None
        together = trainer.logits(seen, text.expand(3, -1), prompt)
        for row, kept in enumerate(seen.kept):
            at = kept.nonzero().squeeze(1)
            assert 0 < len(at) < len(kept)
            embed = trainer.network.model.language_model.embed_tokens
            words = embed(torch.cat([prompt, text[0]]))[None]
            embeds = torch.cat([embed(torch.tensor([[BOS]])), seen.embeds[row, at][None], words], dim=1)
            after = torch.arange(words.shape[1]) + 1 + len(kept)
            positions = torch.cat([torch.zeros(1, dtype=torch.long), 1 + at, after])[None]
            hidden = trainer.network.model.language_model(
                inputs_embeds=embeds,
                attention_mask=attention_masks(None),
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state
            alone = trainer.network.lm_head(hidden[:, len(at) + len(prompt) :])
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


@needs_font
def test_unpruned_pages_are_seen_whole(small: Settings, tmp_path: Path) -> None:
    trainer = _trainer(small, tmp_path)
    visual = torch.randn(1, 21, 64)
    everything = Seen(visual, torch.ones(1, 21, dtype=torch.bool))
    prompt, text = trainer.prompts[True], torch.tensor([[5, 6]])
    torch.testing.assert_close(
        trainer.logits(Seen(visual), text, prompt), trainer.logits(everything, text, prompt)
    )


@needs_font
def test_two_processes_train_one_network(small: Settings, tmp_path: Path) -> None:
    """Gradients are averaged: a run of two processes saves one state, and both have come to its end."""
    program = """
import sys
from pathlib import Path
import torch
from training.settings import Settings
from training.train import Trainer
settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
trainer = Trainer(settings, Path(sys.argv[2]), None)
trainer.train(0.0)
total = sum(float(p.double().abs().sum()) for p in trainer.network.parameters())
Path(sys.argv[2], f"weights-{trainer.rank}").write_text(f"{total:.12e}")
"""
    (tmp_path / "settings.json").write_text(small.model_dump_json(), encoding="utf-8")
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "settings.json"), str(tmp_path)],
            env={**os.environ, **environment, "RANK": str(rank)},
            cwd=REPOSITORY,
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    weights = {(tmp_path / f"weights-{rank}").read_text() for rank in range(2)}
    assert len(weights) == 1, "both ended with the same weights, though each read pages of its own"
    assert (tmp_path / "state.pt").is_file()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
