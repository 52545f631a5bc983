"""The interface between the service and whatever reads pages. Everything above it is tested with a fake."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

from app.document import Page, Reading, ReadOptions


class Restart(str):
    """An empty piece that revokes every piece before it, because the page is being read again.

    A page whose text ran into a loop, or is risky, is read again after some of its text was sent. A client
    that shows pieces as they come clears what it shows; one that cannot take anything back waits for
    ``result()``.
    """

    __slots__ = ()

    def __new__(cls) -> "Restart":
        return super().__new__(cls, "")


class PageStream(Protocol):
    """A page that is being read."""

    def pieces(self) -> AsyncIterator[str]:
        """Yield raw model text as it is decoded. End with the page, without raising. At most one consumer.

        The pieces after the last ``Restart`` add up to ``result().text``, however many attempts there were. A
        character that takes several tokens arrives whole.
        """

    async def result(self) -> Reading:
        """Wait for the page. Raise the page's own ``ParseError`` if it failed; other pages are unaffected."""

    def cancel(self) -> None:
        """Stop within one decode step and free the page's memory. Idempotent."""


class PageReader(Protocol):
    """Reads pages of many documents at once."""

    @property
    def model_name(self) -> str: ...

    @property
    def modes(self) -> Collection[str]:
        """Names of the view layouts that ``ReadOptions.mode`` may have."""

    @property
    def fixates(self) -> bool:
        """Whether ``ReadOptions.fixation`` may be given."""

    def submit(self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0) -> PageStream:
        """Queue a page at once, without waiting. Raise ``BadOption`` for an unsupported option.

        Higher ``priority`` goes first; documents of one priority take turns.
        """

    async def close(self) -> None:
        """Cancel running pages and release the device."""


class NotTogether(Exception):
    """Pages shown in one prompt have no texts of their own. The message says why.

    ``reading``: what the model made of all of them; ``None`` if it made nothing.
    """

    def __init__(self, reason: str, reading: Reading | None = None) -> None:
        super().__init__(reason)
        self.reading = reading


class PagesStream(Protocol):
    """Several pages that are being read in one prompt."""

    async def results(self) -> Sequence[Reading]:
        """Wait for a reading of each page, in order. Raise ``NotTogether`` for pages to be read one by one.

        A reading has the counts of its own page, and a share of the times.
        """

    def cancel(self) -> None:
        """Stop within one decode step and free the pages' memory. Idempotent."""


@runtime_checkable
class ReadsTogether(Protocol):
    """A reader that may have a model trained to read several pages in one prompt."""

    @property
    def reads_together(self) -> bool:
        """Whether its model was trained for that."""

    def submit_together(
        self, pages: Sequence[Page], options: ReadOptions, *, document_id: str, priority: int = 0
    ) -> PagesStream:
        """Queue several pages as one prompt, like ``PageReader.submit``.

        Limits in ``options`` hold for each page. There is one attempt.
        """


def reads_together(reader: PageReader) -> TypeGuard[ReadsTogether]:
    """Tell whether a reader can be shown several pages in one prompt."""
    return isinstance(reader, ReadsTogether) and reader.reads_together


@runtime_checkable
class KnowsModes(Protocol):
    """A reader that looks at a page's pixels, and can say how large each mode shows them to its model."""

    @property
    def default_mode(self) -> str:
        """Mode of a page whose ``ReadOptions`` name none."""

    def scales(self, width: int, height: int) -> Mapping[str, float]:
        """Return for each mode that may be chosen for a page of this size how many pixels of its views show
        one pixel of the page.

        A mode that was not trained on is not among them. Empty where nothing is to be chosen, because pages
        are shown at their own size.
        """


@dataclass(frozen=True, slots=True)
class ReaderLoad:
    """Counts at one moment.

    ``steps`` and ``tokens`` count decode steps and decoded tokens since the start.
    """

    waiting: int = 0
    running: int = 0
    slots: int = 0
    kv_tokens_used: int = 0
    kv_tokens_capacity: int = 0
    steps: int = 0
    tokens: int = 0


@runtime_checkable
class ReportsLoad(Protocol):
    """A reader that can say how busy it is. Any thread may ask."""

    @property
    def load(self) -> ReaderLoad: ...
