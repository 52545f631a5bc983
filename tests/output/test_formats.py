"""Every format of an answer, made of one document."""

import io
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from app.document import AnswerOptions, Page, PageResult, ParsedDocument, Picture
from app.errors import FormatUnavailable, NotFound
from app.output.answer import Answer, Piece
from app.output.as_html import TAGS
from app.output.cutting import take_pictures
from app.output.docling import docling_document
from app.output.docling_child import FEW_PAGES
from app.output.embedding import Embedding
from app.output.figures import Address, readdressed, relative
from app.output.formats import FORMATS
from app.output.markdown import to_markdown
from app.output.pages import join_pages

SIZE = (800, 1000)
TEXT = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 90]]<|/det|># Bericht 報告\n"
    "<|ref|>text<|/ref|><|det|>[[0, 100, 999, 200]]<|/det|>"
    "Where \\(a_1 < b_1\\) & *so* <script>alert(1)</script>\n"
    "<|ref|>image<|/ref|><|det|>[[100, 210, 599, 399]]<|/det|>\n"
    "<|ref|>image_caption<|/ref|><|det|>[[100, 400, 599, 420]]<|/det|>A field\n"
    "<|ref|>table<|/ref|><|det|>[[0, 500, 999, 600]]<|/det|>"
    '<table><tr><td colspan="2">Wide</td></tr><tr><td>1</td><td>2 &lt; 3</td></tr></table>\n'
    "<|ref|>list<|/ref|><|det|>[[0, 610, 999, 700]]<|/det|>- one\n- two\n"
    "<|ref|>equation<|/ref|><|det|>[[0, 710, 999, 800]]<|/det|>\\[e = mc^2\\]\n"
)
ATTACK = (
    "[a](javascript:alert(1)) ![b](http://elsewhere.example/x.png) ![c](images/p1-1.png)"
    " <img src=x onerror=y>\n\n"
    '\\(<img src=x onerror=alert(1)>\\) `<svg on=z>` [d](data:text/html,x) $"><b onmouseover=1>$\n\n'
    "<table><tr><td onclick=q><a href='javascript:1'>t</a></td></tr></table>\n\n    <iframe src=//x>"
)


class Shelf:
    """Images of a document, as a store has them."""

    def __init__(self, *pictures: Picture) -> None:
        self._by_name = {picture.name: picture for picture in pictures}

    def __call__(self, name: str) -> Picture:
        if name not in self._by_name:
            raise NotFound("the job has no such image")
        return self._by_name[name]


def answer_of(*texts: str, address: Address | None = relative, keep_page: bool = True) -> Answer:
    pages: list[PageResult] = []
    pictures: list[Picture] = []
    for index, text in enumerate(texts):
        page = Page(index, Image.new("RGB", SIZE, "red"), dpi=100)
        limits = {"max_figures": 9, "max_bytes": 2**20}
        done = take_pictures(page, to_markdown(text), keep_page=keep_page, **limits)
        rendered = done.rendered
        pages.append(PageResult(index, *SIZE, rendered.markdown, rendered.blocks, dpi=100))
        pictures += done.pictures
    document = ParsedDocument("0" * 32, "fake", "succeeded", tuple(pages), {})
    joined = join_pages([readdressed(page, address) for page in pages], AnswerOptions())
    shelf = Shelf(*pictures)
    options = AnswerOptions()
    return Answer(document, joined, options, address, shelf, lambda: iter([b"{}"]), tempfile.TemporaryFile)


def made(name: str, answer: Answer) -> bytes:
    return whole(FORMATS[name].make(answer))


def whole(pieces: Iterable[Piece]) -> bytes:
    return b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)


def test_text_has_no_markup() -> None:
    text = made("text", answer_of(TEXT, address=None)).decode()
    assert "Bericht 報告" in text
    assert "A field" in text
    assert "![" not in text
    assert "#" not in text


