"""Print that is escaped comes back as it was when the Markdown is rendered."""

import html
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app.output.escape import escaped, escaped_cell, escaped_heading
from app.output.html import unescaped
from app.output.markdown import to_markdown
from app.output.plain import to_plain

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
WORDS = st.sampled_from(
    [
        *(
            "# ",
            "## ",
            "#",
            "- ",
            "+ ",
            "* ",
            "*",
            "**",
            "_",
            "__",
            "~",
            "~~",
            "~~~",
            "`",
            "``",
            "```",
            "> ",
            ">",
        ),
        *(
            "1986. ",
            "1) ",
            "12.",
            "[x]",
            "[x](y)",
            "![x](y)",
            "[x]: y",
            "](",
            "[^1]: ",
            "|",
            "|--|",
            "---",
            "===",
        ),
        *(
            "<",
            "<b>",
            "</b>",
            "<script>",
            "<!--",
            "<?",
            "<br>",
            "<td>",
            "&lt;",
            "&amp;",
            "&",
            "&#60;",
            "\\",
            "\\\\",
        ),
        *(
            "\\(",
            "\\)",
            "\\[",
            "\\]",
            "$",
            "$$",
            "$5",
            "x",
            "A",
            "7",
            ".",
            "!",
            ",",
            " ",
            " ",
            "snake_case",
            "é",
            "“",
        ),
        *("https://example.org/a_b_", "\\coloneqq", "<|ref|", "<|"),
    ]
)
PRINT = (
    st.lists(WORDS, max_size=14).map("".join) | st.text(st.characters(exclude_categories=["C", "Z"]))
).map(lambda text: " ".join(text.split()))


def shown(markdown: str) -> str:
    """What a renderer makes of Markdown that has to be one paragraph."""
    rendered = RENDERER.render(markdown)
    match = re.fullmatch(r"<p>(.*)</p>\n", rendered, re.DOTALL)
    assert match is not None, rendered
    assert "<" not in match[1], rendered
    return html.unescape(match[1])


@settings(deadline=None, max_examples=500)
@given(PRINT)
@example("# 12 Main Street")
@example("1986. A great year")
@example("- 7 -")
@example("`a` *b* _c_ ~~d~~ [e](f)")
def test_print_is_one_paragraph_that_says_the_same(text: str) -> None:
    if not text:
        return
    markdown = to_markdown(escaped(text)).markdown
    assert shown(markdown) == text
    assert to_plain(markdown) == text
    [block] = to_markdown(f"<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n{escaped(text)}").blocks
    assert block.text == text


@settings(deadline=None)
@given(PRINT)
def test_print_in_a_heading_stays_print(text: str) -> None:
    if not text:
        return
    markdown = to_markdown(f"# {escaped_heading(text)}").markdown
    match = re.fullmatch(r"<h1>(.*)</h1>\n", RENDERER.render(markdown), re.DOTALL)
    assert match is not None
    assert html.unescape(match[1]) == text
    assert to_plain(markdown) == text


@settings(deadline=None)
@given(PRINT)
def test_print_in_a_cell_stays_print(text: str) -> None:
    markdown = to_markdown(f"<table><tr><td>{escaped_cell(text)}</td></tr></table>").markdown
    match = re.fullmatch(r"<table><tr><td>([^<]*(?:<[^A-Za-z/!?][^<]*)*)</td></tr></table>", markdown)
    assert match is not None, markdown
    assert html.unescape(match[1]) == text
    assert to_plain(markdown) == text


@pytest.mark.parametrize(
    "text",
    [
        *("snake_case", "2 * 3", "A. Smith", "#5", "12.5 metres", "AT&T", "see [1]", "one ` tick", "C:\\dir"),
        *("about ~5", "$5 and $6", "a < b", "5*", "Mr. X - and Y", "p. 7"),
    ],
)
def test_what_no_renderer_changes_is_not_escaped(text: str) -> None:
    assert escaped(text) == text
    assert unescaped(text) == text
