"""Errors of the client.

ClientError
├── ServiceError       the service refused, or the document could not be read; has its ``code``
├── Unreachable        no answer, after all retries
└── UnexpectedAnswer   the answer is not that of an rtprune service
"""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of every error of this package."""


class ServiceError(ClientError):
    """An error that the service reported. ``code`` is stable; the text is one sentence."""

    def __init__(self, code: str, detail: str, status: int, *, retryable: bool, request_id: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.status = status
        self.retryable = retryable
        self.request_id = request_id

    @classmethod
    def of(cls, problem: Mapping[str, Any], status: int) -> "ServiceError":
        """Make an error from an ``application/problem+json`` body."""
        return cls(
            str(problem.get("code", "unknown")),
            str(problem.get("detail") or problem.get("title") or f"the service answered {status}"),
            status,
            retryable=problem.get("retryable") is True,
            request_id=str(problem.get("instance", "")).rpartition(":")[2],
        )


class Unreachable(ClientError):
    """The service did not answer, or broke its answer off, at every attempt."""


class UnexpectedAnswer(ClientError):
    """The answer does not come from an rtprune service: the address is wrong, or a proxy answered."""
