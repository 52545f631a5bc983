"""What an answer is held against: warnings and figures of a page, and that the docs tell them."""

import re
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from printed_pages import LINES, lines_box, printed
from service_client import ROOT

from app.document import Block, Page, PageWarning, Reading, TokenCounts, WarningCode
from app.output.checks import check_page, word_recall

WORDS = tuple("the northern store has forty sheets of white stock and twelve of gray".split())
READING = Reading("x", "stop", -0.1, "base", TokenCounts(9, 9, 8, 8, 1.0, 0.2, None, 3, 4), {})
PAGE = Page(0, printed())
BLANK = Page(0, Image.new("RGB", (300, 400), "white"))


def codes_of(page: Page, markdown: str = "", blocks: tuple[Block, ...] = (), **reading: object) -> list[str]:
    checks = check_page(page, replace(READING, **reading), markdown, blocks)  # type: ignore[arg-type]
    return [warning.code for warning in checks.warnings]


def test_an_empty_text_of_a_page_with_print_is_never_without_a_warning() -> None:
    assert codes_of(PAGE) == ["unread_print"]
    assert codes_of(PAGE, blocks=(Block("image", (0, 0, 999, 999), ""),)) == ["unread_print"]
    assert codes_of(BLANK) == []


def test_lines_outside_all_blocks_are_told_with_their_share() -> None:
    text = "The stock of the northern store " * LINES
    read = Block("text", lines_box(0, LINES // 3), text)
    checks = check_page(PAGE, READING, text, (read,))
    assert checks.unread_ink == pytest.approx(2 / 3, abs=0.03)
    [warning] = checks.warnings
    assert warning.code == "unread_print"
    assert f"{checks.unread_ink:.0%}" in warning.detail
    picture = Block("image", lines_box(LINES // 3, LINES), "")
    assert codes_of(PAGE, text, (read, picture)) == [], "a picture is no unread print"
    assert codes_of(PAGE, text, (read, picture), left_out=(lines_box(0, 5),)) == ["unread_print"]


def test_where_a_text_stands_is_not_guessed() -> None:
    """A prompt without grounding gives a text and no boxes."""
    checks = check_page(PAGE, READING, "The stock of the northern store", ())
    assert checks.unread_ink is None
    assert checks.warnings == ()


def test_a_doubtful_text_is_told_and_a_sure_one_is_not() -> None:
    assert codes_of(BLANK, "words", risk=0.7) == ["doubtful_text"]
    assert codes_of(BLANK, "words", risk=0.3) == []
    assert codes_of(BLANK, "", risk=0.7) == [], "there is no text to doubt"


def test_all_is_told_the_end_first_and_the_rasterizers_last() -> None:
    page = replace(BLANK, words=WORDS, warnings=(PageWarning("missing_glyphs", "Boxes."),))
    told = codes_of(page, "other words", risk=0.9, finish_reason="length")
    assert told == ["length", "doubtful_text", "text_layer_mismatch", "missing_glyphs"]


@pytest.mark.parametrize(
    ("words", "markdown", "recall"),
    [
        (WORDS, " ".join(WORDS), 1.0),
        (WORDS[:4], "# The **northern** store: <td>has</td>", 1.0),
        (("office", "\ufb01le", "na\u00efve"), "OF\ufb01CE FILE, NAI\u0308VE", 1.0),
        (("manage-", "ment", "decides"), "management decides", 1.0),
        (("well-", "known", "fact"), "a well-known fact", 1.0),
        (("one", "one", "one", "two"), "one two", 0.5),
        (("\u4e2d\u6587\u6587\u672c",), "\u4e2d\u6587 \u6587\u672c", 1.0),
        (("alpha", "beta"), "", 0.0),
        (("-", "..."), "text", None),
        ((), "text", None),
    ],
)
def test_recall_counts_words_whatever_they_look_like(
    words: tuple[str, ...], markdown: str, recall: float | None
) -> None:
    assert word_recall(words, markdown) == recall


@given(st.lists(st.text(max_size=12), max_size=12), st.text(max_size=60))
def test_recall_is_a_share_of_anything(words: list[str], markdown: str) -> None:
    recall = word_recall(words, markdown)
    assert recall is None or 0 <= recall <= 1


def test_a_stamp_of_few_words_says_nothing_of_the_page() -> None:
    checks = check_page(replace(BLANK, words=WORDS[:5]), READING, "something else", ())
    assert checks.text_layer_recall == 0
    assert checks.warnings == ()


def test_the_docs_list_every_warning() -> None:
    text = (ROOT / "docs/api.md").read_text("utf-8")
    table = text.split("## Warnings")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z_]+)` \| .+ \|$", table, re.MULTILINE) == list(get_args(WarningCode))
