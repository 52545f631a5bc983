"""Client of an rtprune service: ``pip install 'rtprune[client]'``. Imports no torch; see docs/client.md."""

from rtprune.client.answers import (
    Attempt,
    Block,
    Document,
    Failure,
    Figure,
    Job,
    Links,
    Options,
    Page,
    Progress,
    Readiness,
    Retries,
    Timings,
    Tokens,
    Usage,
    View,
    Warning,  # noqa: A004 - the wire's word
    Webhook,
)
from rtprune.client.asynchronous import AsyncClient
from rtprune.client.blocking import Client
from rtprune.client.errors import ClientError, ServiceError, UnexpectedAnswer, Unreachable

__all__ = [
    "AsyncClient",
    "Attempt",
    "Block",
    "Client",
    "ClientError",
    "Document",
    "Failure",
    "Figure",
    "Job",
    "Links",
    "Options",
    "Page",
    "Progress",
    "Readiness",
    "Retries",
    "ServiceError",
    "Timings",
    "Tokens",
    "UnexpectedAnswer",
    "Unreachable",
    "Usage",
    "View",
    "Warning",
    "Webhook",
]
