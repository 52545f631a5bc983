"""The wire shapes of OpenAI's chat completions, with what vLLM's server adds to them for DeepSeek-OCR."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.document import PageResult, ParseOptions
from app.errors import InvalidRequest, ParseError
from app.http.schemas.dialects import DialectFields
from app.http.schemas.mistral import PageExtras, extras
from app.http.schemas.parse import MAX_PROMPT_CHARS
from app.settings import Settings

MAX_MESSAGES = 64
MAX_NGRAM_WINDOW = 240
MAX_WHITELIST = 1000
TOKEN_ID = re.compile(r"[0-9]{1,9}")
TokenId = Annotated[int, Field(ge=0, lt=10**9)]
IMAGE_MARK = "<image>"
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = Field(False, description="Whether a last chunk says what it cost.")


class VllmArguments(BaseModel):
    """Of DeepSeek-OCR's logits processor in vLLM."""

    model_config = ConfigDict(extra="ignore")

    ngram_size: int | None = Field(None, ge=2, le=200, description="Tokens that may not come again.")
    window_size: int | None = Field(
        None, ge=2, le=MAX_NGRAM_WINDOW, description="Among how many tokens before."
    )
    whitelist_token_ids: list[TokenId] | None = Field(
        None,
        max_length=MAX_WHITELIST,
        description="Tokens that are never banned. Not given: the checkpoint's own, those of table cells.",
    )

    @field_validator("whitelist_token_ids", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Take a list that was written as a text, as some clients send it."""
        return [int(digits) for digits in TOKEN_ID.findall(value)] if isinstance(value, str) else value


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["text"] = "text"


class Part(BaseModel):
    """A text, or an image at an address; a data URL too."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "image_url", "document_url", "file"]
    text: str | None = Field(None, max_length=MAX_PROMPT_CHARS)
    image_url: Any = Field(None, description="{url: ...}")
    document_url: Any = Field(None, description="An address, as Mistral's clients send it.")
    file: Any = Field(None, description="{file_data: a data URL, filename: ...}")


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class ChatBody(BaseModel):
    """application/json. What is not here is ignored, as vLLM does."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field("", max_length=200, description="Given back; the service has one model.")
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, description="Most tokens of a page.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same.")
    stream: bool | None = Field(
        None,
        description="Whether text is sent as it is written: the model's own by tokens, Markdown by pages.",
    )
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = Field(None, description="There is one answer.")
    skip_special_tokens: bool = Field(
        True, description="false: what the model wrote, with its tags of regions; true: Markdown."
    )
    vllm_xargs: VllmArguments | None = None
    response_format: ResponseFormat | None = Field(None, description="Text alone.")
    tools: list[Any] | None = Field(None, max_length=0, description="There are none.")
    logprobs: Literal[False] | None = Field(None, description="Refused.")

    @classmethod
    def checked(cls, given: dict[str, Any]) -> "ChatBody":
        """Raise ``InvalidRequest`` naming the field."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            item = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InvalidRequest(f"{'.'.join(map(str, item['loc']))[:80]}: {item['msg']}") from error

    @property
    def prompt(self) -> str | None:
        """The texts of all messages, without the images' place in them; ``None``: the model's own."""
        texts: list[str] = []
        for message in self.messages:
            parts = message.content if isinstance(message.content, list) else []
            whole = [message.content] if isinstance(message.content, str) else []
            texts += whole + [part.text for part in parts if part.text]
        text = "\n".join(texts).replace(IMAGE_MARK, "").strip()
        return text or None

    def fields(self, settings: Settings) -> "ChatFields":
        """Translate into our options. Raise ``BadOption``."""
        most = self.max_completion_tokens or self.max_tokens
        fields = ChatFields.from_json(
            {
                "prompt": self.prompt,
                "max_output_tokens": None if most is None else min(most, settings.max_output_tokens),
            }
        )
        arguments = self.vllm_xargs
        if arguments is not None and arguments.ngram_size is not None:
            window = arguments.window_size or arguments.ngram_size
            if window < arguments.ngram_size:
                raise InvalidRequest("vllm_xargs: window_size must hold one n-gram of ngram_size")
            fields.set_ngram(arguments.ngram_size, window)
        if arguments is not None and arguments.whitelist_token_ids is not None:
            fields.set_exempt(tuple(arguments.whitelist_token_ids))
        fields.set_live(is_live=self.streams_tokens)
        return fields

    @property
    def streams_tokens(self) -> bool:
        """Whether the model's own text is asked for as it is decoded. Markdown of a page needs all of it."""
        return bool(self.stream) and not self.skip_special_tokens


class ChatFields(DialectFields):
    """Our options, and the n-gram rule that a request of vLLM's may name."""

    _ngram: tuple[int, int] | None = None
    _ngram_exempt: tuple[int, ...] | None = None
    _is_live: bool = False

    def set_ngram(self, size: int, window: int) -> None:
        """Have pages read with this rule at first."""
        self._ngram = (size, window)

    def set_exempt(self, token_ids: tuple[int, ...]) -> None:
        """Have the rule never ban these tokens."""
        self._ngram_exempt = token_ids

    def set_live(self, *, is_live: bool) -> None:
        """Have the text of pages told while it is decoded."""
        self._is_live = is_live

    def options(self, settings: Settings) -> ParseOptions:
        """Raise ``BadOption`` for what this service does not allow."""
        options = super().options(settings)
        read = replace(options.read, ngram=self._ngram, ngram_exempt=self._ngram_exempt)
        return replace(options, read=read, is_live=self._is_live)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: None = None
    code: str


class OpenAIError(BaseModel):
    """An error of OpenAI's API."""

    error: ErrorDetail


def error_body(error: ParseError) -> dict[str, Any]:
    """Say what is wrong as OpenAI's API does."""
    kind = ERROR_TYPES.get(error.status, "server_error" if error.status >= 500 else ERROR_TYPES[400])
    detail = ErrorDetail(message=str(error) or error.title, type=kind, code=error.code)
    return OpenAIError(error=detail).model_dump()


def status_of(error: ParseError) -> int:
    """Return the status of an error: a request that fails a check is 400 there."""
    return 400 if isinstance(error, InvalidRequest) else error.status


class ChatUsage(BaseModel):
    prompt_tokens: int = Field(description="Tokens of the prompt, and visual tokens that were kept.")
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, pages: Iterable[PageResult]) -> "ChatUsage":
        """Add up what pages cost."""
        read = [page.reading.tokens for page in pages if page.reading is not None]
        prompt = sum(tokens.prompt + tokens.kept for tokens in read)
        output = sum(tokens.output for tokens in read)
        return cls(prompt_tokens=prompt, completion_tokens=output, total_tokens=prompt + output)


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatExtras(BaseModel):
    """Ours: the jobs, and what every page cost."""

    job_ids: list[str]
    pages: list[PageExtras]


class ChatShape(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    rtprune: ChatExtras


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None


class ChunkShape(BaseModel):
    """A part of an answer that is streamed."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None


class ModelShape(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "rtprune"


class ModelListShape(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelShape]


def finish_reason(pages: Sequence[PageResult]) -> Literal["stop", "length"]:
    """Return why the answer ends: ``length`` wherever a page was not read to its end."""
    return "stop" if all(page.shortfall is None for page in pages) else "length"


def chat_extras(job_ids: list[str], pages: Sequence[PageResult]) -> ChatExtras:
    """Return what is ours to say of an answer."""
    return ChatExtras(job_ids=job_ids, pages=[extras(page) for page in pages])
