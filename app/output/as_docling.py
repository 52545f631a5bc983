"""A DoclingDocument as JSON, for docling's own tools and clients."""

import json
from collections.abc import Iterable

from app.output.answer import Answer, Piece
from app.output.docling import docling_document
from app.output.docling_child import FEW_PAGES, made_apart


def make(answer: Answer) -> Iterable[Piece]:
    """Make the document's JSON, valid by docling-core's model."""
    name, pages = answer.document.id, answer.joined.pages
    if len(pages) > FEW_PAGES:
        return [made_apart("docling", name, pages, answer.address, answer.scratch())]
    document = docling_document(name, pages, answer.address)
    return [json.dumps(document.export_to_dict(), ensure_ascii=False)]
