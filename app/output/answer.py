"""What every format of an answer is made of."""

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
    """A document, joined, and where its images are.

    ``address``: where the answer's figures are referred to, as in ``joined``; ``None``: not at all.
    """

    document: ParsedDocument
    joined: Joined
    options: AnswerOptions
    address: Address | None
    pictures: Pictures
    as_json: Callable[[], Iterator[bytes]]
    """Gives the JSON answer, for formats that contain it."""
    scratch: Callable[[], IO[bytes]]
    """Opens a temporary file, for formats that are made as files. It is gone when it is closed."""

    @property
    def has_dollars(self) -> bool:
        """Tell whether math has dollars around it: in text, unless TeX's delimiters are asked for."""
        return self.options.math != "latex"


Make = Callable[[Answer], Iterable[Piece]]
"""Makes an answer, in a thread, before its first piece is taken: taking pieces is to cost little."""


FILE_PIECE_BYTES = 2**18


def pieces_of(file: IO[bytes]) -> Iterator[bytes]:
    """Give what was written to a file, from its start, and close it."""
    with file:
        file.seek(0)
        while piece := file.read(FILE_PIECE_BYTES):
            yield piece
