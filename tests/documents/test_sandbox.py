"""Decoders see their document, and neither secrets, the network nor the data folder."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from service_client import A4, ROOT, pdf_bytes, serving
from test_rasterize import SETTINGS, run

from app.document import Page
from app.documents.raster import pool as rasterizers_module
from app.documents.raster.pool import Rasterizers
from app.documents.raster.sandbox import KEPT_VARIABLES, Sandbox, decoder_environment, weakest

TRY = """
import json, os, socket, subprocess, sys
from dataclasses import asdict
from pathlib import Path
from app.documents.raster import sandbox

def works(act):
    try:
        act()
    except OSError:
        return False
    return True

document, secret = Path(sys.argv[1]), Path(sys.argv[2])
parent = os.getppid()
{before}
holds = sandbox.confine([document], sandbox.needed(["pdfinfo"]))
print(json.dumps({{
    "holds": asdict(holds),
    "document": works(document.read_bytes),
    "poppler": works(lambda: subprocess.run(["pdfinfo", "-v"], check=True, capture_output=True)),
    "secret": works(secret.read_bytes),
    "folder": works(lambda: os.listdir(secret.parent)),
    "change": works(lambda: document.write_bytes(b"")),
    "environment": works(Path(f"/proc/{{parent}}/environ").read_bytes),
    "signal": works(lambda: os.kill(parent, 0)),
    "socket": works(socket.socket),
    "unix": works(lambda: socket.socket(socket.AF_UNIX)),
}}))
"""
FOR_NOBODY = {"files": ("secret", "folder", "change", "environment"), "network": ("socket", "unix")}


def tried(tmp_path: Path, before: str = "") -> dict[str, Any]:
    """What a confined process can do. ``before``: what it does before it is confined."""
    document, data = tmp_path / "document", tmp_path / "data"
    data.mkdir()
    document.write_bytes(b"%PDF-")
    (data / "secret").write_text("secret")
    command = [sys.executable, "-c", TRY.format(before=before), str(document), str(data / "secret")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_confined_process_reads_its_document_and_nothing_of_ours(tmp_path: Path) -> None:
    found = tried(tmp_path)
    assert found["document"]
    assert found["poppler"]
    for part, acts in FOR_NOBODY.items():
        if found["holds"][part] is None:
            pytest.skip(f"the kernel here confines no {part}")
        assert [act for act in acts if found[act]] == []
    version = int(found["holds"]["files"].removeprefix("landlock "))
    assert not (found["signal"] and version >= 6)


def test_what_the_kernel_refuses_is_left_out_and_said(tmp_path: Path) -> None:
    found = tried(tmp_path, "def refuse(libc): raise OSError\nsandbox._no_new_privileges = refuse")
    assert found.pop("holds") == {"files": None, "network": None, "privileges": None}
    assert all(found.values())


LOOK = """
import sys
from pathlib import Path
from app.documents.raster import sandbox

sandbox.confine([], None)  # as where the kernel has no Landlock
for pid in sys.argv[1:]:
    for name in ("environ", "maps", "fd/0"):
        try:
            Path(f"/proc/{pid}/{name}").open("rb").close()
        except PermissionError:
            continue
        sys.exit(f"{name} of {pid} can be read")
