"""The transport plan: constraints, limits, and two other solvers."""

import numpy as np
import ot
import pytest
import rtprune_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtprune import RTPruneConfig, transport_plan
from rtprune.transport import Solver, padded_plan

sizes = st.integers(1, 30)


def cosines(rows: int, columns: int, seed: int, kind: str = "any") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator) * 2 - 1
    return scores.sign() if kind == "extreme" else scores


@settings(max_examples=60, deadline=None)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 2**31), kind=st.sampled_from(["any", "extreme"]))
def test_agrees_with_a_thousand_float64_iterations(rows: int, columns: int, seed: int, kind: str) -> None:
    scores = cosines(rows, columns, seed, kind)
    plan = transport_plan(scores)
    assert plan.dtype == torch.float32
    np.testing.assert_allclose(plan, oracle.plan(scores.double().numpy()), rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 2**31), dustbin=st.floats(-1, 1))
def test_agrees_with_pot(rows: int, columns: int, seed: int, dustbin: float) -> None:
    scores = cosines(rows, columns, seed)
    padded = np.pad(scores.double().numpy(), ((0, 1), (0, 1)), constant_values=dustbin)
    mass = rows + columns
    row_mass = np.array([1.0] * rows + [columns]) / mass
    column_mass = np.array([1.0] * columns + [rows]) / mass
    theirs = ot.bregman.sinkhorn_log(row_mass, column_mass, -padded, reg=1.0, stopThr=1e-14) * mass
    np.testing.assert_allclose(transport_plan(scores, dustbin), theirs[:-1, :-1], rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 2**31))
def test_marginals(rows: int, columns: int, seed: int) -> None:
    """A token gives at most its mass of 1; the rest is in the dustbins, which hold what marginals say."""
    plan = transport_plan(cosines(rows, columns, seed)).double()
    assert (plan > 0).all()
    to_dustbin, from_dustbin = 1 - plan.sum(1), 1 - plan.sum(0)
    assert (to_dustbin > 0).all()
    assert (from_dustbin > 0).all()
    corner = columns - from_dustbin.sum()
    assert corner == pytest.approx(float(rows - to_dustbin.sum()), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(sizes, st.integers(0, 20)), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    solver=st.sampled_from(["sinkhorn", "pot"]),
)
def test_padding_is_exact_and_empty(shapes: list[tuple[int, int]], seed: int, solver: str) -> None:
    rows, columns = (max(size) for size in zip(*shapes, strict=True))
    scores = cosines(len(shapes) * rows, columns, seed).view(len(shapes), rows, columns)
    num_rows, num_columns = torch.tensor(shapes)[..., None].unbind(1)
    is_row, is_column = torch.arange(rows) < num_rows, torch.arange(columns) < num_columns
    chosen: Solver = "pot" if solver == "pot" else "sinkhorn"
    plan = padded_plan(scores, is_row, is_column, solver=chosen)
    for whole, given_scores, (m, p) in zip(plan, scores, shapes, strict=True):
        torch.testing.assert_close(whole[:m, :p], transport_plan(given_scores[:m, :p]), rtol=0, atol=1e-6)
        assert whole.count_nonzero() == m * p


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3), (0, 2, 3)])
def test_empty_plans(shape: tuple[int, ...]) -> None:
    plan = transport_plan(torch.zeros(shape, dtype=torch.bfloat16))
    assert (plan.shape, plan.dtype) == (shape, torch.float32)


@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_a_constant_added_to_all_scores_changes_nothing(shift: float) -> None:
    scores = cosines(5, 7, 0)
    torch.testing.assert_close(
        transport_plan(scores + shift, 0.2 + shift), transport_plan(scores), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_in_float32_out_and_autocast_has_no_say(dtype: torch.dtype) -> None:
    scores = cosines(9, 8, 1).to(dtype)
    before = scores.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = transport_plan(scores)
    assert plan.dtype == torch.float32
    assert torch.equal(scores, before)
    np.testing.assert_allclose(plan, oracle.plan(scores.double().numpy()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "scores", [torch.zeros(3), torch.zeros(1, 1, 1, 1), torch.zeros(2, 2, dtype=torch.int64)]
)
def test_refuses_what_is_no_score_matrix(scores: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="scores"):
        transport_plan(scores)


def test_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match="'simplex'"):
        RTPruneConfig(solver="simplex")  # type: ignore[arg-type]
