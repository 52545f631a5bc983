"""Properties of the parser of model text."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from output_pieces import SOUP

from app.document import Block
from app.output.markdown import to_markdown
from app.output.math import with_dollars
from app.output.plain import to_plain

COORDINATE = st.integers(0, 999)
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE).map(
    lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
KIND = st.text("abcdefghijklmnopqrstuvwxyz_ 表", min_size=1, max_size=20).map(str.strip).filter(bool)
PLAIN = st.text(st.characters(exclude_characters="<\\&`~", exclude_categories=["Cs", "Cc"]), max_size=60)


def grounded(kind: str, boxes: list[tuple[int, int, int, int]], text: str) -> str:
    det = ", ".join(f"[{', '.join(map(str, box))}]" for box in boxes)
    return f"<|ref|>{kind}<|/ref|><|det|>[{det}]<|/det|>{text}"


@settings(deadline=None)
@given(PLAIN)
def test_plain_text_is_itself_stripped(text: str) -> None:
    assert to_markdown(text).markdown == text.strip()
    assert to_markdown(text).blocks == ()


@settings(deadline=None)
@given(PLAIN, st.lists(st.tuples(KIND, st.lists(BOX, min_size=1, max_size=3), PLAIN), max_size=5))
def test_well_formed_regions_come_back(
    preface: str, regions: list[tuple[str, list[tuple[int, int, int, int]], str]]
) -> None:
    rendered = to_markdown(preface + "".join(grounded(*region) for region in regions))
    assert rendered.blocks == tuple(
        Block(kind, box, "" if number else text.strip())
        for kind, boxes, text in regions
        for number, box in enumerate(boxes)
    )
    texts = [preface.strip(), *(text.strip() for _, _, text in regions)]
    assert rendered.markdown == "\n\n".join(filter(None, texts))


TAG = r"</?(table|thead|tbody|tr|td|th|br|sub|sup)>|<t[dh]( (colspan|rowspan)=\"\d+\")+>"
RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def live_html(markdown: str) -> list[str]:
    """What a renderer passes on as HTML, other than the tags that are kept."""
    found = []
    for token in RENDERER.parse(markdown):
        for one in [token, *(token.children or [])]:
            if one.type in ("html_block", "html_inline"):
                starts = re.finditer("<(?=[A-Za-z/!?])", one.content)
                found += [
                    one.content[start.start() :]
                    for start in starts
                    if not re.compile(TAG).match(one.content, start.start())
                ]
    return found


@settings(deadline=None, max_examples=1000)
@given(SOUP | st.text())
@example("[a](`) <script>alert(1)</script> `")
@example("<br>\n`<script>`")
@example("- ```\n<script>\n```")
@example("a ` b\nc ` <script> `")
@example("| ` | `<script>` |\n|---|---|")
@example("para\n<br>\n```\n\n```\n<script>")
@example("\\(<script>\n\\) $<b>$")
@example("[`]: /u\n\n[a][`] <script> `")
@example("<<b></b>script>")
@example("```\n<|ref|>a<|/ref|><|det|>[[1,1,1,1]]<|/det|>x\n```\n<script>")
@example("```|<script>\n|--|--|\n")
@example("~~~|<td colspan=2>\n|--|--|\n")
def test_nothing_but_the_kept_tags_can_become_html(text: str) -> None:
    rendered = to_markdown(text)
    assert live_html(rendered.markdown) == []
    for block in rendered.blocks:
        assert live_html(block.text if block.markdown is None else block.markdown) == []
    rendered.markdown.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", rendered.markdown)
    assert not re.search(r"<\|/?(ref|det|grounding)\|>", rendered.markdown)
    assert all(0 <= edge <= 999 for block in rendered.blocks for edge in block.bbox)
    assert all(block.bbox[0] <= block.bbox[2] and block.bbox[1] <= block.bbox[3] for block in rendered.blocks)


@pytest.mark.parametrize(
    ("boxes", "box"),
    [
        ("[[1, 2, 3, 1000]]", (1, 2, 3, 999)),
        ("[[1, 2, 3, -4]]", (1, 0, 3, 2)),
        ("[[1, 2, 3, 4.0]]", (1, 2, 3, 4)),
        ("[[30, 2, 3, 4]]", (3, 2, 30, 4)),
        ("[[1, 2, 3, 4],]", (1, 2, 3, 4)),
        ("[[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("[[1, 2, 3]]", None),
        ("[]", None),
        ("[[\u0661, 2, 3, 4]]", None),
        ("[[one, 2, 3, 4]]", None),
    ],
)
def test_a_bad_box_is_clamped_or_dropped_and_its_text_stays(
    boxes: str, box: tuple[int, int, int, int] | None
) -> None:
    rendered = to_markdown(f"a <|ref|>text<|/ref|><|det|>{boxes}<|/det|>b")
    assert rendered.markdown == "a\n\nb"
    assert rendered.blocks == (() if box is None else (Block("text", box, "b"),))


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]", "a\n\nb"),
        ("<|ref|>text<|/ref|>", "a\n\nb"),
        ("<|ref|><|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", "a\n\nb"),
        ("<|ref|>", "a  b"),
        ("<|/ref|>", "a  b"),
        ("<|grounding|>", "a  b"),
        ("<|det|>[[1, 2, 3, 4]]<|/det|>", "a  b"),
        (f"<|ref|>{'x' * 65}<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", f"a {'x' * 65} b"),
        ("<|other|>", "a <|other|> b"),
        ("<|det|>said<|/det|>", "a said b"),
    ],
)
def test_nothing_of_a_malformed_tag_is_left(tag: str, text: str) -> None:
    rendered = to_markdown(f"a {tag} b")
    assert rendered.blocks == ()
    assert rendered.markdown == text


WHOLE = grounded("text", [(1, 2, 3, 4)], "The first is whole.")


@pytest.mark.parametrize("cut", range(1, len("<|ref|>sub_title<|/ref|><|det|>[[90, 160, 900, 7]]<|/det|>")))
def test_a_tag_that_breaks_off_leaves_nothing(cut: int) -> None:
    tag = "<|ref|>sub_title<|/ref|><|det|>[[90, 160, 900, 7]]<|/det|>"[:cut]
    assert to_markdown(f"{WHOLE}\n\n{tag}").markdown == "The first is whole."
    assert to_markdown(tag).markdown == ""


def test_a_malformed_tag_does_not_hide_the_next() -> None:
    rendered = to_markdown("<|ref|>x<|/ref|><|det|>[[" + grounded("text", [(1, 2, 3, 4)], "hello"))
    assert rendered.blocks == (Block("text", (1, 2, 3, 4), "hello"),)


def test_a_picture_gives_a_block_and_no_markdown() -> None:
    text = grounded("image", [(0, 0, 9, 9)], "\n") + grounded("text", [(1, 2, 3, 4)], "\nafter\n")
    rendered = to_markdown(text)
    assert rendered.markdown == "after"
    assert [block.type for block in rendered.blocks] == ["image", "text"]


@pytest.mark.parametrize(
    ("html", "safe"),
    [
        ('<TABLE border="1"><tr><td colspan="2">a</td></tr></table>', None),
        ("<td onclick=alert(1)>", "&lt;td onclick=alert(1)>"),
        (f"<td style='{'x' * 500}' colspan=2>", '<td colspan="2">'),
        ("<center>Table 1: Sheets </center>", "Table 1: Sheets"),
        ("<p>a</p><p>b</p>", "a b"),
        ("a<br/>b<BR>c", "a<br>b<br>c"),
        ("H<sub class=x>2</sub>O", "H<sub>2</sub>O"),
        ("<b>bold</b> <i>x</i> <a href='http://a/?b=1'>link</a>", "bold x link"),
        ("the <b> tag", "the &lt;b> tag"),
        ("if a<b and c>d", "if a&lt;b and c>d"),
        ("<table><tr><td>cut", "<table><tr><td>cut</td></tr></table>"),
        ("<table><tr><td>`a<b`</td></tr></table>", "<table><tr><td>`a&lt;b`</td></tr></table>"),
        ("|a|b|\n|-|-|\n|`a<b`|$a<b$|", "|a|b|\n|-|-|\n|`a<b`|$a<b$|"),
        ("`List<String>` and ``a ` <b>``", "`List<String>` and ``a ` <b>``"),
        ("```c\n#include <stdio.h>\n```", "```c\n#include <stdio.h>\n```"),
        ("~~~~\n<b>\n~~~\n<i>\n~~~~", "~~~~\n<b>\n~~~\n<i>\n~~~~"),
        ("```\n<b>", "```\n<b>"),
        ("1. a\n   ```\n   x<y\n   ```", "1. a\n```\nx<y\n```"),
        ("\\(x<y\\) \\[a<b\\] $$a<b$$", "\\(x<y\\) \\[a<b\\] $$a<b$$"),
        ("\\(a<b>c\\)", "\\(a< b>c\\)"),
        ("\\(a \\coloneqq b\\) `\\coloneqq` \\eqqcolon", "\\(a := b\\) `\\coloneqq` =:"),
        ("a\\<b", "a&lt;b"),
        ("<td title='>'>", "&lt;td title='>'>"),
        ("<td rowspan=3 style='x'>", '<td rowspan="3">'),
        ("<tdx>", "&lt;tdx>"),
        ("< td>", "< td>"),
        ("</td >", "</td>"),
        ("a < b and c<d", "a < b and c&lt;d"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("<<script>", "<&lt;script>"),
    ],
)
def test_html(html: str, safe: str | None) -> None:
    expected = '<table><tr><td colspan="2">a</td></tr></table>' if safe is None else safe
    assert to_markdown(html).markdown == expected


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "<|ref|>",
            "<|ref|>a<|/ref|><|det|>[[1,1,1,1],",
            "<td ",
            "<td a=",
            "<",
            "[[",
            "<td\n a='",
            "<b",
            "<b x=",
        ),
        *(
            "`",
            "` ",
            "\\(",
            "\\[ ",
            "$",
            "$a ",
            "$$ ",
            "\\",
            "```\n",
            "~~~",
            "- ```\n",
            "<table>",
            "<br>",
            "<td>",
        ),
        *(
            "\\(<a ",
            "$<a b='",
            "\\[\n",
            "](",
            "|",
            " ",
            "\n ",
            "<p>",
            "</p>",
            "&",
            "&#6",
            "*a",
            "**",
            "# ",
            " - ",
        ),
        *("<table><tr><td>", "`a", "[[1,", "<|det|>", "<|det|>[", "\\<", "\n\n", "> ", "<sub>"),
    ],
)
def test_work_grows_with_the_text_alone(unit: str) -> None:
    # quadratic work would take minutes for each of them
    markdown = to_markdown(f"\\({unit * (150_000 // len(unit))}").markdown
    to_plain(markdown)
    with_dollars(markdown)
