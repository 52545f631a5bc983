"""Several pages in one prompt: they share what the model makes of them, and nothing else."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import two_pages_written
from hypothesis import given
from hypothesis import strategies as st
from jobs_bench import Bench, GatedReader, done, started
from modes_reader import reading
from PIL import Image
from service_client import PATIENCE_S
from test_jobs_reading import num_open

from app.document import Attempt, Page, PageResult, ParseOptions, Reading, ReadOptions
from app.errors import PageTooLong
from app.fake import FakeReader
from app.jobs.worker.together import prompts_of
from app.ocr.engine.engine import Engine
from app.ocr.engine.settings import EngineSettings
from app.reader import NotTogether, PagesStream

WHITE, BLACK = (Page(0, Image.new("RGB", (200, 200), colour)) for colour in ("white", "black"))


@dataclass
class Given:
    """A prompt that ends with an error, or never."""

    error: Exception | None = None
    is_cancelled: bool = False

    async def results(self) -> Sequence[Reading]:
        if self.error is None:
            await asyncio.Event().wait()
        raise self.error or AssertionError

    def cancel(self) -> None:
        self.is_cancelled = True


class SeveralReader(FakeReader):
    """Notes its prompts. Of several pages it says what the fake reader says, or what it is given."""

    default_mode = "base"

    def __init__(self, given: Given | None = None) -> None:
        super().__init__()
        self.given, self.prompts = given, list[list[int]]()
        self.began = asyncio.Event()

    def scales(self, width: int, height: int) -> dict[str, float]:
        return {}

    def submit_together(
        self, pages: Sequence[Page], options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> PagesStream:
        self.prompts.append([page.index for page in pages])
        self.began.set()
        if self.given is not None:
            return self.given
        return super().submit_together(pages, options, document_id=document_id, priority=priority)


def read(
    folder: Path,
    reader: SeveralReader,
    num_pages: int = 4,
    *,
    pages: Sequence[Page | None] = (),
    most: int = 4,
    **settings: Any,
) -> Sequence[PageResult]:
    async def run() -> Sequence[PageResult]:
        bench = Bench(folder, **settings)
        job_id = bench.job(num_pages, options=ParseOptions(pages_per_prompt=most))
        await bench.new_worker("w", reader, pages=pages).read(job_id, 0)
        assert num_open(bench.store) == 0
        return bench.store.results(job_id)

    return asyncio.run(run())


def attempts_of(page: PageResult) -> list[tuple[int, str]]:
    assert page.reading is not None
    return [(attempt.pages, attempt.reason) for attempt in page.reading.attempts]


@given(st.lists(st.integers(0, 99), unique=True), st.integers(1, 9))
def test_prompts_are_as_few_and_as_even_as_can_be(indices: list[int], most: int) -> None:
    prompts = prompts_of(indices, most)
    assert [index for prompt in prompts for index in prompt] == indices
    sizes = [len(prompt) for prompt in prompts]
    assert len(sizes) == -(-len(indices) // most)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert max(sizes, default=0) <= most


@pytest.mark.parametrize("num_places", [1, 3, 64])
def test_pages_share_prompts_and_each_has_its_own_result(tmp_path: Path, num_places: int) -> None:
    """Also where a prompt has more pages than there are places."""
    reader = SeveralReader()
    pages = read(tmp_path, reader, 11, max_pages_in_flight=num_places)
    assert reader.prompts == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert [page.markdown.splitlines()[0] for page in pages] == [f"# Page {n}" for n in range(1, 12)]
    assert [attempts_of(page) for page in pages] == [[(3, "asked")]] * 3 + [[(4, "asked")]] * 8


def test_a_page_that_cannot_be_rendered_keeps_no_other_waiting(tmp_path: Path) -> None:
    reader = SeveralReader()
    pages = read(tmp_path, reader, 12)
    assert reader.prompts[-1] == [8, 9, 10]
    assert [page.failure.code for page in pages if page.failure] == ["unreadable_page"]
    assert [attempts_of(page) for page in pages[8:11]] == [[(3, "asked")]] * 3


def test_blank_pages_do_not_go_to_the_model_and_the_last_one_is_read_like_any(tmp_path: Path) -> None:
    reader = SeveralReader()
    blank, torn, black = read(tmp_path, reader, 3, pages=[WHITE, None, replace(BLACK, index=2)])
    assert [warning.code for warning in blank.warnings] == ["blank_page"]
    assert torn.failure is not None
    assert attempts_of(black) == [(1, "asked")]
    assert reader.prompts == []


TRIED = Attempt("base", "rtprune", 90, "length", 50, pages=4)
CUT = replace(reading(), finish_reason="length", timing_ms={"decode": 8.0}, attempts=(TRIED,))


@pytest.mark.parametrize(
    ("error", "before", "decode_ms"),
    [
        (NotTogether("the text of 4 pages had 3 parts", CUT), [(4, "asked")], 2.0),
        (NotTogether("the pages could not be read together: 900 tokens"), [], 0.0),
    ],
)
def test_pages_that_cannot_be_told_apart_are_read_one_by_one_and_the_answer_says_so(
    tmp_path: Path, error: Exception, before: list[tuple[int, str]], decode_ms: float
) -> None:
    given = Given(error)
    for page in read(tmp_path, SeveralReader(given)):
        assert attempts_of(page) == [*before, (1, "apart")]
        assert page.timing_ms["decode"] == decode_ms
        assert page.markdown.startswith(f"# Page {page.index + 1}")
    assert given.is_cancelled


def test_a_prompt_that_does_not_end_in_time_is_taken_from_the_model(tmp_path: Path) -> None:
    given = Given()
    pages = read(tmp_path, SeveralReader(given), 2, page_deadline_s=1.0)
    assert [attempts_of(page) for page in pages] == [[(1, "apart")]] * 2
    assert given.is_cancelled


def test_an_error_of_the_prompt_is_the_error_of_each_page(tmp_path: Path) -> None:
    for error, code in ((PageTooLong("too long"), "page_too_long"), (ZeroDivisionError(), "page_failed")):
        pages = read(tmp_path / code, SeveralReader(Given(error)))
        assert [page.failure and page.failure.code for page in pages] == [code] * 4


def test_a_cancelled_job_takes_its_prompt_from_the_model(tmp_path: Path) -> None:
    async def run() -> None:
        bench, reader = Bench(tmp_path), SeveralReader(Given())
        worker = bench.new_worker("w", reader)
        job_id = bench.job(4, options=ParseOptions(pages_per_prompt=4))
        reading = asyncio.create_task(worker.read(job_id, 0))
        async with asyncio.timeout(PATIENCE_S):
            await reader.began.wait()
        assert num_open(bench.store) == 4, "all are recorded before the model has any"
        assert bench.store.cancel(job_id)
        worker.cancel(job_id)
        await reading
        assert reader.given is not None
        assert reader.given.is_cancelled
        assert num_open(bench.store) == 0

    asyncio.run(run())


def test_pages_that_a_worker_died_with_are_read_alone(tmp_path: Path) -> None:
    async def run() -> None:
        bench, reader = Bench(tmp_path), SeveralReader()
        job_id = bench.job(6, options=ParseOptions(pages_per_prompt=6))
        bench.store.begin(job_id)
        bench.log.write("dead", [started(job_id, 1), started(job_id, 2), done(job_id, 4)])
        bench.log.mark_worker_dead("dead")
        await bench.new_worker("w", reader).read(job_id, 0)
        assert reader.prompts == [[0, 3, 5]]
        pages = bench.store.results(job_id)
        assert attempts_of(pages[1]) == attempts_of(pages[2]) == [(1, "asked")]

    asyncio.run(run())


def test_the_engine_reads_them(tmp_path: Path) -> None:
    """Four pages by two are what the model says of two; of three it says too little."""

    async def run(num_pages: int, most: int) -> Sequence[PageResult]:
        engine = Engine(two_pages_written(), EngineSettings(kv_memory_mib=64, max_page_tokens=256))
        bench = Bench(tmp_path / str(num_pages))
        try:
            job_id = bench.job(num_pages, options=ParseOptions(pages_per_prompt=most))
            await bench.new_worker("w", engine).read(job_id, 0)
            return bench.store.results(job_id)
        finally:
            await engine.close()

    pages = asyncio.run(run(4, 2))
    assert [page.markdown for page in pages] == ["one", "two more"] * 2
    assert [attempts_of(page) for page in pages] == [[(2, "asked")]] * 4
    for page in asyncio.run(run(3, 3)):
        assert attempts_of(page) == [(3, "asked"), (1, "apart")]
        assert "one" in page.markdown
        assert "two more" in page.markdown, "a page alone has all that is written of it"


def test_a_reader_of_single_pages_refuses_the_document(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        job_id = bench.job(4, options=ParseOptions(pages_per_prompt=2))
        await bench.new_worker("w", GatedReader()).read(job_id, 0)
        failure = bench.store.job(job_id).failure
        assert failure is not None
        assert (failure.code, "pages_per_prompt" in failure.detail) == ("bad_option", True)

    asyncio.run(run())


def test_an_option_that_a_prompt_refuses_ends_the_document(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        options = ParseOptions(ReadOptions(mode="none such"), pages_per_prompt=2)
        job_id = bench.job(4, options=options)
        await bench.new_worker("w", SeveralReader()).read(job_id, 0)
        failure = bench.store.job(job_id).failure
        assert failure is not None
        assert failure.code == "bad_option"
        async with asyncio.timeout(PATIENCE_S):
            while num_open(bench.store):  # noqa: ASYNC110 - what is being written has no event
                await asyncio.sleep(0.01)

    asyncio.run(run())
