"""OpenAI's chat completions: images of pages in, their text out, at once or as it is written.

The model's own text is streamed as it is decoded, Markdown page by page, because it is made of whole pages.
Text that was sent cannot be taken back. So when a page is read again, what is the same is not sent again,
and what differs follows.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from fastapi import Path
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.document import PageResult, ParsedDocument
from app.documents.nested import Named
from app.errors import DocumentFailed, InvalidRequest, NotFound, NotReady, ParseError
from app.http.access import needs
from app.http.connected import while_connected
from app.http.contents import page_markdown
from app.http.dialects import (
    awaited,
    cancel_all,
    dialect_router,
    opened,
    received_json,
    submitted,
)
from app.http.openapi import dialect_errors, example, json_schema
from app.http.routes.jobs import ENDING_S, PING_S
from app.http.schemas.openai import (
    AnswerMessage,
    ChatBody,
    ChatShape,
    ChatUsage,
    Choice,
    ChunkChoice,
    ChunkShape,
    Delta,
    ModelListShape,
    ModelShape,
    OpenAIError,
    chat_extras,
    error_body,
    finish_reason,
    status_of,
)
from app.http.service import ENDING, Service, service_of
from app.jobs.job import Job
from app.jobs.live_text import LiveText

router = dialect_router("openai", error_body, status_of)

DONE = "[DONE]"
DOCUMENTS = frozenset({"image_url", "document_url", "file"})
"""Types of a message's parts; ``document_url`` is what Mistral's clients send."""
ERRORS = dialect_errors(OpenAIError, error_body, status_of)
ANSWER_EXAMPLE = {
    "id": "chatcmpl-5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071",
    "object": "chat.completion",
    "created": 1767225600,
    "model": "deepseek-ai/DeepSeek-OCR",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "# Annual report"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 370, "completion_tokens": 801, "total_tokens": 1171},
    "rtprune": {"job_ids": ["5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071"], "pages": []},
}
CHUNK_EXAMPLE = 'data: {"object": "chat.completion.chunk", "choices": []}\r\n\r\ndata: [DONE]\r\n\r\n'
BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": json_schema(ChatBody),
            "example": {
                "model": "deepseek-ai/DeepSeek-OCR",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "https://example.com/page.png"}}
                        ],
                    }
                ],
            },
        }
    },
}
MODEL_EXAMPLE = {"id": "rtprune-pocket", "object": "model", "created": 0, "owned_by": "rtprune"}


@router.post(
    "/v1/chat/completions",
    operation_id="complete_chat",
    summary="Read images of pages",
    dependencies=[needs("submit")],
    response_model=ChatShape,
    responses={
        200: {
            "description": "The text; with stream=true, chunks of it as server-sent events.",
            "content": {
                **example(ANSWER_EXAMPLE),
                "text/event-stream": {"schema": {"type": "string"}, "example": CHUNK_EXAMPLE},
            },
        },
        **ERRORS,
    },
    openapi_extra={"requestBody": BODY},
)
async def complete(request: Request) -> Response:
    """Read images, and answer with the text of all of them. A client that leaves cancels the reading."""
    service = service_of(request)
    with service.admitted():
        service.check_ready()
        with service.spool.files() as place:
            nested, fields = await received_json(request, service, place, _take)
            asked = ChatBody.checked(fields)
            if not nested:
                raise InvalidRequest("messages: an image_url is needed, of a page to read")
            documents = [await opened(service, one, place) for one in nested]
            jobs = await submitted(request, service, documents, asked.fields(service.settings))
        if asked.stream:
            return _streamed(request, service, asked, jobs)
        ended = await awaited(request, service, jobs)
    found = [await while_connected(request, _document(service, job)) for job in ended]
    pages = [page for document in found for page in document.pages]
    texts = [text for page in pages if (text := _text(page, asked))]
    shape = ChatShape(
        id=f"chatcmpl-{jobs[0].id}",
        created=int(time.time()),
        model=asked.model or found[0].model,
        choices=[
            Choice(message=AnswerMessage(content="\n\n".join(texts)), finish_reason=finish_reason(pages))
        ],
        usage=ChatUsage.of(pages),
        rtprune=chat_extras([job.id for job in jobs], pages),
    )
    return JSONResponse(shape.model_dump(mode="json"))


async def _document(service: Service, job: Job) -> ParsedDocument:
    return await service.results.made(job, lambda: service.results.document(job))


def _text(page: PageResult, asked: ChatBody) -> str:
    """Return a page's text: what the model wrote, or its Markdown."""
    if page.reading is None:
        return ""
    return page_markdown(page, None) if asked.skip_special_tokens else page.reading.text


