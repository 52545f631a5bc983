"""RFC 9457 problems."""

from pydantic import BaseModel

from app.errors import ParseError


class Problem(BaseModel):
    """Every error answer, ``application/problem+json``. Programs read ``code``, people ``detail``."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    retryable: bool

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
        )
