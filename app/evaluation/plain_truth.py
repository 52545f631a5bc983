"""Score pages whose truth is a text file: character and word error, and tables if the truth is Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from app.evaluation.html_tables import compare_tables
from app.evaluation.markdown_parts import Part, split_markdown
from app.evaluation.normal_forms import one_spaced
from app.evaluation.omnidocbench import TruthError
from app.evaluation.scores import PageScore

ENDINGS = (".md", ".txt")


@dataclass(frozen=True, slots=True)
class WrittenPage:
    """A page whose truth is plain text or Markdown. ``truth``: all text on the page."""

    name: str
    truth: str

    @property
    def number(self) -> None:
        return None

    @property
    def label(self) -> str:
        return self.name

    @property
    def attributes(self) -> dict[str, str]:
        return {}

    @property
    def key(self) -> str:
        return self.truth

    def score(self, markdown: str) -> PageScore:
        """Compute character and word error, and table scores.

        An error is the edits divided by the true characters or words. A run of white space counts as one
        space.
        """
        truth, read = one_spaced(self.truth), one_spaced(markdown)
        samples: dict[str, tuple[float, float]] = {}
        if truth:
            samples["character_error"] = (float(Levenshtein.distance(truth, read)), float(len(truth)))
            words = truth.split()
            samples["word_error"] = (float(Levenshtein.distance(words, read.split())), float(len(words)))
        samples |= _table_samples(split_markdown(self.truth), split_markdown(markdown))
        return PageScore(self.name, samples)


def read_plain_truth(folder: Path) -> list[WrittenPage]:
    """Read every ``.md`` and ``.txt`` of a folder as the truth of one page.

    Raise ``TruthError`` if one is not UTF-8.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    return [WrittenPage(path.stem, _text(path)) for path in paths]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TruthError(f"{path}: not UTF-8: {error}") from error


def _table_samples(truth: Sequence[Part], read: Sequence[Part]) -> dict[str, tuple[float, float]]:
    """Compare true tables with those read, one by one in order. A missing table counts as 0."""
    tables = [part.table for part in truth if part.table is not None]
    others = [part.table for part in read if part.table is not None]
    if not tables:
        return {}
    scores = [compare_tables(left, right) for left, right in zip(others, tables, strict=False)]
    return {
        name: (sum(getattr(score, name) for score in scores), float(len(tables)))
        for name in ("teds", "teds_structure", "grits", "cells")
    }
