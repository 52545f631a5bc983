"""The seam between the service and whatever reads pages: everything above is tested with a fake."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.document import Page, Reading, ReadOptions


class Restart(str):
    """An empty piece that takes back every piece before it: the page is being read again.

    A page whose text ran into a loop is read again after some of its text was sent. A client that shows
    pieces as they come clears what it shows; one that must not take anything back waits for ``result()``.
    """

    __slots__ = ()

    def __new__(cls) -> "Restart":
        return super().__new__(cls, "")


class PageStream(Protocol):
    """One page being read."""

    def pieces(self) -> AsyncIterator[str]:
        """Raw model text as it is decoded; ends when the page ends, without raising. At most one consumer.

        The pieces after the last ``Restart`` add up to ``result().text``, whatever was tried. A character
        that takes several tokens arrives whole.
        """

    async def result(self) -> Reading:
        """Wait for the page. Raises the page's own ``ParseError`` if it failed; others are unaffected."""

    def cancel(self) -> None:
        """Stop within one decode step and free the page's memory. Idempotent."""


class PageReader(Protocol):
    """Reads pages of many documents at once."""

    @property
    def model_name(self) -> str: ...

    @property
    def modes(self) -> Collection[str]:
        """Names of the view layouts that ``ReadOptions.mode`` may name."""

    def submit(self, page: Page, options: ReadOptions, *, document_id: str, priority: int = 0) -> PageStream:
        """Queue a page at once, without waiting. Raise ``BadOption`` for a mode or prompt this model cannot
        serve.

        Higher ``priority`` goes first; documents of one priority take turns.
        """

    async def close(self) -> None:
        """Cancel what runs, release the device."""


@dataclass(frozen=True, slots=True)
class ReaderLoad:
    """Counts of one moment, and since the start: decode steps, and tokens that they gave."""

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
