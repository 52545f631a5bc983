"""Make a DoclingDocument, or its DocTags, in a child process.

docling-core works for seconds on a document of hundreds of pages. It holds the interpreter lock for hundreds
of milliseconds at a time, so other requests of the same process would wait. The child gets JSON lines on
standard input, and writes JSON or DocTags to standard output.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from app.document import PageResult
from app.errors import InternalError
from app.output.figures import Address
from app.processes import child_environment, python_module

FEW_PAGES = 8
"""Up to so many pages take milliseconds, less than the second in which a process starts."""
PATIENCE_S = 600.0
DOCTAGS = "doctags"
MODULE = "app.output.docling_child"
_PAGE: TypeAdapter[PageResult] = TypeAdapter(PageResult)


def made_apart(
    form: str, name: str, pages: Sequence[PageResult], address: Address | None, output: IO[bytes]
) -> str:
    """Make a document's text in a child process. Raise ``InternalError`` if that fails.

    ``form``: ``DOCTAGS``, or anything else for JSON. ``output``: an empty file, which is closed at the end.
    """
    command, environment = python_module(MODULE, form), _environment()
    with (
        output,
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output) as child,  # noqa: S603 - ours
    ):
        try:
            with child.stdin as given:  # type: ignore[union-attr] # it is a pipe
                # every address ends with its figure's name, so the rest is a prefix
                prefix = None if address is None else address("")
                given.write(json.dumps([name, prefix]).encode() + b"\n")
                for page in pages:
                    given.write(_PAGE.dump_json(page) + b"\n")
            status = child.wait(PATIENCE_S)
        except (OSError, subprocess.TimeoutExpired):
            status = None
        finally:
            child.kill()
        if status != 0:
            raise InternalError("the document could not be brought into this format")
        output.seek(0)
        return output.read().decode()


def _environment() -> dict[str, str]:
    """Return the environment of the child. It holds no secrets, because model text is hostile."""
    needed = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return child_environment(Path(tempfile.gettempdir()), needed)


def main(form: str) -> None:
    """Read a document's pages from standard input and write the document to standard output."""
    from app.output.docling import docling_document  # noqa: PLC0415 - slow to import, needed only here

    name, prefix = json.loads(sys.stdin.buffer.readline())
    pages = [_PAGE.validate_json(line) for line in sys.stdin.buffer]
    address = None if prefix is None else lambda figure: f"{prefix}{figure}"
    document = docling_document(name, pages, address)
    if form == DOCTAGS:
        text = document.export_to_doctags()
    else:
        text = json.dumps(document.export_to_dict(), ensure_ascii=False)
    sys.stdout.buffer.write(text.encode())


if __name__ == "__main__":
    main(sys.argv[1])
