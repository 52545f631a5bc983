"""With ``fixation`` most layers attend to few patch tokens: exact at share 1, each row by itself."""

import math
from typing import Any

import pytest
import torch
from engine_bench import NO_BAN, Bench, limits
from engine_fakes import FakeOcr, ids_of, page, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from app.document import Reading, ReadOptions
from app.errors import BadOption
from app.ocr.engine.drafts import DraftText
from app.ocr.engine.fixation import FixationPlan, FixedRow, Patches
from app.ocr.engine.patches import sides_of
from app.ocr.engine.retries import AttemptPlan, attempt_plans
from app.ocr.engine.task import new_task
from app.ocr.engine.vision import patches_of
from app.ocr.models.model import Mode, PageViews
from rtprune import VisualTokens

PLAN = FixationPlan((1,), min_patches=1, refresh_steps=8, warm_up_steps=2, min_probability=0.0)
SIDE = 5


def fixating(plan: FixationPlan = PLAN, **text: Any) -> FakeOcr:
    return FakeOcr(random_network(0, **text), eos_id=-1, fixation=plan)


def readings(model: FakeOcr, numbers: list[int], most_rows: int, **options: Any) -> list[Reading]:
    bench = Bench(model, limits(max_running_pages=most_rows))
    tasks = [
        bench.read(number, ReadOptions(max_output_tokens=20 + 3 * i, **options))
        for i, number in enumerate(numbers)
    ]
    bench.finish(*tasks)
    assert bench.loop.decoder.fixations.rows == [], "rows are freed"
    return [task.done.result() for task in tasks]


@pytest.mark.parametrize("prune", ["none", "rtprune"])
@pytest.mark.parametrize(
    "text", [{}, {"num_attention_heads": 6, "num_key_value_heads": 3}], ids=["plain", "grouped"]
)
def test_at_share_1_tokens_and_probabilities_are_those_of_plain_attention(
    prune: Any, text: dict[str, Any]
) -> None:
    model = fixating(**text)
    plain = readings(model, [1, 2, 3], 2, prune=prune, mode="small")
    fixed = readings(model, [1, 2, 3], 2, prune=prune, mode="small", fixation=1.0)
    for one, other in zip(plain, fixed, strict=True):
        assert one.text == other.text
        assert abs(one.confidence - other.confidence) < 1e-5
        assert (one.tokens.attended_patches, other.tokens.attended_share) == (None, 1.0)


def test_a_small_share_attends_to_less_and_evicts_nothing() -> None:
    model = fixating()
    bench = Bench(model, limits())
    task = bench.read(1, ReadOptions(prune="none", mode="small", max_output_tokens=40, fixation=0.1))
    bench.turns(15)
    cache = bench.loop.decoder.cache
    prompt = cache.host_prompts[0]
    assert (cache.keys[0][0, :prompt].abs().sum((1, 2)) > 0).all(), "all keys are still there"
    bench.finish(task)
    [plain] = readings(model, [1], 1, prune="none", mode="small")
    tokens = task.done.result().tokens
    assert tokens.kept_patches == plain.tokens.kept_patches == 9
    assert tokens.attended_share is not None
    assert 0.1 <= tokens.attended_share < 1
    assert ids_of(task.done.result().text)[:2] == ids_of(plain.text)[:2], "the first steps attend to all"


@settings(max_examples=8, deadline=None)
@given(share=st.sampled_from([0.05, 0.3, 0.6]), numbers=st.lists(st.integers(0, 90), min_size=2, max_size=5))
def test_a_page_reads_the_same_alone_and_beside_others(share: float, numbers: list[int]) -> None:
    model = fixating()
    together = readings(model, numbers, 3, prune="rtprune", mode="small", fixation=share)
    for i, number in enumerate(numbers):
        bench = Bench(model, limits())
        options = ReadOptions(mode="small", max_output_tokens=20 + 3 * i, fixation=share)
        task = bench.read(number, options)
        bench.finish(task)
        alone = task.done.result()
        assert alone.text == together[i].text
        assert alone.tokens == together[i].tokens


def test_rows_with_and_without_fixation_share_a_step() -> None:
    model = fixating()
    bench = Bench(model, limits())
    options = ReadOptions(prune="none", mode="small", max_output_tokens=30)
    tasks = [bench.read(number, options) for number in (1, 2)]
    fixed = bench.read(3, ReadOptions(prune="none", mode="small", max_output_tokens=30, fixation=0.1))
    bench.finish(*tasks, fixed)
    plain = readings(model, [1, 2], 2, prune="none", mode="small")
    for task, reading in zip(tasks, plain, strict=True):
        text = task.done.result().text
        shortest = min(len(text), len(reading.text))
        assert text[:shortest] == reading.text[:shortest]
    assert fixed.done.result().tokens.attended_patches is not None


def test_no_drafts_are_verified_while_a_row_fixates() -> None:
    """A verifying pass has an attention of its own, in which every row would attend to everything."""
    model = fixating()
    options = ReadOptions(prune="none", mode="small", max_output_tokens=30)
    [plain] = readings(model, [1], 1, prune="none", mode="small")
    for share in (None, 0.1):
        bench = Bench(model, limits())
        drafted = new_task(
            model,
            bench.settings,
            page(1),
            options,
            "d",
            draft_text=DraftText(plain.text, ids_of, is_exact=True),
        )
        bench.loop.enqueue(drafted, 0)
        beside = bench.read(2, ReadOptions(prune="none", mode="small", max_output_tokens=90, fixation=share))
        bench.finish(drafted, beside)
        reading = drafted.done.result()
        assert reading.text.startswith(plain.text)
        assert (reading.tokens.drafted > 0) == (share is None)


