"""Figures inside an answer: a sign stands for each while the text is made, and its bytes when it is sent.

So an answer with many figures holds one of them in memory at a time. The sign cannot be guessed: text of the
document that looks like a sign is text.
"""

import base64
import re
import secrets
from collections.abc import Callable, Iterable, Iterator

from app.document import Picture

TOKEN_BYTES = 16
NAME = r"p[0-9]{1,9}(?:-[0-9]{1,9})?\.[a-z]{3}"

Pictures = Callable[[str], Picture]
"""Gives an image of the document by its name; raises ``NotFound``."""


class Embedding:
    """The signs of one answer. ``pictures`` is asked for each when it is sent."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._token = secrets.token_hex(TOKEN_BYTES)
        self._sign = re.compile(rf"{self._token}-({NAME})")

    def address(self, name: str) -> str:
        """Return the sign that stands for an image; it passes through JSON, HTML and Markdown unchanged."""
        return f"{self._token}-{name}"

    def filled(self, pieces: Iterable[str | bytes]) -> Iterator[str | bytes]:
        """Put images in the place of their signs. A sign lies within one piece."""
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            for number, text in enumerate(self._sign.split(piece)):
                yield data_uri(self._pictures(text)) if number % 2 else text


def data_uri(picture: Picture) -> str:
    """Return an image as an address that contains it."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"
