"""Examples of bodies and answers for OpenAPI, made by the code that makes the real ones."""

from typing import Any

from app.document import Attempt, Block, PageResult, ParsedDocument, ParseOptions, Reading, TokenCounts
from app.http.schemas.jobs import JobShape
from app.http.schemas.parse import DocumentShape
from app.jobs.job import Job
from app.jobs.queues import DEFAULT_PRIORITY

ID = "5f0c6a8e4b1d4f0f9d1c2b3a4e5f6071"
BEGAN_AT = 1_767_225_600.0
LIFETIME_S = 86_400.0
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAADUlEQVR4nGP4z8SADAEPcQEOqa2awAAAAABJRU5ErkJggg=="
"""A white image of 8 x 8 pixels, so that the example can be sent as it is."""

FORM = {"file": "(the document)", "mode": "base", "pages": "1-3,7"}
JSON_BODY: dict[str, Any] = {"file": PNG, "mode": "base", "max_output_tokens": 2000}
URL_BODY: dict[str, Any] = {"url": "https://example.com/document.pdf", "priority": 9}


def document_example() -> dict[str, Any]:
    """Return an example of a fully read document of one page."""
    reading = Reading(
        text="",
        finish_reason="stop",
        confidence=-0.05,
        mode="large",
        tokens=TokenCounts(421, 358, 400, 337, 0.8427, 0.21, 0.8, 12, 801),
        timing_ms={},
        risk=0.02,
        attempts=(Attempt("large", "rtprune", 90, "stop", 801),),
    )
    text = "# Annual report"
    stages = ("queue", "rasterize", "preprocess", "encode", "prune", "prefill", "decode", "total")
    page = PageResult(
        0,
        1241,
        1754,
        text,
        (Block("title", (99, 82, 640, 118), text),),
        reading,
        timing_ms=dict.fromkeys(stages, 12.5),
        dpi=150,
        unread_ink=0.01,
        text_layer_recall=0.99,
    )
    document = ParsedDocument(ID, "pocket", "succeeded", (page,), {"total": 4213.0})
    return DocumentShape.of(document).model_dump(mode="json")


def job_example() -> dict[str, Any]:
    """Return an example of a job that was just accepted."""
    job = Job(
        id=ID,
        client="",
        status="queued",
        options=ParseOptions(),
        format="PDF",
        blob="",
        pages=(range(12),),
        batch_pages=8,
        num_pages=12,
        num_done=0,
        num_failed=0,
        num_incomplete=0,
        num_retries=0,
        num_requeues=0,
        priority=DEFAULT_PRIORITY,
        webhook=None,
        webhook_status=None,
        webhook_attempts=0,
        model="",
        failure=None,
        created_at=BEGAN_AT,
        started_at=None,
        finished_at=None,
    )
    return JobShape.of(job, 0, LIFETIME_S, BEGAN_AT).model_dump(mode="json", exclude_none=True)
