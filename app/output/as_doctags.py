"""Make DocTags from the DoclingDocument, with docling-core."""

from collections.abc import Iterable

from app.output.answer import Answer, Piece
from app.output.docling import docling_document
from app.output.docling_child import DOCTAGS, FEW_PAGES, made_apart


def make(answer: Answer) -> Iterable[Piece]:
    """Make the document's DocTags."""
    name, pages = answer.document.id, answer.joined.pages
    if len(pages) > FEW_PAGES:
        return [made_apart(DOCTAGS, name, pages, None, answer.scratch()) + "\n"]
    document = docling_document(name, pages, None)
    return [document.export_to_doctags() + "\n"]
