"""Build a DoclingDocument with docling-core.

A block becomes the item of its type, or text if docling has no such type. Boxes are in points where the page
has a resolution, else in pixels. Text without a box covers the whole page. Paragraphs are not joined over
pages, because an item is on one page.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from docling_core.types.doc import (
    BoundingBox,
    ContentLayer,
    CoordOrigin,
    DocItemLabel,
    DoclingDocument,
    ImageRef,
    ListGroup,
    ProvenanceItem,
    Size,
    TableCell,
    TableData,
    TextItem,
)

from app.document import Block, Figure, PageResult
from app.output.cutting import PNG
from app.output.figures import CAPTION, PICTURE_TYPES, Address
from app.output.html import unescaped
from app.output.parts import Part, parts_of
from app.output.plain import to_plain
from app.output.tables import CELL, rows_of

POINTS_AN_INCH = 72
FARTHEST = 999
TITLE_TYPES = frozenset({"title", "doc_title"})
LABELS = {
    "page_header": DocItemLabel.PAGE_HEADER,
    "header": DocItemLabel.PAGE_HEADER,
    "page_footer": DocItemLabel.PAGE_FOOTER,
    "footer": DocItemLabel.PAGE_FOOTER,
    "page_number": DocItemLabel.PAGE_FOOTER,
    "footnote": DocItemLabel.FOOTNOTE,
    "table_footnote": DocItemLabel.FOOTNOTE,
    "reference": DocItemLabel.REFERENCE,
}
FURNITURE = frozenset({DocItemLabel.PAGE_HEADER, DocItemLabel.PAGE_FOOTER})
HEADING = re.compile(r"(#{1,6}) (.*)\Z", re.DOTALL)
ITEM = re.compile(r"[ \t]*(?:([-+*•])|([0-9]{1,9}[.)]))[ \t]+(.*)")
MATH = re.compile(r"\\\[(.*)\\\]|\$\$(.*)\$\$", re.DOTALL)
CODE = re.compile(r"(`{3,}|~{3,})[^\n]*\n(.*?)\n?\1[ \t]*", re.DOTALL)
SPAN = re.compile(r'(colspan|rowspan)="([0-9]{1,3})"')
MAX_GRID = 50_000
"""Places in a table: its model has all of them, and a few words of a hostile page can claim millions."""


def docling_document(name: str, pages: Sequence[PageResult], address: Address | None) -> DoclingDocument:
    """Return the document of these pages. ``address``: gives the figures' addresses; ``None``: no images."""
    document = DoclingDocument(name=name)
    for page in pages:
        _Writer(document, page, address).write()
    return document


