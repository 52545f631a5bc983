"""Serve liveness, readiness and metrics."""

import contextlib
from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.documents.raster.sandbox import Sandbox
from app.errors import NotReady, StorageFull, StorageUnavailable
from app.http.access import needs
from app.http.openapi import REFUSALS, problems
from app.http.schemas.mineru import PROTOCOL_VERSION, VERSION
from app.http.service import service_of
from app.jobs.database import promptly

router = APIRouter(tags=["service"])


class Live(BaseModel):
    status: Literal["live"] = "live"


class ReadyShape(BaseModel):
    status: Literal["ready"] = "ready"
    phase: Literal["ready"] = "ready"
    model: str
    modes: list[str]
    sandbox: Sandbox | None = None
    """How the decoders of this process are confined; ``null`` for what the kernel does not offer."""
    worker_sandbox: Sandbox | None = None
    """How the decoders of the workers are confined: what holds in all of them."""


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


class HealthShape(BaseModel):
    """What clients of docling-serve, MinerU and vLLM expect of a health check."""

    status: Literal["healthy"] = "healthy"
    version: str = Field(description="Of MinerU's server, whose protocol /mineru speaks.")
    protocol_version: int = PROTOCOL_VERSION
    queued_tasks: int
    max_concurrent_requests: int
    processing_window_size: int = Field(description="Pages of a document that are claimed together.")


@router.get(
    "/health",
    operation_id="get_health",
    summary="Whether pages can be read now, for clients of other services",
    responses=problems(NotReady),
)
async def health(request: Request) -> HealthShape:
    """Return readiness in the form that clients of other services expect. ``/readyz`` tells more."""
    service = service_of(request)
    readiness = service.jobs.readiness
    if not readiness.ready:
        raise NotReady(readiness.detail, phase=readiness.phase)
    queued = 0
    with contextlib.suppress(StorageUnavailable, StorageFull):  # reading goes on without the database
        queued = (await service.jobs.queue()).jobs
    return HealthShape(
        version=VERSION,
        queued_tasks=queued,
        max_concurrent_requests=service.settings.max_documents,
        processing_window_size=service.settings.batch_pages,
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
    with contextlib.suppress(StorageUnavailable, StorageFull):  # otherwise show the last known values
        queue = await service.jobs.queue()
        service.metrics.queued_jobs.set(queue.jobs)
        service.metrics.queued_pages.set(queue.pages)
        service.metrics.pages_per_second.set(queue.pages_per_s)
        oldest_s, num_running = await promptly(service.jobs.store.backlog)
        service.metrics.oldest_job_seconds.set(oldest_s)
        service.metrics.running_pages.set(num_running)
        await service.count_ends()
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
