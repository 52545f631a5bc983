"""Properties of the parser of model text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.document import Block
from app.markdown import MAX_TAG_CHARS, to_markdown

COORDINATE = st.integers(0, 999)
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE).map(
    lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
KIND = st.text("abcdefghijklmnopqrstuvwxyz_ 表", min_size=1, max_size=20).map(str.strip).filter(bool)
PLAIN = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs", "Cc"]), max_size=60)
PIECES = st.sampled_from(
    [
        *(
            "<|ref|>",
            "<|/ref|>",
            "<|det|>",
            "<|/det|>",
            "[[",
            "]]",
            "[",
            "]",
            ",",
            ", ",
            "1",
            "999",
            "1000",
            "-1",
        ),
        *(
            "text",
            "<td",
            "<table>",
            "</td>",
            "<td colspan=2>",
            "<",
            ">",
            "'",
            '"',
            " ",
            "\n",
            "<script",
            "x",
            "\0",
        ),
        *("<!--", "<?", "<a href=", "&lt;", "\\", "\ud800"),
    ]
)
SOUP = st.lists(PIECES, max_size=60).map("".join)


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


@settings(deadline=None)
@given(SOUP | st.text())
def test_nothing_but_table_tags_can_become_html(text: str) -> None:
    rendered = to_markdown(text)
    table_tag = r"</?(table|thead|tbody|tr|td|th)( (colspan|rowspan)=\"\d+\")*>"
    for output in [rendered.markdown, *(block.text for block in rendered.blocks)]:
        for match in re.finditer("<[A-Za-z/!?]", output):
            assert re.compile(table_tag).match(output, match.start()), output
        output.encode()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", output)
    assert all(0 <= edge <= 999 for block in rendered.blocks for edge in block.bbox)


@pytest.mark.parametrize(
    "tag",
    [
        "<|ref|>text<|/ref|><|det|>[[1, 2, 3]]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 1000]]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[[1, 2, 3, -4]]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4.0]]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[[30, 2, 3, 4]]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4],]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[[\u0661, 2, 3, 4]]<|/det|>",
        "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]",
        "<|ref|>text<|/ref|> <|det|>[[1, 2, 3, 4]]<|/det|>",
        "<|ref|><|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>",
        f"<|ref|>{'x' * 65}<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>",
        "<|ref|>text",
    ],
)
def test_a_malformed_tag_stays_text(tag: str) -> None:
    rendered = to_markdown(f"a {tag} b")
    assert rendered.blocks == ()
    # "<|" starts no HTML, "</|" would not either but is not left to chance
    assert rendered.markdown == f"a {tag} b".replace("</", "&lt;/")


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
        ("<td title='>'>", "&lt;td title='>'>"),
        ("<td rowspan=3 style='x'>", '<td rowspan="3">'),
        ("<tdx>", "&lt;tdx>"),
        ("< td>", "< td>"),
        ("</td >", "</td>"),
        ("a < b and c<d", "a < b and c&lt;d"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("<<script>", "<&lt;script>"),
        (f"<td {'a ' * MAX_TAG_CHARS}>", f"&lt;td {'a ' * MAX_TAG_CHARS}>"),
    ],
)
def test_html(html: str, safe: str | None) -> None:
    expected = '<table><tr><td colspan="2">a</td></tr></table>' if safe is None else safe
    assert to_markdown(html).markdown == expected


@pytest.mark.parametrize(
    "unit", ["<|ref|>", "<|ref|>a<|/ref|><|det|>[[1,1,1,1],", "<td ", "<td a=", "<", "[[", "<td\n a='"]
)
def test_work_grows_with_the_text_alone(unit: str) -> None:
    # a million characters: quadratic work would not end within the lifetime of a test run
    text = unit * (1_000_000 // len(unit))
    assert len(to_markdown(text).markdown) >= len(text.strip())
