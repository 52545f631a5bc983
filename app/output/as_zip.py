"""Make a zip of the document: Markdown, the figures it refers to, and the JSON answer."""

import zipfile
from collections.abc import Iterable

from app.output.answer import Answer, Piece, pieces_of
from app.output.figures import figure_names, relative

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
            for name in figure_names(answer.document.pages):
                packed = zipfile.ZipInfo(relative(name))  # not compressed again: PNG is already
                archive.writestr(packed, answer.pictures(name).data)
    except BaseException:
        file.close()
        raise
    return pieces_of(file)