@dataclass(frozen=True, slots=True)
class _Writer:
    """A page that is being added to a document."""

    document: DoclingDocument
    page: PageResult
    address: Address | None

    def write(self) -> None:
        width, height = self._size
        self.document.add_page(page_no=self.page.index + 1, size=Size(width=width, height=height))
        parts = [] if self.page.failure else parts_of(self.page)
        caption: TextItem | None = None
        at = 0
        while at < len(parts):
            part, following = parts[at], parts[at + 1 : at + 2]
            kind = (part.type or "").casefold()
            at += 1
            if CAPTION.search(kind):
                caption = self._text(part, DocItemLabel.CAPTION)
                continue
            if kind in PICTURE_TYPES or _is_table(part):
                if caption is None and following and CAPTION.search(following[0].type or ""):
                    caption = self._text(following[0], DocItemLabel.CAPTION)
                    at += 1
                if kind in PICTURE_TYPES:
                    self._picture(part, caption)
                else:
                    self._table(part, caption)
            else:
                self._other(part, kind)
            caption = None

    @property
    def _size(self) -> tuple[float, float]:
        scale = POINTS_AN_INCH / self.page.dpi if self.page.dpi else 1.0
        return max(self.page.width, 1) * scale, max(self.page.height, 1) * scale

    def _place(self, part: Part, text: str = "") -> ProvenanceItem:
        width, height = self._size
        left, top, right, bottom = part.box or (0, 0, FARTHEST, FARTHEST)
        return ProvenanceItem(
            page_no=self.page.index + 1,
            bbox=BoundingBox(
                l=left * width / FARTHEST,
                t=top * height / FARTHEST,
                r=right * width / FARTHEST,
                b=bottom * height / FARTHEST,
                coord_origin=CoordOrigin.TOPLEFT,
            ),
            charspan=(0, len(text)),
        )

    def _text(self, part: Part, label: DocItemLabel, text: str | None = None) -> TextItem:
        text = to_plain(part.markdown) if text is None else text
        layer = ContentLayer.FURNITURE if label in FURNITURE else None
        place = self._place(part, text)
        item: TextItem = self.document.add_text(label, text, prov=place, content_layer=layer)
        return item

    def _other(self, part: Part, kind: str) -> None:
        if (label := LABELS.get(kind)) is not None:
            self._text(part, label)
        elif (heading := HEADING.match(part.markdown)) is not None:
            text = to_plain(heading[2])
            place = self._place(part, text)
            if kind in TITLE_TYPES:
                self.document.add_title(text, prov=place)
            else:
                self.document.add_heading(text, level=len(heading[1]), prov=place)
        elif (math := MATH.fullmatch(part.markdown)) is not None:
            text = (math[1] or math[2] or "").strip()
            self.document.add_formula(text, prov=self._place(part, text))
        elif (code := CODE.fullmatch(part.markdown)) is not None:
            self.document.add_code(code[2], prov=self._place(part, code[2]))
        elif items := _items(part.markdown):
            self._list(part, items)
        elif kind in TITLE_TYPES:
            text = to_plain(part.markdown)
            self.document.add_title(text, prov=self._place(part, text))
        else:
            self._text(part, DocItemLabel.TEXT)

    def _list(self, part: Part, items: Sequence[tuple[str, str]]) -> None:
        group: ListGroup = self.document.add_list_group()
        for marker, markdown in items:
            text = to_plain(markdown)
            is_numbered = marker[0].isdigit()
            place = self._place(part, text)
            self.document.add_list_item(text, is_numbered, marker, prov=place, parent=group)

    def _picture(self, part: Part, caption: TextItem | None) -> None:
        block = self._block(part)
        figure = None if block is None else block.figure
        item = self.document.add_picture(image=self._image(figure), caption=caption, prov=self._place(part))
        inside = (
            part.markdown.partition("\n\n")[2] if figure and part.markdown.startswith("![") else part.markdown
        )
        if inside and not inside.startswith("!["):
            text = to_plain(inside)
            self.document.add_text(DocItemLabel.TEXT, text, prov=self._place(part, text), parent=item)

    def _block(self, part: Part) -> Block | None:
        return None if part.number is None else self.page.blocks[part.number]

    def _image(self, figure: Figure | None) -> ImageRef | None:
        if figure is None or self.address is None:
            return None
        size = Size(width=figure.width, height=figure.height)
        dpi = round(self.page.dpi or POINTS_AN_INCH)
        uri = self.address(figure.name)  # docling's model accepts an address or a path here
        return ImageRef.model_validate({"mimetype": PNG, "dpi": dpi, "size": size, "uri": uri})

    def _table(self, part: Part, caption: TextItem | None) -> None:
        data = table_data(part.markdown)
        if data is None:
            self._text(part, DocItemLabel.TEXT)
        else:
            self.document.add_table(data, caption=caption, prov=self._place(part))


def _is_table(part: Part) -> bool:
    return part.markdown.startswith("<table>") and part.markdown.endswith("</table>")


def _items(markdown: str) -> list[tuple[str, str]]:
    """Return (mark, text) of the items of a list; empty unless all of the text is one list."""
    items: list[tuple[str, str]] = []
    for line in markdown.split("\n"):
        if (item := ITEM.fullmatch(line)) is not None:
            items.append((item[1] or item[2], item[3]))
        elif not items or not line.strip():
            return []
        else:
            items[-1] = items[-1][0], f"{items[-1][1]}\n{line.strip()}"
    return items


def table_data(html: str) -> TableData | None:
    """Return the cells of a table, each with its place in the grid; ``None`` if the grid is too large."""
    cells: list[TableCell] = []
    taken: set[tuple[int, int]] = set()
    num_columns = 0
    rows = rows_of(html)
    for row, content in enumerate(rows):
        column = 0
        for tag, text in _cells(content):
            while (row, column) in taken:
                column += 1
            spans = {name: int(number) for name, number in SPAN.findall(tag)}
            across = max(1, spans.get("colspan", 1))
            down = min(max(1, spans.get("rowspan", 1)), len(rows) - row)
            num_columns = max(num_columns, column + across)
            if max(len(taken) + across * down, len(rows) * num_columns) > MAX_GRID:
                return None
            taken |= {(row + y, column + x) for y in range(down) for x in range(across)}
            cells.append(
                TableCell(
                    row_span=down,
                    col_span=across,
                    start_row_offset_idx=row,
                    end_row_offset_idx=row + down,
                    start_col_offset_idx=column,
                    end_col_offset_idx=column + across,
                    text=text,
                    column_header=tag.startswith("<th") or (row == 0 and "<thead>" in html),
                )
            )
            column += across
    return TableData(table_cells=cells, num_rows=len(rows), num_cols=num_columns)


def _cells(row: str) -> Iterator[tuple[str, str]]:
    """Yield (tag, text) of each cell of a row."""
    starts = list(CELL.finditer(row))
    ends = [*(tag.start() for tag in starts[1:]), len(row)]
    for tag, end in zip(starts, ends, strict=True):
        content = re.split(r"</t[dh]>", row[tag.end() : end], maxsplit=1)[0]
        text = unescaped(re.sub(r"</?su[bp]>", "", content.replace("<br>", " ")))
        yield tag[0], " ".join(text.split())
