"""Several pages in one prompt: tokens are those of ``generate()``, and no page gets another one's text."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from engine_fakes import FakeOcr, Inline, page, permutation_network, random_network
from hypothesis import given
from hypothesis import strategies as st

from app.document import FinishReason, Page, Pruning, Reading, ReadOptions, TokenCounts
from app.errors import BadOption, PageFailed, PageTooLong, ParseError
from app.ocr.engine.engine import Engine
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.engine.page_loop import PageLoop
from app.ocr.engine.settings import EngineSettings
from app.ocr.engine.task import new_task
from app.ocr.engine.together import PagesRead, read_together, texts_of
from app.ocr.models.model import PageViews, SeveralPages
from app.reader import PageStream
from rtprune import RTPruneConfig, VisualTokens, prune_tokens, text_density

NO_BAN = NgramRule(1000, 1000)
TOGETHER = SeveralPages(default_mode="small", default_prompt="together", ngram=NO_BAN, mark="<PAGE>")
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
        max_new_tokens=options.max_output_tokens,
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


TEXTS = st.lists(st.text(st.sampled_from("ab <>PAGE\n")).filter(lambda text: "<PAGE>" not in text))


@given(TEXTS)
def test_a_text_is_divided_at_its_marks(texts: list[str]) -> None:
    written = "".join(f"<PAGE>\n{text}\n" for text in texts)
    assert texts_of(written, "<PAGE>") == [text.strip() for text in texts]


@given(st.sampled_from(["one", "\n.", "<PAG", "PAGE>"]), TEXTS)
def test_text_before_the_first_mark_belongs_to_no_page(before: str, texts: list[str]) -> None:
    assert texts_of(before + "".join(f"<PAGE>{text}" for text in texts), "<PAGE>") == []


def reading(text: str, finish_reason: FinishReason = "stop") -> Reading:
    counts = TokenCounts(10, 8, 9, 7, 0.8, 0.1, None, 3, len(text))
    return Reading(text, finish_reason, -0.1, "base", counts, {})


@dataclass
class Told:
    """A stream whose result is given."""

    answer: Reading | ParseError
    is_cancelled: bool = False

    async def result(self) -> Reading:
        if isinstance(self.answer, ParseError):
            raise self.answer
        return self.answer

    def pieces(self) -> Any:
        raise NotImplementedError

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Teller:
    """A reader that says of all pages together what it is told, and of each page its number."""

    together: Reading | ParseError
    page_mark: str | None = "<PAGE>"
    model_name: str = "teller"
    modes: Collection[str] = ("base",)
    streams: list[Told] = field(default_factory=list)

    def submit(self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0) -> PageStream:
        self.streams.append(Told(reading(f"page {page.index}")))
        return self.streams[-1]

    def submit_together(
        self, pages: Sequence[Page], options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> PageStream:
        self.streams.append(Told(self.together))
        return self.streams[-1]

    async def close(self) -> None: ...


def told(reader: Teller, num_pages: int) -> PagesRead:
    pages = [page(i) for i in range(num_pages)]
    return asyncio.run(read_together(reader, pages, ReadOptions(), document_id="d"))


def test_as_many_parts_as_pages_are_their_texts() -> None:
    reader = Teller(reading("<PAGE>\none\n<PAGE>\n\n<PAGE>three"))
    found = told(reader, 3)
    assert found.texts == ("one", "", "three")
    assert (found.readings, found.one_by_one) == ((reader.together,), None)


@pytest.mark.parametrize(
    ("together", "why"),
    [
        (reading("<PAGE>one<PAGE>two"), "The text of 3 pages had 2 parts."),
        (reading("<PAGE>1<PAGE>2<PAGE>3<PAGE>4"), "The text of 3 pages had 4 parts."),
        (reading("one<PAGE>two<PAGE>three"), "The text of 3 pages had 0 parts."),
        (reading("zero<PAGE>1<PAGE>2<PAGE>3"), "The text of 3 pages had 0 parts."),
        (reading("<PAGE>1<PAGE>2<PAGE>3", "length"), "Reading the pages together ended with length."),
        (reading("<PAGE>1<PAGE>2<PAGE>3", "loop"), "Reading the pages together ended with loop."),
        (PageTooLong("900 tokens before any output"), "could not be read together: 900 tokens"),
        (PageFailed("the model failed"), "could not be read together: the model failed"),
    ],
)
def test_any_doubt_about_whose_text_it_is_has_pages_read_one_by_one(
    together: Reading | ParseError, why: str
) -> None:
    reader = Teller(together)
    found = told(reader, 3)
    assert found.texts == ("page 0", "page 1", "page 2")
    assert [one.text for one in found.readings] == list(found.texts)
    assert found.one_by_one is not None
    assert why in found.one_by_one
    assert all(stream.is_cancelled for stream in reader.streams)


def test_one_page_is_read_as_one_page() -> None:
    assert told(Teller(reading("<PAGE>never asked")), 1).texts == ("page 0",)
    assert told(Teller(reading("<PAGE>never asked")), 1).one_by_one is None
    assert told(Teller(reading("")), 0) == PagesRead((), ())


def test_a_checkpoint_that_reads_one_page_a_prompt_says_so() -> None:
    with pytest.raises(BadOption, match="teller reads one page a prompt"):
        told(Teller(reading(""), page_mark=None), 2)


def test_the_engine_reads_pages_one_by_one_when_their_text_does_not_end() -> None:
    """The network writes its cycle for ever, so there are marks, but no end of the last page."""
    model = FakeOcr(permutation_network(7), several_pages=replace(TOGETHER, mark=chr(0x100 + 10)))
    settings = EngineSettings(kv_memory_mib=64, max_page_tokens=256, max_output_tokens=20, ngram=NO_BAN)

    async def both() -> tuple[PagesRead, Reading]:
        engine = Engine(model, settings)
        try:
            found = await read_together(engine, [page(0), page(1)], ReadOptions(), document_id="d")
            return found, await engine.submit(page(1), ReadOptions(), document_id="d").result()
        finally:
            await engine.close()

    found, alone = asyncio.run(both())
    assert found.one_by_one == "Reading the pages together ended with length."
    assert found.texts[1] == alone.text
    assert len(found.readings) == 2
