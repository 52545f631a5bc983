"""Entropic optimal transport between kept and pruned tokens (RTPrune, second reading)."""

from typing import Literal

import torch
from torch import Tensor

from rtprune.precision import without_autocast

Solver = Literal["sinkhorn", "pot"]
DUSTBIN = 0.2
ITERATIONS = 10
"""Within 4e-10 of the limit for every mix of cosines tried, +-1 alone included (float64); 5 leave 1e-5."""


@torch.no_grad()
def transport_plan(scores: Tensor, dustbin: float = DUSTBIN) -> Tensor:
    """(M, P) or (B, M, P) cosines -> float32 plan of the same shape: how pruned tokens go to kept ones.

    One dustbin row and column, all entries ``dustbin``, are added; rows have mass (1, ..., 1, P), columns
    (1, ..., 1, M). The plan maximises <plan, scores> + entropy under these marginals; dustbins are dropped,
    so rows and columns sum to less than 1. M or P of 0 gives an empty plan.

    Meant for scores in [-1, 1]: the kernel's entries then lie within a factor e^2 of each other, which is why
    linear-domain iterations are exact and 10 of them enough. Wider scores converge more slowly, and spreads
    beyond about 80 underflow. Raises ``ValueError`` for another rank or an integer dtype.

    >>> transport_plan(torch.tensor([[0.9, 0.1], [0.2, 0.8]])).sum(0) < 1
    tensor([True, True])
    """
    if scores.ndim not in (2, 3) or not scores.is_floating_point():
        raise ValueError(
            f"scores must be float (M, P) or (B, M, P), got {scores.dtype} {tuple(scores.shape)}"
        )
    if scores.numel() == 0:
        return scores.to(torch.float32, copy=True)
    batch = scores if scores.ndim == 3 else scores[None]
    is_row = torch.ones(batch.shape[:2], dtype=torch.bool, device=scores.device)
    is_column = torch.ones_like(batch[:, 0], dtype=torch.bool)
    return padded_plan(batch, is_row, is_column, dustbin).view(scores.shape)


def padded_plan(
    scores: Tensor,
    is_row: Tensor,
    is_column: Tensor,
    dustbin: float = DUSTBIN,
    solver: Solver = "sinkhorn",
) -> Tensor:
    """(B, M, P) scores, (B, M) and (B, P) bool: which are real -> (B, M, P) float32, 0 where one is not.

    The masks lie on the device of ``scores``; a page's two are never all False. What is not real gets no
    mass, which leaves the others' plan exactly as it is without it.
    """
    num_rows, num_columns = is_row.sum(1, keepdim=True), is_column.sum(1, keepdim=True)
    rows = torch.cat([is_row, num_columns], dim=1).float()  # (B, M + 1), the dustbin's mass last
    columns = torch.cat([is_column, num_rows], dim=1).float()  # (B, P + 1)
    # scores + dustbin row and column  # (B, M + 1, P + 1)
    padded = torch.nn.functional.pad(scores.float(), (0, 1, 0, 1), value=dustbin)
    with without_autocast(scores.device):
        plan = (
            _solve_with_pot(padded, rows, columns, num_rows + num_columns)
            if solver == "pot"
            else _sinkhorn(padded, rows, columns)
        )
    return plan[:, :-1, :-1]


def _sinkhorn(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scaling iterations u = a / (K v), v = b / (K^T u), in the linear domain."""
    # any constant may be taken off all scores of a page; without this, ones beyond 88 would overflow
    kernel = (scores - scores.amax((1, 2), keepdim=True)).exp()  # (B, M + 1, P + 1)
    v = torch.ones_like(columns)
    u = torch.ones_like(rows)
    for _ in range(ITERATIONS):
        # product and sum rather than bmm, which TF32 would coarsen
        u = rows / (kernel * v[:, None, :]).sum(2)
        v = columns / (kernel * u[:, :, None]).sum(1)
    return u[:, :, None] * kernel * v[:, None, :]


def _solve_with_pot(scores: Tensor, rows: Tensor, columns: Tensor, total: Tensor) -> Tensor:
    """The same plan by POT, in float64 and in the log domain: slower, and it waits for the device.

    Traps: POT's ``sinkhorn`` makes CPU tensors on other devices, ``log_sinkhorn`` does not. ``tol`` bounds
    an error measured before the plan is scaled by M + P, so its default would stop far too early.
    """
    from ot.batch import solve_batch  # noqa: PLC0415 - heavy, and optional for everything else

    scale = total.double()
    result = solve_batch(
        -scores.double(),
        reg=1.0,
        a=rows.double() / scale,
        b=columns.double() / scale,
        max_iter=100,
        tol=1e-13,
        method="log_sinkhorn",
        grad="detach",
    )
    plan: Tensor = result.plan * scale[..., None]
    return plan.float()
