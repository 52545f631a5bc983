"""The wire shapes of ``POST /v1/parse``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.document import (
    MAX_SELECTION_CHARS,
    AnswerOptions,
    AttemptReason,
    Failure,
    FinishReason,
    FormatName,
    Images,
    PageResult,
    PageSelection,
    ParsedDocument,
    ParseOptions,
    Reading,
    ReadOptions,
    Status,
    TokenReport,
    WarningCode,
)
from app.errors import BadOption, ParseError
from app.output.math import with_dollars
from app.output.pages import join_pages
from app.settings import Settings

MIN_DPI = 36
MAX_PROMPT_CHARS = 4000
MAX_PAGES_PER_PROMPT = 64


class AnswerFields(BaseModel):
    """How the result is shown. A missing field keeps what the job was created with."""

    model_config = ConfigDict(extra="forbid")

    math: Literal["latex", "dollar"] | None = Field(
        None,
        description="Delimiters of math: latex, as the model writes it, or dollar. "
        "Not given: dollar in text/markdown, latex otherwise.",
    )
    headers: Literal["drop", "keep"] | None = Field(
        None,
        description="Whether running heads, feet and page numbers are in the document's Markdown. "
        "Not given: drop.",
    )
    join_pages: bool | None = Field(
        None,
        description="Whether words, paragraphs and tables that go on on the next page are joined. "
        "Not given: true.",
    )
    page_marks: Literal["none", "comment", "rule"] | None = Field(
        None,
        description="What stands where a page was not read to its end: nothing, or a comment; "
        "rule: also a rule between pages. Not given: comment.",
    )

    images: Images | None = Field(
        None,
        description="How Markdown refers to figures: relative (images/p3-1.png, below the job's address), "
        "link (the address here), embed (as data) or none. Not given: embed in html and docling, "
        "else relative.",
    )

    format: FormatName | None = Field(
        None,
        description="Format of the answer: json, markdown, text, html, docling, doctags, zip or pdf (the "
        "pages with an invisible text layer). Not given: by Accept.",
    )

    def over(self, stored: AnswerOptions) -> AnswerOptions:
        """Return the stored options, overridden by those given here."""
        given = {name: getattr(self, name) for name in AnswerFields.model_fields}
        return replace(stored, **{name: value for name, value in given.items() if value is not None})


class OptionFields(AnswerFields):
    """The options of a document, the same in a form and in JSON. An empty form field counts as missing."""

    mode: str | None = Field(
        None,
        max_length=40,
        description="View layout of the checkpoint, e.g. tiny, small, base, large, gundam. "
        "Not given: its default, or a sharper one for small print.",
    )
    prune: Literal["rtprune", "none"] = Field("rtprune", description="Whether visual tokens are pruned.")
    keep_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of patch tokens to keep. Not given: chosen from each page.",
    )
    pages: str | None = Field(
        None,
        max_length=MAX_SELECTION_CHARS,
        description="1-based pages: 1-3,7,9- (to the end). Read once, in document order. Not given: all.",
    )
    dpi: int | None = Field(
        None,
        ge=MIN_DPI,
        description="Resolution at which PDF pages are rendered. Not given: chosen from each page.",
    )
    prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="Instruction to the model, in place of its own."
    )
    max_output_tokens: int | None = Field(None, ge=1, description="Most tokens decoded for a page.")
    fixation: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the kept patch tokens that most layers attend to at each decode step; an "
        "experiment that saves no time. Not given: all of them.",
    )
    pages_per_prompt: int = Field(
        1,
        ge=1,
        le=MAX_PAGES_PER_PROMPT,
        description="Most pages shown to the model in one prompt, for checkpoints trained for it. Pages "
        "whose text cannot be told apart are read again one by one.",
    )
    tokens: TokenReport = Field(
        "counts",
        description="What is told of a page's patch tokens: how many there were, or also, in views, which "
        "of them were kept and where on the page they lie.",
    )
    filename: str | None = Field(
        None, max_length=1000, description="Accepted for convenience; formats are told by content alone."
    )

    @classmethod
    def from_form(cls, fields: Mapping[str, str]) -> Self:
        """Check the fields of a form. Raise ``BadOption`` naming the field."""
        try:
            return cls.model_validate_strings({name: value for name, value in fields.items() if value})
        except ValidationError as error:
            raise _bad_option(error, cls) from error

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Check the fields of JSON. Raise ``BadOption`` naming the field.

        Numbers must be numbers here, not text; ``null`` counts as missing.
        """
        try:
            nulls = {name for name, value in fields.items() if value is None and name in cls.model_fields}
            given = {name: value for name, value in fields.items() if name not in nulls}
            return cls.model_validate(given, strict=True)
        except ValidationError as error:
            raise _bad_option(error, cls) from error

    def options(self, settings: Settings) -> ParseOptions:
        """Raise ``BadOption`` for what this service does not allow."""
        if self.dpi is not None and self.dpi > settings.max_dpi:
            raise BadOption(f"dpi may be at most {settings.max_dpi}, got {self.dpi}")
        if self.max_output_tokens is not None and self.max_output_tokens > settings.max_output_tokens:
            raise BadOption(f"max_output_tokens may be at most {settings.max_output_tokens}")
        if self.prune == "none" and self.keep_ratio is not None:
            raise BadOption("keep_ratio has no meaning with prune=none")
        if self.pages_per_prompt > 1:
            self._check_for_several_pages()
        read = ReadOptions(
            *(self.mode, self.prune, self.keep_ratio, self.prompt, self.max_output_tokens, self.tokens),
            fixation=self.fixation,
        )
        pages = PageSelection() if self.pages is None else PageSelection.parse(self.pages)
        return ParseOptions(
            read, pages, self.dpi, self.over(AnswerOptions()), pages_per_prompt=self.pages_per_prompt
        )

    def _check_for_several_pages(self) -> None:
        if self.fixation is not None:
            raise BadOption("fixation is for one page a prompt, not with pages_per_prompt")
        if self.tokens == "detail":
            raise BadOption("tokens=detail is for one page a prompt, not with pages_per_prompt")


