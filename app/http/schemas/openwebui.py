"""The wire shapes of Open WebUI's external document loader."""

from typing import Any

from pydantic import BaseModel, Field

from app.errors import ParseError


class LoaderMetadata(BaseModel):
    """What Open WebUI keeps with a document."""

    source: str = Field(description="The name that the client gave.")
    num_pages: int
    job_id: str
    model: str
    status: str = Field(description="succeeded, or partial: not all of it was read.")


class LoadedShape(BaseModel):
    """A document as one text."""

    page_content: str
    metadata: LoaderMetadata


class ErrorShape(BaseModel):
    """An error, which Open WebUI shows as it is."""

    detail: str
    code: str = Field(description="The same as in problem+json elsewhere.")
    retryable: bool


def error_body(error: ParseError) -> dict[str, Any]:
    """Say what is wrong."""
    text = str(error) or error.title
    return ErrorShape(detail=text, code=error.code, retryable=error.retryable).model_dump()
