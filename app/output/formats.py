"""The formats of an answer, by name and media type.

To add one, write a module with ``make`` and a line here.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.document import FormatName, Images
from app.errors import FormatUnavailable
from app.output.answer import Answer, Make, Piece


@dataclass(frozen=True, slots=True)
class Format:
    """A way to show a result. ``module``: has ``make``; imported when it is first used."""

    name: FormatName
    media_type: str
    module: str
    suffix: str
    images: Images = "relative"
    """How figures are referred to if the client does not say."""
    is_heavy: bool = False
    """Whether making it takes far longer than joining the pages."""
    extra: str = "serve"
    """The extra of ``rtprune`` that installs the packages it needs."""
    is_file: bool = False
    """Whether clients save it rather than show it."""

    @property
    def is_text(self) -> bool:
        return self.media_type.startswith("text/")

    def make(self, answer: Answer) -> Iterable[Piece]:
        """Make an answer, in a thread.

        Raise ``FormatUnavailable`` if a package that it needs is not installed.
        """
        try:
            make: Make = importlib.import_module(self.module).make
        except ImportError as error:
            raise FormatUnavailable(
                f"{self.name} needs a package that is not installed here: pip install 'rtprune[{self.extra}]'"
            ) from error
        return make(answer)


_ALL = (
    Format("json", "application/json", "app.output.as_json", "json"),
    Format("markdown", "text/markdown", "app.output.as_markdown", "md"),
    Format("text", "text/plain", "app.output.as_text", "txt", images="none"),
    Format("html", "text/html", "app.output.as_html", "html", images="embed"),
    Format(
        "docling",
        "application/vnd.docling+json",
        "app.output.as_docling",
        "json",
        images="embed",
        is_heavy=True,
        extra="docling",
    ),
    Format(
        "doctags",
        "text/vnd.doctags",
        "app.output.as_doctags",
        "doctags",
        images="none",
        is_heavy=True,
        extra="docling",
    ),
    Format("zip", "application/zip", "app.output.as_zip", "zip", is_heavy=True, is_file=True),
    Format("pdf", "application/pdf", "app.output.as_pdf", "pdf", images="none", is_heavy=True, is_file=True),
)
FORMATS: Mapping[str, Format] = {one.name: one for one in _ALL}
BY_MEDIA_TYPE: Mapping[str, Format] = {one.media_type: one for one in _ALL}
