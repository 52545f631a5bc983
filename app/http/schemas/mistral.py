"""The wire shapes of Mistral OCR and of its files. Boxes are in pixels of the page, pages count from 0."""

import math
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.document import Block, PageResult, ParsedDocument
from app.errors import BadOption, InvalidRequest, ParseError
from app.http.schemas.dialects import DialectFields
from app.http.schemas.parse import TokensShape, UsageShape, WarningShape
from app.jobs.files import StoredFile
from app.output.figures import is_picture
from app.output.markdown import MAX_COORDINATE
from app.output.tables import cells_of, rows_of

MAX_PAGES_NAMED = 2000
PAGES = re.compile(r"\s*[0-9]{1,6}(?:-[0-9]{1,6})?\s*(?:,\s*[0-9]{1,6}(?:-[0-9]{1,6})?\s*)*")
DEFAULT_DPI = 72
BLOCK_TYPES = {
    "title": "title",
    "doc_title": "title",
    "paragraph_title": "title",
    "table": "table",
    "equation": "equation",
    "formula": "equation",
    "isolate_formula": "equation",
    "list": "list",
    "list_item": "list",
    "code": "code",
    "caption": "caption",
    "figure_caption": "caption",
    "image_caption": "caption",
    "table_caption": "caption",
    "reference": "references",
    "page_header": "header",
    "header": "header",
    "page_footer": "footer",
    "footer": "footer",
    "page_number": "footer",
    "footnote": "references",
    "aside_text": "aside_text",
}
"""Our types of blocks by the nearest of Mistral's; others are text."""
HEADER_TYPES = frozenset({"page_header", "header"})
FOOTER_TYPES = frozenset({"page_footer", "footer", "page_number"})


class ImageUrl(BaseModel):
    url: str


class DocumentChunk(BaseModel):
    """A document: at an address (a data URL too), as an image, or as a file that was uploaded."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["document_url", "image_url", "file"] | None = None
    document_url: str | None = Field(None, max_length=2048)
    image_url: str | ImageUrl | None = None
    file_id: str | None = Field(None, max_length=64)
    document_name: str | None = Field(None, max_length=255)


class OcrBody(BaseModel):
    """application/json."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=200, description="Given back; the service has one model.")
    id: str | None = Field(None, max_length=200, description="Ignored.")
    document: DocumentChunk
    pages: str | list[int] | None = Field(None, description='Pages from 0: "0-2,5" or a list.')
    include_image_base64: bool | None = Field(None, description="Whether figures are in the answer.")
    image_limit: int | None = Field(None, ge=0, description="Most figures of the document.")
    image_min_size: int | None = Field(None, ge=0, description="Figures that are smaller are left out.")
    table_format: Literal["markdown", "html"] | None = Field(
        None, description="Tables apart, in this form; not given: as HTML in the Markdown."
    )
    extract_header: bool | None = Field(None, description="Whether running heads are apart.")
    extract_footer: bool | None = Field(None, description="Whether running feet are apart.")
    include_blocks: bool | None = Field(None, description="Whether regions of the page are in the answer.")
    confidence_scores_granularity: Literal["page"] | None = Field(None, description="Of pages alone.")
    bbox_annotation_format: None = Field(None, description="Refused: nothing is annotated.")
    document_annotation_format: None = Field(None, description="Refused: nothing is annotated.")
    document_annotation_prompt: None = Field(None, description="Refused: nothing is annotated.")

    @classmethod
    def checked(cls, given: dict[str, Any]) -> "OcrBody":
        """Raise ``InvalidRequest`` naming the field."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            item = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InvalidRequest(f"{'.'.join(map(str, item['loc']))[:80]}: {item['msg']}") from error

    def fields(self) -> DialectFields:
        """Translate into our options. Raise ``BadOption``."""
        if self.pages is None or self.pages == []:
            return DialectFields.from_json({})
        if isinstance(self.pages, str):
            if PAGES.fullmatch(self.pages) is None:
                raise BadOption('pages must look like "0-2,5"')
            ranges = [part.strip().split("-") for part in self.pages.split(",")]
            named = ",".join("-".join(str(int(end) + 1) for end in ends) for ends in ranges)
        else:
            if len(self.pages) > MAX_PAGES_NAMED or not all(0 <= page < 10**6 for page in self.pages):
                raise BadOption("pages must be numbers from 0")
            named = _ranges(sorted(set(self.pages)))
        return DialectFields.from_json({"pages": named})


def _ranges(pages: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``"1-3,6"``."""
    ranges: list[list[int]] = []
    for page in pages:
        if ranges and page == ranges[-1][1] + 1:
            ranges[-1][1] = page
        else:
            ranges.append([page, page])
    return ",".join(f"{first + 1}-{last + 1}" for first, last in ranges)


