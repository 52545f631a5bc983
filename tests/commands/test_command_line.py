"""``rtprune parse`` and its siblings, as a person runs them."""

import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from service_client import A4, PATIENCE_S, ROOT, Server, eventually, image_bytes, pdf_bytes, serving

from app.commands.inputs import find_inputs
from app.commands.results import JOURNAL, ResultFolder

COMMAND = [sys.executable, "-m", "app.program"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as started:
        yield started.wait_ready()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two documents with one stem, one of the same name below, one that is broken, one that is none."""
    documents = tmp_path / "documents"
    (documents / "below").mkdir(parents=True)
    (documents / "report.pdf").write_bytes(pdf_bytes(A4, A4))
    (documents / "report.png").write_bytes(image_bytes())
    (documents / "below" / "report.pdf").write_bytes(pdf_bytes(A4))
    (documents / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (documents / "notes.txt").write_text("no document")
    return documents


def environment(server: Server | None = None) -> dict[str, str]:
    elsewhere = {"RTPRUNE_SERVER": f"http://127.0.0.1:{server.port}"} if server else {}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "RTPRUNE_READER": "fake", **elsewhere}


def rtprune(
    folder: Path, *arguments: str, server: Server | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(server),
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_folder_is_read_by_a_service_of_its_own_that_leaves_nothing_behind(folder: Path) -> None:
    done = rtprune(folder, "parse", ".", "-o", "out", "--jobs", "2")
    assert done.returncode == 1
    assert "broken.pdf: " in done.stderr
    assert "report.png: out/report.png.md" in done.stderr
    results = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.md")}
    assert results == {"report.pdf.md", "report.png.md", "below/report.pdf.md"}
    assert "# Page 2" in (folder / "out" / "report.pdf.md").read_text()
    assert {path.name for path in folder.iterdir()} == {
        *("report.pdf", "report.png", "below", "broken.pdf", "notes.txt", "out")
    }
    # what is done is left out, what failed is tried again
    again = rtprune(folder, "parse", ".", "-o", "out")
    assert again.returncode == 1
    assert "left out what is done: 3" in again.stderr
    assert "out/report" not in again.stderr


def test_answers_on_standard_output_are_told_apart_and_in_order(folder: Path, server: Server) -> None:
    names = ("report.pdf", "broken.pdf", "missing.pdf", "report.png")
    done = rtprune(folder, "parse", *names, "-", server=server, stdin=image_bytes())
    assert done.returncode == 1
    assert re.findall(r"==> (.*) <==", done.stdout) == ["report.pdf", "report.png", "standard input"]
    assert "missing.pdf: No such file or directory" in done.stderr
    alone = rtprune(folder, "parse", "report.png", "--format", "text", server=server)
    assert (alone.returncode, alone.stdout) == (0, "Page 1\n\n60 x 40 pixels\n")
    files = rtprune(folder, "parse", "report.png", "report.pdf", "--format", "zip", server=server)
    assert (files.returncode, files.stdout) == (2, "")
    lines = rtprune(folder, "parse", "report.pdf", "report.png", "--json", server=server).stdout
    assert [line[:6] for line in lines.splitlines()] == ['{"id":', '{"id":']


def test_the_commands_of_the_documentation_run(tmp_path: Path, server: Server) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    [commands] = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "cli.md").read_text(), re.DOTALL)
    script = f'rtprune() {{ {shlex.join(COMMAND)} "$@"; }}\n{commands}'
    bash = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        bash, cwd=tmp_path, env=environment(server), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "results").glob("sample*")} == {
        *("sample.pdf.md", "sample.pdf.json", "sample.pdf.html")
    }


def test_a_reader_who_has_had_enough_is_no_error(folder: Path, server: Server) -> None:
    line = (
        " ".join(map(shlex.quote, COMMAND))
        + " parse report.pdf report.png | head -c 1; echo ${PIPESTATUS[0]}"
    )
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(server), capture_output=True, text=True, check=True
    )
    assert (done.stdout.splitlines()[-1], done.stderr) in {("=141", ""), ("=0", "")}


def test_a_terminal_shows_a_bar(folder: Path, server: Server) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    with subprocess.Popen(
        [*COMMAND, "parse", "report.pdf", "-o", "out"],
        cwd=folder,
        env=environment(server),
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:
            pass  # the terminal is gone with its last user
        assert process.wait(PATIENCE_S) == 0
    os.close(ours)
    assert b"2/2" in shown
    assert b"1 of 1 documents" in shown


def test_what_is_interrupted_ends_its_jobs_and_goes_on_later(folder: Path, server: Server) -> None:
    slow = ["parse", "report.pdf", "-o", "out", "--prompt", '{"delay_s": 100}']
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(
            [*COMMAND, *slow], cwd=folder, env=environment(server), stderr=subprocess.PIPE, text=True
        ) as process:
            [job] = eventually(lambda: server.http.get("/v1/jobs?status=running").json()["jobs"])
            process.send_signal(number)
            _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == status
        assert "Traceback" not in said
        assert server.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
    assert [path.name for path in (folder / "out").iterdir()] == []


def test_results_of_inputs_with_one_name_are_named_apart(folder: Path) -> None:
    arguments = [str(folder / "report.pdf"), str(folder / "below"), str(folder / "report.pdf")]
    inputs, num_others = find_inputs(arguments, None)
    names = [str(one.result) for one in inputs]
    assert len(set(names)) == len(names) == 2
    assert all(re.fullmatch(r"report\.pdf-[0-9a-f]{8}", name) for name in names)
    assert [str(one.result) for one in find_inputs([arguments[0]], None)[0]] == ["report.pdf"]
    urls = [
        "https://example.com/a/..%2F..%2Fetc%2Fpasswd",
        "https://example.com/",
        "https://example.com/.x?y",
    ]
    found, num_others = find_inputs(urls, None)
    assert [str(one.result) for one in found] == ["_.._etc_passwd", "example.com", "x"]
    assert num_others == 0


def test_a_result_is_done_while_its_input_and_its_options_stay(folder: Path) -> None:
    [one] = find_inputs([str(folder / "report.pdf")], None)[0]
    out = folder / "out"
    results = ResultFolder(out, ".md", {"pages": "1"})
    (out / "report.pdf.md").write_text("a file of somebody's")
    assert results.is_foreign(one)
    assert not results.is_done(one)
    assert results.write(one, b"partial", is_whole=False).read_bytes() == b"partial"
    assert not ResultFolder(out, ".md", {"pages": "1"}).is_done(one)
    results.write(one, b"whole", is_whole=True)
    with (out / JOURNAL).open("a") as file:
        file.write('{"result": "half a li')
    again = ResultFolder(out, ".md", {"pages": "1"})
    assert again.is_done(one)
    assert not again.is_foreign(one)
    assert not ResultFolder(out, ".md", {"pages": "2"}).is_done(one)
    (folder / "report.pdf").write_bytes(pdf_bytes(A4))
    assert not again.is_done(one)


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = rtprune(tmp_path, "serve", "--port", port)
    assert done.returncode == 2
    assert f"port {port}: Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert rtprune(tmp_path, "--version").stdout == f"rtprune {version('rtprune')}\n"
