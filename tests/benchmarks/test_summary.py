"""docs/BENCHMARKS.md is what its command writes, and the command refuses what it cannot show."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.summary.__main__ import PAGE, RESULTS, document
from benchmarks.summary.page import Section, SummaryError, summary, table

RUN = {"hardware": "a machine", "commit": "abc", "measured_at": "2026-11-29T10:00:00+00:00", "error": 0.5}


def section(title: str = "A title, 3 pages") -> Section:
    return Section(
        title=title,
        about="Of {error}.",
        command="`python -m x {out}`",
        baseline="1",
        rows=lambda run: [["", "error"], ["ours", f"{run['error']}"]],
        negative=lambda run: iter(["worse."] if run["error"] > 0.4 else []),
    )


def test_the_page_is_what_the_command_writes() -> None:
    assert PAGE.read_text() == document(), "write it again: python -m benchmarks.summary"


def test_every_results_file_is_on_the_page_with_its_source() -> None:
    page = document()
    for path in RESULTS.glob("*.json"):
        assert f"](../benchmarks/results/{path.name})." in page
    parts = [part for part in page.split("\n### ")[1:] if "\n\nNot measured yet.\n`" not in part]
    assert len(parts) == len([*RESULTS.glob("*.json")])
    source = re.compile(r"\n\nBaseline: .+\n\n.+; commit \w+\+?; \d{4}-\d\d-\d\d; .+\n.+\Z")
    for part in parts:
        assert source.search(part.split("\n\n## ")[0].strip())


def test_negative_results_stand_first_dated_and_lead_to_their_section(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(RUN))
    page = summary({"Group": {"a.json": section()}}, tmp_path)
    assert "- 2026-11-29, [A title, 3 pages](#a-title-3-pages): worse." in page.split("## Group")[0]
    assert (
        "Of 0.5.\n\n|  | error |\n| --- | ---: |\n| ours | 0.5 |\n\nBaseline: 1\n\na machine; commit abc;"
        in page
    )
    assert page.endswith("`python -m x --out benchmarks/results/a.json`\n")
    (tmp_path / "a.json").write_text(json.dumps({**RUN, "error": 0.1}))
    assert "worse" not in summary({"Group": {"a.json": section()}}, tmp_path)


def test_a_section_without_a_file_says_so(tmp_path: Path) -> None:
    page = summary({"Group": {"a.json": section()}}, tmp_path)
    assert page.endswith("\n\nNot measured yet.\n`python -m x --out benchmarks/results/a.json`\n")


def test_a_file_without_section_or_source_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(RUN))
    (tmp_path / "new.json").write_text(json.dumps({**RUN, "hardware": ""}))
    with pytest.raises(SummaryError, match=r"no section for new\.json"):
        summary({"Group": {"a.json": section()}}, tmp_path)
    both = {"a.json": section(), "new.json": section()}
    with pytest.raises(SummaryError, match=r"new\.json does not say its hardware"):
        summary({"Group": both}, tmp_path)
    with pytest.raises(SummaryError, match="unequal length"):
        table([["a", "b"], ["1"]])