class MistralError(BaseModel):
    """An error of Mistral's API. Of 422, ``detail`` is a list as FastAPI makes it."""

    object: Literal["error"] = "error"
    message: str
    type: str
    param: None = None
    code: str = Field(description="Ours: the same as in problem+json elsewhere.")
    detail: list[dict[str, Any]] | None = Field(None, exclude_if=lambda detail: detail is None)


def error_body(error: ParseError) -> dict[str, Any]:
    """Say what is wrong as Mistral's API does."""
    text = str(error) or error.title
    detail = [{"loc": ["body"], "msg": text, "type": error.code}] if error.status == 422 else None
    shape = MistralError(message=text, type=f"{error.code}_error", code=error.code, detail=detail)
    return shape.model_dump()


class Dimensions(BaseModel):
    dpi: int = Field(description="72 where the page has none of its own: an image.")
    height: int
    width: int


class ImageShape(BaseModel):
    id: str
    top_left_x: int
    top_left_y: int
    bottom_right_x: int
    bottom_right_y: int
    image_base64: str | None = Field(None, description="As a data URL, where it was asked for.")


class TableShape(BaseModel):
    id: str
    content: str
    format: Literal["markdown", "html"]


class OcrBlockShape(BaseModel):
    type: str
    top_left_x: int
    top_left_y: int
    bottom_right_x: int
    bottom_right_y: int
    content: str
    image_id: str | None = Field(None, exclude_if=lambda name: name is None)


class ConfidenceShape(BaseModel):
    average_page_confidence_score: float = Field(description="Geometric mean of the tokens' probabilities.")
    minimum_page_confidence_score: float = Field(
        description="One less the page's risk: of the least certain places, not of one word."
    )


class PageExtras(BaseModel):
    """Ours: what the page cost, and why its text may say less than the page."""

    tokens: TokensShape | None = None
    timing_ms: dict[str, float]
    warnings: list[WarningShape]
    risk: float | None = None
    finish_reason: str | None = None
    error: str | None = Field(None, description="Why nothing was read.")


class OcrPageShape(BaseModel):
    index: int
    markdown: str
    images: list[ImageShape]
    tables: list[TableShape] = []
    hyperlinks: list[str] = Field(default=[], description="Empty: links stay in the Markdown.")
    header: str | None = None
    footer: str | None = None
    dimensions: Dimensions
    confidence_scores: ConfidenceShape | None = None
    blocks: list[OcrBlockShape] | None = None
    rtprune: PageExtras


class UsageInfo(BaseModel):
    pages_processed: int
    doc_size_bytes: int | None = None


class DocumentExtras(BaseModel):
    """Ours: the job and what it cost."""

    job_id: str
    model: str
    status: str
    usage: UsageShape
    timing_ms: dict[str, float]


class OcrShape(BaseModel):
    """A document that was read."""

    pages: list[OcrPageShape]
    model: str
    usage_info: UsageInfo
    document_annotation: None = None
    rtprune: DocumentExtras


def boxed(bbox: tuple[int, int, int, int], page: PageResult) -> dict[str, int]:
    """Return a block's corners in pixels."""
    names = ("top_left_x", "top_left_y", "bottom_right_x", "bottom_right_y")
    sides = (page.width, page.height, page.width, page.height)
    scaled = (round(value * side / MAX_COORDINATE) for value, side in zip(bbox, sides, strict=True))
    return dict(zip(names, scaled, strict=True))


