"""Files and form fields that are sent to a service."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

OnUpload = Callable[[int, int], None]
"""Callback that gets the number of bytes sent so far and the total."""
MAX_NAME_CHARS = 200


class Upload(AbstractContextManager["Upload"], io.RawIOBase):
    """A readable file that reports how much of it has been read."""

    def __init__(self, document: Path | bytes, told: OnUpload | None = None) -> None:
        self.name = document.name[-MAX_NAME_CHARS:] if isinstance(document, Path) else "document"
        self._file: IO[bytes] = document.open("rb") if isinstance(document, Path) else io.BytesIO(document)
        self._size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        self._told = told

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._told is not None and data:
            self._told(self._file.tell(), self._size)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def form(options: dict[str, Any]) -> dict[str, str]:
    """Convert options to form fields; leave out those that are ``None``."""
    texts = {name: str(value) for name, value in options.items() if value is not None}
    return {name: text.lower() if isinstance(options[name], bool) else text for name, text in texts.items()}