def places(side: int = SIDE) -> torch.Tensor:
    return torch.tensor([(0, row, column) for row in range(side) for column in range(side)])


def row_of(share: float, plan: FixationPlan = PLAN) -> FixedRow:
    columns = torch.arange(SIDE * SIDE) + 1
    return FixedRow(Patches(share, columns, places()), plan)


@settings(max_examples=30, deadline=None)
@given(
    share=st.floats(0.01, 1),
    least=st.integers(1, 40),
    reuse=st.floats(0, 1),
    seed=st.integers(0, 1000),
    num_steps=st.integers(1, 12),
)
def test_the_chosen_set_is_bounded_and_holds_the_largest(
    share: float, least: int, reuse: float, seed: int, num_steps: int
) -> None:
    plan = FixationPlan((0, 2), min_patches=least, reuse=reuse, min_probability=0.0)
    row, generator = row_of(share, plan), torch.Generator().manual_seed(seed)
    wanted = min(SIDE * SIDE, max(least, math.ceil(share * SIDE * SIDE)))
    for step in range(num_steps):
        row.begin(step, -0.1 * step)
        assert row.is_dense == (step < 4)
        for _ in plan.focal_layers:
            before = row.chosen
            shares = torch.rand(3, SIDE * SIDE + 9, generator=generator)
            row.choose(shares)
            scores = shares[:, row.columns].amax(0)
            assert wanted <= int(row.chosen.sum()) <= wanted + int(reuse * wanted)
            assert row.chosen[scores.topk(wanted).indices].all()
        assert before.any() or step == 0


def test_what_lies_beside_the_step_before_is_attended_to_before_the_first_focal_layer() -> None:
    row = row_of(0.01)
    row.begin(0, 0.0)
    shares = torch.zeros(1, SIDE * SIDE + 2)
    shares[0, 1 + 12] = 1.0  # the middle
    row.choose(shares)
    assert row.chosen.nonzero().flatten().tolist() == [12]
    row.begin(1, 0.0)
    assert row.attended.nonzero().flatten().tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    row.begin(1, 0.0)
    assert int(row.attended.sum()) == 9, "a step that is taken again begins the same"


@pytest.mark.parametrize(
    ("step", "logprob", "is_dense"),
    [(0, 0.0, True), (1, 0.0, True), (2, 0.0, False), (7, 0.0, False), (8, 0.0, True), (9, -0.2, True)],
)
def test_first_due_and_doubtful_steps_attend_to_everything(step: int, logprob: float, is_dense: bool) -> None:
    row = row_of(0.1, FixationPlan((1,), warm_up_steps=2, refresh_steps=8, min_probability=0.9))
    row.begin(step - 1, -1.0)
    row.begin(step, -1.0 + logprob)
    assert row.is_dense == is_dense
    row.begin(step + 1, math.nan)
    assert row.is_dense, "NaN is not sure"


def test_patches_are_found_in_the_prompt_and_on_the_page() -> None:
    """Gundam: two tiles of two by two patches side by side, then the page's view of one patch."""
    mode = Mode("gundam", 64, pad=True, tile_px=128)
    views = PageViews(mode, torch.zeros(3, 64, 64), torch.zeros(2, 3, 128, 128), 2, 1)
    assert sides_of(views) == [(4, 2), (1, 1)]
    is_patch = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0]).bool()
    tokens = VisualTokens(torch.zeros(13, 4), is_patch)
    kept = torch.tensor([1, 3, 4, 6, 9, 10, 11, 12])
    patches = patches_of(views, tokens, kept, 0.5)
    assert patches.columns.tolist() == [1, 2, 4, 6]
    assert patches.places.tolist() == [[0, 0, 1], [0, 0, 3], [0, 1, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match="do not fill"):
        patches_of(views, VisualTokens(torch.zeros(5, 4), is_patch[:5]), kept, 0.5)


def test_the_attempt_without_pruning_attends_to_everything() -> None:
    modes = [Mode("tiny", 128, pad=True)]
    plans = attempt_plans(AttemptPlan("tiny", "none", None, NO_BAN, 0.2), NO_BAN, modes, 4)
    assert [plan.fixation for plan in plans] == [0.2, None]


def test_what_cannot_fixate_refuses_before_a_page_waits() -> None:
    on_cuda, without_places = fixating(), fixating()
    on_cuda.device, without_places.has_patch_places = torch.device("cuda"), False
    for model in (FakeOcr(random_network(0)), on_cuda, without_places):
        with pytest.raises(BadOption, match="fixation"):
            new_task(model, limits(), page(0), ReadOptions(fixation=0.5), "d")
        assert new_task(model, limits(), page(0), ReadOptions(), "d").attempt_plan.fixation is None


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (-1,)])
def test_a_plan_checks_itself(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="focal_layers"):
        FixationPlan(layers)
