"""How far a run is: a bar on a terminal, lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol


class Progress(Protocol):
    """Told of everything that happens to documents."""

    def accepted(self, num_pages: int) -> None:
        """Note that a document of so many pages is about to be read."""

    def page(self) -> None:
        """Note that a page was read."""

    def ended(self, line: str) -> None:
        """Note that a document has ended. ``line`` says how."""

    def say(self, line: str) -> None:
        """Show a line that matters however far the run is."""

    def printing(self) -> Any:
        """Give a context in which something else is written to the terminal."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """For logs. ``ends_told``: a line for each document, where its answer is not printed itself."""

    def __init__(self, *, ends_told: bool) -> None:
        self._ends_told = ends_told

    def accepted(self, num_pages: int) -> None:
        """Say nothing: a document that ends is told then."""

    def page(self) -> None:
        """Say nothing."""

    def ended(self, line: str) -> None:
        if self._ends_told:
            self.say(line)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def printing(self) -> Any:
        return nullcontext()

    def close(self) -> None:
        """Do nothing."""


class Bar:
    """Pages, pages a second and the time that is left.

    The pages of documents that are not accepted yet are guessed from those that are.
    """

    def __init__(self, tqdm: Any, num_documents: int) -> None:
        self._tqdm = tqdm
        self._bar = tqdm(unit=" pages", file=sys.stderr, dynamic_ncols=True, smoothing=0.05)
        self._num_documents = num_documents
        self._num_accepted = 0
        self._num_ended = 0
        self._num_pages = 0

    def accepted(self, num_pages: int) -> None:
        self._num_accepted += 1
        self._num_pages += num_pages
        self._guess()

    def page(self) -> None:
        self._bar.update()

    def ended(self, line: str) -> None:  # noqa: ARG002 - the bar shows it
        self._num_ended += 1
        self._bar.set_description_str(f"{self._num_ended} of {self._num_documents} documents")
        if self._num_ended == self._num_documents:
            self._bar.total = self._bar.n
        self._bar.refresh()

    def say(self, line: str) -> None:
        self._tqdm.write(line, file=sys.stderr)

    @contextmanager
    def printing(self) -> Iterator[None]:
        with self._tqdm.external_write_mode(file=sys.stderr):
            yield

    def close(self) -> None:
        self._bar.close()

    def _guess(self) -> None:
        num_left = max(0, self._num_documents - self._num_accepted)
        self._bar.total = self._num_pages + round(num_left * self._num_pages / self._num_accepted)


def open_progress(num_documents: int, *, to_folder: bool) -> Progress:
    """Choose: a bar where somebody looks, unless the answers themselves go to the same terminal."""
    if sys.stderr.isatty() and (to_folder or not sys.stdout.isatty()):
        try:
            from tqdm import tqdm  # noqa: PLC0415 - not in an installation that only asks others
        except ModuleNotFoundError:
            pass
        else:
            return Bar(tqdm, num_documents)
    return Lines(ends_told=to_folder)
