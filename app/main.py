"""Assemble the HTTP application from its parts."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import tracing
from app.documents.safe_http import SafeHttp
from app.documents.spool import Spool
from app.errors import InvalidRequest, ParseError
from app.http.access import Access
from app.http.front import Hosts, Proxies
from app.http.middleware import OutermostMiddleware, answer_problem, named_errors, routing_error
from app.http.openapi import TAGS, Application
from app.http.results import Results
from app.http.routes import docling, docs, health, images, mineru, mistral, openai, openwebui, page, parse
from app.http.routes import jobs as job_routes
from app.http.service import Service, root_of
from app.jobs.api.jobs import Jobs
from app.jobs.api.metrics_feed import MetricsFeed
from app.jobs.api.supervisor import Supervisor
from app.metrics import Metrics
from app.settings import Settings, listed

SPARE_THREADS = 16
CORS_MAX_AGE_S = 600
REQUEST_HEADERS = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Request-Id",
)
ANSWER_HEADERS = (
    *("Location", "Content-Location", "Content-Disposition", "Retry-After", "X-Request-Id"),
    *("RTPrune-Status", "RTPrune-Pages", "RTPrune-Shortfalls", "RTPrune-Warnings"),
)
ROUTERS = (
    *(parse.router, job_routes.router, images.router, health.router, docs.router, page.router),
    *(docling.router, mistral.router, openai.router, mineru.router, openwebui.router),
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application. Its worker starts and ends with it."""
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Each document may wait for a disk or a blob store. Requests for jobs must not queue behind those.
        threads = ThreadPoolExecutor(settings.max_documents + SPARE_THREADS, "io")
        asyncio.get_running_loop().set_default_executor(threads)
        tracing.configure("rtprune-api")
        spool = Spool.open(settings.data_dir)
        jobs = Jobs(settings, spool.tmp_dir)
        http = SafeHttp(settings)
        supervisor = embedded(settings, jobs, spool, metrics)
        access = Access(settings, jobs.keys)
        app.state.service = Service(
            settings,
            metrics,
            jobs,
            spool,
            http,
            access,
            MetricsFeed(jobs.store),
            Results(jobs, spool.tmp_dir),
        )
        await jobs.start()
        if settings.embedded_worker:
            supervisor.start()
        try:
            yield
        finally:
            await supervisor.close()
            await jobs.close()
            app.state.service.results.close()
            await http.close()
            spool.close()
            await asyncio.to_thread(tracing.flush)

    app = Application(
        title="rtprune",
        description="Documents to Markdown with DeepSeek-OCR and RTPrune.",
        version=_version(),
        lifespan=lifespan,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # few clients send a body again after a redirect
    )
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ParseError, _parse_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    # a request passes the middleware added last first
    if origins := listed(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=REQUEST_HEADERS,
            expose_headers=ANSWER_HEADERS,
            max_age=CORS_MAX_AGE_S,
        )
    app.add_middleware(Hosts, settings=settings)
    app.add_middleware(Proxies, settings=settings)
    app.add_middleware(OutermostMiddleware, metrics=metrics, retry_after_s=settings.retry_after_s)
    return app


def embedded(settings: Settings, jobs: Jobs, spool: Spool, metrics: Metrics) -> Supervisor:
    """Return the supervisor of the worker that reads these jobs."""
    return Supervisor(settings, spool.tmp_dir, metrics, jobs.leases, jobs.notifications, jobs.look_again)


def let_go(app: FastAPI) -> None:
    """Tell the application that it is about to end, while its requests still run."""
    service: Service | None = getattr(app.state, "service", None)
    if service is not None:
        service.let_go()


def _version() -> str:
    try:
        return version("rtprune")
    except PackageNotFoundError:
        return "0"


# Handlers only get the class they are registered for, but their signature must say Exception.
async def _parse_error(request: Request, error: Exception) -> Response:
    return answer_problem(request, error if isinstance(error, ParseError) else InvalidRequest(str(error)))


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    response = answer_problem(request, routing_error(status))
    response.headers.update(getattr(error, "headers", None) or {})
    if status == 405:
        response.headers["Allow"] = ", ".join(_methods_at(request))
    return response


def _methods_at(request: Request) -> list[str]:
    """Return the methods of all routes of an address. The router itself names only those of the first."""
    methods: set[str] = set()
    path = request.scope["path"].removeprefix(root_of(request))
    for route in chain(request.app.routes, *(router.routes for router in ROUTERS)):
        if isinstance(route, Route) and route.path_regex.match(path):
            methods |= route.methods or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _validation_error(request: Request, error: Exception) -> Response:
    named = named_errors(error) if isinstance(error, RequestValidationError) else "the request is not valid"
    return answer_problem(request, InvalidRequest(named))
