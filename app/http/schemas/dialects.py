"""What other services' dialects share: options, translated into ours, and the commonest shape of an error."""

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, Field

from app.document import ParseOptions
from app.errors import ParseError
from app.http.schemas.parse import OptionFields
from app.settings import Settings


class DialectFields(OptionFields):
    """Our options, as a dialect's are translated. Pages after the last are left out, not refused."""

    def options(self, settings: Settings) -> ParseOptions:
        """Raise ``BadOption`` for what this service does not allow."""
        options = super().options(settings)
        return replace(options, pages=replace(options.pages, is_clamped=True))


class DetailShape(BaseModel):
    """An error as services made with FastAPI have it, and two fields of ours."""

    detail: str
    code: str = Field(description="The same as in problem+json elsewhere.")
    retryable: bool


def detail_body(error: ParseError, text: str | None = None) -> dict[str, Any]:
    """Say what is wrong. ``text``: in place of the error's own."""
    detail = text or str(error) or error.title
    return DetailShape(detail=detail, code=error.code, retryable=error.retryable).model_dump()
