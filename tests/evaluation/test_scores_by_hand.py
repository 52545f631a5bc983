"""Scores worked out by hand, and what holds for any model text."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from app.evaluation.html_tables import Table, cell_agreement, compare_tables, parse_html_table
from app.evaluation.latex_tables import parse_tabular
from app.evaluation.markdown_parts import split_markdown
from app.evaluation.matching import match_parts
from app.evaluation.normal_forms import comparable_formula, comparable_text
from app.evaluation.omnidocbench import TruePage, TruthError, read_omnidocbench
from app.evaluation.pdf_parse_bench import main as unpack_wheel
from app.evaluation.plain_truth import WrittenPage
from app.evaluation.scores import PageScore, by_attribute, summarize
from app.evaluation.unit_tests import CheckedPage, near_matches, passes, read_unit_tests

TRUTH = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>"


def table(html: str) -> Table:
    return parse_html_table(html)


def element(category: str, order: int | None, **fields: object) -> dict[str, object]:
    return {"category_type": category, "order": order, "anno_id": order, "ignore": False, **fields}


def page(*elements: dict[str, object], relation: tuple[dict[str, object], ...] = ()) -> TruePage:
    info = {"image_path": "p.jpg", "page_attribute": {"language": "english", "special_issue": ["x"]}}
    return TruePage("p", {"layout_dets": [*elements], "page_info": info, "extra": {"relation": [*relation]}})


def measured(one: TruePage, markdown: str) -> dict[str, float]:
    return {name: total / count for name, (total, count) in one.score(markdown).samples.items()}


def test_table_scores_by_hand() -> None:
    truth = table(TRUTH)
    same = compare_tables(table(f"<div>{TRUTH.replace('td>', 'th>')}</div>"), truth)
    assert (same.teds, same.teds_structure, same.grits, same.cells) == (1, 1, 1, 1), "th is td"
    # one of seven nodes differs by its whole text
    wrong = compare_tables(table(TRUTH.replace("d</td>", "x</td>")), truth)
    assert wrong.teds == pytest.approx(1 - 1 / 7)
    assert (wrong.teds_structure, wrong.grits, wrong.cells) == (1, 0.75, 0.75)
    missing = compare_tables(table(""), truth)
    assert (missing.teds, missing.grits, missing.cells) == (0, 0, 0)


def test_a_value_in_another_column_is_seen_by_cells_and_not_by_text() -> None:
    truth = table("<table><tr><td>2024</td><td>1,234</td><td></td></tr></table>")
    moved = table("<table><tr><td>2024</td><td></td><td>1,234</td></tr></table>")
    assert truth.text == moved.text
    assert cell_agreement(moved, truth) == 0.5, "one of two cells is where it belongs, on both sides"
    rows = table("<tr><td>a</td></tr><tr><td>new</td></tr><tr><td>b</td></tr>")
    assert cell_agreement(rows, table("<tr><td>a</td></tr><tr><td>b</td></tr>")) == pytest.approx(4 / 5)


def test_spans_fill_the_grid() -> None:
    spanned = table('<tr><td rowspan="2">a</td><td colspan="2">b</td></tr><tr><td>c</td></tr>')
    assert [[cell and cell.text for cell in row] for row in spanned.grid()] == [
        ["a", "b", "b"],
        ["a", "c", None],
    ]
    assert len(spanned.regular().rows[1]) == 2


def test_latex_tables_by_hand() -> None:
    tex = r"""before \begin{tabular}{l|c@{\,}c} \toprule
    \multirow{2}{*}{\textbf{A \& B}} & \multicolumn{2}{c}{50\% {x}} \\[2pt] \cmidrule(lr){2-3}
     & $\frac{1}{2}$ & c \\ \hline
    \end{tabular} after"""
    cells = [
        [(cell.text, cell.row_span, cell.column_span) for cell in row] for row in parse_tabular(tex).rows
    ]
    assert cells == [[("A & B", 2, 1), ("50% x", 1, 2)], [(r"$\frac{1}{2}$", 1, 1), ("c", 1, 1)]]
    assert [part.kind for part in split_markdown(tex)] == ["text", "table", "text"]
    nested = r"""\begin{tabular*}{\textwidth}{cc} % a note & more
    \begin{tabular}[c]{@{}c@{}}Two\\ lines\end{tabular} & \cellcolor{red!10}\textbf{x}$^2$ \checkmark \\
    \end{tabular*}"""
    assert [cell.text for cell in parse_tabular(nested).rows[0]] == ["Two lines", "x$^2$ \u2713"]
    for hostile in (
        r"\begin{tabular}",
        r"\begin{tabular}{c",
        "\\begin{tabular}{c}\\multicolumn{",
        r"\end{tabular}",
    ):
        assert parse_tabular(hostile).text == ""


def test_documents_of_a_wheel_become_pages(tmp_path: Path) -> None:
    pieces = [
        {"type": "text", "data": "Two words"},
        {"type": "inline-formula", "data": "$x$"},
        {"type": "display-formula", "data": "$$y$$"},
        {"type": "table", "data": r"\begin{tabular}{ll} a & b \\ c & d \end{tabular}"},
    ]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("pdf_parse_bench/data/kind/ground_truth/000.json", json.dumps(pieces))
        wheel.writestr("pdf_parse_bench/data/kind/pdfs/000.pdf", b"%PDF-")
    assert unpack_wheel(["--wheel", str(tmp_path / "a.whl"), str(tmp_path / "set")]) == 0
    assert (tmp_path / "set" / "documents" / "kind-000.pdf").read_bytes() == b"%PDF-"
    [one] = read_omnidocbench(tmp_path / "set" / "truth.json")
    assert one.name == "kind-000"
    scores = measured(one, f"Two words $x$\n\n$$y$$\n\n{TRUTH}")
    assert (scores["text_edit"], scores["formula_edit"], scores["teds"]) == (0, 0, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ab "), st.integers(0, 300), st.integers(0, 300)), max_size=3),
        max_size=4,
    )
)
def test_tables_of_hostile_text_are_scored(rows: list[list[tuple[str, int, int]]]) -> None:
    html = "".join(
        "<tr>" + "".join(f'<td rowspan="{h}" colspan={w}>{text}' for text, h, w in row) for row in rows
    )
    scores = compare_tables(table(html), table(TRUTH))
    assert all(0 <= value <= 1 for value in (scores.teds, scores.teds_structure, scores.grits, scores.cells))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab|-$\\[]#`<>/tabled \n", max_size=80))
def test_any_markdown_is_split_and_scored(markdown: str) -> None:
    truth = page(element("text_block", 1, text="abc"), element("table", 2, html=TRUTH))
    assert all(0 <= value <= 1 for value in measured(truth, markdown).values())


def test_markdown_is_split_into_its_parts() -> None:
    pipes = "| a | b |\n|---|:-:|\n| 1 | 2 |"
    text = f"# Head\n\nOne\nline ![x](y.png)\n\n{pipes}\n\n$$x$$ and \\[y\\]\n{TRUTH}\n```\ncode\n```"
    parts = split_markdown(f"```markdown\n{text}\n```")
    assert [part.kind for part in parts] == [
        "text",
        "text",
        "table",
        "formula",
        "text",
        "formula",
        "table",
        "text",
    ]
    text_again = [part.content.strip() for part in split_markdown(text)]
    assert text_again[2:] == ["a b 1 2", "x", "and", "y", "a b c d", "code"]


def test_what_is_a_matter_of_taste_does_not_count() -> None:
    assert comparable_text("**Bold** a_b&amp; “x”, ﬁ!") == comparable_text('Bold a b "x" fi')
    assert comparable_formula(r"$$\left( {a} \right)\, \tag{1}$$") == comparable_formula("(a)")
    assert comparable_formula(r"\lefteqn a") != comparable_formula("eqn a")


def test_paragraphs_cut_elsewhere_are_matched() -> None:
    assert [(m.truth, m.read) for m in match_parts(["abcdefghij", "zz"], ["abcde", "fghij", "zz"])] == [
        ([0], [0, 1]),
        ([1], [2]),
    ]
    joined = match_parts(["abcdefg", "hijkl"], ["abcdefghijkl"])
    assert [(m.truth, m.read) for m in joined] == [([0, 1], [0])]
    assert [(m.truth, m.read) for m in match_parts(["abc"], ["xyz"])] == [([0], []), ([], [0])]


def test_text_edit_by_hand() -> None:
    truth = page(
        element("title", 1, text="abcdefghij"),
        element("text_block", 2, text="klmno pqrst"),
        element("header", None, text="running head"),
        element("figure", 3),
    )
    assert measured(truth, "# abcdefghij\n\nklmnopqrst") == {"text_edit": 0, "order_edit": 0}
    # one edit of twenty characters
    assert measured(truth, "abcdefghiX\n\nklmnopqrst")["text_edit"] == pytest.approx(1 / 20)
    # a header that is read is not counted; anything else that is not there is
    assert measured(truth, "running head\n\nabcdefghij\n\nklmnopqrst")["text_edit"] == 0
    extra = measured(truth, "abcdefghij\n\n123456789 0\n\nklmnopqrst")
    assert extra["text_edit"] == pytest.approx(10 / 30)
    assert measured(truth, "") == {"text_edit": 1, "order_edit": 1}


def test_reading_order_by_hand() -> None:
    truth = page(*(element("text_block", number, text=text * 9) for number, text in enumerate("abc")))
    swapped = measured(truth, "\n\n".join(text * 9 for text in "acb"))
    assert swapped["text_edit"] == 0
    assert swapped["order_edit"] == pytest.approx(2 / 3)


def test_formulas_tables_and_continued_paragraphs() -> None:
    truth = page(
        element("text_block", 1, text="first half "),
        element("equation_isolated", 2, latex="$$ a+b $$"),
        element("text_block", 3, text="second half"),
        element("table", 4, html=TRUTH),
        relation=({"relation_type": "truncated", "source_anno_id": 1, "target_anno_id": 3},),
    )
    scores = measured(truth, f"first half second half\n\n$$a-b$$\n\n{TRUTH}")
    assert scores["text_edit"] == 0
    assert scores["formula_edit"] == pytest.approx(1 / 3)
    assert (scores["teds"], scores["cells"]) == (1, 1)


def test_overall_is_the_mean_of_three() -> None:
    samples = {"text_edit": (0.2, 1.0), "formula_edit": (0.5, 1.0), "teds": (1.4, 2.0)}
    pages = [PageScore("a", samples, {"kind": "x"}), PageScore("b", {"text_edit": (0.0, 1.0)}, {"kind": "y"})]
    scores = summarize(pages)
    assert scores["overall"].value == pytest.approx((0.9 + 0.5 + 0.7) / 3 * 100)
    assert scores["text_edit"].value == pytest.approx(0.1)
    assert scores["text_edit"].low == 0
    assert scores["text_edit"].high == pytest.approx(0.2)
    assert summarize(pages) == scores, "the same in every run"
    assert "overall" not in summarize(pages[1:])
    assert by_attribute(pages)["kind"]["x"]["text_edit"].value == pytest.approx(0.2)


def test_character_and_word_error_by_hand() -> None:
    samples = WrittenPage("p", "one  two\nthree").score("one twa three").samples
    assert samples == {"character_error": (1.0, 13.0), "word_error": (1.0, 3.0)}


TABLE = "| Year | Cost |\n|---|---|\n| 2023 | 10 |\n| 2024 | 20 |"


@pytest.mark.parametrize(
    ("test", "markdown", "passed"),
    [
        ({"type": "present", "text": "It\u2019s here"}, "so **It's** here.", True),
        ({"type": "present", "text": "It's here"}, "it's here", False),
        ({"type": "present", "text": "abcdefghij", "max_diffs": 1}, "xx abcdeFghij xx", True),
        ({"type": "present", "text": "abcdefghij", "max_diffs": 1}, "xx abcdeFGhij xx", False),
        ({"type": "present", "text": "tail", "first_n": 5}, "the long tail", False),
        ({"type": "absent", "text": "Page 3"}, "see page 3", True),
        ({"type": "absent", "text": "Page 3", "case_sensitive": False}, "see page 3", False),
        ({"type": "absent", "text": "3", "last_n": 2}, "3 is at the start", True),
        ({"type": "order", "before": "first", "after": "second"}, "first, second", True),
        ({"type": "order", "before": "second", "after": "first"}, "first, second", False),
        ({"type": "order", "before": "same", "after": "same", "max_diffs": 2}, "the same", False),
        ({"type": "order", "before": "abcdef", "after": "uvwxyz", "max_diffs": 1}, "abXcdef uvwyz", True),
        ({"type": "order", "before": "abcdef", "after": "uvwxyz", "max_diffs": 1}, "abXXcdef uvwyz", False),
        ({"type": "table", "cell": "20", "up": "10", "left": "2024"}, TABLE, True),
        ({"type": "table", "cell": "20", "top_heading": "Cost", "left_heading": "2024"}, TABLE, True),
        ({"type": "table", "cell": "20", "top_heading": "Year"}, TABLE, False),
        ({"type": "table", "cell": "10", "down": "2023"}, TABLE, False),
        ({"type": "table", "cell": "20", "down": "nothing is below"}, TABLE, True),
        ({"type": "table", "cell": "20", "top_heading": "Cost"}, TABLE.replace("Cost", ""), False),
        ({"type": "math", "math": "a + b"}, "so $$a+b=c$$", True),
        ({"type": "baseline"}, "text", True),
        ({"type": "baseline"}, " \n--", False),
        ({"type": "baseline"}, "end " + "no " * 31, False),
        ({"type": "baseline"}, "end " + "no " * 30, True),
        ({"type": "baseline"}, "\u4e2d made up", False),
        ({"type": "baseline", "check_disallowed_characters": False}, "\u4e2d", True),
        ({"type": "baseline", "max_length": 2}, "ab", True),
        ({"type": "baseline", "max_length": 2}, "abc", False),
    ],
)
def test_unit_tests_by_hand(test: dict[str, Any], markdown: str, passed: bool) -> None:
    assert passes(test, markdown) is passed


def test_a_page_that_was_not_read_passes_nothing() -> None:
    samples = CheckedPage("p", 1, ({"type": "absent", "text": "x"},)).score("").samples
    assert samples["tests_passed"] == (0.0, 2.0)


def edits_at(needle: str, text: str) -> list[int]:
    """Return the fewest edits between ``needle`` and any text that begins at each offset."""
    return [
        min(Levenshtein.distance(needle, text[start:end]) for end in range(start, len(text) + 1))
        for start in range(len(text) + 1)
    ]


@settings(max_examples=80, deadline=None)
@given(st.text("abc", min_size=1, max_size=5), st.text("abc", max_size=12), st.integers(0, 2))
def test_near_matches_are_the_best_starts_of_every_group(needle: str, text: str, most: int) -> None:
    found, edits = near_matches(needle, text, most), edits_at(needle, text)
    close = [start for start, count in enumerate(edits) if count <= most]
    assert bool(found) == bool(close)
    assert all(edits[start] <= most for start in found)
    if close:
        assert min(edits) == min(edits[start] for start in found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout_dets": None},
        {"layout_dets": ["text"]},
        {"layout_dets": [{"text": "no category"}]},
        {"layout_dets": [{"category_type": "table", "html": 5}]},
        {"layout_dets": [{"category_type": "text_block", "anno_id": [1]}]},
        {"layout_dets": [{"category_type": "text_block", "text": "\ud800"}]},
        {"page_info": {"image_path": 5}},
        {"page_info": {"image_path": "a\0b"}},
        {"page_info": {"image_path": "p.jpg", "page_attribute": ["x"]}},
        {"extra": [1]},
        {"extra": {"relation": "abc"}},
        {"extra": {"relation": [{"relation_type": "truncated", "source_anno_id": []}]}},
    ],
)
def test_an_annotation_that_cannot_be_scored_is_refused_when_it_is_read(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "truth.json"
    right = page(element("text_block", 1, text="abc")).annotation
    file.write_text(json.dumps([right]))
    assert read_omnidocbench(file)[0].name == "p"
    file.write_text(json.dumps([{**right, **wrong}]))
    with pytest.raises(TruthError, match=r"truth\.json"):
        read_omnidocbench(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "unknown"}, {"type": ["present"]}, {"text": None}, {"text": " "}, {"pdf": 5}, {"page": "x"},
        {"max_diffs": "x"}, {"max_diffs": -1}, {"max_diffs": 1e30}, {"first_n": "x"}, {"type": "math"},
        {"type": "order", "before": "a"}, {"type": "table", "cell": "a", "up": 5}, {"text": "\ud800"},
    ],
)  # fmt: skip
def test_a_unit_test_that_cannot_be_checked_is_refused_with_its_line(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    right = {"pdf": "a.pdf", "page": 1, "type": "present", "text": "b"}
    lines = (json.dumps(right), json.dumps({**right, **wrong}))
    (tmp_path / "t.jsonl").write_text(lines[0])
    assert read_unit_tests(tmp_path)[0].label == "a_pg1"
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(TruthError, match=r"t\.jsonl:2"):
        read_unit_tests(tmp_path)


def test_what_is_no_annotation_is_named(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    for wrong in ("{", "3", "[" * 100_000, json.dumps([{"page_info": {}}])):
        file.write_text(wrong)
        with pytest.raises(TruthError, match=r"truth\.json"):
            read_omnidocbench(file)