def block_shape(block: Block, page: PageResult, content: str) -> OcrBlockShape:
    """Return a region of the page."""
    kind = "image" if is_picture(block) else BLOCK_TYPES.get(block.type.casefold(), "text")
    image_id = block.figure.name if block.figure is not None else None
    if kind == "image" and image_id is None:
        kind = "text"  # a picture without a file: the clients' shape of an image has to name one
    return OcrBlockShape(type=kind, **boxed(block.bbox, page), content=content, image_id=image_id)


def confidence(page: PageResult) -> ConfidenceShape | None:
    """Return how sure the model is of a page; ``None`` where nothing was read."""
    if page.reading is None:
        return None
    average = math.exp(page.reading.confidence)
    return ConfidenceShape(
        average_page_confidence_score=round(average, 4),
        minimum_page_confidence_score=round(min(average, 1 - page.reading.risk), 4),
    )


def extras(page: PageResult) -> PageExtras:
    """Return what is ours to say of a page."""
    reading = page.reading
    return PageExtras(
        tokens=None if reading is None else TokensShape.model_validate(reading.tokens),
        timing_ms={stage: round(ms, 3) for stage, ms in page.timing_ms.items()},
        warnings=[WarningShape.model_validate(warning) for warning in page.warnings],
        risk=None if reading is None else reading.risk,
        finish_reason=None if reading is None else reading.finish_reason,
        error=None if page.failure is None else page.failure.detail,
    )


def usage(pages: Iterable[PageResult]) -> UsageShape:
    """Add up what pages cost."""
    read = [page.reading.tokens for page in pages if page.reading is not None]
    return UsageShape(
        pages=len(read),
        visual_tokens=sum(tokens.visual for tokens in read),
        kept_tokens=sum(tokens.kept for tokens in read),
        output_tokens=sum(tokens.output for tokens in read),
    )


def document_extras(document: ParsedDocument) -> DocumentExtras:
    """Return what is ours to say of a document."""
    return DocumentExtras(
        job_id=document.id,
        model=document.model,
        status=document.status,
        usage=usage(document.pages),
        timing_ms={stage: round(ms, 3) for stage, ms in document.timing_ms.items()},
    )


def pipe_table(html: str) -> str:
    """Write a table with pipes, as Markdown has it. Cells over several columns stand in the first."""
    rows = [[_cell(cell) for cell in cells_of(row)] for row in rows_of(html)]
    width = max(map(len, rows), default=0)
    if width == 0:
        return ""
    lines = [f"| {' | '.join(row + [''] * (width - len(row)))} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<br>", " ").split())


class FileShape(BaseModel):
    """A file that was uploaded."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    sample_type: Literal["ocr_input"] = "ocr_input"
    source: Literal["upload"] = "upload"
    num_lines: None = None
    mimetype: str | None = None
    signature: None = None
    expires_at: int = Field(description="Until when it is kept.")

    @classmethod
    def of(cls, file: StoredFile, lifetime_s: float) -> "FileShape":
        return cls(
            id=file.id,
            bytes=file.num_bytes,
            created_at=int(file.created_at),
            filename=file.filename,
            purpose=file.purpose,
            mimetype=file.media_type or None,
            expires_at=int(file.created_at + lifetime_s),
        )


class FileListShape(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileShape]
    total: int


class UrlShape(BaseModel):
    url: str = Field(description="Names the file to this service; reading it takes the same API key.")


class DeletedShape(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class UploadBody(BaseModel):
    """multipart/form-data."""

    file: str = Field(json_schema_extra={"format": "binary"}, description="The document.")
    purpose: Literal["ocr"] = Field("ocr", description="What it is for.")
    visibility: str | None = Field(None, description="Ignored: a file belongs to its key.")
    expiry: str | None = Field(None, description="Ignored: all files are kept as long.")
