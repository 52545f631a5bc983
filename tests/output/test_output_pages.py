"""Pages -> one document: heads, what goes on, gaps, and the pages' own Markdown as it is."""

import html
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from output_pieces import SOUP

from app.document import AnswerOptions, Failure, PageResult, ParseOptions
from app.jobs.job import _OPTIONS, decode_page, encode_options, encode_page
from app.output.flow import MAX_TEXT_CHARS
from app.output.markdown import to_markdown
from app.output.pages import Joined, join_pages

HEAD, FOOT = (100, 40, 500, 55), (480, 940, 520, 955)
BODY = (100, 110, 900, 800)
Region = tuple[str, tuple[int, int, int, int], str]


def page(index: int, *regions: Region, code: str | None = None, finish: str = "stop") -> PageResult:
    del finish
    text = "\n\n".join(
        f"<|ref|>{kind}<|/ref|><|det|>[{list(box)}]<|/det|>\n{body}" for kind, box, body in regions
    )
    rendered = to_markdown(text)
    failure = None if code is None else Failure(code, "It failed.")
    return PageResult(index, 100, 100, rendered.markdown, rendered.blocks, failure=failure)


def free(index: int, text: str) -> PageResult:
    return PageResult(index, 100, 100, to_markdown(text).markdown)


def joined(*pages: PageResult, **options: object) -> Joined:
    return join_pages(pages, replace(AnswerOptions(), **options))  # type: ignore[arg-type]


def markdown(*pages: PageResult, **options: object) -> str:
    return joined(*pages, **options).markdown(dollars=False)


def types(document: Joined) -> list[list[str]]:
    return [[block.type for block in page.blocks] for page in document.pages]


def book(
    texts: Sequence[str], head: str = "Handbook of the paper room", kind: str = "text"
) -> list[PageResult]:
    return [
        page(index, (kind, HEAD, head), ("text", BODY, text), ("page_number", FOOT, str(index + 7)))
        for index, text in enumerate(texts)
    ]


def test_a_head_and_a_number_are_marked_and_left_out_and_a_word_is_whole() -> None:
    pages = book(["At the end the man-", "agement decides. It is late."])
    assert markdown(*pages) == "At the end the management decides. It is late."
    assert types(joined(*pages)) == [["page_header", "text", "page_number"]] * 2
    assert [one.markdown for one in joined(*pages).pages] == [one.markdown for one in pages]
    assert markdown(*pages, headers="keep") == "\n\n".join(one.markdown for one in pages)


def test_text_goes_on_across_figures_and_captions_between_it() -> None:
    low, top, under = (100, 800, 900, 900), (100, 50, 900, 90), (100, 100, 900, 120)
    pages = [
        page(0, ("text", BODY, "At the end the man-"), ("image", low, "![](images/p1-1.png)")),
        page(
            1,
            ("image", top, "![](images/p2-1.png)"),
            ("image_caption", under, "B"),
            ("text", BODY, "agement."),
        ),
    ]
    assert markdown(*pages).split("\n\n") == [
        *("At the end the management.", "![](images/p1-1.png)", "![](images/p2-1.png)", "B")
    ]
    only = [page(index, ("image", BODY, f"![](images/p{index + 1}-1.png)")) for index in range(3)]
    assert markdown(*only).count("![]") == 3


def test_join_pages_off_leaves_pages_apart() -> None:
    pages = book(["At the end the man-", "agement decides."])
    assert markdown(*pages, join_pages=False) == "At the end the man-\n\nagement decides."


def test_a_head_that_the_reader_takes_for_a_heading_is_one_where_a_sentence_goes_on() -> None:
    low = (100, 90, 500, 120)
    body = (100, 170, 900, 800)

    def both(first: str, second: str) -> str:
        return markdown(
            *(
                page(index, ("title", low, "# Report"), ("text", body, text))
                for index, text in enumerate((first, second))
            )
        )

    assert both("This is said and", "done.") == "This is said and done."
    assert both("One report.", "Another report.").count("# Report") == 2


