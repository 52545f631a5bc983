"""Liveness, readiness, metrics."""

import contextlib
from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.documents.raster.sandbox import Sandbox
from app.errors import NotReady, StorageFull, StorageUnavailable
from app.http.access import needs
from app.http.openapi import REFUSALS, problems
from app.http.service import service_of

router = APIRouter(tags=["service"])


class Live(BaseModel):
    status: Literal["live"] = "live"


class ReadyShape(BaseModel):
    status: Literal["ready"] = "ready"
    phase: Literal["ready"] = "ready"
    model: str
    modes: list[str]
    sandbox: Sandbox | None = None
    """What confines the decoders of this process; in it, ``null`` for what the kernel does not give."""
    worker_sandbox: Sandbox | None = None
    """What confines those of the workers: what holds in all of them."""


@router.get("/livez", operation_id="get_liveness", summary="Whether the process answers")
async def livez() -> Live:
    return Live()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Whether pages can be read now",
    responses=problems(NotReady),
)
async def readyz(request: Request) -> ReadyShape:
    jobs = service_of(request).jobs
    readiness = jobs.readiness
    if not readiness.ready:
        raise NotReady(readiness.detail, phase=readiness.phase)
    return ReadyShape(
        model=readiness.model,
        modes=sorted(readiness.modes),
        sandbox=jobs.sandbox,
        worker_sandbox=readiness.sandbox,
    )


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Prometheus metrics",
    dependencies=[needs("read")],
    response_class=PlainTextResponse,
    responses=problems(*REFUSALS),
)
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
