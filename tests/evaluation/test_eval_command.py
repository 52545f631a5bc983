"""``rtprune eval`` as it is run: three kinds of truth, several tools, going on where a run was cut short."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from service_client import A4, PATIENCE_S, ROOT, eventually, image_bytes, pdf_bytes, serving

from app.evaluation import reading
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
        (documents / f"{name}.png").write_bytes(image_bytes())
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
    (tmp_path / "one.png").write_bytes(image_bytes())
    assert main([str(truth), str(tmp_path / "read"), "--read", "--documents", str(tmp_path)]) == 2
    assert "the service cannot read: " in capsys.readouterr().err


def documents_of(tmp_path: Path, num_pages: int) -> tuple[Path, Path]:
    """Unit tests of each page of one PDF, and the folder with the PDF."""
    tests, documents = tmp_path / "tests", tmp_path / "documents"
    for folder in (tests, documents):
        folder.mkdir()
    lines = [
        json.dumps({"pdf": "a.pdf", "page": number, "type": "present", "text": f"Page {number}"})
        for number in range(1, num_pages + 1)
    ]
    (tests / "t.jsonl").write_text("\n".join(lines))
    (documents / "a.pdf").write_bytes(pdf_bytes(*[A4] * num_pages))
    return tests, documents


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_pages_of_a_document_are_read_though_the_server_takes_few_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests, documents = documents_of(tmp_path, 5)
    with serving(tmp_path / "data", max_jobs_per_client=2) as server:
        server.wait_ready()
        command = [str(tests), str(tmp_path / "read"), "--documents", str(documents), "--read"]
        for _ in range(2):
            assert main([*command, f"http://127.0.0.1:{server.port}"]) == 0
            told = capsys.readouterr()
            assert "| tests_passed ↑ | 1.000 " in told.out
        assert len(server.http.get("/v1/jobs").json()["jobs"]) == 5, "the second run asks nothing"
    assert "reading:" not in told.err
    assert names_in(tmp_path / "read") == [f"a_pg{number}.md" for number in range(1, 6)]


def test_tools_are_read_with_options_of_their_own(tmp_path: Path) -> None:
    tests, documents = documents_of(tmp_path, 1)
    tools = [f"{name}={tmp_path / name}" for name in ("first", "second", "theirs")]
    (tmp_path / "theirs").mkdir()
    with serving(tmp_path / "data") as server:
        server.wait_ready()
        command = [str(tests), *tools, "--documents", str(documents)]
        command += ["--read", f"http://127.0.0.1:{server.port}", "--option", 'prompt={"text": "Page 1"}']
        assert main([*command, "--option", 'second:prompt={"text": "nothing"}']) == 0
    texts = [(tmp_path / name / "a_pg1.md").read_text().strip() for name in ("first", "second")]
    assert texts == ["Page 1", "nothing"]
    assert names_in(tmp_path / "theirs") == [], "nobody said how it is read"


def test_what_every_page_would_be_refused_for_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests, documents = documents_of(tmp_path, 3)
    with serving(tmp_path / "data") as server:
        server.wait_ready()
        command = [str(tests), str(tmp_path / "read"), "--documents", str(documents)]
        command += ["--read", f"http://127.0.0.1:{server.port}", "--option"]
        for option, said in (
            ("mode=gigantic", "gigantic"),
            ("colour=red", "colour is no option"),
            ("mode", "NAME=VALUE"),
            ("x:mode=tiny", "of a tool named here"),
        ):
            assert main([*command, option]) == 2
            assert said in capsys.readouterr().err
    assert main([str(tests), str(documents), "--option", "mode=tiny"]) == 2
    assert "needs --read" in capsys.readouterr().err
    assert main([*command[:-1]]) == 2
    assert "no answer" in capsys.readouterr().err


def test_an_interrupted_reading_is_cancelled_and_goes_on_later(tmp_path: Path) -> None:
    tests, documents = documents_of(tmp_path, 3)
    with serving(tmp_path / "data") as server:
        server.wait_ready()
        program = [sys.executable, "-m", "app.program", "eval", str(tests), str(tmp_path / "read")]
        program += ["--documents", str(documents), "--read", f"http://127.0.0.1:{server.port}", "--option"]
        slow = 'prompt={"delay_s": 1000, "delay_on": [1]}'
        with subprocess.Popen([*program, slow], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            eventually(lambda: names_in(tmp_path / "read") == ["a_pg1.md", "a_pg3.md"])
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
            assert process.stderr is not None
            assert "goes on from here" in process.stderr.read()
        assert {job["status"] for job in server.http.get("/v1/jobs").json()["jobs"]} == {
            "succeeded",
            "cancelled",
        }
        ran = subprocess.run([*program, "mode=tiny"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "| tests_passed ↑ | 1.000 " in ran.stdout
        assert len(server.http.get("/v1/jobs").json()["jobs"]) == 4


def test_a_task_that_loses_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CANCEL_AGAIN_S", 0.01)
    num_lost = 0

    async def deaf() -> None:
        nonlocal num_lost
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        num_lost += 1
        await asyncio.Event().wait()

    async def run() -> None:
        task = asyncio.create_task(deaf())
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            await reading._cancelled({task})
        assert task.cancelled()

    asyncio.run(run())
    assert num_lost == 1
