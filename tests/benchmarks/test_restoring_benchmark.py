"""``benchmarks.restoring``: what a policy brings back and costs, and the pages it is measured on."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from benchmarks import restoring
from benchmarks.accuracy.pages import Kind, Sample
from benchmarks.restoring import (
    HARD_RATIO,
    KINDS,
    PAGE_PX,
    SMALL,
    TABLES,
    TEXT,
    brought_back,
    calibrated,
    drawn,
    main,
    section,
    write_docs,
)

ROOT = Path(__file__).resolve().parents[2]


def row(ratio: float | str, policy: str, error: float, characters: int = 100) -> dict[str, Any]:
    return {"kind": TEXT, "ratio": ratio, "policy": policy, "error": error, "characters": characters}


ROWS = [
    row("none", "never", 0.1),
    row(HARD_RATIO, "always", 0.5),
    row(HARD_RATIO, "0.3", 0.12),
    row(HARD_RATIO, "0.6", 0.13),
    row(HARD_RATIO, "0.9", 0.3),
]


def test_the_calibrated_threshold_is_the_highest_that_brings_back_enough() -> None:
    assert brought_back(ROWS, HARD_RATIO, "0.9") == pytest.approx(0.5)
    assert calibrated(ROWS, (0.3, 0.6, 0.9)) == 0.6
    assert calibrated(ROWS, (0.9,)) is None
    assert brought_back([*ROWS, row("dynamic", "always", 0.1)], "dynamic", "always") is None


def test_kinds_are_weighed_by_their_characters() -> None:
    rows = [*ROWS, row("none", "never", 0.0, 300), row(HARD_RATIO, "always", 0.5, 300)]
    rows += [row(HARD_RATIO, "0.6", 0.5, 300)]
    assert brought_back(rows, HARD_RATIO, "0.6") == pytest.approx(0.37 * 100 / (0.4 * 100 + 0.5 * 300))


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_full_and_the_same_in_every_run(kind: str) -> None:
    first, again, other = drawn(kind, 1), drawn(kind, 1), drawn(kind, 1, first=1)
    [page], [same], [another] = first.samples, again.samples, other.samples
    assert (page.text, page.image.tobytes()) == (same.text, same.image.tobytes())
    assert page.text != another.text
    assert len(page.text) > 500
    assert page.text.isascii()
    assert (page.image.size == PAGE_PX) == (kind != SMALL)


def test_cells_of_a_table_are_in_its_text_row_by_row() -> None:
    [page] = drawn(TABLES, 1).samples
    assert all(len(line.split()) >= 5 for line in page.text.splitlines())


def _line(kind: str, count: int, first: int = 0) -> Kind:
    """One line in place of a page."""
    image = Image.new("RGB", (700, 90), "white")
    text = "Forty sheets of stock lie in the northern store"
    ImageDraw.Draw(image).text((30, 30), text, "black", ImageFont.load_default(26))
    return Kind(kind, (Sample(f"{first}", image, text),) * count)


def test_policies_are_measured_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "drawn", _line)
    monkeypatch.setattr(restoring, "KINDS", (TEXT,))
    out = tmp_path / "out.json"
    main(["--pages", "1", "--calibration-pages", "1", "--thresholds", "0.01", "--out", str(out)])
    figures = json.loads(out.read_text())
    rows = {(row["ratio"], row["policy"], row["kind"]): row for row in figures["rows"]}
    assert len(rows) == len(figures["rows"]) == 1 + 2 * 2
    for kind in (TEXT,):
        never, always, restored = (
            rows[key, policy, kind]
            for key, policy in (("none", "never"), (HARD_RATIO, "always"), (HARD_RATIO, "0.01"))
        )
        assert never["retention"] == 1 > always["retention"]
        assert never["restored"] == always["restored"] == 0 < restored["restored"]
        assert never["error"] <= restored["error"] < always["error"]
        assert restored["decoded_tokens"] > always["decoded_tokens"]
    (tmp_path / "pruning.md").write_text(
        "before\n<!-- restoring: begin -->\n<!-- restoring: end -->\nafter\n"
    )
    write_docs(figures, tmp_path)
    assert section(figures) in (tmp_path / "pruning.md").read_text()


def test_the_table_of_the_docs_is_the_one_that_was_measured() -> None:
    figures = json.loads((ROOT / "benchmarks/results/restoring.json").read_text())
    assert section(figures) in (ROOT / "docs/pruning.md").read_text()