def test_chapters_that_begin_pages_are_no_heads() -> None:
    pages = [
        page(index, ("title", HEAD, f"# Chapter {index + 1}"), ("text", BODY, f"Text {index}."))
        for index in range(5)
    ]
    assert markdown(*pages).count("# Chapter") == 5


def test_text_that_differs_is_no_head() -> None:
    pages = [
        page(i, ("text", HEAD, f"Figures of {year}"), ("text", BODY, "Said."))
        for i, year in enumerate((2019, 2024))
    ]
    assert markdown(*pages).count("Figures of") == 2


def test_the_same_text_elsewhere_is_no_head() -> None:
    pages = [
        page(0, ("text", HEAD, "Terms apply here"), ("text", BODY, "One.")),
        page(1, ("text", BODY, "Two."), ("text", (100, 820, 900, 840), "Terms apply here")),
    ]
    assert markdown(*pages).count("Terms apply here") == 2


@pytest.mark.parametrize(
    "numbers",
    [
        ["1", "2", "3"],
        ["- 7 -", "- 8 -", "- 9 -"],
        ["Page 1 of 3", "Page 2 of 3", "Page 3 of 3"],
        ["iv", "v", "vi"],
    ],
)
def test_numbers_that_count_with_the_pages_are_left_out(numbers: list[str]) -> None:
    pages = [
        page(i, ("text", BODY, f"Text {i}."), ("text", FOOT, number)) for i, number in enumerate(numbers)
    ]
    assert markdown(*pages) == "Text 0.\n\nText 1.\n\nText 2."
    assert types(joined(*pages)) == [["text", "page_number"]] * 3


def test_numbers_that_do_not_count_stay() -> None:
    pages = [
        page(i, ("text", BODY, "Said."), ("text", FOOT, text)) for i, text in enumerate(("1250", "1986"))
    ]
    assert "1250" in markdown(*pages)


def test_one_misread_number_among_many_is_left_out() -> None:
    pages = [
        page(i, ("text", BODY, f"Text {i}."), ("page_number", FOOT, text))
        for i, text in enumerate(("1", "2", "8", "4"))
    ]
    assert "8" not in markdown(*pages)


def test_a_single_page_keeps_all() -> None:
    one = book(["Said."])[0]
    assert markdown(one) == one.markdown


def test_without_boxes_three_pages_are_needed_and_more_than_a_line_beside() -> None:
    pages = [free(i, f"Handbook\n\nText {i} is long.\n\nMore {i}.\n\n{i + 1}") for i in range(3)]
    assert "Handbook" not in markdown(*pages)
    assert markdown(*pages[:2]).count("Handbook") == 2
    short = [free(i, f"# Page {i + 1}\n\n595 x 842 pixels") for i in range(4)]
    assert markdown(*short) == "\n\n".join(one.markdown for one in short)


@pytest.mark.parametrize(
    ("first", "second", "is_joined"),
    [
        ("goes on", "with this.", True),
        ("ends here.", "with this.", False),
        ("“ends here.”", "with this.", False),
        ("goes on", "With this.", False),
        ("# Heading", "with this.", False),
        ("- an item goes", "on here", True),
        ("goes on", "- item", False),
        ("```\ncode", "with this", False),
        ("goes `on", "`a<b` is", False),
    ],
)
def test_only_a_paragraph_that_breaks_off_is_joined(first: str, second: str, is_joined: bool) -> None:
    text = markdown(page(0, ("text", BODY, first)), page(1, ("text", BODY, second)))
    assert ("\n\n" not in text) == is_joined


def test_nothing_is_joined_across_what_is_missing() -> None:
    first, last = page(0, ("text", BODY, "goes on")), page(2, ("text", BODY, "with this."))
    assert markdown(first, last) == "goes on\n\nwith this."
    failed = page(1, code="unreadable_page")
    comment = "<!-- page 2 was not read: unreadable_page -->"
    assert markdown(first, failed, last) == f"goes on\n\n{comment}\n\nwith this."
    assert markdown(first, failed, last, page_marks="none") == "goes on\n\nwith this."
    assert joined(first, failed, last).plain() == (
        "goes on\n\n[page 2 was not read: unreadable_page]\n\nwith this."
    )


