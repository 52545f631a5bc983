"""Make the JSON answer: every page with what it cost. Its shape is the API's."""

from collections.abc import Iterable

from app.output.answer import Answer, Piece


def make(answer: Answer) -> Iterable[Piece]:
    """Make the JSON answer."""
    return answer.as_json()
