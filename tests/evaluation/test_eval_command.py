"""``rtprune eval`` as it is run: three kinds of truth, several tools, going on where a run was cut short."""

import functools
import io
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from service_client import ROOT, serving

from app.evaluation.program import main
from app.evaluation.scores import PageScore
from app.evaluation.truth import TruePage


def annotation(name: str, text: str, language: str) -> dict[str, object]:
    block = {"category_type": "text_block", "order": 1, "anno_id": 1, "ignore": False, "text": text}
    info = {"image_path": f"{name}.jpg", "page_attribute": {"language": language}}
    return {"layout_dets": [block], "page_info": info, "extra": {"relation": []}}


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    file = tmp_path / "truth.json"
    pages = [annotation("one", "abcdefghij", "english"), annotation("two", "klmnopqrst", "german")]
    file.write_text(json.dumps(pages))
    for tool, texts in {
        "right": {"one": "abcdefghij", "two": "klmnopqrst"},
        "half": {"one": "abcde"},
    }.items():
        (tmp_path / tool).mkdir()
        for name, text in texts.items():
            (tmp_path / tool / f"{name}.md").write_text(text)
    return file


def test_tools_are_compared(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = truth.parent
    assert main([str(truth), str(folder / "right"), f"other={folder / 'half'}"]) == 0
    told = capsys.readouterr()
    assert "| text_edit ↓ | 0.000 (0.000 to 0.000) | 0.750 (0.500 to 1.000) |" in told.out
    assert "| language | german | 0.000 | 1.000 |" in told.out
    assert "| pages (missing) | 2 (0) | 2 (1) |" in told.out
    assert "other: 2/2 pages" in told.err
    assert main([str(truth), str(folder / "right"), "--json"]) == 0
    tool = json.loads(capsys.readouterr().out)["tools"]["right"]
    assert tool["scores"]["text_edit"]["value"] == 0
    assert tool["by_page"]["one"] == {"text_edit": 0, "order_edit": 0}


def test_a_later_run_scores_only_what_is_new(
    truth: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = []
    score = TruePage.score

    def counted(page: TruePage, markdown: str) -> PageScore:
        scored.append(page.name)
        return score(page, markdown)

    monkeypatch.setattr(TruePage, "score", counted)
    command = [str(truth), str(truth.parent / "half"), "--out", str(truth.parent / "out")]
    assert main(command) == 0
    kept = truth.parent / "out" / "half.pages.jsonl"
    kept.write_text(kept.read_text() + '{"key": "cut sh')
    first = (truth.parent / "out" / "results.json").read_text()
    assert main(command) == 0
    assert scored == ["one", "two"]
    assert (truth.parent / "out" / "results.json").read_text() == first
    (truth.parent / "half" / "two.md").write_text("klmnopqrst")
    assert main(command) == 0
    assert scored == ["one", "two", "two"]
    capsys.readouterr()


def test_what_is_wrong_is_said_in_one_line(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = truth.parent / "empty"
    empty.mkdir()
    twice = truth.parent / "twice.json"
    twice.write_text(json.dumps([annotation("one", "a", "x"), annotation("one", "b", "x")]))
    for command, said in (
        ([str(empty), str(empty)], "no truth found"),
        ([str(truth.parent / "none"), str(empty)], "no such file"),
        ([str(truth), str(truth.parent / "none")], "no such folder"),
        ([str(truth), str(empty), "--read", "http://localhost:1"], "--documents"),
        ([str(truth), str(empty), str(empty)], "two tools are called 'empty'"),
        ([str(twice), str(empty)], "two pages are called 'one'"),
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err


def test_folders_of_texts_and_of_unit_tests(tmp_path: Path) -> None:
    """Through the program, with nothing of the service imported."""
    texts, tests, read = (tmp_path / name for name in ("texts", "tests", "read"))
    for folder in (texts, tests, read):
        folder.mkdir()
    (texts / "a.txt").write_text("one two")
    (tests / "a.jsonl").write_text('{"pdf": "x/a.pdf", "page": 1, "type": "present", "text": "two"}\n')
    (read / "a.md").write_text("one twa")
    for truth, told in ((texts, "| character_error ↓ | 0.143 |"), (tests, "| tests_passed ↑ | 0.500 |")):
        code = (
            "import sys; from app.program import main; main();"
            "print('torch' in sys.modules, 'fastapi' in sys.modules)"
        )
        command = [sys.executable, "-c", code, "eval", str(truth), str(read)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        assert told in ran.stdout
        assert ran.stdout.endswith("False False\n")


@pytest.mark.parametrize("is_own", [False, True], ids=["elsewhere", "own"])
def test_a_server_reads_what_is_missing(
    truth: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_own: bool,
) -> None:
    documents, read = tmp_path / "documents", tmp_path / "read"
    documents.mkdir()
    read.mkdir()
    (read / "two.md").write_text("klmnopqrst")
    for name in ("one", "two"):
        data = io.BytesIO()
        Image.new("RGB", (64, 64), "white").save(data, "PNG")
        (documents / f"{name}.png").write_bytes(data.getvalue())
    command = [str(truth), str(read), "--documents", str(documents), "--read"]
    if is_own:
        monkeypatch.setenv("RTPRUNE_READER", "fake")
        assert main(command) == 0
    else:
        with serving(tmp_path / "data") as server:
            server.wait_ready()
            assert main([*command, f"http://127.0.0.1:{server.port}"]) == 0
    assert (read / "one.md").exists(), capsys.readouterr().err
    assert (read / "two.md").read_text() == "klmnopqrst", "what is there is not read again"


def test_a_service_of_its_own_that_cannot_read_is_said(
    truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTPRUNE_MODEL", str(tmp_path / "no such checkpoint"))
    monkeypatch.setenv("RTPRUNE_READER", "model")
    assert main([str(truth), str(tmp_path / "read"), "--read", "--documents", str(tmp_path)]) == 2
    assert "the service cannot read: " in capsys.readouterr().err


class BusyServer:
    """A server that is busy once, not finished once, and then has read the pages asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        what = f"{request.method} {request.url.path}"
        self.asked.append(what)
        if request.method == "DELETE":
            return httpx.Response(200)
        if self.asked.count(what) == 1:
            return httpx.Response(409 if what.startswith("GET") else 503, headers={"Retry-After": "0"})
        if request.method == "GET":
            return httpx.Response(200, text="two")
        assert b'name="pages"\r\n\r\n2' in request.content
        return httpx.Response(202, headers={"Location": "/v1/jobs/7"})


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], BusyServer]:
    """The command that has the second page of a document read, and the server that it asks."""
    for name in ("tests", "read", "documents"):
        (tmp_path / name).mkdir()
    (tmp_path / "tests" / "t.jsonl").write_text(
        '{"pdf": "a.pdf", "page": 2, "type": "present", "text": "two"}'
    )
    (tmp_path / "documents" / "a.pdf").write_bytes(b"%PDF-")
    server = BusyServer()
    client = functools.partial(httpx.Client, transport=httpx.MockTransport(server))
    monkeypatch.setattr("app.evaluation.program.httpx.Client", client)
    folders = [str(tmp_path / name) for name in ("tests", "read", "documents")]
    return [*folders[:2], "--read", "http://server", "--documents", folders[2]], server


def test_a_page_of_a_document_is_read_when_the_server_has_time(
    tmp_path: Path, reading: tuple[list[str], BusyServer], capsys: pytest.CaptureFixture[str]
) -> None:
    command, server = reading
    for _ in range(2):
        assert main(command) == 0
        assert "| tests_passed ↑ | 1.000 |" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "read").iterdir()] == ["a_pg2.md"]
    assert server.asked == 2 * ["POST /v1/jobs"] + 2 * ["GET /v1/jobs/7/result"], (
        "the second run asks nothing"
    )


def test_an_interrupted_reading_is_cancelled_and_goes_on_later(
    tmp_path: Path,
    reading: tuple[list[str], BusyServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, server = reading

    def interrupt(_: float) -> None:
        if server.asked[-1].startswith("GET"):
            raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr("app.evaluation.program.time.sleep", interrupt)
        assert main(command) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert server.asked[-1] == "DELETE /v1/jobs/7"
    assert not list((tmp_path / "read").iterdir()), "half a page is no page"
    assert main(command) == 0
    assert "| tests_passed ↑ | 1.000 |" in capsys.readouterr().out