class ParseFields(OptionFields):
    """The options of ``POST /v1/parse``."""

    wait_seconds: float | None = Field(
        None,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="How long to wait for the result; then 202 with the job's address, and work goes on.",
    )
    on_disconnect: Literal["cancel", "continue"] | None = Field(
        None,
        description="What happens to the job when the client leaves before the answer. "
        "Not given: a document of one page is cancelled, a longer one goes on.",
    )


class ParseFormBody(ParseFields):
    """The body as multipart/form-data."""

    file: str = Field(json_schema_extra={"format": "binary"}, description="The document.")


class ParseJsonBody(ParseFields):
    """The body as application/json."""

    file: str = Field(json_schema_extra={"contentEncoding": "base64"}, description="The document, as base64.")


def _bad_option(error: ValidationError, shape: type[OptionFields]) -> BadOption:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, first["loc"]))[:80] or "options"
    if first["type"] == "extra_forbidden":
        known = ", ".join(shape.model_fields)
        return BadOption(f"{name} is no option; there are {known}")
    return BadOption(f"{name}: {first['msg']}")


class FailureShape(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    code: str
    detail: str
    retryable: bool

    @classmethod
    def of_error(cls, error: ParseError) -> Self:
        return cls.model_validate(Failure.of(error))


class AttemptShape(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    mode: str
    prune: str
    ngram_window: int
    finish_reason: FinishReason
    output_tokens: int
    reason: AttemptReason = Field(
        "asked",
        description="Why it was made: as asked; small_print: in a mode chosen for small print; loop, "
        "low_confidence: so the one before ended; risk: that one was pruned, and too risky; text_layer: its "
        "text lacked words of the PDF's text layer; apart: it could not be read in one prompt with others.",
    )
    text_layer_recall: float | None = Field(
        None, description="What the reading that ends with it had of the text layer, where there were two."
    )
    ms: float | None = Field(None, description="Wall time of that reading, where there were two.")
    pages: int = Field(
        1,
        description="Pages in its prompt. If their text could not be divided among them, output_tokens are "
        "of all of them.",
    )


class TokensShape(BaseModel):
    """``visual`` and ``kept`` count the whole sequence, ``patches`` and ``kept_patches`` patch tokens."""

    model_config = ConfigDict(from_attributes=True)

    visual: int
    kept: int
    retention: float = Field(description="kept / visual")
    patches: int
    kept_patches: int
    keep_ratio: float = Field(description="The ratio that was used, given or chosen.")
    text_density: float
    diversity: float | None = None
    prompt: int
    output: int
    attended_patches: float | None = Field(
        None,
        exclude_if=lambda count: count is None,
        description="With fixation alone: patch tokens attended to, mean over decode steps and layers.",
    )
    attended_share: float | None = Field(
        None,
        exclude_if=lambda share: share is None,
        description="With fixation alone: attended_patches / kept_patches",
    )
    drafted: int = Field(0, description="Tokens proposed from the PDF's text layer, over all attempts.")
    accepted: int = Field(
        0, description="Those of them that the model chose, too: each saved a decoder step."
    )


class FigureShape(BaseModel):
    """A picture that was cut from the page, at the job's address below ``images/``."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    width: int = Field(description="Pixels.")
    height: int


class BlockShape(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    type: str
    bbox: tuple[int, int, int, int] = Field(description="x1, y1, x2, y2 in 0..999 of the page.")
    text: str
    figure: FigureShape | None = Field(None, exclude_if=lambda figure: figure is None)


class ViewShape(BaseModel):
    """A grid of patch tokens, numbered row by row from 0. What is neither kept nor folded was dropped."""

    model_config = ConfigDict(from_attributes=True)

    bbox: tuple[int, int, int, int] | None = Field(
        description="The part of the page under the grid, beyond 0..999 where the view is padded; null for a "
        "grid that shows nothing of the page."
    )
    shown: tuple[int, int, int, int] | None = Field(
        description="The part of the page that the grid shows; the rest of it is padding."
    )
    columns: int
    rows: int
    kept: list[int] = Field(description="Patch tokens that were kept.")
    folded: list[tuple[int, int, int]] = Field(
        description="For each token that went into others for the most part: its number, and the view "
        "(0-based) and number of the one that took most of it."
    )


class WarningShape(BaseModel):
    """Why the text may say less than the page."""

    model_config = ConfigDict(from_attributes=True)

    code: WarningCode
    detail: str


class PageShape(BaseModel):
    """One page. With ``error``, nothing was read: fields that come from the model are null or empty."""

    index: int = Field(description="0-based page of the document.")
    width: int = Field(description="Pixels, as rendered; 0 when the page was not rendered.")
    height: int
    markdown: str
    error: FailureShape | None = Field(None, exclude_if=lambda failure: failure is None)
    mode: str | None = None
    finish_reason: FinishReason | None = None
    confidence: float | None = Field(None, description="Mean log-probability of the output tokens.")
    risk: float | None = Field(None, description="0 to 1: how likely the text is wrong in many places.")
    warnings: list[WarningShape] = []
    dpi: float | None = Field(None, description="Resolution a PDF page was rendered at.")
    unread_ink: float | None = Field(
        None, description="Share of the page's ink outside everything that was read."
    )
    text_layer_recall: float | None = Field(
        None, description="Share of the words of the PDF's text layer that are in the text."
    )
    attempts: list[AttemptShape] = []
    tokens: TokensShape | None = None
    views: list[ViewShape] | None = Field(
        None,
        exclude_if=lambda views: views is None,
        description="With tokens=detail alone: what became of each patch token.",
    )
    timing_ms: dict[str, float] = {}
    blocks: list[BlockShape] = []

    @classmethod
    def of(cls, page: PageResult, *, dollars: bool = False) -> Self:
        failure = FailureShape.model_validate(page.failure) if page.failure else None
        return cls(
            index=page.index,
            width=page.width,
            height=page.height,
            markdown=with_dollars(page.markdown) if dollars else page.markdown,
            error=failure,
            timing_ms=_rounded(page.timing_ms),
            warnings=[WarningShape.model_validate(warning) for warning in page.warnings],
            dpi=page.dpi,
            unread_ink=page.unread_ink,
            text_layer_recall=page.text_layer_recall,
            blocks=[BlockShape.model_validate(block) for block in page.blocks],
            **(_reading_fields(page.reading) if page.reading else {}),
        )


def _reading_fields(reading: Reading) -> dict[str, Any]:
    return {
        "mode": reading.mode,
        "finish_reason": reading.finish_reason,
        "confidence": reading.confidence,
        "risk": reading.risk,
        "attempts": [AttemptShape.model_validate(attempt) for attempt in reading.attempts],
        "tokens": TokensShape.model_validate(reading.tokens),
        "views": [ViewShape.model_validate(view) for view in reading.views] or None,
    }


def _rounded(timing_ms: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(milliseconds, 3) for stage, milliseconds in timing_ms.items()}


class UsageShape(BaseModel):
    pages: int
    visual_tokens: int
    kept_tokens: int
    output_tokens: int


class DocumentShape(BaseModel):
    """A document of which at least one page was read."""

    id: str
    model: str
    status: Status = Field(description="running: the pages so far of a job that has not ended.")
    markdown: str = Field(description="The pages as one text.")
    pages: list[PageShape]
    usage: UsageShape
    timing_ms: dict[str, float]

    @classmethod
    def of(cls, document: ParsedDocument, options: AnswerOptions | None = None) -> Self:
        options = options or AnswerOptions()
        joined = join_pages(document.pages, options)
        dollars = options.math == "dollar"
        pages = [PageShape.of(page, dollars=dollars) for page in joined.pages]
        markdown = joined.markdown(dollars=dollars)
        return cls.frame(document).model_copy(update={"markdown": markdown, "pages": pages})

    @classmethod
    def frame(cls, document: ParsedDocument) -> Self:
        """Return the answer without its text and its pages, which are empty."""
        tokens = [page.reading.tokens for page in document.pages if page.reading is not None]
        return cls(
            id=document.id,
            model=document.model,
            status=document.status,
            markdown="",
            pages=[],
            usage=UsageShape(
                pages=len(document.pages),
                visual_tokens=sum(count.visual for count in tokens),
                kept_tokens=sum(count.kept for count in tokens),
                output_tokens=sum(count.output for count in tokens),
            ),
            timing_ms=_rounded(document.timing_ms),
        )
