"""The evaluation's benchmark, with tools that need no model; its table is the one in the docs."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import evaluation
from benchmarks.accuracy.peers import Answer

DOCS = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


class Echo:
    """A peer that reads how wide a page is."""

    name = "echo"
    version = "1"

    def read(self, pages: Sequence[Path]) -> list[Answer]:
        answers = []
        for page in pages:
            with Image.open(page) as image:
                answers.append(Answer(f"{image.width} wide", 0.1))
        return answers


def annotated(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    pages = []
    for name, width in (("one", 30), ("two", 40)):
        Image.new("RGB", (width, 20)).save(folder / "images" / f"{name}.jpg")
        block = {"category_type": "text_block", "order": 1, "anno_id": 1, "text": f"{width} wide"}
        info = {"image_path": f"{name}.jpg", "page_attribute": {"language": "simplified_chinese"}}
        pages.append({"layout_dets": [block], "page_info": info})
    (folder / "truth.json").write_text(json.dumps(pages))
    return folder


def test_ours_and_two_other_tools_are_scored_on_the_same_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents, written, keep = annotated(tmp_path / "set"), tmp_path / "written", tmp_path / "keep"
    written.mkdir()
    (written / "one.md").write_text("30 wide")

    def reading(truth: Path, images: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        for image in images.iterdir():
            (folder / f"{image.stem}.md").write_text("")

    monkeypatch.setattr(evaluation, "_peers", lambda _: [(Echo(), "echo 1")])
    out = tmp_path / "evaluation.json"
    words = [
        "--documents",
        str(documents),
        "--tool",
        f"half={written}",
        "--keep",
        str(keep),
        "--out",
        str(out),
    ]
    evaluation.main(words, ours=reading)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads(out.read_text())
    errors = {name: tool["scores"]["text_edit"]["value"] for name, tool in figures["tools"].items()}
    assert errors == {"pocket checkpoint": 1, "half": 0.5, "echo": 0}
    assert figures["tools"]["half"]["missing"] == 1
    shown = evaluation.table(figures)
    assert shown.startswith("|  | echo | half | pocket checkpoint |"), "best first"
    assert "| `text_edit`, simplified chinese | 0.000 " in shown


def test_a_peer_reads_only_what_is_missing(tmp_path: Path) -> None:
    images = annotated(tmp_path / "set") / "images"
    folder = tmp_path / "read"
    folder.mkdir()
    (folder / "one.md").write_text("as it was")
    evaluation.read_by_peer(Echo(), images, folder)
    assert (folder / "one.md").read_text() == "as it was"
    assert (folder / "two.md").read_text() == "40 wide"


def test_the_table_of_the_docs_is_the_one_that_was_measured() -> None:
    assert evaluation.section(json.loads(evaluation.RESULTS.read_text())) in DOCS.read_text()
