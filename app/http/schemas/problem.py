"""The shape of error answers (RFC 9457)."""

from pydantic import BaseModel, Field

from app.errors import ParseError


class Problem(BaseModel):
    """An error answer, ``application/problem+json``. ``code`` is for programs, ``detail`` for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    retryable: bool
    phase: str | None = Field(
        None,
        exclude_if=lambda phase: phase is None,
        description="Of not_ready: starting, downloading, loading or failed.",
    )

    @classmethod
    def of(cls, error: ParseError, request_id: str) -> "Problem":
        return cls(
            type=f"urn:rtprune:error:{error.code}",
            title=error.title,
            status=error.status,
            detail=str(error) or error.title,
            instance=f"urn:rtprune:request:{request_id}",
            code=error.code,
            retryable=error.retryable,
            phase=getattr(error, "phase", None),
        )