def test_rules_part_pages_and_nothing_is_joined_across_them() -> None:
    pages = [page(0, ("text", BODY, "goes on")), page(1, ("text", BODY, "with this."))]
    assert markdown(*pages, page_marks="rule") == "goes on\n\n---\n\nwith this."


def table(*rows: str) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row.split("|")) for row in rows)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


@pytest.mark.parametrize(
    ("below", "whole"),
    [
        (("Item|Price", "Pen|3"), ("Item|Price", "Ink|2", "Pen|3")),
        (("Pen|3", "Paper|4"), ("Item|Price", "Ink|2", "Pen|3", "Paper|4")),
        (("Name|Age", "Ann|31"), None),
        (("Pen|3|x",), None),
    ],
)
def test_a_table_goes_on(below: tuple[str, ...], whole: tuple[str, ...] | None) -> None:
    above = ("Item|Price", "Ink|2")
    text = markdown(
        page(0, ("text", HEAD, "List."), ("table", BODY, table(*above))),
        page(1, ("table", BODY, table(*below))),
    )
    tables = [table(*above), table(*below)] if whole is None else [table(*whole)]
    assert text == "\n\n".join(["List.", *tables])


def test_a_paragraph_goes_on_over_several_pages() -> None:
    assert markdown(*book(["one two", "three four", "five six."])) == "one two three four five six."


def test_dollars_and_plain_text() -> None:
    document = joined(page(0, ("text", BODY, r"For \(x<y\) and `a<b` \# 1")))
    assert document.markdown(dollars=True) == r"For $x<y$ and `a<b` \# 1"
    assert document.plain() == r"For \(x<y\) and a<b # 1"


def test_an_open_fence_does_not_swallow_the_next_page() -> None:
    text = markdown(page(0, ("code", BODY, "```\na")), page(1, ("text", BODY, "Said.")))
    assert text == "```\na\n```\n\nSaid."


def test_results_and_options_of_an_earlier_release_are_still_read() -> None:
    old = encode_options(ParseOptions()).replace(encode_answer(), "")
    assert _OPTIONS.validate_json(old) == ParseOptions()
    stored = encode_page(page(0, ("text", BODY, "a < b &lt;c"))).replace(', "markdown": null', "")
    assert markdown(decode_page(stored)) == "a < b &lt;c"


def encode_answer() -> str:
    match = re.search(r'"answer": \{[^}]*\}, ', encode_options(ParseOptions()))
    assert match is not None
    return match[0]


ALLOWED = re.compile(r"</?(table|thead|tbody|tr|td|th|br|sub|sup)>|<t[dh]( (col|row)span=\"\d+\")+>")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), SOUP), max_size=4), st.sampled_from(["drop", "keep"]))
def test_joined_pages_have_no_live_html(texts: list[tuple[bool, str]], headers: str) -> None:
    pages = [
        page(index, ("text", BODY, text)) if has_box else free(index, text)
        for index, (has_box, text) in enumerate(texts)
    ]
    document = joined(*pages, headers=headers)
    document.plain()
    for token in (
        MarkdownIt("commonmark", {"html": True}).enable(["table"]).parse(document.markdown(dollars=True))
    ):
        for inner in [token, *(token.children or [])]:
            if inner.type in ("html_block", "html_inline"):
                for start in re.finditer("<(?=[A-Za-z/!?])", inner.content):
                    assert ALLOWED.match(inner.content, start.start()), html.escape(inner.content)


def test_what_never_ends_is_not_joined_without_end() -> None:
    """Joining looks through what it joins to: without a limit, 2,000 such pages took minutes."""
    pages = [page(index, ("text", BODY, f"{word} goes on " * 500)) for index, word in enumerate("abcdef")]
    text = markdown(*pages)
    assert text.count("goes on") == 3000
    longest = max(map(len, text.split("\n\n")))
    assert MAX_TEXT_CHARS <= longest < MAX_TEXT_CHARS + 2 * 9000
