"""Liveness, readiness, metrics, and a page that lists what there is."""

import contextlib
from html import escape
from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from app.errors import NotReady, StorageFull, StorageUnavailable
from app.schemas.problem import Problem
from app.service import service_of

router = APIRouter()


class Live(BaseModel):
    status: Literal["live"] = "live"


class ReadyShape(BaseModel):
    status: Literal["ready"] = "ready"
    phase: Literal["ready"] = "ready"
    model: str
    modes: list[str]


DOCS_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>{title}</title>
<h1>{title}</h1><p>{text}</p><table>{rows}</table>
<p><a href=/openapi.json>openapi.json</a> has every field, limit and error.</p>
<pre>curl -F file=@document.pdf -H 'Accept: text/markdown' http://127.0.0.1:8000/v1/parse</pre>
</html>"""

HTML_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
}

NOT_READY = {
    "description": "not_ready: the model is not loaded, or is being loaded again",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
}


@router.get("/livez", summary="Whether the process answers")
async def livez() -> Live:
    return Live()


@router.get("/readyz", summary="Whether pages can be read now", responses={503: NOT_READY})
async def readyz(request: Request) -> ReadyShape:
    readiness = service_of(request).jobs.readiness
    if not readiness.ready:
        raise NotReady(readiness.detail, phase=readiness.phase)
    return ReadyShape(model=readiness.model, modes=sorted(readiness.modes))


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    service = service_of(request)
    service.metrics.worker_ready.set(service.jobs.readiness.ready)
    with contextlib.suppress(StorageUnavailable, StorageFull):  # then what was last known is shown
        queue = await service.jobs.queue()
        service.metrics.queued_jobs.set(queue.jobs)
        service.metrics.queued_pages.set(queue.pages)
        service.metrics.pages_per_second.set(queue.pages_per_s)
        await service.count_pages()
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The addresses and their meaning, with no script: pages of this service load nothing from elsewhere."""
    schema = request.app.openapi()
    title, text = escape(schema["info"]["title"]), escape(schema["info"]["description"])
    rows = "".join(
        f"<tr><td><code>{escape(verb.upper())} {escape(path)}</code><td>{escape(action['summary'])}"
        for path, verbs in schema["paths"].items()
        for verb, action in verbs.items()
    )
    return HTMLResponse(DOCS_PAGE.format(title=title, text=text, rows=rows), headers=HTML_HEADERS)
