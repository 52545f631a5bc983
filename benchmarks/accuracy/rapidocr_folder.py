"""Read a folder of PNGs with RapidOCR, for an interpreter that has it: ``python rapidocr_folder.py FOLDER``.

Imports nothing of this project, so that RapidOCR may live in an environment of its own. Uses ``rapidocr`` or,
where that is missing, ``rapidocr_onnxruntime``; the models must come with the package. The last line of
stdout is JSON: the version, and text and seconds of each file. Loading the models is not timed.
"""

import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Read = Callable[[str], list[str]]


def find() -> tuple[str, Read]:
    """Return (version, reader of one file). The reader gives lines in RapidOCR's order. Raise
    ``ImportError``.
    """
    try:
        newer: Any = importlib.import_module("rapidocr").RapidOCR()
        return _version("rapidocr"), lambda path: list(newer(path).txts or ())
    except ModuleNotFoundError:
        older: Any = importlib.import_module("rapidocr_onnxruntime").RapidOCR()
        return _version("rapidocr-onnxruntime"), lambda path: [line[1] for line in older(path)[0] or ()]


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def main() -> None:
    version, read = find()
    answers: dict[str, dict[str, object]] = {}
    for path in sorted(Path(sys.argv[1]).glob("*.png")):
        start = time.perf_counter()
        lines = read(str(path))
        answers[path.name] = {"text": "\n".join(lines), "seconds": time.perf_counter() - start}
    print(json.dumps({"version": version, "answers": answers}))


if __name__ == "__main__":
    main()
