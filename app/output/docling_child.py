"""Make a DoclingDocument, or DocTags of one, in a process of its own.

docling-core is at work for seconds on a document of hundreds of pages, and holds the interpreter for hundreds
of milliseconds at a time: requests beside it would wait. What goes in and comes out is JSON.
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
"""Documents of so many take milliseconds, where a process takes a second to start."""
PATIENCE_S = 600.0
DOCTAGS = "doctags"
MODULE = "app.output.docling_child"
_PAGE: TypeAdapter[PageResult] = TypeAdapter(PageResult)


def made_apart(
    form: str, name: str, pages: Sequence[PageResult], address: Address | None, output: IO[bytes]
) -> str:
    """Make the text of a document in a child process. Raise ``InternalError`` if that fails.

    ``output``: an empty file, closed at the end.
    """
    command, environment = python_module(MODULE, form), _environment()
    with (
        output,
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output) as child,  # noqa: S603 - ours
    ):
        try:
            with child.stdin as given:  # type: ignore[union-attr] # it is a pipe
                # every address ends in the name of its figure
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
    """What a child needs, and no secret: model text is hostile."""
    needed = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return child_environment(Path(tempfile.gettempdir()), needed)


def main(form: str) -> None:
    """Read a document's pages from standard input, and write it to standard output."""
    from app.output.as_docling import docling_document  # noqa: PLC0415 - takes long, in the child alone

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
