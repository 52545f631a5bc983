"""Open the truth that pages are scored against. It may be in any of three formats."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from app.evaluation import omnidocbench, unit_tests
from app.evaluation.omnidocbench import TruePage, TruthError, read_omnidocbench
from app.evaluation.plain_truth import read_plain_truth
from app.evaluation.scores import PageScore
from app.evaluation.unit_tests import CheckedPage, read_unit_tests


class ScoredPage(Protocol):
    """A page with its truth, against which Markdown can be scored."""

    @property
    def name(self) -> str:
        """Stem of the document's file name."""

    @property
    def number(self) -> int | None:
        """Number of the page in its document, from 1. ``None``: the document is the page."""

    @property
    def label(self) -> str:
        """Name of the page among all pages: no two have the same."""

    @property
    def attributes(self) -> dict[str, str]:
        """Attributes of the page, such as its language, by which scores are grouped."""

    @property
    def key(self) -> str:
        """A text that identifies the truth: it holds everything a score depends on except the Markdown."""

    def score(self, markdown: str) -> PageScore:
        """Score the Markdown that was read of this page. Pass ``""`` for a page that was not read."""


def open_truth(path: Path) -> list[ScoredPage]:
    """Read the pages of OmniDocBench's ``.json``, or of a folder of olmOCR-bench's ``.jsonl`` or of texts.

    Texts are ``.md`` and ``.txt``. Raise ``TruthError``, which says what is wrong, if there are no pages.
    """
    if not path.exists():
        raise TruthError(f"{path}: no such file or folder")
    pages: list[ScoredPage] = []
    if path.is_file():
        pages += read_omnidocbench(path)
    elif any(path.glob("*.jsonl")):
        pages += read_unit_tests(path)
    else:
        pages += read_plain_truth(path)
    if not pages:
        raise TruthError(f"{path}: no truth found: wanted is .json, or a folder with .jsonl, .md or .txt")
    labels = Counter(page.label for page in pages)
    if twice := next((label for label, count in labels.items() if count > 1), None):
        raise TruthError(f"{path}: two pages are called {twice!r}")
    return pages


def find_prediction(folder: Path, page: ScoredPage) -> Path | None:
    """Find the file that a tool wrote for ``page``. Return ``None`` if there is none."""
    return next((folder / name for name in _names(page) if (folder / name).is_file()), None)


def prediction_path(folder: Path, page: ScoredPage) -> Path:
    """Return where to write a tool's Markdown of ``page``, so that ``find_prediction`` finds it."""
    return folder / (f"{page.name}.md" if page.number is None else f"{page.name}_pg{page.number}.md")


def _names(page: ScoredPage) -> Iterator[str]:
    if isinstance(page, CheckedPage):
        return unit_tests.prediction_names(page.name, page.number)
    return omnidocbench.prediction_names(page.name)


__all__ = ["ScoredPage", "TruePage", "TruthError", "find_prediction", "open_truth", "prediction_path"]
