"""What a client asks of a job besides the document, and which requests count as the same."""

import hashlib
import json
from dataclasses import dataclass

from app.document import ParseOptions
from app.jobs.job import encode_options
from app.jobs.keys import Key
from app.jobs.queues import DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Submission:
    """The request around a document and its options."""

    client: str
    priority: int = DEFAULT_PRIORITY
    webhook: str | None = None
    idempotency_key: str | None = None
    repeatable: bool = False
    """Whether an existing job with the same document and options is good enough."""
    key: Key | None = None
    """The API key of the request, whose limits apply."""

    def request_hash(self, content: str, options: ParseOptions) -> str:
        """Hash everything that requests with the same idempotency key must have in common."""
        parts = json.dumps([content, encode_options(options), self.webhook, self.priority])
        return hashlib.sha256(parts.encode()).hexdigest()

    def dedupe(self, request_hash: str) -> str | None:
        """Return the deduplication key: at most one retained job may have it.

        ``None`` disables deduplication.
        """
        if self.idempotency_key is not None:
            return f"key:{self.client}:{hashlib.sha256(self.idempotency_key.encode()).hexdigest()}"
        return f"content:{self.client}:{request_hash}" if self.repeatable else None