def _take(body: dict[str, Any]) -> list[Named]:
    """Take the images out of the messages. Raise ``InvalidRequest``."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidRequest("messages: Field required")
    named: list[Named] = []
    for message in messages:
        parts = message.get("content") if isinstance(message, dict) else None
        found = (part for part in (parts if isinstance(parts, list) else ()) if isinstance(part, dict))
        named += [_image(part) for part in found if part.get("type") in DOCUMENTS]
    return named


def _image(part: dict[str, Any]) -> Named:
    """Take the document out of one part, and leave its type there."""
    image, file = part.pop("image_url", None), part.pop("file", None)
    image = part.pop("document_url", None) if image is None else image
    if isinstance(file, dict):
        address, name = file.get("file_data"), file.get("filename", "")
    else:
        address, name = image.get("url") if isinstance(image, dict) else image, ""
    if not isinstance(address, str) or not isinstance(name, str):
        raise InvalidRequest("messages: image_url is {url: an address or a data URL}")
    return Named(address=address, filename=name[:255])


# --- as it is written


def _streamed(request: Request, service: Service, asked: ChatBody, jobs: Sequence[Job]) -> Response:
    async def left(_message: Any) -> None:
        await cancel_all(request, service, jobs)

    return EventSourceResponse(
        _chunks(service, asked, jobs),
        ping=PING_S,
        shutdown_grace_period=ENDING_S,
        client_close_handler_callable=left,
    )


async def _chunks(service: Service, asked: ChatBody, jobs: Sequence[Job]) -> AsyncIterator[ServerSentEvent]:
    chunk = ChunkShape(
        id=f"chatcmpl-{jobs[0].id}",
        created=int(time.time()),
        model=asked.model or service.jobs.readiness.model,
        choices=[],
    )
    pages: list[PageResult] = []
    sent, begun = "", False  # what the client has of the page that is due, and whether it has any text
    yield _event(chunk, Delta(role="assistant", content=""))
    try:
        for job in jobs:
            read = _as_written(service, job) if asked.streams_tokens else _in_order(service, job)
            async for told in read:
                if isinstance(told, PageResult):
                    pages.append(told)
                    text = unsent(sent, _text(told, asked))
                else:
                    text = told[len(sent) :] if told.startswith(sent) else ""
                if text:
                    yield _event(chunk, Delta(content=text if sent or not begun else f"\n\n{text}"))
                    begun = True
                sent = "" if isinstance(told, PageResult) else sent + text
        if all(page.failure is not None for page in pages):
            raise (
                pages[0].failure.error() if pages and pages[0].failure else DocumentFailed("nothing was read")
            )
    except ParseError as error:
        yield ServerSentEvent(json.dumps(error_body(error)))
        return
    yield _event(chunk, Delta(), finish_reason(pages))
    if asked.stream_options is not None and asked.stream_options.include_usage:
        last = chunk.model_copy(update={"usage": ChatUsage.of(pages)})
        yield ServerSentEvent(last.model_dump_json())
    yield ServerSentEvent(DONE)


def _event(chunk: ChunkShape, delta: Delta, finish: Any = None) -> ServerSentEvent:
    choice = ChunkChoice(delta=delta, finish_reason=finish)
    own = chunk.model_copy(update={"choices": [choice]})
    # in ASCII, because many clients take U+2028 for the end of a line
    return ServerSentEvent(own.model_dump_json(exclude={"usage"}, ensure_ascii=True))


def unsent(sent: str, text: str) -> str:
    """Return what a client lacks of a page's text: of one that was written anew, from where it differs."""
    most = min(len(sent), len(text))
    equal = next((at for at in range(most) if sent[at] != text[at]), most)
    rest = text[equal:]
    return f"\n{rest}" if rest and equal < len(sent) else rest


async def _as_written(service: Service, job: Job) -> AsyncIterator[PageResult | str]:
    """Yield the page that is due as often as it grows, as its text so far, and when it has ended.

    Raise what became of the job.
    """
    due = deque(index for pages in job.pages for index in pages)
    texts: dict[int, LiveText] = {}
    pages = _in_order(service, job)
    with service.jobs.live_texts.of(job.id) as pieces:
        page = asyncio.create_task(_next(pages))
        piece = asyncio.create_task(pieces.get())
        try:
            while True:
                waited: set[asyncio.Task[Any]] = {page, piece}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if page.done():
                    if (ended := page.result()) is None:
                        return
                    yield ended
                    texts.pop(due.popleft(), None)
                    page = asyncio.create_task(_next(pages))
                else:
                    new = piece.result()
                    texts.setdefault(new.page, LiveText()).add(new)
                    piece = asyncio.create_task(pieces.get())
                if due and due[0] in texts:
                    yield texts[due[0]].text
        finally:
            page.cancel()
            piece.cancel()
            await asyncio.gather(page, piece, return_exceptions=True)
            await pages.aclose()


async def _next(pages: AsyncIterator[PageResult]) -> PageResult | None:
    return await anext(pages, None)


async def _in_order(service: Service, job: Job) -> AsyncGenerator[PageResult, None]:
    """Yield pages of a job in order, as soon as they have ended. Raise what became of the job."""
    waiting: dict[int, PageResult] = {}
    due = [index for pages in job.pages for index in pages]
    due.reverse()
    async for event in service.jobs.watcher.events(job.id, 0):
        if isinstance(event, Job):
            await service.jobs.raise_if_no_document(event)
            return
        waiting[event.page.index] = event.page
        while due and due[-1] in waiting:
            yield waiting.pop(due.pop())
    raise NotReady(ENDING)


# --- models


@router.get(
    "/v1/models",
    operation_id="list_models",
    summary="The model that reads",
    dependencies=[needs("read")],
    response_model=ModelListShape,
    responses={
        200: {"description": "One.", "content": example({"object": "list", "data": [MODEL_EXAMPLE]})},
        **ERRORS,
    },
)
async def models(request: Request) -> Response:
    """List the model, once a worker has told which it is."""
    return JSONResponse(ModelListShape(data=[_model(service_of(request))]).model_dump())


@router.get(
    "/v1/models/{model_id:path}",
    operation_id="get_model",
    summary="A model by its name",
    dependencies=[needs("read")],
    response_model=ModelShape,
    responses={200: {"description": "The model.", "content": example(MODEL_EXAMPLE)}, **ERRORS},
)
async def model(request: Request, model_id: str = Path(max_length=200)) -> Response:
    """Show the model, if this is its name."""
    found = _model(service_of(request))
    if found.id != model_id:
        raise NotFound(f"there is no model {model_id[:80]!r}; there is {found.id}")
    return JSONResponse(found.model_dump())


def _model(service: Service) -> ModelShape:
    readiness = service.jobs.readiness
    if not readiness.model:
        raise NotReady(readiness.detail, phase=readiness.phase)
    return ModelShape(id=readiness.model)
