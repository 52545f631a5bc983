"""Judge a document by its pages, and tell whether pages can be read at all."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from app.document import ParsedDocument
from app.documents.raster.sandbox import Sandbox
from app.errors import DocumentFailed, ParseError

MAX_FAILURES_NAMED = 5


Phase = Literal["starting", "downloading", "loading", "ready", "failed"]
"""How far a worker is. ``failed``: its model cannot be loaded, and waiting alone does not help."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether pages can be read now, and if not, why. ``model`` is the last one that was loaded.

    ``modes``: view layouts of the loaded models. ``sandbox``: the weakest confinement of decoders among all
    ready workers. ``fixates``: whether all loaded models read with ``fixation``.
    ``reads_together``: whether all can be shown several pages in one prompt.
    """

    phase: Phase
    detail: str
    model: str = ""
    modes: frozenset[str] = frozenset()
    sandbox: Sandbox | None = None
    fixates: bool = False
    reads_together: bool = False

    @property
    def ready(self) -> bool:
        return self.phase == "ready"

    @property
    def decided(self) -> bool:
        """Whether waiting is over: pages can be read, or a worker has said why they cannot."""
        return self.phase in {"ready", "failed"}


def raise_if_unread(document: ParsedDocument) -> None:
    """Raise when no page was read: the pages' error if they have one in common, else ``DocumentFailed``.

    A pipeline that looks at the HTTP status alone must never take an empty answer for a blank document.
    """
    if document.status != "failed":
        return
    failures = [(page.index + 1, page.failure) for page in document.pages if page.failure is not None]
    codes = Counter(failure.code for _, failure in failures)
    if len(codes) == 1:
        raise _common_error(failures[0][1].error(), len(failures))
    named = [f"page {number}: {failure.code}" for number, failure in failures[:MAX_FAILURES_NAMED]]
    raise DocumentFailed(f"none of {len(failures)} pages could be read ({', '.join(named)})")


def _common_error(error: ParseError, num_pages: int) -> ParseError:
    return error if num_pages == 1 else type(error)(f"{error} (and so for each of {num_pages} pages)")
