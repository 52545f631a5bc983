"""What a page's pixels and text layer change about how it is read: not at all, sharper, or once more."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_bench import Bench, started
from modes_reader import ALL, HALF, LESS, SCALES, WORDS, Answer, ModesReader, Stream, reading
from PIL import Image
from printed_pages import printed
from test_jobs_reading import num_open

from app.document import (
    Attempt,
    Page,
    PageResult,
    PageWarning,
    ParseOptions,
    ReadOptions,
)
from app.errors import BadOption, PageFailed
from app.fake import FakeReader
from app.jobs.worker.routing import MIN_GLYPH_PX, sharper_mode
from app.reader import KnowsModes, PageReader

WHITE = Page(0, Image.new("RGB", (400, 400), "white"))
PRINTED = Page(0, printed(), words=WORDS, glyph_px=24.0)


def read(
    folder: Path, page: Page, reader: PageReader, options: ReadOptions | None = None, **settings: Any
) -> PageResult:
    """The result of a document of this page."""

    async def run() -> PageResult:
        bench = Bench(folder, **{"recall_retry": True, **settings})
        job_id = bench.job(1, options=ParseOptions(options or ReadOptions()))
        await bench.new_worker("w", reader, pages=[page]).read(job_id, 0)
        assert num_open(bench.store) == 0
        assert bench.store.job(job_id).num_failed == 0
        return bench.store.results(job_id)[0]

    return asyncio.run(run())


def test_a_blank_page_does_not_go_to_the_model_and_the_answer_says_so(tmp_path: Path) -> None:
    reader = ModesReader()
    result = read(tmp_path, WHITE, reader)
    assert reader.asked == []
    assert [warning.code for warning in result.warnings] == ["blank_page"]
    assert (result.markdown, result.shortfall, result.unread_ink) == ("", None, 0)
    assert result.reading is not None
    assert (result.reading.mode, result.reading.attempts, result.reading.tokens.visual) == ("large", (), 0)


HIDDEN: dict[str, tuple[Page, ReadOptions]] = {
    "a text layer": (replace(WHITE, words=WORDS, has_text=True), ReadOptions()),
    "two words of one": (replace(WHITE, has_text=True), ReadOptions()),
    "glyphs that could not be drawn": (
        replace(WHITE, warnings=(PageWarning("missing_glyphs", "Boxes."),)),
        ReadOptions(),
    ),
    "a question of the client's own": (WHITE, ReadOptions(prompt="Describe this image in detail.")),
    "black": (replace(WHITE, image=Image.new("RGB", (400, 400), "black")), ReadOptions()),
    "faint print": (replace(WHITE, image=printed(251, 255, lines=1)), ReadOptions()),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_page_that_may_have_more_than_it_shows_goes_to_the_model(tmp_path: Path, name: str) -> None:
    page, options = HIDDEN[name]
    reader = ModesReader()
    assert "blank_page" not in {warning.code for warning in read(tmp_path, page, reader, options).warnings}
    assert len(reader.asked) == 1


def test_blank_pages_go_to_the_model_where_that_is_set_and_where_nothing_is_known_of_it(
    tmp_path: Path,
) -> None:
    reader = ModesReader()
    read(tmp_path / "off", WHITE, reader, router_blank=False)
    assert len(reader.asked) == 1
    assert not isinstance(FakeReader(), KnowsModes)
    assert read(tmp_path / "unknown", WHITE, FakeReader()).markdown.startswith("# Page 1")


SMALL = replace(PRINTED, glyph_px=MIN_GLYPH_PX)
ROUTES: dict[str, tuple[Page, ReadOptions, dict[str, Any], str | None]] = {
    "small print": (SMALL, ReadOptions(), {}, "gundam"),
    "large enough": (
        replace(PRINTED, glyph_px=1.01 * MIN_GLYPH_PX / SCALES["large"]),
        ReadOptions(),
        {},
        None,
    ),
    "too small for any": (replace(PRINTED, glyph_px=3.0), ReadOptions(), {}, "gundam"),
    "a mode was asked for": (SMALL, ReadOptions(mode="small"), {}, "small"),
    "the default was asked for": (SMALL, ReadOptions(mode="large"), {}, "large"),
    "the layer is garbage": (replace(SMALL, words=None), ReadOptions(), {}, None),
    "the layer is a stamp": (replace(SMALL, words=WORDS[:5]), ReadOptions(), {}, None),
    "switched off": (SMALL, ReadOptions(), {"router_mode": False}, None),
}


@pytest.mark.parametrize("name", ROUTES)
def test_the_mode_follows_the_smallest_print(tmp_path: Path, name: str) -> None:
    page, options, settings, mode = ROUTES[name]
    reader = ModesReader()
    result = read(tmp_path, page, reader, options, **settings)
    assert reader.asked == [replace(options, mode=mode)]
    assert result.reading is not None
    assert result.reading.mode == (mode or "large")
    is_routed = options.mode is None and mode is not None
    assert result.reading.attempts[0].reason == ("small_print" if is_routed else "asked")


def test_a_checkpoint_that_has_no_sharper_mode_reads_as_asked(tmp_path: Path) -> None:
    for number, scales in enumerate(({}, {"large": 0.7}, {"large": 0.7, "small": 0.3}, {"gundam": 1.1})):
        reader = ModesReader(scales=scales)
        read(tmp_path / f"{number}", SMALL, reader)
        assert reader.asked == [ReadOptions()]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10), min_size=1),
    st.sampled_from("abcdef"),
    st.one_of(st.none(), st.floats(0.1, 1000)),
)
def test_a_sharper_mode_is_sharper_and_no_sharper_than_needed(
    scales: dict[str, float], mode: str, glyph_px: float | None
) -> None:
    chosen = sharper_mode(mode, scales, glyph_px)
    if chosen is None:
        is_fine = mode not in scales or scales[mode] == max(scales.values())
        assert is_fine or (glyph_px is not None and scales[mode] >= MIN_GLYPH_PX / glyph_px)
        return
    between = [scale for scale in scales.values() if scales[mode] < scale < scales[chosen]]
    assert scales[chosen] > scales[mode]
    assert all(glyph_px is not None and scale < MIN_GLYPH_PX / glyph_px for scale in between)


def test_a_page_that_lacks_words_of_its_layer_is_read_once_more_and_the_better_reading_stays(
    tmp_path: Path,
) -> None:
    reader = ModesReader(HALF, ALL)
    result = read(tmp_path, PRINTED, reader)
    assert reader.asked == [ReadOptions(), ReadOptions(mode="large", prune="none")]
    assert (result.markdown, result.text_layer_recall, result.warnings) == (ALL, 1.0, ())
    assert result.reading is not None
    first, second = result.reading.attempts
    assert (first.reason, second.reason) == ("asked", "text_layer")
    assert first.text_layer_recall == pytest.approx(6 / 13, abs=1e-4)
    assert second.text_layer_recall == 1
    assert first.ms is not None
    assert second.ms is not None
    assert result.reading.timing_ms == {"decode": 4.0}, "of both"
    assert result.reading.tokens.kept_patches == 100, "of the one that stays"


WORSE: dict[str, tuple[Answer, Answer]] = {
    "worse": (HALF, LESS),
    "as bad": (HALF, HALF),
    "better, but in a loop": (HALF, reading(ALL, finish="loop")),
    "failed": (HALF, PageFailed("no memory")),
    "a defect": (HALF, ZeroDivisionError("a defect")),
    "refused": (HALF, BadOption("no such mode")),
}


@pytest.mark.parametrize("name", WORSE)
def test_a_second_reading_that_is_no_better_is_dropped_and_there_is_no_third(
    tmp_path: Path, name: str
) -> None:
    reader = ModesReader(*WORSE[name])
    result = read(tmp_path, PRINTED, reader)
    assert len(reader.asked) == 2
    assert (result.markdown, [warning.code for warning in result.warnings]) == (HALF, ["text_layer_mismatch"])
    assert result.failure is None


RESTORED = replace(
    reading(HALF), attempts=(*reading().attempts, Attempt("large", "none", 90, "stop", 9, "risk"))
)
ONCE: dict[str, tuple[Answer, Page, ReadOptions, dict[str, Any]]] = {
    "enough of the layer is there": (ALL, PRINTED, ReadOptions(), {}),
    "switched off": (HALF, PRINTED, ReadOptions(), {"recall_retry": False}),
    "no usable layer": (HALF, replace(PRINTED, words=None), ReadOptions(), {}),
    "a layer that tells nothing": (LESS, replace(PRINTED, words=WORDS[:9]), ReadOptions(), {}),
    "a question of the client's own": (HALF, PRINTED, ReadOptions(prompt="Locate it."), {}),
    "a ratio that the client chose": (HALF, PRINTED, ReadOptions(mode="large", keep_ratio=0.5), {}),
    "unpruned in a mode that was asked for": (HALF, PRINTED, ReadOptions(mode="large", prune="none"), {}),
    "restored by the reader, in a mode that was asked for": (
        RESTORED,
        PRINTED,
        ReadOptions(mode="large"),
        {},
    ),
    "unpruned in the sharpest mode": (reading(HALF, "gundam", "none"), PRINTED, ReadOptions(), {}),
    "not read to its end": (reading(HALF, finish="length"), PRINTED, ReadOptions(), {}),
}


@pytest.mark.parametrize("name", ONCE)
def test_a_page_is_read_once_where_more_would_not_help_or_is_not_wanted(tmp_path: Path, name: str) -> None:
    answer, page, options, settings = ONCE[name]
    reader = ModesReader(answer)
    result = read(tmp_path, page, reader, options, **settings)
    assert len(reader.asked) == 1
    assert result.reading is not None
    assert result.reading.attempts[0].ms is None


@pytest.mark.parametrize(
    ("options", "again"),
    [
        (ReadOptions(mode="small"), ReadOptions(mode="small", prune="none")),
        (ReadOptions(prune="none"), ReadOptions(mode="gundam", prune="none")),
        (ReadOptions(keep_ratio=0.5), ReadOptions(mode="gundam", keep_ratio=0.5)),
    ],
)
def test_the_second_reading_keeps_what_the_client_asked_for(
    tmp_path: Path, options: ReadOptions, again: ReadOptions
) -> None:
    reader = ModesReader(HALF, ALL)
    read(tmp_path, PRINTED, reader, options)
    assert reader.asked == [options, again]


@pytest.mark.parametrize("deadline", [{"page_deadline_s": 2.0}, {"document_deadline_s": 2.0}])
def test_a_deadline_in_the_second_reading_leaves_the_first(tmp_path: Path, deadline: dict[str, Any]) -> None:
    reader = ModesReader(HALF, None)
    result = read(tmp_path, PRINTED, reader, None, **deadline)
    assert len(reader.asked) == 2
    assert (result.markdown, result.failure) == (HALF, None)


class SlowFirst(ModesReader):
    """Takes a while for its first answer."""

    def submit(self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0) -> Stream:
        time.sleep(0.6)
        return super().submit(page, options, document_id=document_id, priority=priority)


def test_there_is_no_second_reading_with_less_time_than_the_first_took(tmp_path: Path) -> None:
    reader = SlowFirst(HALF, ALL)
    result = read(tmp_path, PRINTED, reader, page_deadline_s=1.0)
    assert (len(reader.asked), result.markdown) == (1, HALF)


def test_a_page_whose_worker_died_is_not_read_twice_by_the_next(tmp_path: Path) -> None:
    """It may have died of the second reading."""

    async def run() -> None:
        bench = Bench(tmp_path, recall_retry=True)
        job_id = bench.job(1)
        bench.log.write("a", [started(job_id, 0)])
        bench.log.mark_worker_dead("a")
        reader = ModesReader(HALF, ALL)
        await bench.new_worker("w", reader, pages=[PRINTED]).read(job_id, 0)
        assert len(reader.asked) == 1
        assert bench.store.results(job_id)[0].markdown == HALF

    asyncio.run(run())


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_page_interrupted_in_its_second_reading_is_taken_back(tmp_path: Path, is_closed: bool) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, recall_retry=True)
        job_id = bench.job(1)
        reader = ModesReader(HALF, None)
        worker = bench.new_worker("w", reader, pages=[PRINTED])
        task = asyncio.create_task(worker.read(job_id, 0))
        async with asyncio.timeout(20):
            while len(reader.asked) < 2:  # noqa: ASYNC110 - it is watched from outside
                await asyncio.sleep(0.005)
        if is_closed:
            await worker.close(grace_s=0)
        else:
            worker.cancel(job_id)
        await asyncio.wait({task})
        assert num_open(bench.store) == 0
        assert not bench.store.results(job_id)
        again = ModesReader(HALF, ALL)
        await bench.new_worker("w", again, pages=[PRINTED]).read(job_id, 0)
        assert bench.store.results(job_id)[0].markdown == ALL

    asyncio.run(run())
