"""The benchmark of hostile clients, each part very small; what the docs say of it is what was measured."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.hostile import serving as serving_module
from benchmarks.hostile.__main__ import measure
from benchmarks.hostile.files import bombs, mutations, seeds
from benchmarks.hostile.parts import PARTS, Plan
from benchmarks.hostile.serving import serving
from benchmarks.hostile.table import BEGIN, DOCS, END, POCKET_SOAK, RESULTS, fill, tables
from benchmarks.report import ROOT

TINY = Plan(
    attacks=("chunks", "results"),
    seconds=0.2,
    result_pages=40,
    num_mutations=11,
    overload_s=0.5,
    num_leaving=6,
    soak_pages=12,
    soak_from=4,
    num_kills=1,
    tiny=True,
)
ABOUT = {"hardware": "two cores", "python": "3.11", "commit": "c0ffee", "load_before": 0.1}


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, Any]]:
    """One service for all parts; by its end it was killed and started again."""
    limits = {"rasterize_deadline_s": 5, "max_jobs_per_client": 10_000, "max_queued_pages": 400}
    with pytest.MonkeyPatch.context() as patched, serving(ROOT, pinned=True, **limits) as service:
        patched.setattr(serving_module, "MIN_SETTLE_S", 0.0)
        patched.setattr(serving_module, "SETTLE_S", 1.0)
        # what was sent in chunks of a byte is still read when nobody sends any more: so that comes last
        yield measure([*(name for name in PARTS if name != "livez"), "livez"], replace(TINY, service=service))


def test_every_part_is_measured(measured: dict[str, Any]) -> None:
    assert {name: part.get("error") for name, part in measured.items()} == dict.fromkeys(PARTS)
    assert all(row["requests"] > row["failed"] == 0 for row in measured["livez"]["beside"].values())


def test_nothing_is_lost_and_nothing_is_left(measured: dict[str, Any]) -> None:
    for name in ("mutations", "bombs", "leaving", "overload"):
        held = measured[name]["held"]
        assert held["after"]["temp_files"] == 0
        assert held["before"]["api_mib"] > 0
    assert measured["mutations"]["defects"] == measured["bombs"]["defects"] == 0
    assert measured["leaving"]["documents_in_flight"] == 0
    for name in ("kill", "overload"):
        assert measured[name]["ends"] == {"succeeded": measured[name]["accepted"]}
        assert measured[name]["accepted"] > 0
    kill = measured["kill"]
    assert (kill["pages_missing"], kill["pages_read_twice"], kill["temp_files"]) == (0, 0, 0)
    assert kill["database"] == "ok"
    assert measured["overload"]["without_retry_after"] == 0
    assert set(measured["overload"]["answers"]) <= {"202", "429", "503"}
    assert measured["soak"]["pages"] == TINY.soak_pages


def test_the_docs_get_all_figures(measured: dict[str, Any]) -> None:
    page = fill(f"above\n{BEGIN}\nold\n{END}\nbelow", {**ABOUT, "parts": measured})
    assert "old" not in page
    assert page.startswith("above\n")
    assert page.endswith("\nbelow")
    assert page.count("\n|") == 2 + len(TINY.attacks) + 2 + len(PARTS) - 1


def test_a_part_that_fails_is_recorded_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Plan) -> dict[str, Any]:
        raise ConnectionError("nobody is there")

    def whole(_: Plan) -> dict[str, Any]:
        return {"found": 1}

    monkeypatch.setitem(PARTS, "kill", broken)
    monkeypatch.setitem(PARTS, "soak", whole)
    rows = measure(["kill", "soak"], replace(TINY, seed=1))
    assert rows["kill"]["error"] == "ConnectionError: nobody is there"
    assert rows["soak"]["found"] == 1
    assert "| kill | failed: ConnectionError: nobody is there |" in tables(
        {**ABOUT, "parts": {"kill": rows["kill"]}}
    )


def test_the_docs_say_what_was_measured() -> None:
    results, pocket_soak = (json.loads(path.read_text()) for path in (RESULTS, POCKET_SOAK))
    assert fill(DOCS.read_text(), results, pocket_soak) == DOCS.read_text(), (
        "python -m benchmarks.hostile.table"
    )
    assert set(results["parts"]) == set(PARTS)


def test_mutations_are_the_same_for_a_seed() -> None:
    num = 2 * len(seeds())
    assert list(mutations(num, 1)) == list(mutations(num, 1))
    assert list(mutations(num, 1)) != list(mutations(num, 2))


def test_bombs_are_small_for_what_they_say() -> None:
    made = {name: len(file()) for name, file in bombs(tiny=True).items()}
    assert all(0 < size < 20_000 for size in made.values()), made
