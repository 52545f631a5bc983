"""``benchmarks.confidence``: pages with known text -> the curve of doubt and risk, and what it is worth."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from app.ocr.risk import Evidence, RiskCurve
from benchmarks.confidence import (
    ReadPage,
    figures_of,
    fitted,
    main,
    section,
    separation,
    write_curve,
    write_docs,
)

LINES = ("Forty sheets of white stock", "lie in the northern store", "and twelve of gray beside it")


def page(nats: float, missing: float, noise_share: float = 0.0) -> ReadPage:
    evidence = Evidence([-nats] * 10, noise_share)
    return ReadPage("drawn", f"{nats}", missing, evidence, -nats, "stop", (), 0.0)


GOOD = [page(0.001 * 1.5**step, 0.02 * (step % 3)) for step in range(10)]
BAD = [page(0.5 * 1.2**step, 0.9) for step in range(10)]


def test_the_curve_parts_what_was_read_badly_from_what_was_read_well() -> None:
    curve = fitted([*GOOD, *BAD])
    assert all(curve.risk(page.evidence) < 0.5 for page in GOOD)
    assert all(curve.risk(page.evidence) > 0.5 for page in BAD)


def test_noise_is_not_held_against_the_tokens_around_it() -> None:
    """A page of which most is left out is bad however sure the rest was."""
    sure_but_noisy = [page(0.001, 0.9, noise_share=0.95)] * 5
    with_noise, without = fitted([*GOOD, *BAD, *sure_but_noisy]), fitted([*GOOD, *BAD])
    assert math.log(with_noise.half_nats) == pytest.approx(math.log(without.half_nats), abs=0.3)


def test_a_curve_needs_both_kinds() -> None:
    for pages in (GOOD, BAD):
        with pytest.raises(ValueError, match="badly and pages"):
            fitted(pages)


def test_separation_is_the_area_under_the_curve() -> None:
    assert separation([1.0, 2.0, 3.0, 4.0], [False, False, True, True]) == 1
    assert separation([4.0, 3.0, 2.0, 1.0], [False, False, True, True]) == 0
    assert separation([1.0, 1.0, 1.0], [False, True, True]) == 0.5
    assert separation([1.0], [True]) is None


def test_every_page_is_in_one_band() -> None:
    _, figures = figures_of([*GOOD, *BAD])
    assert sum(band["pages"] for band in figures["bands"]) == figures["pages"]["held_out"]
    assert sum(band["bad"] for band in figures["bands"]) == figures["pages"]["bad"]


def test_the_curve_is_written_into_the_checkpoint_beside_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "rtprune.json").write_text(json.dumps({"name": "x", "min_confidence": -0.7}))
    write_curve(tmp_path, RiskCurve(0.25, 3.0))
    recipe = json.loads((tmp_path / "rtprune.json").read_text())
    assert recipe == {"name": "x", "min_confidence": -0.7, "risk": {"half_nats": 0.25, "steepness": 3.0}}


def test_real_pages_are_read_and_told(tmp_path: Path) -> None:
    """The command, on pages drawn here: some with their truth, some with another's."""
    for folder, ending, truth in (
        ("english", ".150.png", " ".join(LINES)),
        ("tables", ".png", "an other text"),
    ):
        (tmp_path / folder).mkdir()
        for number in range(4):
            image = Image.new("RGB", (500, 220), "white")
            draw = ImageDraw.Draw(image)
            for at, line in enumerate(LINES):
                draw.text((40, 30 + 50 * at), line, fill="black", font=ImageFont.load_default(24 + number))
            image.save(tmp_path / folder / f"{number}{ending}")
            (tmp_path / folder / f"{number}.txt").write_text(truth)
    main(["--documents", str(tmp_path), "--limit", "4", "--out", str(tmp_path / "out.json")])
    figures = json.loads((tmp_path / "out.json").read_text())
    kinds = {kind["kind"]: kind for kind in figures["kinds"]}
    assert kinds["english"]["bad"] == 0
    assert kinds["tables"]["bad"] == 4
    assert {"english, turned", "english, blurred"} <= set(kinds)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "checkpoints.md").write_text(
        "before\n<!-- confidence: begin -->\n<!-- confidence: end -->\nafter\n"
    )
    write_docs(figures, docs)
    assert section(figures) in (docs / "checkpoints.md").read_text()
    assert (docs / "risk-curve.svg").read_text().startswith("<svg")
