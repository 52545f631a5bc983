"""Wrap every HTTP exchange: give it a request id, a log line, and a problem where an answer is missing."""

import asyncio
import logging
import re
import time
import uuid

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.errors import InternalError, MethodNotAllowed, NotFound, NotReady, ParseError
from app.http.schemas.problem import Problem
from app.http.service import ENDING
from app.jobs.api.jobs import JOB_ID
from app.metrics import Metrics
from app.telemetry import request_id

logger = logging.getLogger("rtprune.http")

CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked again and again, by machines."""
LINGER_S = 1.0
LINGER_BYTES = 2**20


def error_headers(error: ParseError, retry_after_s: int) -> dict[str, str]:
    """Return the headers of an error's answer, whatever shape its body has."""
    wait_s = error.retry_after_s or (retry_after_s if error.status in {429, 503} else None)
    headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def named_errors(error: RequestValidationError) -> str:
    """Say in one line what the framework found wrong with a request."""
    named = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
    return named or "the request is not valid"


def problem_response(error: ParseError, retry_after_s: int) -> Response:
    problem = Problem.of(error, request_id.get() or "unknown")
    headers = error_headers(error, retry_after_s)
    return Response(problem.model_dump_json(), error.status, headers, media_type="application/problem+json")


def routing_error(status: int) -> ParseError:
    """Return the error for a status with which the router refuses a request."""
    if status == 404:
        return NotFound("there is nothing at this address; see /docs")
    if status == 405:
        return MethodNotAllowed("this address does not answer this method; see /docs")
    return InternalError(f"the request ended with status {status}")


class OutermostMiddleware:
    """The outermost middleware. It logs and counts every exchange, and turns errors into answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, retry_after_s: int) -> None:
        self._app = app
        self._metrics = metrics
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        # HEAD is handled as GET. The server drops the body, because its own scope still says HEAD.
        scope = {**scope, "method": "GET", "head": True} if scope["method"] == "HEAD" else scope
        exchange = _Exchange(scope, receive, send)
        if scope["path"].removeprefix(scope.get("root_path", "")) in UNTRACED:
            await self._exchange(scope, exchange)
            return
        parent = Headers(scope=scope).get("traceparent", "")
        with tracing.span(scope["method"], parent=parent, is_server=True) as span:
            await self._exchange(scope, exchange)
            route = _route_of(scope)
            span.rename(f"{_method_of(scope)} {route}")
            span.set(http__route=route, http__request__method=_method_of(scope))
            span.set(http__response__status_code=exchange.status, rtprune__request=exchange.id)
            if exchange.status >= 500:
                span.fail(str(exchange.status))

    async def _exchange(self, scope: Scope, exchange: "_Exchange") -> None:
        token = request_id.set(exchange.id)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499
        except ParseError as error:  # raised before routing, or while an answer is sent
            if exchange.status:  # the server cuts the answer short, so the client notices
                logger.warning("an answer was broken off", extra={"reason": str(error)})
                return
            response = problem_response(error, self._retry_after_s)
            await response(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            # The grace period for requests is over. The server would log a traceback and answer a bare 500.
            if not _is_ending(scope):
                raise
            if exchange.status == 0:
                response = problem_response(NotReady(ENDING), self._retry_after_s)
                await response(scope, exchange.receive, exchange.send)
        except Exception:  # the outermost boundary: log a defect fully, and answer without its details
            logger.exception("request failed")
            if exchange.status == 0:
                defect = InternalError("the service failed; its log has the reason")
                response = problem_response(defect, self._retry_after_s)
                await response(scope, exchange.receive, exchange.send)
        finally:
            self._record(scope, exchange)
            request_id.reset(token)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a websocket where a request would get a problem, because a handshake has no body for one."""
        token = request_id.set(uuid.uuid4().hex)
        try:
            await self._app(scope, receive, send)
        except ParseError as error:
            if scope["type"] != "websocket":
                raise
            logger.info("a websocket was refused", extra={"reason": str(error)})
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
        finally:
            request_id.reset(token)

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        path, method = _route_of(scope), _method_of(scope)
        seconds = time.perf_counter() - exchange.started
        self._metrics.requests.labels(path, method, str(exchange.status)).inc()
        self._metrics.request_seconds.labels(path, method).observe(seconds)
        job_id = scope.get("job_id") or scope.get("path_params", {}).get("job_id", "")
        job = (
            {"job": job_id} if JOB_ID.fullmatch(job_id) else {}
        )  # the path may have any text instead of an id
        logger.info(
            "request",
            extra=job
            | {
                "method": method,
                "route": path,
                "status": exchange.status,
                "ms": round(seconds * 1000, 1),
            },
        )


def _route_of(scope: Scope) -> str:
    """Return the pattern that an address fits, never the address."""
    return str(getattr(scope.get("route"), "path", "other"))


def _method_of(scope: Scope) -> str:
    method = "HEAD" if "head" in scope else scope["method"]
    return method if method in METHODS else "other"


def _is_ending(scope: Scope) -> bool:
    service = getattr(scope["app"].state, "service", None)
    return service is not None and service.is_ending


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        self.id = wanted if CLIENT_REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex
        self.status = 0
        self.started = time.perf_counter()
        self._receive = receive
        self._send = send
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._body_pending = has_body
        # Two lengths: a proxy in front may use the other one and take the rest for another request.
        self._must_close = "transfer-encoding" in headers and "content-length" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._body_pending = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            if self._body_pending or self._must_close:
                headers["Connection"] = "close"
        elif self._body_pending and not message.get("more_body", False):
            # The client is still sending. The answer is complete by its length; read a little before closing.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        """Read a little of the rest of the body. Closing at once sends a reset, which may lose the answer."""
        num_bytes = 0
        try:
            async with asyncio.timeout(LINGER_S):
                while num_bytes < LINGER_BYTES and self._body_pending:
                    num_bytes += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def answer_problem(request: Request, error: ParseError) -> Response:
    return problem_response(error, request.app.state.service.settings.retry_after_s)
