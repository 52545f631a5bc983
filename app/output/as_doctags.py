"""Make DocTags from the DoclingDocument, with docling-core."""

from collections.abc import Iterable

from app.output.answer import Answer, Piece
from app.output.as_docling import docling_document


def make(answer: Answer) -> Iterable[Piece]:
    """Make the document's DocTags."""
    document = docling_document(answer.document.id, answer.joined.pages, None)
    return [document.export_to_doctags() + "\n"]
