"""What ``fixation`` costs: its calibration, its table on a small page, its bytes on paper."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from app.ocr.engine.fixation import FixationPlan, FixedRow, Patches
from app.ocr.models.checkpoint import CheckpointError
from app.ocr.models.checkpoint_spec import FIXATION_FILE, read_fixation_plan
from app.pocket.opening import WEIGHTS
from benchmarks.fixation import calibrate
from benchmarks.fixation.__main__ import main
from benchmarks.fixation.calibrate import LayerMasses, focal_layers
from benchmarks.fixation.paper import BATCHES, CARDS, CONTEXTS, SHARES, attention_bytes, table
from benchmarks.report import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "fixation.json"
COMMON = ["--pages", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "english").mkdir()
    page = Image.new("RGB", (420, 60), "white")
    ImageDraw.Draw(page).text((20, 18), "Nine plain words", fill="black", font_size=22)
    page.save(folder / "english" / "a.150.png")
    (folder / "english" / "a.txt").write_text("Nine plain words")
    return folder


def test_the_table_has_a_row_for_each_share_with_pruning_and_without(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    main(["--documents", str(documents), "--shares", "1", "0.05", "--out", str(out), *COMMON])
    figures = json.loads(out.read_text())
    rows = {(row["prune"], row["share"]): row for row in figures["rows"]}
    assert list(rows) == [(prune, share) for prune in ("none", "rtprune") for share in (None, 1.0, 0.05)]
    for prune in ("none", "rtprune"):
        plain, whole, few = (rows[prune, share] for share in (None, 1.0, 0.05))
        assert plain["attended_share"] is None
        assert (whole["attended_share"], whole["covered_mass"], whole["covered_patch_mass"]) == (1, 1, 1)
        assert whole["unlike_plain"] == 0
        assert whole["character_error_rate"] == plain["character_error_rate"]
        assert 0.05 <= few["attended_share"] < 1
        assert 0 < few["covered_patch_mass"] < few["covered_mass"] < 1
        assert 0 < few["sparse_calls"] < 1
    assert {"hardware", "commit", "on_paper"} < set(figures)


def test_the_committed_table_is_exact_at_share_1() -> None:
    for row in json.loads(RESULTS.read_text())["rows"]:
        if row["share"] == 1:
            assert (row["unlike_plain"], row["attended_share"], row["covered_mass"]) == (0, 1, 1)


def test_calibration_writes_a_file_that_loads(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / FIXATION_FILE
    words = ["pocket", "--documents", str(documents), "--min-patches", "3", "--out", str(out), *COMMON]
    calibrate.main(words)
    plan = read_fixation_plan(tmp_path, 3)
    assert plan is not None
    assert (len(plan.focal_layers), plan.min_patches) == (1, 3)


def test_the_pocket_checkpoint_is_calibrated() -> None:
    plan = read_fixation_plan(WEIGHTS, 3)
    assert plan is not None
    found = json.loads((WEIGHTS / FIXATION_FILE).read_text())["calibration"]
    mass, before = (torch.tensor(found[name]) for name in ("mass", "before"))
    assert focal_layers(mass, before, 1) == list(plan.focal_layers)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"focal_layers": [3]}', "focal layer 3 of a decoder of 3"),
        ('{"focal_layers": []}', "focal_layers"),
        ('{"focal_layers": [2, 1]}', "ascending"),
        ('{"focal_layers": [1], "reuse": 2.0}', "reuse"),
        ('{"focal_layers": [1], "layers": 2}', "layers"),
        ("[", "JSON"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / FIXATION_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=f"{FIXATION_FILE}.*{said}"):
        read_fixation_plan(tmp_path, 3)
    (tmp_path / FIXATION_FILE).unlink()
    assert read_fixation_plan(tmp_path, 3) is None


def test_masses_are_what_a_layer_sees_through_anothers_choice() -> None:
    """Two layers over four patches, of which two are chosen; the second layer looks elsewhere."""
    columns = torch.arange(4)
    places = torch.zeros(4, 3, dtype=torch.int64)
    row = FixedRow(Patches(1.0, columns, places), FixationPlan((0, 1)))
    found = LayerMasses(2, share=0.5)
    with pytest.raises(ValueError, match="two decode steps"):
        found.means()
    first, second = torch.tensor([[0.4, 0.3, 0.1, 0.0, 0.2]]), torch.tensor([[0.1, 0.0, 0.2, 0.5, 0.2]])
    for _ in range(2):
        found.watch(0, row, first)
        found.watch(1, row, second)
    mass, before, recall = found.means()
    assert torch.allclose(mass, torch.tensor([[7 / 8, 1 / 8], [1 / 8, 7 / 8]]).double())
    assert torch.allclose(before, mass), "both steps are the same"
    assert recall.tolist() == [0.5, 0.5], "together they look at patches 0 and 3 most"


def test_focal_layers_are_those_through_which_the_others_see_most() -> None:
    mass = torch.full((4, 4), 0.1)
    mass[1, 2:] = 0.9  # what layer 1 chooses is what the later ones look at
    before = torch.full((4, 4), 0.2)
    assert focal_layers(mass, before, 1) == [1]
    before[3] = 0.95  # layer 3 tells at the next step
    assert focal_layers(mass, before, 1) == [3]
    assert len(focal_layers(mass, before, 3)) == 3


def test_bytes_on_paper() -> None:
    context = CONTEXTS[0]
    tokens = context.num_patches + context.num_breaks + 512
    assert attention_bytes(context, 1.0, 12) == tokens * 61_440
    sizes = [attention_bytes(context, share, 12) for share in SHARES]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > (tokens - context.num_patches) * 61_440, "text and row breaks are always read"
    rows: list[dict[str, Any]] = table()
    assert len(rows) == len(CARDS) * len(CONTEXTS) * len(BATCHES)
    for row in rows:
        assert row["step_saved"][0] == 0
        if row["pages"] == 1 and not row["context"].startswith("20 pages"):
            assert max(row["step_saved"]) < 0.01, "a page alone has nothing to save"
