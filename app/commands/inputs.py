"""What is to be read: files, folders, addresses and standard input, and how their results are called."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from app.documents.formats import sniff_file
from app.errors import ParseError

STDIN = "-"
NUM_DIGITS = 8
MAX_NAME_CHARS = 150


@dataclass(frozen=True, slots=True)
class Input:
    """One document. ``name``: what messages call it. ``result``: where its result goes, without suffix."""

    source: Path | str | bytes
    name: str
    result: PurePath

    @property
    def identity(self) -> str | None:
        """What it is called and how it is, to know it again; ``None`` for standard input."""
        match self.source:
            case Path():
                found = self.source.stat()
                return f"{self.source.resolve()} {found.st_size} {found.st_mtime_ns}"
            case str():
                return self.source
        return None


def find_inputs(arguments: Sequence[str], excluded: Path | None) -> tuple[list[Input], int]:
    """Find documents, each once, and the number of files in folders that are none.

    ``excluded``: a folder of results, which are not read again.
    """
    found: list[Input] = []
    num_others = 0
    for argument in dict.fromkeys(arguments):
        if argument == STDIN:
            found.append(Input(sys.stdin.buffer.read(), "standard input", PurePath("stdin")))
        elif "://" in argument:
            found.append(Input(argument, argument, PurePath(_url_name(argument))))
        elif (folder := Path(argument)).is_dir():
            for path in _files(folder, excluded):
                if _is_document(path):
                    found.append(Input(path, str(path), path.relative_to(folder)))
                else:
                    num_others += 1
        else:
            found.append(Input(folder, argument, PurePath(folder.name)))
    unique = {one.source.resolve() if isinstance(one.source, Path) else one.source: one for one in found}
    return list(_named_apart(list(unique.values()))), num_others


def _files(folder: Path, excluded: Path | None) -> Iterator[Path]:
    hidden = (
        {excluded.resolve()} if excluded is not None and excluded.resolve() != folder.resolve() else set()
    )
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if any(part.startswith(".") for part in below.parts) or not path.is_file():
            continue
        if hidden.isdisjoint(path.resolve().parents):
            yield path


def _is_document(path: Path) -> bool:
    try:
        sniff_file(path)
    except (ParseError, OSError):
        return False
    return True


def _named_apart(inputs: Sequence[Input]) -> Iterator[Input]:
    """Give inputs whose results would overwrite each other names of their own.

    The same input has the same name whatever it is read with, so that a later run finds its result.
    """
    uses = Counter(str(one.result).casefold() for one in inputs)
    for one in inputs:
        if uses[str(one.result).casefold()] > 1:
            whole = str(one.source.resolve()) if isinstance(one.source, Path) else one.name
            digits = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:NUM_DIGITS]
            yield replace(one, result=one.result.with_name(f"{one.result.name}-{digits}"))
        else:
            yield one


def _url_name(url: str) -> str:
    parts = urlsplit(url)
    name = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or "document"
    # a server names no folder of ours, and no file that is hidden
    safe = "".join(letter if letter.isalnum() or letter in "._- " else "_" for letter in name)
    return safe.lstrip(".")[-MAX_NAME_CHARS:] or "document"