class Tags(HTMLParser):
    """What a browser would make elements of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_html_stands_alone_and_does_nothing() -> None:
    html = made("html", answer_of(TEXT, ATTACK)).decode()
    assert "<title>Bericht 報告</title>" in html
    assert "<h1>Bericht 報告</h1>" in html
    assert "\\(a_1 &lt; b_1\\)" in html, "math stays as it was written"
    tags = Tags()
    tags.feed(html.partition("<body>")[2])
    assert {tag for tag, _ in tags.found} <= TAGS
    assert {"h1", "table", "ul", "em", "img"} <= {tag for tag, _ in tags.found}
    assert {name for _, attributes in tags.found for name in attributes} <= {
        *("href", "src", "alt", "colspan", "rel")
    }
    images = [attributes["src"] for _, attributes in tags.found if "src" in attributes]
    assert images == ["images/p1-1.png", "images/p1-1.png"], "the document's own alone"
    assert not [attributes for _, attributes in tags.found if "href" in attributes]
    assert "default-src 'none'" in html


def test_an_embedded_figure_is_read_when_it_is_sent_and_cannot_be_guessed() -> None:
    answer = answer_of(TEXT)
    embedding = Embedding(answer.pictures)
    answer = answer_of(TEXT, "![x](images/p1-1.png)", address=embedding.address)
    for name in ("markdown", "html", "docling"):
        text = whole(embedding.filled(FORMATS[name].make(answer))).decode()
        assert text.count("data:image/png;base64,") == 1, name


def test_docling_is_valid_by_its_own_model() -> None:
    from docling_core.types.doc import DocItem, DocItemLabel, DoclingDocument

    document = DoclingDocument.model_validate_json(made("docling", answer_of(TEXT, "# Free text\n\nmore")))
    assert len(document.pages) == 2
    assert document.pages[1].size.width == pytest.approx(SIZE[0] * 72 / 100)
    labels = [item.label for item, _ in document.iterate_items() if isinstance(item, DocItem)]
    assert labels.count(DocItemLabel.PICTURE) == labels.count(DocItemLabel.TABLE) == 1
    assert labels.count(DocItemLabel.LIST_ITEM) == 2
    assert DocItemLabel.FORMULA in labels
    [table] = document.tables
    assert (table.data.num_rows, table.data.num_cols) == (2, 2)
    assert [cell.text for cell in table.data.table_cells] == ["Wide", "1", "2 < 3"]
    [picture] = document.pictures
    assert picture.caption_text(document) == "A field"
    assert picture.image is not None
    assert str(picture.image.uri) == "images/p1-1.png"
    markdown = document.export_to_markdown()
    assert "Free text" in markdown
    assert "報告" in markdown
    tags = made("doctags", answer_of(TEXT)).decode()
    assert tags.startswith("<doctag>")
    assert "<picture>" in tags


def test_a_large_document_is_made_in_a_process_of_its_own_and_is_the_same() -> None:
    many = answer_of(*[TEXT] * (FEW_PAGES + 1), address=lambda name: f"/sign-{name}", keep_page=False)
    document = docling_document(many.document.id, many.joined.pages, many.address)
    assert json.loads(made("docling", many)) == json.loads(json.dumps(document.export_to_dict()))
    assert made("doctags", many).decode() == document.export_to_doctags() + "\n"


def test_a_table_that_claims_millions_of_cells_is_text() -> None:
    cell = '<td colspan="999" rowspan="999">x</td>'
    table = "<table>" + f"<tr>{cell * 20}</tr>" * 500 + "</table>"
    text = f"<|ref|>table<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>{table}"
    document = json.loads(made("docling", answer_of(text)))
    assert (document["tables"], len(document["texts"])) == ([], 1)
    assert made("doctags", answer_of(text)).startswith(b"<doctag>")


def test_deeply_nested_markup_is_no_trouble() -> None:
    text = "<sub>" * 5000 + ">" * 5000 + "<table><tr><td>" * 2000 + "x" + "*" * 5000 + "[" * 5000
    for form in ("html", "text", "docling", "pdf", "zip"):
        assert made(form, answer_of(text))


def test_a_format_whose_packages_are_missing_names_them() -> None:
    with pytest.raises(FormatUnavailable, match=r"rtprune\[docling\]"):
        replace(FORMATS["docling"], module="app.output.as_nothing").make(answer_of(TEXT))


def test_a_zip_has_markdown_figures_and_json() -> None:
    with zipfile.ZipFile(io.BytesIO(made("zip", answer_of(TEXT, TEXT)))) as archive:
        assert archive.namelist() == ["document.md", "result.json", "images/p1-1.png", "images/p2-1.png"]
        assert "![A field](images/p2-1.png)" in archive.read("document.md").decode()
        assert json.loads(archive.read("result.json")) == {}
        Image.open(io.BytesIO(archive.read("images/p1-1.png"))).verify()


def test_a_pdf_can_be_searched_in_any_script_where_the_text_is(tmp_path: Path) -> None:
    text = TEXT + "<|ref|>text<|/ref|><|det|>[[500, 900, 999, 950]]<|/det|>Привет, 東京の地図 𠮷 end\n"
    path = tmp_path / "searchable.pdf"
    path.write_bytes(made("pdf", answer_of(text, "# Second\n\npage")))
    found = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True)
    first, second = found.stdout.split("\f")[:2]
    for words in ("Bericht 報告", "A field", "Wide", "Привет, 東京の地図 𠮷 end", "- one"):
        assert words in " ".join(first.split()), first
    assert "Second" in second
    # the right bottom quarter of the page alone
    area = ["-x", "288", "-y", "640", "-W", "288", "-H", "80"]
    inside = subprocess.run(["pdftotext", *area, path, "-"], capture_output=True, text=True, check=True)
    assert "東京の地図" in inside.stdout
    assert "Bericht" not in inside.stdout


def test_a_pdf_needs_pictures_of_pages() -> None:
    with pytest.raises(FormatUnavailable):
        made("pdf", answer_of(TEXT, keep_page=False))
    failed = answer_of(TEXT)
    pages = (*failed.joined.pages, PageResult(1, 0, 0, ""))
    mixed = replace(failed, joined=replace(failed.joined, pages=pages))
    assert made("pdf", mixed).startswith(b"%PDF")
