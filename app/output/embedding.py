"""Embed figures in an answer. While text is made a placeholder stands for each; sending replaces it.

So an answer with many figures holds only one of them in memory at a time. Placeholders cannot be guessed, so
text of the document that looks like one stays text.
"""

import base64
import re
import secrets
from collections.abc import Callable, Iterable, Iterator

from app.document import Picture

TOKEN_BYTES = 16
NAME = r"p[0-9]{1,9}(?:-[0-9]{1,9})?\.[a-z]{3}"

Pictures = Callable[[str], Picture]
"""Gives an image of the document by its name. Raises ``NotFound``."""


class Embedding:
    """The placeholders of one answer. ``pictures`` is called for each when it is sent."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._token = secrets.token_hex(TOKEN_BYTES)
        self._sign = re.compile(rf"{self._token}-({NAME})")

    def address(self, name: str) -> str:
        """Return the placeholder of an image. It passes through JSON, HTML and Markdown unchanged."""
        return f"{self._token}-{name}"

    def filled(self, pieces: Iterable[str | bytes]) -> Iterator[str | bytes]:
        """Replace placeholders by their images. A placeholder must lie within one piece."""
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            for number, text in enumerate(self._sign.split(piece)):
                yield data_uri(self._pictures(text)) if number % 2 else text


def data_uri(picture: Picture) -> str:
    """Return an image as a data URI."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"
