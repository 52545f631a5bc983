"""Make plain text: the words without markup."""

from collections.abc import Iterable

from app.output.answer import Answer, Piece


def make(answer: Answer) -> Iterable[Piece]:
    """Make the document's text."""
    return [answer.joined.plain() + "\n"]
