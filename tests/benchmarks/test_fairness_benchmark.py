"""The benchmark of fairness, with the fake reader and few pages."""

from dataclasses import replace

import pytest

from benchmarks.fairness import Felt, Plan, checked_out, measure, medians
from benchmarks.report import ROOT

FAKE = Plan(ROOT, "fake", num_pages=150, num_samples=1, num_alone=4)


def test_times_are_over_the_median_alone() -> None:
    figures = medians(Felt(alone=[1.0, 9.0, 2.0], beside=[3.0, 5.0], high_priority=[2.0]))
    assert (figures["alone_s"], figures["beside_s"], figures["beside_times"]) == (2.0, 4.0, 2.0)
    assert figures["high_priority_times"] == 1.0


def test_everything_is_measured_of_two_checkouts() -> None:
    """Here the same one twice."""
    figures = measure({"now": FAKE, "baseline": replace(FAKE, num_alone=5)}, num_rounds=1)
    for name in ("now", "baseline"):
        told = figures[name]
        assert 0 < told["memory_mib"]["before"] <= told["memory_mib"]["most"]
        assert told["delete_s"] > 0
        assert len(told["samples_s"]["alone"]) == 2
        assert len(told["rounds"]) == 1
    expected = figures["now"]["pages_per_s"] / figures["baseline"]["pages_per_s"]
    assert figures["speed_over_baseline"] == pytest.approx(expected, abs=1e-3)


def test_a_checkout_has_the_code_and_the_checkpoint() -> None:
    with checked_out("HEAD") as root:
        assert (root / "app" / "cli.py").is_file()
        assert (root / "app" / "pocket" / "weights" / "model.safetensors").stat().st_size > 10**6
