"""Drafts from a text layer change no token, whatever the layer says; they only save steps."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from engine_fakes import FakeOcr, Inline, ids_of, page, permutation_network, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from app.document import Reading, ReadOptions
from app.ocr.engine.drafts import MAX_TEXT_TOKENS, MIN_CONTEXT, MIN_DRAFT, Acceptance, DraftText
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import PageTask, new_task

TIGHT_BAN = NgramRule(n=3, window=24)
SOON = LoopRule(unit=4, max_period=24)


def letters(ids: list[int]) -> str:
    return "".join(chr(0x100 + token) for token in ids)


def ids(text: str) -> list[int]:
    return [ord(letter) - 0x100 for letter in text if ord(letter) >= 0x100]


@cache
def double(seed: int) -> FakeOcr:
    """In float64 no two logits are so near that rounding decides."""
    return FakeOcr(random_network(seed, dtype=torch.float64))


def loop_of(model: FakeOcr, **limits: Any) -> tuple[PageLoop, EngineSettings]:
    usual: dict[str, Any] = {"max_running_pages": 4, "max_page_tokens": 160, "ngram": TIGHT_BAN}
    chosen = EngineSettings(kv_memory_mib=64, **(usual | limits))
    return PageLoop(model, chosen, Inline(), Inline()), chosen


def enter(
    loop: PageLoop,
    model: FakeOcr,
    limits: EngineSettings,
    number: int,
    options: ReadOptions,
    text: str | None,
    *,
    is_exact: bool = False,
) -> PageTask:
    draft_text = None if text is None else DraftText(text, model.text_ids, is_exact=is_exact)
    task = new_task(model, limits, page(number), options, f"d{number}", None, draft_text)
    loop.enqueue(task, 0)
    return task


def finish(loop: PageLoop, tasks: list[PageTask]) -> list[Reading]:
    while not all(task.done.done() for task in tasks):
        loop.turn()
    return [task.done.result() for task in tasks]


@dataclass(frozen=True)
class Wish:
    number: int
    options: ReadOptions
    kind: str
    at_turn: int


KINDS = ("none", "right", "exact", "another", "garbage", "repeats", "with errors", "with loops")


def text_for(kind: str, read: dict[int, str], number: int) -> str | None:
    """A text layer of this kind for a page that is read as ``read[number]``."""
    right = read[number]
    texts = {
        "none": None,
        "right": right,
        "exact": right,
        "another": read[max(read)],
        "garbage": letters([(7 * i * i + number) % 97 for i in range(80)]),
        "repeats": (right[:3] * 20 + right[:5] * 9 + right) * 3,
        "with errors": "".join(letters([5]) if i % 9 == 8 else letter for i, letter in enumerate(right)),
        "with loops": "".join(right[i : i + 4] * 3 for i in range(0, len(right), 4)),
    }
    return texts[kind]


def wishes() -> st.SearchStrategy[list[Wish]]:
    options = st.builds(
        ReadOptions,
        mode=st.sampled_from(["tiny", "small"]),
        prune=st.sampled_from(["rtprune", "none"]),
        keep_ratio=st.sampled_from([None, 0.4]),
        max_output_tokens=st.integers(1, 60),
    )
    wish = st.builds(Wish, st.integers(0, 40), options, st.sampled_from(KINDS), st.integers(0, 12))
    return st.lists(wish, min_size=1, max_size=7)


def facts(reading: Reading) -> tuple[Any, ...]:
    tokens = replace(reading.tokens, drafted=0, accepted=0)
    return ids_of(reading.text), reading.finish_reason, reading.attempts, tokens


@pytest.mark.parametrize("loops", [LoopRule(unit=10**6), SOON], ids=["greedy", "loops"])
@settings(max_examples=5, deadline=None)
@given(wished=wishes(), seed=st.integers(0, 2))
def test_tokens_are_those_without_drafts(loops: LoopRule, wished: list[Wish], seed: int) -> None:
    """Whatever the text layer says, alone and beside pages with another one or none, with bans, loops, ends
    in the middle of a draft, and pruning.
    """
    model = double(seed)
    limits: dict[str, Any] = {"loops": loops, "strict_ngram": NgramRule(2, 30), "max_attempts": 3}
    plain, plain_limits = loop_of(model, **limits, max_draft_tokens=0)
    wanted = finish(plain, [enter(plain, model, plain_limits, w.number, w.options, None) for w in wished])
    read = {wish.number: reading.text for wish, reading in zip(wished, wanted, strict=True)}

    loop, loop_limits = loop_of(model, **limits)
    tasks: list[PageTask] = []
    turn = 0
    while len(tasks) < len(wished) or not all(task.done.done() for task in tasks):
        for wish in wished[len(tasks) :]:
            if wish.at_turn > turn:
                break
            text = text_for(wish.kind, read, wish.number)
            is_exact = wish.kind == "exact"
            tasks.append(enter(loop, model, loop_limits, wish.number, wish.options, text, is_exact=is_exact))
        loop.turn()
        turn += 1
    for task, reading in zip(tasks, wanted, strict=True):
        drafted = task.done.result()
        assert facts(drafted) == facts(reading)
        assert drafted.confidence == pytest.approx(reading.confidence, abs=1e-6)
        assert 0 <= drafted.tokens.accepted <= drafted.tokens.drafted
    assert not loop.decoder.cache.storage.any(), "what was written for drafts is wiped with the page"


def test_a_right_text_layer_saves_steps() -> None:
    model = double(0)
    options = ReadOptions(prune="none", max_output_tokens=60)
    plain, limits = loop_of(model, max_draft_tokens=0)
    (wanted,) = finish(plain, [enter(plain, model, limits, 3, options, None)])
    loop, limits = loop_of(model)
    (reading,) = finish(loop, [enter(loop, model, limits, 3, options, wanted.text, is_exact=True)])
    assert facts(reading) == facts(wanted)
    assert reading.tokens.drafted >= reading.tokens.accepted > 40
    assert plain.load.steps > 4 * loop.load.steps
    assert loop.load.num_tokens <= plain.load.num_tokens, "each token counts once"


def test_words_of_a_page_are_its_drafts_unless_switched_off() -> None:
    """``Engine.draft_text`` makes none where none are verified."""
    model = double(0)
    assert loop_of(model)[0].max_draft_tokens == 8
    assert loop_of(model, max_draft_tokens=0)[0].max_draft_tokens == 0
    sliding = FakeOcr(random_network(0, layer_types=["reference_sliding_attention"] * 3, sliding_window=9))
    assert loop_of(sliding)[0].max_draft_tokens == 0, "a rejected draft would overwrite the window's ring"


@pytest.mark.parametrize("limit", [39, 40, 41, 47, 120])
@pytest.mark.parametrize("period", [1, 4, 30])
def test_loops_and_limits_end_where_they_would_without_drafts(period: int, limit: int) -> None:
    """The drafts go on with the loop, past its end."""
    model = FakeOcr(permutation_network(period), eos_id=-1)
    options = ReadOptions(prune="none", max_output_tokens=limit)
    ban = NgramRule(1000, 1000)
    limits: dict[str, Any] = {"max_page_tokens": 1000, "ngram": ban, "strict_ngram": ban, "max_attempts": 1}
    cycle = letters([10 + i % period for i in range(400)])
    answers = []
    for most in (0, 3, 8):
        loop, chosen = loop_of(model, **limits, max_draft_tokens=most)
        answers += finish(loop, [enter(loop, model, chosen, 0, options, cycle if most else None)])
    assert facts(answers[0]) == facts(answers[1]) == facts(answers[2])
    assert answers[2].tokens.accepted > limit // 3


def test_ban_changes_count_as_without_drafts() -> None:
    """The ban breaks the loop again and again; what is chosen instead leads back into it."""
    model = FakeOcr(permutation_network(7), eos_id=-1)
    options = ReadOptions(prune="none", max_output_tokens=300)
    limits: dict[str, Any] = {
        "max_page_tokens": 1000,
        "ngram": NgramRule(),
        "strict_ngram": NgramRule(10, 256),
    }
    cycle = letters([10 + i % 7 for i in range(400)])
    readings = []
    for most in (0, 8):
        loop, chosen = loop_of(model, **limits, max_draft_tokens=most)
        readings += finish(loop, [enter(loop, model, chosen, 0, options, cycle)])
    assert facts(readings[0]) == facts(readings[1])
    assert readings[0].attempts[0].finish_reason == "loop"
    assert readings[1].tokens.accepted > 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_draft_whose_numbers_overflow_does_not_fail_the_page(number: float) -> None:
    network = random_network(0, dtype=torch.float64)
    model = FakeOcr(network)
    options = ReadOptions(prune="none", max_output_tokens=30)
    plain, limits = loop_of(model, max_draft_tokens=0)
    (wanted,) = finish(plain, [enter(plain, model, limits, 2, options, None)])
    unused = next(token for token in range(10, 97) if token not in ids(wanted.text))
    with torch.no_grad():
        network.model.language_model.embed_tokens.weight[unused] = number
    text = "".join(wanted.text[i : i + 5] + letters([unused]) for i in range(0, len(wanted.text), 3))
    loop, limits = loop_of(model)
    (reading,) = finish(loop, [enter(loop, model, limits, 2, options, text)])
    assert facts(reading) == facts(wanted)
    assert reading.tokens.drafted > 0
    assert not loop.decoder.cache.storage.any()


def test_a_step_that_runs_out_of_memory_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(1)
    options = ReadOptions(prune="none", max_output_tokens=40)
    plain, limits = loop_of(model, max_draft_tokens=0)
    wanted = finish(plain, [enter(plain, model, limits, number, options, None) for number in range(3)])
    loop, limits = loop_of(model)
    layers = loop.decoder._layers
    falls = iter([False, False, True])  # in the second step

    def head(hidden: torch.Tensor) -> torch.Tensor:
        if next(falls, False):
            raise MemoryError
        return layers.head(hidden)

    monkeypatch.setattr(loop.decoder, "_layers", Failing(layers, head))
    tasks = [enter(loop, model, limits, n, options, wanted[n].text) for n in range(3)]
    assert [ids_of(reading.text) for reading in finish(loop, tasks)] == [ids_of(one.text) for one in wanted]


class Failing:
    """Layers with another head."""

    def __init__(self, layers: Any, head: Any) -> None:
        self._layers, self.head = layers, head

    def __call__(self, *arguments: Any) -> torch.Tensor:
        hidden: torch.Tensor = self._layers(*arguments)
        return hidden


# what is proposed


def spelled(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def proposed(text: str, read: str, most: int = 8, *, is_exact: bool = False) -> str:
    draft_text = DraftText(text, spelled, is_exact=is_exact)
    return "".join(map(chr, draft_text.propose(spelled(read), most)))


def test_what_follows_in_the_text_is_proposed() -> None:
    text = "Forty sheets of white stock lie in the northern store. Sheets of blue"
    assert proposed(text, "Forty she") == "ets of w"
    assert proposed(text, "the") == " northern"[:MIN_DRAFT], "a short context promises little"
    assert proposed(text, "in the nor", 5) == "thern"
    assert proposed(text, "Sheets of ") == "blue", "the longest context counts"
    assert proposed(text, "sheets\nof wh") == "ite stoc", "a line may break at a space"
    assert proposed(text, "Fo") == proposed(text, "") == ""
    assert proposed(text, "Fo", is_exact=True) == "rty "
    assert proposed(text, "", is_exact=True) == "Fort"
    assert proposed(text, "ort", 0) == proposed(text, "xyz") == proposed("", "abc") == ""


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab \n", max_size=60), read=st.text("ab \n", max_size=30), most=st.integers(-1, 9))
def test_a_proposal_stands_in_the_text_after_what_was_read(text: str, read: str, most: int) -> None:
    draft = proposed(text, read, most)
    assert len(draft) <= max(0, most)
    if draft:
        spaced = read.replace("\n", " ")[-MIN_CONTEXT:]
        assert spaced + draft.replace("\n", " ") in text.replace("\n", " ")


def test_a_hostile_text_costs_little() -> None:
    draft_text = DraftText("ab" * 10**6, spelled)
    draft_text.prepare()
    assert len(draft_text._ids) == MAX_TEXT_TOKENS
    assert len(draft_text.propose(spelled("ab" * 500), 8)) == 8


def test_a_layer_that_predicts_badly_is_left_alone_for_good() -> None:
    acceptance = Acceptance()
    one, other = (DraftText("abcdefghij", spelled, acceptance) for _ in range(2))
    acceptance.add(Acceptance.WINDOW, Acceptance.WINDOW)
    assert one.propose(spelled("abc"), 8)
    acceptance.add(Acceptance.WINDOW // 2, 0)
    assert one.propose(spelled("abc"), 8), "the window may still end well"
    acceptance.add(Acceptance.WINDOW // 2, Acceptance.WINDOW // 2)
    acceptance.add(Acceptance.WINDOW // 2, 0)
    assert one.propose(spelled("abc"), 8), "it did, and another began"
    acceptance.add(1, 0)
    assert not one.propose(spelled("abc"), 8)
    assert not other.propose(spelled("abc"), 8), "the views of a page share it"
    acceptance.add(1000, 1000)
    assert acceptance.is_low


def test_a_wrong_layer_is_given_up_in_half_a_window() -> None:
    model = double(0)
    options = ReadOptions(prune="none", max_output_tokens=300)
    plain, limits = loop_of(model, max_draft_tokens=0, max_page_tokens=400)
    (wanted,) = finish(plain, [enter(plain, model, limits, 3, options, None)])
    # every context of three is there, what follows is never what is read
    wrong = "".join(wanted.text[i : i + 3] + letters([3]) * 9 for i in range(len(wanted.text)))
    loop, limits = loop_of(model, max_page_tokens=400)
    (reading,) = finish(loop, [enter(loop, model, limits, 3, options, wrong)])
    assert facts(reading) == facts(wanted)
    refused = reading.tokens.drafted - reading.tokens.accepted
    assert Acceptance.WINDOW // 2 < refused <= Acceptance.WINDOW // 2 + 8
