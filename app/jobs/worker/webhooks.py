"""Tell a client that its job ended. Sign as https://www.standardwebhooks.com describes (version 1)."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time

from app.documents.safe_http import SafeHttp
from app.errors import ParseError, UrlRefused
from app.jobs.job import Job
from app.jobs.store import Store
from app.metrics import WEBHOOK_TRIES
from app.settings import Settings, webhook_keys

logger = logging.getLogger("rtprune.webhooks")

MAX_POSTS = 64
"""How many webhooks are posted at a time. Each post has a deadline; pauses between attempts do not count.
"""


def signature(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return ``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class Webhooks:
    """Posts webhooks, one attempt a call. The workflow decides whether and when to try again."""

    def __init__(self, settings: Settings, store: Store, http: SafeHttp) -> None:
        self._keys = webhook_keys(settings.webhook_secret)
        self._root_path = settings.root_path
        self._store = store
        self._http = http
        self._posting = asyncio.Semaphore(MAX_POSTS)

    async def deliver(self, job_id: str) -> bool:
        """Try once. Return True when it is settled: delivered, or refused for good."""
        job = await asyncio.to_thread(self._store.job, job_id)
        if job.webhook is None:
            return True
        async with self._posting:
            outcome = await self._post(job, job.webhook)
        WEBHOOK_TRIES.labels(outcome).inc()
        await asyncio.to_thread(self._store.webhook_tried, job_id, outcome)
        return outcome != "retrying"

    async def _post(self, job: Job, url: str) -> str:
        body = _body(job, self._root_path)
        timestamp = int(time.time())
        signed = [signature(key, job.id, timestamp, body) for key in self._keys]
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "rtprune",
            "webhook-id": job.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(signed),
        }
        try:
            status = await self._http.post(url, body, headers)
        except UrlRefused:
            return "refused"
        except ParseError as error:
            logger.info("webhook not delivered", extra={"job": job.id, "reason": str(error)})
            return "retrying"
        logger.info("webhook answered", extra={"job": job.id, "status": status})
        return "delivered" if 200 <= status < 300 else "retrying"


def _body(job: Job, root_path: str) -> bytes:
    address = f"{root_path}/v1/jobs/{job.id}"
    data = {
        "id": job.id,
        "status": job.status,
        "pages": {
            "total": job.num_pages,
            "done": job.num_done,
            "failed": job.num_failed,
            "incomplete": job.num_incomplete,
        },
        "links": {"self": address, "result": f"{address}/result"},
    }
    return json.dumps({"type": "job.ended", "timestamp": job.finished_at, "data": data}).encode()
