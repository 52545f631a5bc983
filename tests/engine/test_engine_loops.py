"""The ban equals DeepSeek's rule in plain Python; loops are found in time, and only loops."""

from collections.abc import Collection, Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.ocr.engine.loops import (
    BanCount,
    Loop,
    LoopRule,
    NgramRule,
    RepeatState,
    find_loop,
    loop_before_ban,
    without_repeats,
)  # fmt: skip

VOCAB = 6
RULE = LoopRule(unit=4, max_period=12)
CPU = torch.device("cpu")
rules = st.builds(
    lambda n, more, exempt: NgramRule(n, n + more, exempt),
    st.integers(2, 5),
    st.integers(0, 12),
    st.none() | st.frozensets(st.integers(0, 9), max_size=2),
)
outputs = st.lists(st.integers(0, 2), max_size=60)


def banned_by_hand(ids: Sequence[int], rule: NgramRule, exempt: Collection[int]) -> set[int]:
    """DeepSeek-OCR's NoRepeatNGramLogitsProcessor, written from its description."""
    if len(ids) < rule.n:
        return set()
    prefix = tuple(ids[len(ids) - rule.n + 1 :])
    banned = set()
    for start in range(max(0, len(ids) - rule.window), len(ids) - rule.n + 1):
        *head, last = ids[start : start + rule.n]
        if tuple(head) == prefix:
            banned.add(last)
    return banned - set(exempt)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(rules, st.lists(st.integers(0, 2), min_size=25, max_size=25)), min_size=1, max_size=4),
    st.sets(st.integers(0, VOCAB - 1), max_size=2),
    st.integers(0, 24),
)
def test_the_ban_is_the_reference_for_every_row_at_every_step(
    rows: list[tuple[NgramRule, list[int]]], exempt: set[int], leaves_at: int
) -> None:
    state = RepeatState(len(rows), RULE, max(rule.max_distance for rule, _ in rows), exempt, VOCAB, CPU)
    for row, (rule, ids) in enumerate(rows):
        state.start(row, rule, torch.tensor(ids[0]))
    for step in range(1, 25):
        if step == leaves_at and len(rows) > 1:  # the first row leaves, the last one takes its place
            state.move(len(rows) - 1, 0)
            rows = [rows[-1], *rows[1:-1]]
        scores = state.banned(torch.zeros(len(rows), VOCAB))
        for row, (rule, ids) in enumerate(rows):
            banned = (scores[row] == -torch.inf).nonzero().flatten().tolist()
            never = exempt if rule.exempt is None else set(rule.exempt)
            assert set(banned) == banned_by_hand(ids[:step], rule, never)
        state.accept(state.after(torch.tensor([ids[step] for _, ids in rows])))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=60))
def test_the_device_flags_exactly_the_outputs_in_which_the_host_finds_a_loop(ids: list[int]) -> None:
    state = RepeatState(1, RULE, 3, (), VOCAB, CPU)
    state.start(0, NgramRule(2, 4), torch.tensor(ids[0]))
    for length in range(2, len(ids) + 1):
        extended = state.after(torch.tensor(ids[length - 1 : length]))
        state.accept(extended)
        assert bool(extended.is_repeating[0]) == (find_loop(ids[:length], RULE) is not None)


@given(outputs, st.lists(st.integers(3, 9), min_size=1, max_size=12, unique=True), st.integers(0, 11))
def test_a_loop_is_found_within_three_copies(before: list[int], copy: list[int], rest: int) -> None:
    """One that is shorter than the unit is read as its multiple that reaches the unit."""
    needed = 3 * max(len(copy), RULE.unit)
    endless = [copy[i % len(copy)] for i in range(needed + rest)]
    for extra in range(rest + 1):
        loop = find_loop(before + endless[: needed + extra], RULE)
        assert loop == Loop(len(copy), len(before))
    assert find_loop(before + endless[: needed - 1], RULE) is None or find_loop(before, RULE) is not None


@given(outputs)
def test_what_is_called_a_loop_does_repeat(ids: list[int]) -> None:
    loop = find_loop(ids, RULE)
    if loop is not None:
        tail = ids[loop.start :]
        assert len(tail) >= RULE.covered(loop.period)
        assert tail[loop.period :] == tail[: -loop.period]
        assert without_repeats(ids, loop) == ids[: loop.start + loop.period]


@given(st.lists(st.integers(0, 1000), max_size=80, unique=True))
def test_output_without_repetition_is_no_loop(ids: list[int]) -> None:
    assert find_loop(ids, RULE) is None


def test_empty_table_cells_are_no_loop_until_eight_times_as_many() -> None:
    rule, cell = LoopRule(), [7, 8]
    assert find_loop(cell * 100, rule) is not None
    assert find_loop(cell * 300, rule, exempt={7, 8}) is None
    assert find_loop(cell * 360, rule, exempt={7, 8}) is not None, "yet they end"
    row = [*cell * 12, 5, 6]  # a row of empty cells, repeated, has a period below the unit
    assert find_loop(row * 10, rule, exempt={7, 8}) is None
    table = [*range(100, 150), *cell * 50]
    assert find_loop(table * 3, rule, exempt={7, 8}) is not None, (
        "a table of cells and text, three times over"
    )


def test_a_ruler_of_dashes_is_no_loop() -> None:
    assert find_loop([3] * 80, LoopRule()) is None


@given(
    st.builds(lambda n, more: NgramRule(n, n + more), st.integers(2, 4), st.integers(8, 20)),
    st.lists(st.integers(0, 1), min_size=20, max_size=40),
)
def test_what_stopped_at_the_ban_is_cut_to_one_copy(rule: NgramRule, ids: list[int]) -> None:
    assume(banned_by_hand(ids, rule, ()))
    loop = loop_before_ban(ids, rule)
    assert loop is not None
    assert loop.period <= rule.max_distance
    tail = ids[loop.start :]
    assert tail[loop.period :] == tail[: -loop.period]
    assert len(tail) >= loop.period + rule.n - 1


def test_three_changes_by_the_default_ban_are_a_loop_and_far_ones_are_not() -> None:
    near, far = BanCount(NgramRule(), LoopRule()), BanCount(NgramRule(), LoopRule())
    assert [near.add(at) for at in (40, 70, 100)] == [None, None, 40]
    assert [far.add(at) for at in (40, 240, 440, 640)] == [None] * 4


@pytest.mark.parametrize(("n", "window"), [(1, 9), (5, 4)])
def test_impossible_rules_are_refused(n: int, window: int) -> None:
    with pytest.raises(ValueError, match="ngram"):
        NgramRule(n, window)