"""


CONFINED = (
    "from app.documents.raster import sandbox; sandbox.confine([], None); {}; print(1, flush=True); input()"
)
PRIVATE = "from app.processes import keep_private; keep_private()"


def can_look(*pids: int) -> bool:
    """Whether a decoder sees environment, memory or files of one of these processes."""
    command = [sys.executable, "-c", LOOK, *map(str, pids)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "can be read" in done.stderr, done.stderr
    return done.returncode != 0


def test_without_landlock_a_decoder_sees_no_secret_of_api_and_worker(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.wait_ready()
        assert not can_look(server.process.pid, server.worker_pid())


@pytest.mark.parametrize(("act", "is_seen"), [("pass", True), (PRIVATE, False)])
def test_a_process_that_keeps_secrets_shows_them_to_nobody_of_its_user(act: str, is_seen: bool) -> None:
    command = [sys.executable, "-c", CONFINED.format(act)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert can_look(process.pid) == is_seen
        process.kill()


def test_what_holds_for_several_workers_is_what_holds_for_each() -> None:
    whole = Sandbox("landlock 6", "seccomp", "no_new_privs")
    partly = Sandbox(None, "seccomp", "no_new_privs")
    assert weakest([whole, whole]) == whole
    assert weakest([whole, partly]) == partly
    assert weakest([whole, None]) is None
    assert weakest([]) is None


def test_decoders_get_no_variable_but_for_a_list() -> None:
    ours = {"DATABASE_URL": "postgresql://user:secret@host", "PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x"}
    assert decoder_environment(ours) == {"PATH": "/bin"}
    assert not [name for name in KEPT_VARIABLES if "RTPRUNE" in name or "PYTHON" in name]


SPY = """#!/bin/bash
# a decoder that was taken over: each thing that it could do is a page more
if [ "$1" = -v ]; then exit 0; fi
pages=1
cat {secret} >/dev/null 2>&1 && pages=$((pages + 1))
ls {data} >/dev/null 2>&1 && pages=$((pages + 2))
(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && pages=$((pages + 4))
env | grep -q RTPRUNE_SPY && pages=$((pages + 8))
cat /proc/{pid}/environ >/dev/null 2>&1 && pages=$((pages + 16))
touch {data}/new 2>/dev/null && pages=$((pages + 32))
echo "Pages: $pages"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="the spy is written for bash")
def test_a_program_that_was_taken_over_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "secret").write_text("secret")
    (data / "document").write_bytes(pdf_bytes(A4))
    with socket.create_server(("127.0.0.1", 0)) as server:
        spy = tmp_path / "programs" / "pdfinfo"
        spy.parent.mkdir()
        places = {"secret": data / "secret", "data": data, "port": server.getsockname()[1]}
        spy.write_text(SPY.format(**places, pid=os.getpid()))
        spy.chmod(0o755)
        monkeypatch.setenv("PATH", f"{spy.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("RTPRUNE_SPY", "secret")

        async def work(rasterizers: Rasterizers) -> tuple[int, Sandbox | None]:
            return await rasterizers.count(data / "document", "PDF"), rasterizers.sandbox

        could, sandbox = run(tmp_path, work)
    assert sandbox is not None
    may = (0 if sandbox.files else 1 + 2 + 16 + 32) | (0 if sandbox.network else 4)
    assert (could - 1) & ~may == 0


REFUSED = {
    "nothing is to be had": ("sandbox._tried = lambda confining: None", Sandbox()),
    "poppler is in a place that is not known": ("confined.needed = lambda programs: ()", None),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_pages_are_read_where_decoders_cannot_be_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    change, expected = REFUSED[kind]
    child = tmp_path / "child.py"
    child.write_text(f"from app.documents.raster import confined, sandbox\n{change}\nconfined.main()\n")
    monkeypatch.setattr(
        rasterizers_module, "python_module", lambda _, *arguments: [sys.executable, str(child), *arguments]
    )
    (tmp_path / "document").write_bytes(pdf_bytes(A4))

    async def work(rasterizers: Rasterizers) -> tuple[Page, Sandbox | None]:
        return await rasterizers.page(tmp_path / "document", "PDF", 0, 72), rasterizers.sandbox

    page, sandbox = run(tmp_path, work, SETTINGS.model_copy(update={"num_rasterizers": 1}))
    assert page.image.size == (595, 842)
    assert sandbox is not None
    assert sandbox.files is None
    assert expected in {None, sandbox}


def doctor(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RTPRUNE_DATA_DIR": str(tmp_path), **variables}
    command = [sys.executable, "-m", "app.program", "doctor"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_doctor_says_what_there_is(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line[5:].split(": ", 1) for line in done.stdout.splitlines())
    parts = {f"sandbox, {part}" for part in ("files", "network", "privileges")}
    machine = {"versions", "poppler", "fonts", "memory", "descriptors", "data folder", "temporary folder"}
    assert set(said) - {"cuda"} == machine | parts | {"packages", "gpu", "checkpoint"}
    assert "all files whole" in said["checkpoint"]
    assert "SQLite 3." in said["versions"]
    assert "rasterizers" in said["memory"]


def test_the_doctor_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = doctor(
        tmp_path, PATH=str(tmp_path), RTPRUNE_MODEL=str(tmp_path), RTPRUNE_DEVICE="cuda", RTPRUNE_MODLE="x"
    )
    assert done.returncode == 1
    assert "fail poppler: pdfinfo, pdftoppm" in done.stdout
    assert "[mend: apt-get install poppler-utils poppler-data]" in done.stdout
    assert "warn settings: RTPRUNE_MODLE is no setting" in done.stdout
    assert "fail gpu: " in done.stdout
    assert re.search(r"fail checkpoint: .*safetensors", done.stdout)
    assert "Traceback" not in done.stderr
