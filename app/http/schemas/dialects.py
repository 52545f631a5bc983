"""Options of other services' dialects, translated into ours."""

from dataclasses import replace

from app.document import ParseOptions
from app.http.schemas.parse import OptionFields
from app.settings import Settings


class DialectFields(OptionFields):
    """Our options, as a dialect's are translated. Pages after the last are left out, not refused."""

    def options(self, settings: Settings) -> ParseOptions:
        """Raise ``BadOption`` for what this service does not allow."""
        options = super().options(settings)
        return replace(options, pages=replace(options.pages, is_clamped=True))
