"""What every format of an answer is made from."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from app.document import AnswerOptions, ParsedDocument
from app.output.embedding import Pictures
from app.output.figures import Address
from app.output.pages import Joined

Piece = str | bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A joined document with its options and images.

    ``address``: gives the address that figures have in ``joined``; ``None``: figures are not referred to.
    """

    document: ParsedDocument
    joined: Joined
    options: AnswerOptions
    address: Address | None
    pictures: Pictures
    as_json: Callable[[], Iterator[bytes]]
    """Gives the JSON answer, for formats that contain it."""
    scratch: Callable[[], IO[bytes]]
    """Opens a temporary file for formats that are written to one. Closing it removes it."""

    @property
    def has_dollars(self) -> bool:
        """Tell whether the text has dollars around math: yes, unless TeX's delimiters are requested."""
        return self.options.math != "latex"


Make = Callable[[Answer], Iterable[Piece]]
"""Makes an answer, in a thread, before its first piece is taken, so that taking pieces is cheap."""


FILE_PIECE_BYTES = 2**18


def pieces_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the contents of a file from its start, and close it."""
    with file:
        file.seek(0)
        while piece := file.read(FILE_PIECE_BYTES):
            yield piece
