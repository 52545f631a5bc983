"""Triton kernels of the decoder: norms and routing, experts, attention over the cache, choice of a token.

A decode step has one token for each of n rows. D is the hidden size. A *pair* is a row and one of its
experts, numbered ``row * PARTS + k``: first the TOP routed experts, then the shared ones, which every row
has. Offsets into the cache and into weights are 64 bits wide.
"""

import triton
import triton.language as tl


@triton.jit
def add_norm(
    hidden, parts, weight, out, normed, eps, D: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write ``out`` = ``hidden`` + the sum of PARTS rows of ``parts``, and ``normed`` = its RMS norm.

    One program per row. Sums are float32. Without parts ``out`` is not written.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    total = tl.load(hidden + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        at = (row * PARTS + part) * D + columns
        total += tl.load(parts + at, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        rounded = total.to(out.dtype.element_ty)
        tl.store(out + row * D + columns, rounded, mask=inside)
        total = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / D + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0)
    value = (total * scale).to(normed.dtype.element_ty) * factor
    tl.store(normed + row * D + columns, value, mask=inside)


@triton.jit
def turned(states, columns, cosines, sines, DIM: tl.constexpr):
    """Return one head's (DIM,) values after the rotary embedding. Columns i and i + DIM / 2 are a pair."""
    half: tl.constexpr = DIM // 2
    own = tl.load(states + columns).to(tl.float32)
    other = tl.load(states + (columns + half) % DIM).to(tl.float32)
    cosine = tl.load(cosines + columns % half)
    sine = tl.load(sines + columns % half)
    return own * cosine + tl.where(columns < half, -other, other) * sine


@triton.jit
def rotate(qkv, positions, cosines, sines, HEADS: tl.constexpr, DIM: tl.constexpr):
    """Apply the rotary embedding to the queries and keys of ``qkv`` (n, 3, HEADS, DIM), in place.

    One program per head of a row.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, DIM)
    angle = tl.load(positions + row) * (DIM // 2)
    states = qkv + (row.to(tl.int64) * 3 * HEADS + head) * DIM
    value = turned(states, columns, cosines + angle, sines + angle, DIM)
    tl.debug_barrier()  # both halves are read before either is overwritten
    tl.store(states + columns, value.to(qkv.dtype.element_ty))


@triton.jit
def is_last(arrived, count):
    """Return whether this is the last of ``count`` programs to arrive. It sees what the others stored."""
    tl.debug_barrier()
    before = tl.atomic_add(arrived, 1)
    if before == count - 1:
        tl.store(arrived, 0)
    return before == count - 1


@triton.jit
def attend(
    qkv, keys, values, lengths, prompts, positions, cosines, sines, out, partial, tops, sums, arrived,
    scale, window, slot_stride, token_stride, head_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, SLIDES: tl.constexpr,
):  # fmt: skip
    """Rotate the query and the new key, store the new key and value, attend to all keys that the row holds.

    A program takes one head of one row and one of SPLITS ranges of its keys. Only the first range also takes
    the new key, whose place the other programs skip. The last program to end adds the ranges up. Matrix units
    multiply no fewer than 16 queries, so the other 15 are zero.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = tl.arange(0, DIM)
    length = tl.load(lengths + row)
    if SLIDES:
        prompt = tl.load(prompts + row)
        place = prompt + (length - prompt) % window
        held = tl.minimum(length + 1, prompt + window)
    else:
        place = length
        held = length + 1
    angle = tl.load(positions + row) * (DIM // 2)
    start = qkv + row * 3 * HEADS * DIM + head * DIM
    kind = keys.dtype.element_ty
    query = turned(start, columns, cosines + angle, sines + angle, DIM).to(kind)
    is_query = tl.arange(0, 16) == 0
    queries = tl.where(is_query[:, None], query[None, :], 0.0).to(kind)
    slot = row.to(tl.int64) * slot_stride + head * head_stride
    top = tl.full((16,), -1.0e30, tl.float32)
    total = tl.zeros((16,), tl.float32)
    mixed = tl.zeros((16, DIM), tl.float32)
    if split == 0:
        key = turned(start + HEADS * DIM, columns, cosines + angle, sines + angle, DIM).to(kind)
        value = tl.load(start + 2 * HEADS * DIM + columns)
        new = slot + place.to(tl.int64) * token_stride + columns
        tl.store(keys + new, key)
        tl.store(values + new, value)
        top = tl.zeros((16,), tl.float32) + tl.sum(query.to(tl.float32) * key.to(tl.float32), axis=0) * scale
        total += 1.0
        mixed += value.to(tl.float32)[None, :]
    share = tl.cdiv(held, SPLITS * BLOCK) * BLOCK
    last = tl.minimum((split + 1) * share, held)
    for first in range(split * share, last, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        exist = (tokens < last) & (tokens != place)
        at = slot + tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        block = tl.load(keys + at, mask=exist[:, None], other=0.0)
        scores = tl.dot(queries, tl.trans(block)) * scale
        scores = tl.where(exist[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        shares = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(shares, axis=1)
        block = tl.load(values + at, mask=exist[:, None], other=0.0)
        mixed = tl.dot(shares.to(kind), block, mixed * shrink[:, None])
        top = higher
    result = tl.sum(tl.where(is_query[:, None], mixed, 0.0), axis=0)
    sum_ = tl.sum(tl.where(is_query, total, 0.0), axis=0)
    index = row * HEADS + head
    if SPLITS == 1:
        tl.store(out + index * DIM + columns, (result / sum_).to(out.dtype.element_ty))
    else:
        tl.store(partial + (index * SPLITS + split) * DIM + columns, result)
        tl.store(tops + index * SPLITS + split, tl.sum(tl.where(is_query, top, 0.0), axis=0))
        tl.store(sums + index * SPLITS + split, sum_)
        if is_last(arrived + index, SPLITS):
            splits = index * SPLITS + tl.arange(0, SPLITS)
            each = tl.load(tops + splits, cache_modifier=".cg")
            shrinks = tl.exp(each - tl.max(each, axis=0))
            divisor = tl.sum(tl.load(sums + splits, cache_modifier=".cg") * shrinks, axis=0)
            rows = tl.load(partial + splits[:, None] * DIM + columns[None, :], cache_modifier=".cg")
            joined = tl.sum(rows * shrinks[:, None], axis=0) / divisor
            tl.store(out + index * DIM + columns, joined.to(out.dtype.element_ty))


@triton.jit
def project(
    states, weight, out, INNER: tl.constexpr, OUTER: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK: tl.constexpr
):
    """Write ``out`` = ``states`` by ``weight`` transposed, for a few rows.

    ``out`` (n, OUTER), ``states`` (n, INNER), ``weight`` (OUTER, INNER). A program takes BLOCK_O columns of
    one row.
    """
    columns = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    row = tl.program_id(1)
    total = tl.zeros((BLOCK_O,), tl.float32)
    for first in tl.static_range(0, INNER, BLOCK):
        inner = first + tl.arange(0, BLOCK)
        some = tl.load(states + row * INNER + inner).to(tl.float32)
        block = tl.load(weight + columns[:, None] * INNER + inner[None, :]).to(tl.float32)
        total += tl.sum(block * some[None, :], axis=1)
    tl.store(out + row * OUTER + columns, total.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["num_rows"])
def norm_route(
    hidden, parts, weight, router, out, normed, scores, arrived, ids, shares, counts, pairs, num_rows, factor,
    eps, D: tl.constexpr, EXPERTS: tl.constexpr, TOP: tl.constexpr, PARTS: tl.constexpr, LISTED: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Run ``add_norm`` with one part, then choose the TOP experts of the row and their weights.

    The weights are a softmax over all experts. A program scores GROUP experts of a row; the last of the row's
    GROUPS programs to end chooses. LISTED: each chosen expert's pairs are gathered in its row of ``pairs``
    (EXPERTS, num_rows), in any order.
    """
    row, group = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    total = tl.load(hidden + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(parts + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(out.dtype.element_ty)
    total = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / D + eps)
    value = (total * scale).to(normed.dtype.element_ty)
    value = value * tl.load(weight + columns, mask=inside, other=0.0)
    if group == 0:
        tl.store(out + row * D + columns, rounded, mask=inside)
        tl.store(normed + row * D + columns, value, mask=inside)
    some = group * GROUP + tl.arange(0, GROUP)
    mask = (some < EXPERTS)[:, None] & inside[None, :]
    block = tl.load(router + some[:, None] * D + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    score = tl.sum(block * value.to(tl.float32)[None, :], axis=1)
    tl.store(scores + row * EXPERTS + some, score, mask=some < EXPERTS)
    if is_last(arrived + row, GROUPS):
        experts = tl.arange(0, BLOCK)
        is_expert = experts < EXPERTS
        odds = tl.load(
            scores + row * EXPERTS + experts, mask=is_expert, other=float("-inf"), cache_modifier=".cg"
        )
        odds = tl.exp(odds - tl.max(odds, axis=0))
        odds = odds / tl.sum(odds, axis=0)
        # NaN fails every comparison: the row's logits will be NaN too, but it must still get experts
        odds = tl.where(odds >= 0, odds, -1.0)
        is_before = (odds[None, :] > odds[:, None]) | (
            (odds[None, :] == odds[:, None]) & (experts[None, :] < experts[:, None])
        )
        rank = tl.sum((is_before & is_expert[None, :]).to(tl.int32), axis=1)
        is_top = is_expert & (rank < TOP)
        tl.store(ids + row * TOP + rank, experts, mask=is_top)
        tl.store(shares + row * PARTS + rank, odds * factor, mask=is_top)
        if LISTED:
            place = tl.atomic_add(counts + experts, 1, mask=is_top)
            tl.store(pairs + experts * num_rows + place, row * PARTS + rank, mask=is_top)


@triton.jit
def members(
    routed, shared, ids, counts, pairs, num_rows, which, chunk,
    SIZE: tl.constexpr, EXPERTS: tl.constexpr, TOP: tl.constexpr, PARTS: tl.constexpr, LISTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Return a program's expert, the start of its weights, the pairs it takes and which of them exist.

    Shared experts are numbered after the routed ones. SIZE: number of weights of one expert.
    """
    places = chunk * BLOCK_M + tl.arange(0, BLOCK_M)
    if LISTED:
        expert = which
        if expert < EXPERTS:
            count = tl.load(counts + expert)
            mine = tl.load(pairs + expert * num_rows + places, mask=places < count, other=0)
        else:
            count = num_rows
            mine = places * PARTS + TOP + expert - EXPERTS
        exist = places < count
    else:
        k = which % PARTS
        expert = EXPERTS + k - TOP
        if k < TOP:
            expert = tl.load(ids + which // PARTS * TOP + k)
        mine = which + places * 0
        exist = places < 1
    if expert < EXPERTS:
        weight = routed + expert.to(tl.int64) * SIZE
    else:
        weight = shared + (expert - EXPERTS).to(tl.int64) * SIZE
    return expert, weight, mine, exist


@triton.jit(do_not_specialize=["num_rows"])
def expand(
    states, routed, shared, ids, counts, pairs, out, num_rows,
    D: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, TOP: tl.constexpr, PARTS: tl.constexpr,
    LISTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write ``out`` (pairs, INNER) = silu(gate) * up of every pair's expert.

    ``routed`` (EXPERTS, 2 INNER, D) and ``shared`` (PARTS - TOP, 2 INNER, D) hold the gates first. A program
    takes BLOCK_N columns of one expert for BLOCK_M of its pairs (LISTED), or of one pair.
    """
    chunk, which, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, weight, mine, exist = members(
        routed, shared, ids, counts, pairs, num_rows, which, chunk, 2 * INNER * D, EXPERTS, TOP, PARTS,
        LISTED, BLOCK_M,
    )  # fmt: skip
    if tl.max(exist.to(tl.int32), axis=0) == 0:
        return
    inner = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    left = states + (mine // PARTS)[:, None] * D + steps[None, :]
    right = weight + inner[None, :] * D + steps[:, None]
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, D, BLOCK_K):
        some = tl.load(left + first, mask=exist[:, None], other=0.0)
        gate = tl.dot(some, tl.load(right + first), gate)
        up = tl.dot(some, tl.load(right + INNER * D + first), up)
    value = gate * tl.sigmoid(gate) * up
    at = out + mine[:, None] * INNER + inner[None, :]
    tl.store(at, value.to(out.dtype.element_ty), mask=exist[:, None])


@triton.jit(do_not_specialize=["num_rows"])
def contract(
    states, routed, shared, ids, shares, counts, pairs, out, num_rows,
    D: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, TOP: tl.constexpr, PARTS: tl.constexpr,
    LISTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write ``out`` (pairs, D) = ``states`` (pairs, INNER) through every pair's expert, times its weight.

    ``routed`` (EXPERTS, D, INNER); ``shared`` (PARTS - TOP, D, INNER), whose weight is 1.
    """
    chunk, which, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    expert, weight, mine, exist = members(
        routed, shared, ids, counts, pairs, num_rows, which, chunk, D * INNER, EXPERTS, TOP, PARTS,
        LISTED, BLOCK_M,
    )  # fmt: skip
    if tl.max(exist.to(tl.int32), axis=0) == 0:
        return
    share = exist.to(tl.float32)
    if expert < EXPERTS:
        share = tl.load(shares + mine, mask=exist, other=0.0)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    left = states + mine[:, None] * INNER + steps[None, :]
    right = weight + columns[None, :] * INNER + steps[:, None]
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, INNER, BLOCK_K):
        some = tl.load(left + first, mask=exist[:, None], other=0.0)
        value = tl.dot(some, tl.load(right + first), value)
    at = out + mine[:, None] * D + columns[None, :]
    tl.store(at, (value * share[:, None]).to(out.dtype.element_ty), mask=exist[:, None])


@triton.jit
def scan(
    logits, history, runs, run_needed, is_exempt, tops, totals, wanted, allowed, chosen,
    vocab, span, reach, SPLITS: tl.constexpr, BLOCK: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """Find the largest logit in one of SPLITS ranges of a row, with and without the n-gram ban.

    All results are (n, SPLITS): ``tops``, the largest logit, at id ``wanted``; ``allowed``, the largest that
    the ban allows, at id ``chosen``; ``totals``, the sum of exp(logit - top). Of equal logits the first is
    taken.
    """
    row, split = tl.program_id(0), tl.program_id(1)
    ids = split * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab
    scores = tl.load(logits + row * vocab + ids, mask=inside, other=float("-inf")).to(tl.float32)
    top = tl.max(scores, axis=0)
    first = tl.min(tl.where(scores == top, ids, vocab), axis=0)
    total = tl.sum(tl.exp(scores - tl.where(top == float("-inf"), 0.0, top)), axis=0)
    at = row * SPLITS + split
    tl.store(tops + at, top)
    tl.store(totals + at, total)
    tl.store(wanted + at, first)
    distances = tl.arange(0, REACH)
    within = distances < reach
    run = tl.load(runs + row * span + distances, mask=within, other=0)
    needed = tl.load(run_needed + row * reach + distances, mask=within, other=2147483647)
    if tl.max((run >= needed).to(tl.int32), axis=0) > 0:  # rare
        for distance in range(reach):
            is_long = tl.load(runs + row * span + distance) >= tl.load(run_needed + row * reach + distance)
            follower = tl.maximum(tl.load(history + row * span + distance), 0)
            is_banned = is_long & (tl.load(is_exempt + follower) == 0)
            scores = tl.where(is_banned & (ids == follower), float("-inf"), scores)
        top = tl.max(scores, axis=0)
        first = tl.min(tl.where(scores == top, ids, vocab), axis=0)
    tl.store(allowed + at, top)
    tl.store(chosen + at, first)


@triton.jit(do_not_specialize=["num_rows"])
def choose(
    tops, totals, wanted, allowed, chosen, history, runs, loop_needed, tokens, positions, lengths, sums,
    is_running, choices, num_rows, vocab, span, max_period,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Combine the ranges into a row's token, and advance the row's state by it. One program per row.

    ``choices``: (4, n) float64, the token, whether the output repeats, whether the ban changed the choice,
    and the sum of log-probabilities.
    """
    row = tl.program_id(0)
    splits = tl.arange(0, BLOCK)
    exists = splits < SPLITS
    at = row * SPLITS + splits
    top = tl.load(tops + at, mask=exists, other=float("-inf"))
    total = tl.load(totals + at, mask=exists, other=0.0)
    highest = tl.max(top, axis=0)
    log_total = highest + tl.log(tl.sum(tl.where(exists, total * tl.exp(top - highest), 0.0), axis=0))
    id_wanted = tl.load(wanted + at, mask=exists, other=vocab)
    id_wanted = tl.min(tl.where(top == highest, id_wanted, vocab), axis=0)
    best = tl.load(allowed + at, mask=exists, other=float("-inf"))
    score = tl.max(best, axis=0)
    id_chosen = tl.load(chosen + at, mask=exists, other=vocab)
    id_chosen = tl.min(tl.where(best == score, id_chosen, vocab), axis=0)
    was_banned = id_chosen != id_wanted
    id_chosen = tl.minimum(id_chosen, vocab - 1)  # NaN equals nothing, but the id must be valid
    log_sum = tl.load(sums + row) + score - log_total

    distances = tl.arange(0, SPAN)
    within = distances < span
    past = tl.load(history + row * span + distances, mask=within, other=-1)
    run = tl.load(runs + row * span + distances, mask=within, other=0)
    run = tl.where(past == id_chosen, run + 1, 0)
    needed = tl.load(loop_needed + distances, mask=distances < max_period, other=2147483647)
    is_repeating = tl.max((run >= needed).to(tl.int32), axis=0)
    tl.debug_barrier()  # all of the history is read before any of it is overwritten
    tl.store(history + row * span + distances + 1, past, mask=distances + 1 < span)
    tl.store(history + row * span, id_chosen)
    tl.store(runs + row * span + distances, run, mask=within)

    running = tl.load(is_running + row)
    tl.store(tokens + row, id_chosen.to(tl.int64))
    tl.store(positions + row, tl.load(positions + row) + running)
    tl.store(lengths + row, tl.load(lengths + row) + running)
    tl.store(sums + row, log_sum)
    tl.store(choices + row, id_chosen.to(tl.float64))
    tl.store(choices + num_rows + row, is_repeating.to(tl.float64))
    tl.store(choices + 2 * num_rows + row, was_banned.to(tl.float64))
    tl.store(choices + 3 * num_rows + row, log_sum.to(tl.float64))
