"""Send requests, and repeat them while the service is busy or unreachable."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from rtprune.client.errors import ServiceError, UnexpectedAnswer, Unreachable

BUSY_STATUSES = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 30.0
CONNECT_S = 10.0
SILENCE_S = 60.0
"""Longest silence while waiting for an answer. Event streams send a heartbeat every 15 s."""

Request = Callable[[], httpx.Request]
"""Makes a request. Called for each attempt, because a body can be sent only once."""


class Exchange:
    """Sends requests with retries. ``num_retries``: attempts after the first."""

    def __init__(self, http: httpx.AsyncClient, num_retries: int) -> None:
        self._http = http
        self._num_retries = num_retries

    @asynccontextmanager
    async def answer(self, request: Request) -> AsyncIterator[httpx.Response]:
        """Yield a successful response with its body unread.

        Raise ``ServiceError``, ``Unreachable`` or ``UnexpectedAnswer``.
        """
        response = await self._send(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def body(self, request: Request) -> bytes:
        """Return the body of a successful response. Raise as ``answer`` does."""
        for attempt in range(self._num_retries + 1):
            try:
                async with self.answer(request) as response:
                    return await response.aread()
            except httpx.TransportError as error:  # the answer broke off after it began
                await self.pause(attempt, error)
        raise AssertionError("the last attempt returns or raises")

    async def pause(self, attempt: int, error: Exception) -> None:
        """Wait before the next attempt. Raise ``Unreachable`` when this was the last."""
        if attempt >= self._num_retries:
            raise Unreachable(
                f"no answer after {attempt + 1} attempts: {error or type(error).__name__}"
            ) from error
        await asyncio.sleep(_pause_s(attempt))

    async def _send(self, request: Request) -> httpx.Response:
        for attempt in range(self._num_retries + 1):
            try:
                response = await self._http.send(request(), stream=True)
            except httpx.TransportError as error:
                await self.pause(attempt, error)
                continue
            if response.is_success:
                return response
            try:
                with contextlib.suppress(httpx.TransportError):
                    await response.aread()
            finally:
                await response.aclose()
            if response.status_code not in BUSY_STATUSES or attempt == self._num_retries:
                raise _error(response)
            wanted_s = retry_after_s(response.headers.get("retry-after", ""))
            await asyncio.sleep(_pause_s(attempt) if wanted_s is None else wanted_s)
        raise AssertionError("the last attempt returns or raises")


def retry_after_s(text: str) -> float | None:
    """Parse ``Retry-After``, which is seconds or a date. Return ``None`` for anything else."""
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _pause_s(attempt: int) -> float:
    """Return a pause that grows with each attempt; it is random, so that clients do not retry in step."""
    longest_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
    return random.uniform(longest_s / 2, longest_s)  # noqa: S311 - no secret


def _error(response: httpx.Response) -> ServiceError | UnexpectedAnswer:
    try:
        problem = json.loads(response.content)
    except (ValueError, httpx.ResponseNotRead):
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return ServiceError.of(problem, response.status_code)
    return UnexpectedAnswer(
        f"{response.url.host} answered {response.status_code}, which is no answer of rtprune's"
    )
