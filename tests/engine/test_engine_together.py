"""Several pages in one prompt: tokens are those of ``generate()``, and no page gets another one's text."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_fakes import (
    TOGETHER,
    FakeOcr,
    Inline,
    page,
    permutation_network,
    random_network,
    two_pages_written,
)
from hypothesis import given
from hypothesis import strategies as st

from app.document import FinishReason, Page, Pruning, Reading, ReadOptions
from app.errors import BadOption, PageFailed
from app.ocr.engine.engine import Engine
from app.ocr.engine.fixation import FixationPlan
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import PageTask, new_task
from app.ocr.engine.together import divide, texts_of
from app.ocr.engine.vision import VisualCounts
from app.ocr.models.model import PageViews
from app.reader import NotTogether
from rtprune import RTPruneConfig, VisualTokens, prune_tokens, text_density

NO_BAN = NgramRule(1000, 1000)
SLIDING: dict[str, Any] = {"layer_types": ["reference_sliding_attention"] * 3, "sliding_window": 9}
LIMITS = EngineSettings(
    max_running_pages=3, max_page_tokens=512, kv_memory_mib=64, ngram=NO_BAN, strict_ngram=NO_BAN,
    loops=LoopRule(unit=10**6),
)  # fmt: skip


def fake(**options: Any) -> FakeOcr:
    return FakeOcr(random_network(0, **SLIDING), several_pages=TOGETHER, **options)


def read(model: FakeOcr, prompts: Sequence[Sequence[Page]], options: ReadOptions) -> list[Any]:
    """Read prompts of one page or more beside each other. Returns their tasks."""
    loop = PageLoop(model, LIMITS, Inline(), Inline())
    tasks = [new_task(model, LIMITS, first, options, "d", more=more) for first, *more in prompts]
    for task in tasks:
        loop.enqueue(task, 0)
    while not all(task.done.done() for task in tasks):
        loop.turn()
    return tasks


@torch.no_grad()
def expected(model: FakeOcr, pages: Sequence[Page], options: ReadOptions) -> list[int]:
    """The pages behind each other through ``generate()``, each pruned by itself, positions with gaps."""
    usual = model if len(pages) == 1 else TOGETHER
    visual, places, length = [], [], 1
    for one in pages:
        views = model.preprocess(one.image, usual.default_mode)
        tokens, side = model.encode_one(views), views.mode.view_px // 64
        embeds, kept = tokens.embeds, torch.arange(len(tokens.embeds))
        if options.prune == "rtprune":
            config = RTPruneConfig(keep_ratio=options.keep_ratio)
            pruned = prune_tokens(tokens, text_density(views.view, side, side), config)
            embeds, kept = pruned.embeds, pruned.kept
        visual.append(embeds)
        places.append(length + kept)
        length += len(tokens.embeds)
    prompt = model.prompt_ids(usual.default_prompt)
    text = model.embed(torch.tensor([model.bos_id, *prompt]))
    positions = torch.cat([torch.zeros(1).long(), *places, length + torch.arange(len(prompt))])
    output = model.network.generate(
        inputs_embeds=torch.cat([text[:1], *visual, text[1:]])[None],
        position_ids=positions[None],
        attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
        max_new_tokens=(options.max_output_tokens or 0) * len(pages),
        do_sample=False,
    )
    ids: list[int] = output[0].tolist()
    return ids[:-1] if ids[-1] == model.eos_id else ids


@pytest.mark.parametrize(("prune", "ratio"), [("none", None), ("rtprune", None), ("rtprune", 0.5)])
def test_tokens_are_those_of_generate(prune: Pruning, ratio: float | None) -> None:
    reference = fake()
    reference.network.set_experts_implementation("eager")
    options = ReadOptions(prune=prune, keep_ratio=ratio, max_output_tokens=25)
    prompts = [[page(0), page(1), page(2)], [page(3)], [page(4), page(5)], [page(6)]]
    for task, pages in zip(read(fake(), prompts, options), prompts, strict=True):
        assert task.best().ids == expected(reference, pages, options)
        counts = task.done.result().tokens
        assert (counts.kept < counts.visual) == (prune == "rtprune")
        side = 3 if len(pages) > 1 else 2
        assert counts.visual == len(pages) * (side * (side + 1) + 1)


class TornPage(FakeOcr):
    """Cannot encode pages of number 2."""

    def encode_one(self, page: PageViews) -> VisualTokens:
        if page.view[0, 0, 0] == 2 / 127.5 - 1:
            raise RuntimeError("torn")
        return super().encode_one(page)


def test_a_page_that_fails_fails_its_prompt_and_no_other() -> None:
    model = TornPage(random_network(0, **SLIDING), several_pages=TOGETHER)
    prompts = [[page(1), page(2)], [page(3), page(4)], [page(5)]]
    failed, *others = read(model, prompts, ReadOptions(max_output_tokens=5))
    with pytest.raises(PageFailed):
        failed.done.result()
    assert all(task.done.result().finish_reason in ("length", "stop") for task in others)


def test_several_pages_have_rules_of_their_own() -> None:
    together = replace(TOGETHER, ngram=NgramRule(35, 1024))
    model = FakeOcr(random_network(0), several_pages=together)
    settings = EngineSettings()
    assert settings.max_ban_distance(model) == together.ngram.max_distance
    task = new_task(model, settings, page(0), ReadOptions(), "d", more=[page(1)])
    assert [(plan.mode, plan.ngram) for plan in task.attempt_plans] == [("small", together.ngram)]
    alone = new_task(model, settings, page(0), ReadOptions(), "d")
    assert (alone.attempt_plans[0].mode, alone.attempt_plans[0].ngram) == ("tiny", NgramRule())


def test_what_several_pages_cannot_have_is_refused() -> None:
    model = FakeOcr(random_network(0))
    with pytest.raises(BadOption, match="fake reads one page a prompt"):
        new_task(model, LIMITS, page(0), ReadOptions(), "d", more=[page(1)])
    with pytest.raises(BadOption, match="tokens=detail"):
        new_task(fake(), LIMITS, page(0), ReadOptions(tokens="detail"), "d", more=[page(1)])
    fixing = fake(fixation=FixationPlan((0,)))
    with pytest.raises(BadOption, match="fixation is for one page a prompt"):
        new_task(fixing, LIMITS, page(0), ReadOptions(fixation=0.5), "d", more=[page(1)])


TEXTS = st.lists(st.text(st.sampled_from("ab <>PAGE\n")).filter(lambda text: "<PAGE>" not in text))


@given(TEXTS)
def test_a_text_is_divided_at_its_marks(texts: list[str]) -> None:
    written = "".join(f"<PAGE>\n{text}\n" for text in texts)
    assert texts_of(written, "<PAGE>") == [text.strip() for text in texts]


@given(st.sampled_from(["one", "\n.", "<PAG", "PAGE>"]), TEXTS)
def test_text_before_the_first_mark_belongs_to_no_page(before: str, texts: list[str]) -> None:
    assert texts_of(before + "".join(f"<PAGE>{text}" for text in texts), "<PAGE>") == []


MARK = "ab"
"""Two tokens of ``Spelling``."""
TEXT = st.text("bc \n", max_size=12)


class Spelling(FakeOcr):
    """A token is a letter."""

    def decode_text(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def wrote(text: str, num_pages: int, reason: FinishReason = "stop") -> tuple[Reading, PageTask, FakeOcr]:
    """What a model wrote of pages in one prompt: token i has the log-probability -i."""
    model = Spelling(random_network(0), several_pages=replace(TOGETHER, mark=MARK))
    pages = [page(number) for number in range(num_pages)]
    task = new_task(model, LIMITS, pages[0], ReadOptions(), "d", more=pages[1:])
    own = [VisualCounts(13, 8 + number, 9, 4 + number, 0.5, 0.2, None) for number in range(num_pages)]
    task.counts = replace(own[0], of_pages=tuple(own) if num_pages > 1 else ())
    task.ids = list(map(ord, text))
    task.logprobs = [-float(number) for number in range(len(text) + (reason == "stop"))]
    task.logprob_sum = sum(task.logprobs)
    task.times_ms["decode"] = 12.0
    task.conclude(reason)
    return task.reading(model.decode_text(task.best().ids)), task, model


@given(st.lists(TEXT, min_size=2, max_size=6))
def test_every_page_gets_its_text_its_tokens_and_a_share_of_the_times(texts: list[str]) -> None:
    whole, task, model = wrote("".join(MARK + text for text in texts), len(texts))
    readings = divide(whole, task, model)
    assert [one.text for one in readings] == [text.strip() for text in texts]
    assert [one.tokens.kept for one in readings] == [8 + number for number in range(len(texts))]
    assert sum(one.tokens.output for one in readings) == whole.tokens.output
    assert [one.attempts[0].output_tokens for one in readings] == [one.tokens.output for one in readings]
    assert {one.attempts[0].pages for one in readings} == {len(texts)}
    assert sum(one.timing_ms["decode"] for one in readings) == pytest.approx(12.0)


def test_confidence_and_risk_are_of_the_pages_own_tokens() -> None:
    whole, task, model = wrote("abcc" + "ab" + "cb", 2)
    first, second = divide(whole, task, model)
    assert (first.tokens.output, second.tokens.output) == (6, 2), "the mark behind a page is its end"
    assert first.confidence == -sum(range(6)) / 6
    assert second.confidence == -(6 + 7 + 8) / 3, "with the end token"
    assert first.risk < whole.risk <= second.risk


@pytest.mark.parametrize(
    ("text", "reason", "why"),
    [
        ("abcabb", "stop", "the text of 3 pages had 2 parts"),
        ("abcabbabcabb", "stop", "the text of 3 pages had 4 parts"),
        ("cabbabcabb", "stop", "the text of 3 pages had 0 parts"),
        ("abcabbabc", "length", "ended with length"),
        ("abcabbabc", "loop", "ended with loop"),
        ("abcabbabc", "deadline", "ended with deadline"),
    ],
)
def test_any_doubt_about_whose_text_it_is_is_told_with_what_was_read(
    text: str, reason: FinishReason, why: str
) -> None:
    whole, task, model = wrote(text, 3, reason)
    with pytest.raises(NotTogether, match=why) as told:
        divide(whole, task, model)
    assert told.value.reading == whole
    assert [(one.finish_reason, one.pages) for one in whole.attempts] == [(reason, 3)]


def test_one_page_is_read_as_one_page() -> None:
    whole, task, model = wrote("cc", 1)
    assert divide(whole, task, model) == [whole]
    assert whole.attempts[0].pages == 1


def test_a_page_that_ended_before_it_was_encoded_is_not_divided() -> None:
    _, task, model = wrote("abcab", 2)
    task.restarts(0, "asked")
    task.outcomes.clear()
    task.conclude("deadline")
    with pytest.raises(NotTogether, match="ended with deadline"):
        divide(task.reading(""), task, model)


async def together(model: FakeOcr, settings: EngineSettings) -> list[Reading]:
    engine = Engine(model, settings)
    try:
        assert engine.reads_together
        stream = engine.submit_together([page(0), page(1)], ReadOptions(), document_id="d")
        return list(await stream.results())
    finally:
        await engine.close()


def test_the_engine_divides_what_was_written_of_several_pages() -> None:
    model = two_pages_written()
    settings = EngineSettings(kv_memory_mib=64, max_page_tokens=256, ngram=NO_BAN)
    first, second = asyncio.run(together(model, settings))
    assert (first.text, second.text) == ("one", "two more")
    assert (first.tokens.output, second.tokens.output) == (3, 2)
    assert first.tokens.visual == second.tokens.visual == 3 * 4 + 1
    assert first.mode == "small"


def test_a_text_that_does_not_end_is_not_divided() -> None:
    """The network writes its cycle for ever, so there are marks, but no end of the last page."""
    model = FakeOcr(permutation_network(7), several_pages=replace(TOGETHER, mark=chr(0x100 + 10)))
    settings = EngineSettings(kv_memory_mib=64, max_page_tokens=256, max_output_tokens=10, ngram=NO_BAN)
    with pytest.raises(NotTogether, match="ended with length") as told:
        asyncio.run(together(model, settings))
    assert told.value.reading is not None
    assert told.value.reading.tokens.output == 2 * 10, "the limit is of a page"


def test_pages_that_do_not_fit_together_say_so() -> None:
    settings = EngineSettings(kv_memory_mib=64, max_page_tokens=24, max_output_tokens=4, ngram=NO_BAN)
    with pytest.raises(NotTogether, match="could not be read together") as told:
        asyncio.run(together(fake(), settings))
    assert told.value.reading is None
