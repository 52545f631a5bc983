"""Log the end of a job in one line. The process whose transaction ended the job writes it."""

import logging
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from app.jobs.tables import jobs

logger = logging.getLogger("rtprune.jobs")

ENDED = (
    jobs.c.id,
    jobs.c.status,
    jobs.c.num_pages,
    jobs.c.num_done,
    jobs.c.num_failed,
    jobs.c.num_incomplete,
    jobs.c.visual_tokens,
    jobs.c.kept_tokens,
    jobs.c.output_tokens,
    jobs.c.created_at,
    jobs.c.finished_at,
)
"""The columns that the log line needs."""


def log_end(job: sa.RowMapping | Mapping[str, Any], code: str | None = None) -> None:
    """Log that a job has ended, once its transaction is committed. ``code``: why the whole job failed."""
    counts = {
        "pages": job["num_pages"],
        "done": job["num_done"],
        "failed": job["num_failed"],
        "incomplete": job["num_incomplete"],
        "visual_tokens": job["visual_tokens"],
        "kept_tokens": job["kept_tokens"],
        "output_tokens": job["output_tokens"],
        "ms": round((job["finished_at"] - job["created_at"]) * 1000, 1),
    }
    why = {} if code is None else {"code": code}
    logger.info("job ended", extra={"job": job["id"], "status": job["status"], **why, **counts})
