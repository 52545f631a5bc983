"""Make Markdown: the pages as one text."""

from collections.abc import Iterable

from app.output.answer import Answer, Piece


def make(answer: Answer) -> Iterable[Piece]:
    """Make the document's Markdown."""
    return [answer.joined.markdown(dollars=answer.has_dollars) + "\n"]
