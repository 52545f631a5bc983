"""The checkpoint that ships: its figures are the measured ones, its files are complete."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.ocr.deepseek import load_model
from training.card import write_card
from training.settings import load_settings
from training.vocabulary import tokens

ROOT = Path(__file__).parent.parent
POCKET = ROOT / "app/ocr/pocket"
MAX_ERROR = 0.12


@pytest.fixture(scope="module")
def accuracy() -> dict[str, object]:
    figures: dict[str, object] = json.loads((ROOT / "benchmarks/results/accuracy.json").read_text("utf-8"))
    return figures


def test_the_card_is_what_the_recorded_figures_give(accuracy: dict[str, object]) -> None:
    fonts = list(load_settings(ROOT / "training/pocket.toml").render.fonts)
    assert (POCKET / "README.md").read_text("utf-8") == write_card(accuracy, POCKET, fonts)


def test_the_vocabulary_is_the_one_training_builds() -> None:
    stored = json.loads((POCKET / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert sorted(stored, key=stored.__getitem__) == tokens()


def test_it_is_small_enough_to_ship_and_has_an_expert_layer() -> None:
    assert (POCKET / "model.safetensors").stat().st_size <= 40e6
    model = load_model("pocket", "cpu", torch.float32)
    config: Any = model.network.config
    assert "sparse" in config.text_config.mlp_layer_types
    assert model.default_mode == "pocket"
