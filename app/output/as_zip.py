"""Make a zip of the document: Markdown, the figures it refers to, and the JSON answer."""

import zipfile
from collections.abc import Iterable

from app.output.answer import Answer, Piece, pieces_of
from app.output.figures import relative

MARKDOWN = "document.md"
RESULT = "result.json"


def make(answer: Answer) -> Iterable[Piece]:
    """Write the zip to a file, one image at a time."""
    file = answer.scratch()
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MARKDOWN, answer.joined.markdown(dollars=answer.has_dollars) + "\n")
            with archive.open(RESULT, "w") as result:
                for part in answer.as_json():
                    result.write(part)
            for name in figure_names(answer):
                packed = zipfile.ZipInfo(
                    relative(name)
                )  # stored without compression: PNG is compressed already
                archive.writestr(packed, answer.pictures(name).data)
    except BaseException:
        file.close()
        raise
    return pieces_of(file)


def figure_names(answer: Answer) -> list[str]:
    """Return the names of a document's figures, each once, in order."""
    blocks = (block for page in answer.document.pages for block in page.blocks)
    return list(dict.fromkeys(block.figure.name for block in blocks if block.figure is not None))
