"""Triton kernels of SAM's attention with relative positions, in windows or in the whole grid.

Queries, keys and values lie together in ``qkv`` (B, H, W, 3, HEADS, DIM). A window takes TALL x WIDE places
of the grid. The last windows of a row or column may reach beyond the grid. A key or value there is what the
projection makes of zero: its bias.
"""

import triton
import triton.language as tl


@triton.jit
def relate(
    qkv, table, out, num_moving, fixed_stride, moving_stride, batch_stride, num_places,
    fixed_places, moving_places,
    PERIOD: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, TURNED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiply each query by the relative positions of the PERIOD rows, or columns, of its window.

    ``out``: (B, HEADS, H * W, PERIOD), or with TURNED (B, HEADS, PERIOD, H * W). ``table``: (PERIOD, PERIOD,
    DIM). A program takes the queries of one row (column), which share one entry of the table.
    """
    fixed, block, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = which // HEADS, which % HEADS
    moving = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, DIM)
    others = tl.arange(0, BLOCK_K)
    exist = moving < num_moving
    at = batch.to(tl.int64) * batch_stride + fixed * fixed_stride + head * DIM
    query = tl.load(
        qkv + at + moving[:, None] * moving_stride + columns[None, :], mask=exist[:, None], other=0.0
    )
    entry = table + (fixed % PERIOD) * PERIOD * DIM
    positions = tl.load(
        entry + others[None, :] * DIM + columns[:, None], mask=(others < PERIOD)[None, :], other=0.0
    )
    value = tl.dot(query, positions)
    places = fixed * fixed_places + moving * moving_places
    start = out + which.to(tl.int64) * PERIOD * num_places
    value = value.to(out.dtype.element_ty)
    if TURNED:
        mask = (others < PERIOD)[:, None] & exist[None, :]
        tl.store(start + others[:, None] * num_places + places[None, :], tl.trans(value), mask=mask)
    else:
        mask = exist[:, None] & (others < PERIOD)[None, :]
        tl.store(start + places[:, None] * PERIOD + others[None, :], value, mask=mask)


@triton.jit
def through(
    qkv, query, beside, above, grid_row, across, inside, no_key, no_value, highest, total, mixed, head,
    HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Add some keys of one row of the window to a program's running softmax."""
    columns = tl.arange(0, DIM)
    at = (grid_row + across)[:, None] * (3 * HEADS * DIM) + head * DIM + columns[None, :]
    key = tl.load(qkv + at + HEADS * DIM, mask=inside[:, None], other=0.0)
    value = tl.load(qkv + at + 2 * HEADS * DIM, mask=inside[:, None], other=0.0)
    if PADDED:
        key = tl.where(inside[:, None], key, no_key[None, :])
        value = tl.where(inside[:, None], value, no_value[None, :])
    scores = tl.dot(query, tl.trans(key), beside + above[:, None])
    higher = tl.maximum(highest, tl.max(scores, axis=1))
    log2: tl.constexpr = 1.4426950408889634
    shares = tl.exp2(scores * log2 - (higher * log2)[:, None])
    shrink = tl.exp2((highest - higher) * log2)
    total = total * shrink + tl.sum(shares, axis=1)
    mixed = tl.dot(shares.to(value.dtype), value, mixed * shrink[:, None])
    return higher, total, mixed


@triton.jit
def attend(
    qkv, bias, of_rows, of_columns, out, scale, height, width, windows_across,
    TALL: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Attend in windows, with biases for rows and columns. Writes ``out`` (B, H, W, HEADS, DIM).

    ``of_rows`` (TURNED) and ``of_columns`` are from ``relate``. A program takes BLOCK_M queries of one window
    and head and goes through the window row by row. The bias of columns is the same for every row; the bias
    of a row is one number per query. A row is read in two pieces, FIRST and REST keys long (REST 0: one
    piece), because sizes here are powers of two.
    """
    block, window, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = which // HEADS, which % HEADS
    top, left = window // windows_across * TALL, window % windows_across * WIDE
    member = block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, places = top + member // WIDE, left + member % WIDE
    exist = (member < TALL * WIDE) & (rows < height) & (places < width)
    columns = tl.arange(0, DIM)
    grid = batch.to(tl.int64) * height * width
    at = grid + rows * width + places
    query = tl.load(
        qkv + at[:, None] * (3 * HEADS * DIM) + head * DIM + columns[None, :], mask=exist[:, None], other=0.0
    )
    query = (query.to(tl.float32) * scale).to(query.dtype)
    num_places = height * width
    place = rows * width + places
    first = tl.arange(0, FIRST)
    of_columns += which.to(tl.int64) * WIDE * num_places
    of_rows += which.to(tl.int64) * TALL * num_places
    mask = exist[:, None] & (first < WIDE)[None, :]
    beside = tl.load(of_columns + place[:, None] * WIDE + first[None, :], mask=mask, other=0.0)
    beside = tl.where((first < WIDE)[None, :], beside.to(tl.float32), float("-inf"))
    if REST > 0:
        rest = FIRST + tl.arange(0, REST)
        mask = exist[:, None] & (rest < WIDE)[None, :]
        beyond = tl.load(of_columns + place[:, None] * WIDE + rest[None, :], mask=mask, other=0.0)
        beyond = tl.where((rest < WIDE)[None, :], beyond.to(tl.float32), float("-inf"))
    no_key = tl.load(bias + (HEADS + head) * DIM + columns)
    no_value = tl.load(bias + (2 * HEADS + head) * DIM + columns)
    highest = tl.full((BLOCK_M,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, DIM), tl.float32)
    for row in range(TALL):
        above = tl.load(of_rows + row * num_places + place, mask=exist, other=0.0).to(tl.float32)
        grid_row = grid + (top + row) * width + left
        inside = (first < WIDE) & (top + row < height) & (left + first < width)
        highest, total, mixed = through(
            qkv, query, beside, above, grid_row, first, inside, no_key, no_value, highest, total, mixed, head,
            HEADS, DIM, PADDED,
        )  # fmt: skip
        if REST > 0:
            inside = (rest < WIDE) & (top + row < height) & (left + rest < width)
            highest, total, mixed = through(
                qkv, query, beyond, above, grid_row, rest, inside, no_key, no_value, highest, total, mixed,
                head, HEADS, DIM, PADDED,
            )  # fmt: skip
    mixed = mixed / total[:, None]
    at = at[:, None] * (HEADS * DIM) + head * DIM + columns[None, :]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=exist[:, None])
