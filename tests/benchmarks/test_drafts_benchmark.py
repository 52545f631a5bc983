"""``benchmarks.drafts``: the same page with drafts and without, and what is summed up of pages."""

import asyncio
from pathlib import Path

from benchmarks.drafts import DRAWN, Bench, Measured, drawn_pages, summary
from training.text import TextSource


def test_steps_seconds_and_acceptance_are_of_all_pages_by_their_medians() -> None:
    first = Measured(
        DRAWN, "a", [1.0, 9.0, 2.0], [4.0, 4.0, 4.0], [5, 5, 5], [20, 20, 20], output=20, drafted=16
    )
    first.accepted = 15
    second = Measured(DRAWN, "b", [2.0], [4.0], [5], [10], is_same=False, output=10, drafted=4)
    figures = summary([first, second])
    assert (figures["pages"], figures["same_text"]) == (2, 1)
    assert figures["acceptance"] == 15 / 20
    assert figures["times_fewer_steps"] == 30 / 10
    assert figures["times_fewer_steps_of_a_view"] == 30 / 15
    assert figures["times_seconds"] == (2 + 2) / (4 + 4)


def test_a_drawn_page_is_read_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("forty sheets white stock northern store twelve gray", "utf-8")
    [(kind, name, page)] = drawn_pages(TextSource(path), 1)
    into = Measured(kind, name)

    async def run() -> None:
        bench = Bench("pocket")
        try:
            await bench.measure(page, into, first=True)
        finally:
            await bench.close()

    asyncio.run(run())
    row = into.row()
    assert row["is_same_text"]
    assert 0 < row["accepted"] <= row["drafted"]
    assert row["steps"] < row["steps_without"]
